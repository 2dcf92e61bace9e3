"""HuBERT-family models whose hidden states do not depend on padding.

In a padded batch the Base models of the family (HuBERT, wav2vec 2.0, WavLM) give an utterance
other hidden states than it has alone: the group norm after the first convolution, one group per
channel, takes its mean and variance over the padding too. :class:`Encoder` takes them over each
utterance's own samples. data2vec's stacked positional convolutions spread speech into the
padding and back; there the padding is zeroed between the convolutions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)

from s3prl_kd.errors import UserError

SAMPLE_RATE = 16000
MODEL_TYPES = ("hubert", "wav2vec2", "wavlm", "data2vec-audio", "unispeech-sat", "unispeech")


class ValidGroupNorm(nn.GroupNorm):
    """Group norm of one channel per group, over each utterance's valid frames only.

    Takes the place of ``nn.GroupNorm(C, C)``; same parameters, same result for an unpadded batch.
    :attr:`valid` holds the number of valid frames of each utterance, LongTensor (batch,), or None
    for a batch without padding; :meth:`Encoder.forward` sets it.
    """

    valid: Tensor | None = None

    @classmethod
    def like(cls, norm: nn.GroupNorm) -> ValidGroupNorm:
        """The same norm with the same parameters (shared, not copied)."""
        new = cls(norm.num_groups, norm.num_channels, eps=norm.eps, affine=norm.affine)
        new.weight, new.bias = norm.weight, norm.bias
        return new

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (batch, channels, frames); padding comes out as finite junk."""
        if self.valid is None:
            return super().forward(input)
        x = input.float()
        mask = torch.arange(x.size(-1), device=x.device) < self.valid[:, None, None]
        count = self.valid[:, None, None].to(x.dtype)
        mean = x.masked_fill(~mask, 0).sum(-1, keepdim=True) / count
        centred = (x - mean).masked_fill(~mask, 0)
        var = centred.square().sum(-1, keepdim=True) / count
        y = centred * torch.rsqrt(var + self.eps)
        if self.affine:
            y = y * self.weight[:, None].float() + self.bias[:, None].float()
        return y.to(input.dtype)


