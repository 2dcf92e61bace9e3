"""The embedded teacher: units, pre-training, conversion, and its entry point."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchaudio
from safetensors.torch import load_file
from torchaudio.models.wav2vec2.components import LogitGenerator

from s3prl_kd.bin import teacher as teacher_bin
from s3prl_kd.errors import UserError
from s3prl_kd.teacher import pretrain as pretraining
from s3prl_kd.teacher.config import MiniConfig
from s3prl_kd.teacher.kmeans import learn_units, mfcc, num_frames

TINY = MiniConfig(
    channels=16,
    width=32,
    layers=3,
    heads=2,
    ffn=64,
    final_dim=16,
    units=12,
    iterations=2,
    unit_layer=2,
    kmeans_frames=1000,
    steps=24,
    steps_per_epoch=8,
    batch_seconds=4,
    max_valid_seconds=8,
    lr=3e-3,
    precision="32-true",
)


class Tones:
    """Utterances of a few tones in random order, with the parts of a DataDir that are read."""

    def __init__(self, name: str, count: int, seed: int) -> None:
        random = np.random.RandomState(seed)
        self.path = Path(name)
        self.waves = {}
        for index in range(count):
            tones = [
                0.3
                * np.sin(2 * np.pi * random.choice([200, 500, 1100]) * np.arange(length) / 16000)
                for length in random.randint(1600, 4800, size=random.randint(2, 6))
            ]
            wave = np.concatenate(tones)
            noise = 0.01 * random.randn(len(wave))
            self.waves[f"{name}{index:03d}"] = (wave + noise).astype(np.float32)
        self.utts = sorted(self.waves)
        self.num_samples = {utt: len(wave) for utt, wave in self.waves.items()}

    def read(self, utt: str) -> np.ndarray:
        return self.waves[utt]


def torchaudio_model(config: MiniConfig) -> torch.nn.Module:
    conf = config.encoder_conf()
    return torchaudio.models.hubert_pretrain_model(
        **conf,
        mask_selection="static",
        mask_other=0.0,
        no_mask_overlap=False,
        mask_min_space=1,
        mask_channel_prob=0.0,
        mask_channel_selection="static",
        mask_channel_other=0.0,
        mask_channel_length=10,
        no_mask_channel_overlap=False,
        mask_channel_min_space=1,
        skip_masked=False,
        skip_nomask=False,
        num_classes=config.units,
    ).eval()


@pytest.mark.parametrize("samples", [400, 719, 720, 5000, 16000, 16079, 16080])
def test_units_have_a_frame_for_each_of_the_models(samples: int) -> None:
    wav = torch.randn(1, samples)
    hidden, _ = torchaudio_model(TINY).wav2vec2.feature_extractor(wav, None)
    assert num_frames(samples) == hidden.shape[1]
    assert mfcc(wav[0].numpy()).shape == (hidden.shape[1], 39)


def test_units_are_reproducible_and_tell_sounds_apart() -> None:
    tones = Tones("u", 12, seed=0)
    features = {utt: mfcc(tones.read(utt)) for utt in tones.utts}

    def learn(max_frames: int) -> dict[str, np.ndarray]:
        fit_on = tones.utts[:8]
        return learn_units(fit_on, tones.utts, features.__getitem__, 12, max_frames, seed=1)

    units = learn(200)
    again = learn(200)
    assert set(units) == set(tones.utts)
    assert all(np.array_equal(units[utt], again[utt]) for utt in units)
    assert len(np.unique(np.concatenate(list(units.values())))) > 6


@pytest.mark.slow
def test_logits_equal_torchaudios() -> None:
    from s3prl_kd.teacher.espnet_task import MatmulLogits

    torch.manual_seed(0)
    theirs = LogitGenerator(32, 12, 16, skip_masked=False, skip_nomask=False)
    ours = MatmulLogits(32, 12, 16, skip_masked=False, skip_nomask=False)
    ours.load_state_dict(theirs.state_dict())
    x, label = torch.randn(2, 9, 32), torch.randint(12, (2, 9))
    mask = torch.rand(2, 9) < 0.5
    for one, other in zip(ours(x, label, mask, ~mask), theirs(x, label, mask, ~mask), strict=True):
        torch.testing.assert_close(one, other)


def test_converted_model_has_torchaudios_hidden_states() -> None:
    from s3prl_kd.teacher.convert_torchaudio import to_transformers

    torch.manual_seed(0)
    model = torchaudio_model(TINY)
    # As after training: all that is initialised to 0 or 1 would hide a swapped name.
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    converted = to_transformers(model.state_dict(), TINY.encoder_conf())
    wav = torch.randn(1, 16000)
    with torch.inference_mode():
        expected, _ = model.wav2vec2.extract_features(wav)
        hidden = converted(wav, output_hidden_states=True).hidden_states
    assert len(hidden) == TINY.layers + 1
    for one, other in zip(hidden[1:], expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    # In training mode too nothing but dropout, here 0, is random.
    converted.train()
    torch.testing.assert_close(converted(wav).last_hidden_state, expected[-1], atol=1e-4, rtol=1e-4)


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_killed_and_resumed_ends_in_the_same_weights(tmp_path: Path, monkeypatch) -> None:
    from transformers import AutoModel

    from s3prl_kd.teacher import espnet_task

    train, valid = Tones("t", 40, seed=1), Tones("v", 8, seed=2)
    whole = pretraining.pretrain(train, valid, tmp_path / "whole", TINY, seed=3)

    make_task = espnet_task.make_task
    kills = iter([(2, 3), (3, 5)])
    at = next(kills)

    def killing(on_step, *options):
        def step(epoch: int, count: int) -> None:
            on_step(epoch, count)
            if (epoch, count) == at:
                raise Killed

        return make_task(step, *options)

    monkeypatch.setattr(espnet_task, "make_task", killing)
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        pretraining.pretrain(train, valid, cut, TINY, seed=3)
    # As if the kill had come while the checkpoint was being written.
    checkpoint = cut / "pretrain" / "iteration0" / "espnet" / "checkpoint.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    at = next(kills)
    with pytest.raises(Killed):
        pretraining.pretrain(train, valid, cut, TINY, seed=3, resume=True)
    at = None
    pretraining.pretrain(train, valid, cut, TINY, seed=3, resume=True)

    one, other = (load_file(directory / "model.safetensors") for directory in (whole, cut))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    columns = ["iteration", "step", "train_loss", "valid_loss", "valid_masked_accuracy"]
    curves = [pd.read_csv(directory / "metrics.csv")[columns] for directory in (whole, cut)]
    pd.testing.assert_frame_equal(*curves)
    assert curves[0]["iteration"].tolist() == [0, 0, 0, 1, 1, 1]
    first = curves[0][curves[0]["iteration"] == 0]
    assert first["valid_loss"].iloc[-1] < first["valid_loss"].iloc[0] - 0.1
    assert AutoModel.from_pretrained(whole).config.num_hidden_layers == TINY.layers


def test_speech_too_short_to_mask_is_refused(tmp_path: Path) -> None:
    train = Tones("t", 3, seed=1)
    config = dataclasses.replace(TINY, min_seconds=60)
    with pytest.raises(UserError, match="no utterance of 60"):
        pretraining.pretrain(train, train, tmp_path, config)


def test_entry_point_tells_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        teacher_bin.main(["--teacher", "mini"])
    with pytest.raises(UserError, match=r"corpus\.json"):
        teacher_bin.main(["--teacher", "mini", "--data", str(tmp_path)])


@pytest.mark.slow
def test_entry_point_pretrains_once_and_skips_then(tmp_path: Path, tiny_synth, capsys) -> None:
    settings = {**dataclasses.asdict(TINY), "iterations": 1, "steps": 8}
    options = ["--data", str(tiny_synth), "--expdir", str(tmp_path), "--nj", "1", "--set"]
    options += [f"{key}={value}" for key, value in settings.items() if key != "precision"]
    teacher_bin.main(options)
    name = capsys.readouterr().out.split()[-1]
    assert name.startswith("mini_")
    assert (tmp_path / name / "model.safetensors").exists()
    assert len(pd.read_csv(tmp_path / name / "metrics.csv")) == 1
    teacher_bin.main(options)
    told = capsys.readouterr().out
    assert "skipped" in told
    assert told.split()[-1] == name
