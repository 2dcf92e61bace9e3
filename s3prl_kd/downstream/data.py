"""What downstream training and scoring read: labelled utterances, or their hidden states."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from s3prl_kd.data.audio import SAMPLE_RATE
from s3prl_kd.data.kaldi import DataDir
from s3prl_kd.data.sampler import BatchStream, ChunkedBatchSampler
from s3prl_kd.downstream.config import DownstreamConfig
from s3prl_kd.errors import UserError
from s3prl_kd.files import read_json

if TYPE_CHECKING:
    from s3prl.nn import S3PRLUpstream

    from s3prl_kd.downstream.tasks import Task

GIGABYTE = 2**30


class TaskDataset(Dataset):
    """The utterances of a data dir with labels; ``dataset[index]`` or ``dataset[index, draw]``.

    Args:
        data: the data dir.
        targets: each utterance's label; one without (a speaker unseen in training) gets -1.
        classes: labels in the order of their indices.
        min_samples: shorter utterances are repeated to this length, as the head needs.
        max_samples: longer ones are cut to a piece this long, at a place drawn from ``seed``, the
            utterance and ``draw``.
        drop_below: utterances with fewer samples are left out.

    Attributes:
        utts, lengths: utterance ids, and their lengths in samples.
        hidden: hidden states by utterance, each (layers, frames, size), once they are cached.
    """

    def __init__(
        self,
        data: DataDir,
        targets: Mapping[str, str],
        classes: Sequence[str],
        *,
        min_samples: int = 1,
        max_samples: int | None = None,
        drop_below: int = 0,
        seed: int = 0,
    ) -> None:
        self.data = data
        self.utts = [utt for utt in data.utts if data.num_samples[utt] >= drop_below]
        if not self.utts:
            raise UserError(
                f"{data.path}: no utterance has {drop_below / SAMPLE_RATE:.2f} s or more; "
                "set a smaller sv.min_seconds"
            )
        self.max_samples = max_samples
        self.min_samples = min_samples
        full = [data.num_samples[utt] for utt in self.utts]
        self.cuts = max_samples is not None and max(full) > max_samples
        longest = max_samples or max(full)
        self.lengths = [min(max(length, min_samples), longest) for length in full]
        index = {label: place for place, label in enumerate(classes)}
        self.labels = [index.get(targets[utt], -1) for utt in self.utts]
        self.seed = seed
        self.hidden: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.utts)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        index, draw = index if isinstance(index, tuple) else (index, 0)
        utt = self.utts[index]
        item = {"utt": utt, "label": self.labels[index], "length": self.lengths[index]}
        if utt in self.hidden:
            return {**item, "hidden": self.hidden[utt]}
        return {**item, "wav": self._wav(utt, index, draw)}

    def _wav(self, utt: str, index: int, draw: int) -> torch.Tensor:
        wav = self.data.read(utt)
        if self.max_samples is not None and len(wav) > self.max_samples:
            generator = np.random.default_rng((self.seed, index, draw))
            start = int(generator.integers(len(wav) - self.max_samples + 1))
            wav = wav[start : start + self.max_samples]
        if len(wav) < self.min_samples:
            wav = np.resize(wav, self.min_samples)
        return torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32))


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of :class:`TaskDataset` items, zero padded.

    Returns:
        ``utts`` list of ids, ``labels`` (batch,), and either ``wavs`` (batch, samples) with
        ``lengths`` (batch,) in samples, or ``hidden`` (layers, batch, frames, size) with
        ``hidden_lengths`` (batch,) in frames.
    """
    batch: dict[str, Any] = {
        "utts": [item["utt"] for item in items],
        "labels": torch.tensor([item["label"] for item in items]),
    }
    if "hidden" in items[0]:
        states = [item["hidden"] for item in items]
        batch["hidden_lengths"] = torch.tensor([state.size(1) for state in states])
        padded = pad_sequence([state.transpose(0, 1) for state in states], batch_first=True)
        batch["hidden"] = padded.permute(2, 0, 1, 3)
    else:
        wavs = [item["wav"] for item in items]
        batch["lengths"] = torch.tensor([len(wav) for wav in wavs])
        batch["wavs"] = pad_sequence(wavs, batch_first=True)
    return batch


class DrawingSampler(Sampler):
    """Batches of ``(index, draw)`` where the draw is the epoch: cuts differ from one to the next.

    The epoch travels with the index, so that worker processes know it too.
    """

    def __init__(self, batches: ChunkedBatchSampler) -> None:
        self.batches = batches
        self.epoch = 0

    @property
    def sampler(self) -> DrawingSampler:
        # Where Lightning looks for a set_epoch.
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(index, self.epoch) for index in batch]


