"""A student, or any model of the HuBERT family, as an s3prl upstream."""

from __future__ import annotations

from pathlib import Path

import torch
from s3prl.upstream.interfaces import UpstreamBase
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_kd.encoder import Encoder, repeat_last_frame

# Samples: MIN_SECOND of s3prl.nn.upstream.
SHORTEST = 800


class UpstreamExpert(UpstreamBase):
    """s3prl's view of a directory in transformers' format.

    Args:
        ckpt: the directory.
    """

    def __init__(self, ckpt: str | Path, **kwargs) -> None:
        super().__init__(**kwargs)
        self.encoder = Encoder.from_pretrained(ckpt)

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples at 16 kHz per frame."""
        return 320

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor] | Tensor]:
        """Hidden states of a list of utterances.

        Args:
            wavs: each (samples,) at 16 kHz; one shorter than 0.05 s is extended with zeros to
                that, as ``S3PRLUpstream`` does with a batch of nothing else.

        Returns:
            ``hidden_states``: per layer (batch, frames, hidden_size), the first being the input
            of the first transformer layer; ``last_hidden_state``. s3prl counts one frame for
            every 320 samples begun, one more than the convolutions give, and fills up with the
            last frame; so every utterance's last frame is repeated to the end of the batch, and
            it reads the same whoever shares the batch.
        """
        shortest = max(self.encoder.min_samples, SHORTEST)
        wavs = [torch.nn.functional.pad(wav, (0, max(0, shortest - len(wav)))) for wav in wavs]
        lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        hidden, frames = self.encoder(pad_sequence(wavs, batch_first=True), lengths)
        if bool((frames != hidden[0].size(1)).any()):
            hidden = [repeat_last_frame(state, frames) for state in hidden]
        return {"hidden_states": list(hidden), "last_hidden_state": hidden[-1]}
