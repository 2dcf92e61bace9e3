"""Batches: the same for the same seed, of like length, none lost, each rank its own."""

from unittest import mock

import numpy as np
import pytest
import soundfile
import torch

from s3prl_kd.data import sampler
from s3prl_kd.data.dataset import SpeechDataset, collate
from s3prl_kd.data.kaldi import write_data_dir
from s3prl_kd.data.sampler import BatchStream, ChunkedBatchSampler
from s3prl_kd.errors import UserError

LENGTHS = np.random.default_rng(0).integers(8000, 240000, 500).tolist()


def epochs(seed=1, count=3, size=20, **limits):
    chunks = ChunkedBatchSampler(BatchStream(LENGTHS, seed=seed, **limits), size)
    taken = []
    for epoch in range(count):
        chunks.set_epoch(epoch)
        taken.append(list(chunks))
    return taken


def test_same_seed_same_batches_and_resuming_needs_no_replay():
    first = epochs(max_samples=960000)
    assert first == epochs(max_samples=960000) != epochs(seed=2, max_samples=960000)
    alone = ChunkedBatchSampler(BatchStream(LENGTHS, seed=1, max_samples=960000), 20)
    alone.set_epoch(2)
    assert list(alone) == first[2] != first[1]


def test_a_pass_holds_every_utterance_once_in_full_batches():
    stream = BatchStream(LENGTHS, max_samples=960000)
    batches = stream.one_pass(0)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    assert all(max(LENGTHS[i] for i in batch) * len(batch) <= 960000 for batch in batches)
    padded = sum(max(LENGTHS[i] for i in batch) * len(batch) for batch in batches)
    assert sum(LENGTHS) / padded > 0.9  # little of it is padding
    assert batches != stream.one_pass(1)


def test_fixed_size_and_over_long_utterances():
    assert {len(batch) for batch in BatchStream(LENGTHS, batch_size=25).one_pass(0)} == {25}
    assert all(len(batch) == 1 for batch in BatchStream(LENGTHS, max_samples=10).one_pass(0))
    with pytest.raises(UserError, match="no utterance"):
        BatchStream([], batch_size=2)


def test_ranks_share_the_batches_out():
    chunks = ChunkedBatchSampler(BatchStream(LENGTHS, batch_size=5, seed=3), 10)
    parts = []
    for rank in range(4):
        with mock.patch.object(sampler, "rank_and_world", return_value=(rank, 4)):
            parts.append(list(chunks))
    assert [len(part) for part in parts] == [10] * 4
    indices = [index for part in parts for batch in part for index in batch]
    assert len(indices) == len(set(indices)) == 200


@pytest.fixture
def data(tmp_path):
    wav = np.arange(32000, dtype=np.float32) / 64000
    lengths = {"a": 32000, "b": 4000}
    for utt, length in lengths.items():
        soundfile.write(tmp_path / f"{utt}.wav", wav[:length], 16000, subtype="FLOAT")
    wavs = {utt: str(tmp_path / f"{utt}.wav") for utt in lengths}
    write_data_dir(tmp_path / "data", wavs, wavs, wavs, lengths)
    return tmp_path / "data"


def test_long_utterances_are_cut_elsewhere_each_epoch(data):
    dataset = SpeechDataset(data, max_seconds=0.5, seed=1)
    assert dataset.lengths == [8000, 4000]
    first = dataset[0]["wav"]
    assert len(first) == 8000 and torch.equal(first, dataset[0]["wav"])
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[0]["wav"])
    assert torch.equal(SpeechDataset(data, max_seconds=0.5, seed=1)[0]["wav"], first)


def test_collate_pads_at_the_end(data):
    batch = collate([item for item in (SpeechDataset(data)[i] for i in range(2))])
    assert batch["utts"] == ["a", "b"] and batch["lengths"].tolist() == [32000, 4000]
    assert batch["wavs"].shape == (2, 32000) and not batch["wavs"][1, 4000:].any()