def equal_length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches without padding: only utterances of exactly one length share a batch.

    So what an utterance scores does not depend on the others, for any upstream. Shortest first.
    """
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        groups.setdefault(lengths[index], []).append(index)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


def train_loader(
    dataset: TaskDataset, batch_size: int, batches: int, seed: int, workers: int = 0
) -> DataLoader:
    """``batches`` shuffled batches per epoch."""
    stream = BatchStream(dataset.lengths, batch_size=batch_size, seed=seed)
    sampler = DrawingSampler(ChunkedBatchSampler(stream, batches))
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)


def eval_loader(dataset: TaskDataset, batch_size: int = 32, workers: int = 0) -> DataLoader:
    """Every utterance once, in batches without padding."""
    batches = equal_length_batches(dataset.lengths, batch_size)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers)


def open_split(root: Path, split: str) -> DataDir:
    """A data dir under a dataset dir, told in one line if it is not there."""
    if not (root / split / "wav.scp").is_file():
        raise UserError(f"{root / split}: no data dir here; run stage 1 (data preparation)")
    return DataDir(root / split)


def read_corpus(root: str | Path) -> dict[str, Any]:
    """The content of a dataset dir's ``corpus.json``."""
    path = Path(root) / "corpus.json"
    try:
        return read_json(path)
    except (OSError, ValueError):
        raise UserError(f"{path}: cannot be read; run stage 1 (data preparation)") from None


def task_labels(root: Path, task: str) -> list[str]:
    """KWS: the corpus' classes; SV: the training speakers. In the order of indices."""
    if task == "kws":
        return list(read_corpus(root)["classes"])
    return sorted(set(open_split(root, "sv_train").utt2spk.values()))


def min_samples(task: Task) -> int:
    """The shortest waveform of which ``task``'s head gets enough frames."""
    return (task.min_frames - 1) * task.featurizer.downsample_rate + 1


def open_task(
    root: Path, split: str, task: Task, labels: Sequence[str], config: DownstreamConfig, seed: int
) -> TaskDataset:
    """The dataset of ``<task>_<split>``, with the SV head's cuts and limits in training."""
    data = open_split(root, f"{task.name}_{split}")
    if task.name == "kws":
        for utt, label in data.text.items():
            if label not in labels:
                raise UserError(
                    f"{data.path / 'text'}: {utt}: {label!r} is not among the classes of "
                    f"{root / 'corpus.json'}"
                )
        return TaskDataset(data, data.text, labels, min_samples=min_samples(task), seed=seed)
    training = split == "train"
    return TaskDataset(
        data,
        data.utt2spk,
        labels,
        min_samples=min_samples(task),
        max_samples=int(config.sv.max_seconds * SAMPLE_RATE) if training else None,
        drop_below=int(config.sv.min_seconds * SAMPLE_RATE) if training else 0,
        seed=seed,
    )


def cache_hidden_states(
    upstream: S3PRLUpstream,
    datasets: Sequence[TaskDataset],
    limit_gb: float,
    device: torch.device | str = "cpu",
) -> bool:
    """Compute every utterance's hidden states once, in eval mode, and keep them in main memory.

    Datasets of which pieces are cut are left alone: a piece's hidden states are its own.

    Returns:
        Whether they were computed; False, with a line that says so, if they exceed ``limit_gb``.
    """
    cut = [dataset for dataset in datasets if dataset.cuts]
    for dataset in cut:
        print(f"{dataset.data.path}: pieces are cut, so hidden states are not kept", flush=True)
    whole = [dataset for dataset in datasets if not dataset.cuts]
    per_sample = sum(
        size / rate
        for size, rate in zip(upstream.hidden_sizes, upstream.downsample_rates, strict=True)
    )
    need = 4 * per_sample * sum(sum(dataset.lengths) for dataset in whole) / GIGABYTE
    if need > limit_gb:
        print(
            f"hidden states would take {need:.1f} GB of memory, above cache_limit_gb "
            f"{limit_gb:g}: they are computed in every step",
            flush=True,
        )
        return False
    began = time.monotonic()
    upstream.eval().to(device)
    with torch.inference_mode():
        for dataset in whole:
            hidden = {}
            for batch in eval_loader(dataset):
                states, lengths = upstream(batch["wavs"].to(device), batch["lengths"].to(device))
                stacked = torch.stack([state.float() for state in states]).cpu()
                for place, (utt, frames) in enumerate(zip(batch["utts"], lengths[0], strict=True)):
                    hidden[utt] = stacked[:, place, :frames].clone()
            dataset.hidden = hidden
    count = sum(len(dataset) for dataset in whole)
    took = time.monotonic() - began
    print(f"kept hidden states of {count} utterances: {need:.2f} GB, {took:.0f} s", flush=True)
    return True