class _ValidPositionalLayer(nn.Module):
    """One of data2vec's positional convolutions, with the padding zeroed before it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.valid: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.valid is not None:
            frames = torch.arange(hidden_states.size(-1), device=hidden_states.device)
            hidden_states = hidden_states.masked_fill(frames >= self.valid[:, None, None], 0)
        return self.layer(hidden_states)


class Encoder(nn.Module):
    """A transformers HuBERT, wav2vec 2.0, WavLM or data2vec model, exact under padding.

    Args:
        model: the model; changed in place: its SpecAugment and layer drop are turned off, so that
            training mode differs from evaluation by dropout alone.
        normalize: whether each utterance is brought to zero mean and unit variance first.
    """

    def __init__(self, model: PreTrainedModel, normalize: bool = False) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize
        config = model.config
        config.apply_spec_augment = False
        config.layerdrop = 0.0
        self._norms: list[ValidGroupNorm] = []
        for layer in model.feature_extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                layer.layer_norm = ValidGroupNorm.like(norm)
                self._norms.append(layer.layer_norm)
        self._positional: list[_ValidPositionalLayer] = []
        if config.model_type == "data2vec-audio":
            layers = model.encoder.pos_conv_embed.layers
            # The model's own list is wrapped for the forward only, so that the names in its state
            # dict, and with them the saved format, stay transformers'.
            self._positional = [_ValidPositionalLayer(layer) for layer in layers]

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Encoder:
        """Open a directory that transformers wrote.

        Raises:
            UserError: not such a directory, another kind of model, or a damaged file.
        """
        directory = Path(directory)
        try:
            config = AutoConfig.from_pretrained(directory, local_files_only=True)
            if config.model_type not in MODEL_TYPES:
                raise UserError(
                    f"{directory}: a model of type {config.model_type!r}; "
                    f"expected one of {', '.join(MODEL_TYPES)}"
                )
            model, report = AutoModel.from_pretrained(
                directory, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except UserError:
            raise
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UserError(f"{directory}: cannot be opened as a model ({first})") from error
        unset = [key for key in report["missing_keys"] if "masked_spec_embed" not in key]
        if unset or report["mismatched_keys"]:
            raise UserError(
                f"{directory}: the weights are not of the architecture in config.json "
                f"({len(unset)} missing, {len(report['mismatched_keys'])} of another shape); "
                "make the directory again"
            )
        normalize = False
        if (directory / "preprocessor_config.json").exists():
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(directory, local_files_only=True)
            if extractor.sampling_rate != SAMPLE_RATE:
                raise UserError(
                    f"{directory}: made for {extractor.sampling_rate} Hz; this recipe is 16 kHz"
                )
            normalize = extractor.do_normalize
        return cls(model, normalize)

    @classmethod
    def from_config(cls, config: PretrainedConfig, normalize: bool = False) -> Encoder:
        """A model of this architecture with random weights."""
        return cls(AutoModel.from_config(config), normalize)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``."""
        self.model.save_pretrained(directory, safe_serialization=True)
        Wav2Vec2FeatureExtractor(
            feature_size=1,
            sampling_rate=SAMPLE_RATE,
            padding_value=0.0,
            do_normalize=self.normalize,
            return_attention_mask=True,
        ).save_pretrained(directory)

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

    @property
    def num_layers(self) -> int:
        """Transformer layers; there is one hidden state more."""
        return self.config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.config.hidden_size

    @property
    def min_samples(self) -> int:
        """Samples under one frame: the shortest input, 400 (25 ms) for this family."""
        samples = 1
        for kernel, stride in zip(
            reversed(self.config.conv_kernel), reversed(self.config.conv_stride), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples

    def frames(self, lengths: Tensor) -> Tensor:
        """Frames (50 Hz) of utterances of ``lengths`` samples; both LongTensor (batch,)."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return lengths

    def forward(self, wavs: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """All hidden states of a batch.

        Args:
            wavs: (batch, samples) at 16 kHz, padded at the end with anything.
            lengths: LongTensor (batch,), valid samples of each, at least :attr:`min_samples`.

        Returns:
            ``num_layers + 1`` tensors (batch, frames, hidden_size), the first being the input of
            the first transformer layer; and the valid frames of each utterance, (batch,). Frames
            past an utterance's end are junk.
        """
        lengths = lengths.to(wavs.device)
        padded = bool((lengths != wavs.size(1)).any())
        valid = torch.arange(wavs.size(1), device=wavs.device) < lengths[:, None]
        if padded:
            wavs = wavs.masked_fill(~valid, 0)
        if self.normalize:
            wavs = _normalize(wavs, lengths, valid)
        kernel, stride = self.config.conv_kernel[0], self.config.conv_stride[0]
        frames = self.frames(lengths)
        first = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        original = None
        for norm in self._norms:
            norm.valid = first if padded else None
        for layer in self._positional:
            layer.valid = frames if padded else None
        if self._positional and padded:
            original = self.model.encoder.pos_conv_embed.layers
            self.model.encoder.pos_conv_embed.layers = nn.ModuleList(self._positional)
        try:
            output = self.model(
                wavs,
                attention_mask=valid.long() if padded else None,
                output_hidden_states=True,
            )
        finally:
            for norm in self._norms:
                norm.valid = None
            if original is not None:
                self.model.encoder.pos_conv_embed.layers = original
        return output.hidden_states, frames


def _normalize(wavs: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
    # The constants of transformers' Wav2Vec2FeatureExtractor.
    count = lengths[:, None].to(wavs.dtype)
    mean = wavs.sum(1, keepdim=True) / count
    centred = (wavs - mean).masked_fill(~valid, 0)
    return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / count + 1e-7)


def repeat_last_frame(hidden: Tensor, frames: Tensor) -> Tensor:
    """Fill the frames past each utterance's end with its last valid frame.

    Args:
        hidden: (batch, frames, dim).
        frames: LongTensor (batch,), valid frames.
    """
    index = torch.arange(hidden.size(1), device=hidden.device)[None].minimum(frames[:, None] - 1)
    return hidden.gather(1, index[:, :, None].expand_as(hidden))


def parameters_of(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def masked_mean(values: Tensor, frames: Tensor) -> Tensor:
    """Mean over the valid frames of a batch.

    Args:
        values: (batch, frames).
        frames: LongTensor (batch,), valid frames.
    """
    mask = torch.arange(values.size(1), device=values.device) < frames[:, None]
    return values.masked_fill(~mask, 0).sum() / mask.sum()
