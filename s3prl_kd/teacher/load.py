"""A teacher by name: a frozen model with hidden states."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from s3prl_kd.encoder import Encoder, parameters_of
from s3prl_kd.errors import UserError


class Teacher(nn.Module):
    """A frozen model, whatever it is, with hidden states that padding does not change.

    Attributes:
        name: the name it was asked for by.
        encoder: the model as an :class:`~s3prl_kd.encoder.Encoder`, or None for an upstream of
            another kind, which can be distilled from but cannot initialise a student.
    """

    name: str
    encoder: Encoder | None
    num_layers: int
    hidden_size: int

    def keep_layers(self, deepest: int) -> None:
        """Drop the layers above hidden state ``deepest``, where that changes nothing below."""

    def forward(self, wavs: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """As :meth:`s3prl_kd.encoder.Encoder.forward`."""
        raise NotImplementedError


class EncoderTeacher(Teacher):
    """A teacher of the HuBERT family."""

    def __init__(self, name: str, encoder: Encoder) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.num_layers, self.hidden_size = encoder.num_layers, encoder.hidden_size
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> EncoderTeacher:
        # A teacher's dropout stays off whatever the training loop switches.
        return super().train(False)

    def keep_layers(self, deepest: int) -> None:
        # A pre-norm model ends in a layer norm that only its last hidden state passes.
        if not self.encoder.config.do_stable_layer_norm:
            del self.encoder.model.encoder.layers[deepest:]

    def forward(self, wavs: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        return self.encoder(wavs, lengths)


class UpstreamTeacher(Teacher):
    """Any other s3prl upstream; utterances of one length go through it together.

    Nothing is known about what padding does inside it, so it is never given any.
    """

    def __init__(self, name: str, upstream: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.encoder = None
        self.upstream = upstream
        self.num_layers = upstream.num_layers - 1
        sizes, rates = set(upstream.hidden_sizes), set(upstream.downsample_rates)
        if len(sizes) > 1 or rates != {320}:
            raise UserError(
                f"teacher {name!r}: its hidden states are {sorted(sizes)} wide, one per "
                f"{sorted(rates)} samples; a teacher needs one width and one per 320 samples"
            )
        self.hidden_size = sizes.pop()
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> UpstreamTeacher:
        return super().train(False)

    def forward(self, wavs: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        groups: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths.tolist()):
            groups[length].append(index)
        frames = torch.div(lengths - 400, 320, rounding_mode="floor") + 1
        shape = (len(wavs), int(frames.max()), self.hidden_size)
        hidden = [wavs.new_zeros(shape) for _ in range(self.num_layers + 1)]
        for length, members in groups.items():
            states, _ = self.upstream(wavs[members, :length], lengths[members])
            count = int(frames[members[0]])
            for layer, state in zip(hidden, states, strict=True):
                layer[members, :count] = state[:, :count].to(layer.dtype)
        return tuple(hidden), frames


def load_teacher(name: str, expdir: str | Path = "exp") -> Teacher:
    """Open a teacher.

    Args:
        name: the path of a directory in transformers' format; the name of one under ``expdir``;
            or the name of any s3prl upstream, whose weights s3prl fetches.
        expdir: where the recipe keeps its models.

    Raises:
        UserError: there is no such name, or it cannot be opened.
    """
    for directory in (Path(name), Path(expdir) / name):
        if (directory / "config.json").exists():
            return EncoderTeacher(name, Encoder.from_pretrained(directory))
    if Path(name).is_dir():
        raise UserError(f"{name}: no config.json; expected a model in transformers' format")
    from s3prl_kd.teacher.convert import from_s3prl
    from s3prl_kd.upstream import load_upstream

    upstream = load_upstream(name, expdir)
    encoder = from_s3prl(upstream.upstream)
    return EncoderTeacher(name, encoder) if encoder else UpstreamTeacher(name, upstream)


def describe(teacher: Teacher) -> str:
    """One line: name, parameters, layers and width."""
    return (
        f"{teacher.name}: {parameters_of(teacher) / 1e6:.2f} M parameters, "
        f"{teacher.num_layers} layers, {teacher.hidden_size} wide"
    )
