"""Utterances as tensors, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from s3prl_kd.data.audio import SAMPLE_RATE
from s3prl_kd.data.kaldi import DataDir


class SpeechDataset(Dataset):
    """The utterances of a data dir.

    An item is ``{"utt": str, "wav": FloatTensor (samples,)}`` at 16 kHz.

    Args:
        data: a data dir or its path.
        max_seconds: a longer utterance is cut to a stretch of this length, another one each
            epoch, chosen by ``seed``, epoch and utterance alone.
        seed: see there.

    Attributes:
        data: the data dir.
        utts: ids, in the items' order.
        lengths: samples of each item.
    """

    def __init__(
        self, data: DataDir | str | Path, max_seconds: float | None = None, seed: int = 0
    ) -> None:
        self.data = data if isinstance(data, DataDir) else DataDir(data)
        self.utts = self.data.utts
        self.seed = seed
        self.epoch = 0
        self._limit = round(max_seconds * SAMPLE_RATE) if max_seconds else None
        counts = [self.data.num_samples[utt] for utt in self.utts]
        self.lengths = [min(count, self._limit or count) for count in counts]

    def set_epoch(self, epoch: int) -> None:
        """Choose the stretches of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.utts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        utt = self.utts[index]
        wav = torch.from_numpy(self.data.read(utt))
        if self._limit is not None and len(wav) > self._limit:
            key = f"{self.seed} {self.epoch} {utt}".encode()
            draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
            start = draw % (len(wav) - self._limit + 1)
            wav = wav[start : start + self._limit]
        return {"utt": utt, "wav": wav}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items.

    Returns:
        ``utts``: list of str; ``wavs``: (batch, samples), zero-padded at the end; ``lengths``:
        LongTensor (batch,), samples.
    """
    return {
        "utts": [item["utt"] for item in items],
        "wavs": pad_sequence([item["wav"] for item in items], batch_first=True),
        "lengths": torch.tensor([len(item["wav"]) for item in items]),
    }
