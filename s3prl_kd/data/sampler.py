"""Batches by length: an endless stream, the same for the same seed, taken in chunks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from s3prl_kd.errors import UserError


class BatchStream:
    """An endless stream of batches of utterances of like length.

    Passes over the corpus follow one another, each in an order of its own drawn from ``seed``
    and its number: utterances are shuffled, sorted by length within pools of some batches, cut
    into batches, and the batches shuffled. Any batch of the stream can be had without drawing
    those before it one by one.

    Args:
        lengths: samples of each utterance.
        max_samples: most samples in a batch, padding included; an utterance that is longer
            makes a batch of its own.
        batch_size: utterances in a batch; one of the two must be given.
        seed: of the order.
        pool: batches' worth of utterances sorted by length together.

    Raises:
        UserError: there is no utterance.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        max_samples: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        pool: int = 20,
    ) -> None:
        if (max_samples is None) == (batch_size is None):
            raise ValueError("give max_samples or batch_size")
        if not len(lengths):
            raise UserError("no utterance to make batches of; see what stage 1 skipped")
        self.lengths = np.asarray(lengths)
        self.max_samples = max_samples
        self.batch_size = batch_size
        self.seed = seed
        if batch_size is None:
            batch_size = max(1, int(max_samples // self.lengths.mean()))
        self.pool = pool * batch_size

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a stream lives as long as its training
    def one_pass(self, number: int) -> list[list[int]]:
        """The batches of pass ``number`` over the corpus, as lists of indices."""
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.lengths))
        batches: list[list[int]] = []
        for start in range(0, len(order), self.pool):
            chosen = order[start : start + self.pool]
            chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
            batches += self._cut(chosen.tolist())
        return [batches[index] for index in rng.permutation(len(batches))]

    def _cut(self, indices: list[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for index in indices:
            full = not batches or (
                len(batches[-1]) >= self.batch_size
                if self.batch_size is not None
                # Sorted by length: this one is the longest so far.
                else self.lengths[index] * (len(batches[-1]) + 1) > self.max_samples
            )
            if full:
                batches.append([])
            batches[-1].append(index)
        return batches

    def take(self, start: int, count: int) -> Iterator[list[int]]:
        """Batches ``start`` to ``start + count`` of the stream."""
        number, offset = 0, start
        while offset >= len(self.one_pass(number)):
            offset -= len(self.one_pass(number))
            number += 1
        while count > 0:
            part = self.one_pass(number)[offset : offset + count]
            yield from part
            count -= len(part)
            number, offset = number + 1, 0


class ChunkedBatchSampler(Sampler[list[int]]):
    """A chunk of a stream per epoch: epoch e takes batches ``[e * B, (e + 1) * B)``.

    Of several ranks each takes every ``world_size``-th batch of ``B * world_size``.

    Args:
        stream: the batches.
        batches_per_epoch: B, per rank.
        dataset: told of each new epoch by its ``set_epoch``, if it has one.
    """

    def __init__(self, stream: BatchStream, batches_per_epoch: int, dataset: Any = None) -> None:
        self.stream = stream
        self.batches_per_epoch = batches_per_epoch
        self.dataset = dataset
        self.epoch = 0

    @property
    def sampler(self) -> ChunkedBatchSampler:
        # Where Lightning looks for a set_epoch.
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the chunk."""
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = rank_and_world()
        count = self.batches_per_epoch * world
        for index, batch in enumerate(self.stream.take(self.epoch * count, count)):
            if index % world == rank:
                yield batch


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) where nothing is distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
