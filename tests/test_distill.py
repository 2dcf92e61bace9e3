"""The objective, and a distillation from a name to a student dir, killed and resumed."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import SMALL
from transformers import HubertConfig

from s3prl_kd.bin import distill
from s3prl_kd.config import load_config
from s3prl_kd.distill.module import DistillConfig, Distiller
from s3prl_kd.distill.objective import L1Cosine
from s3prl_kd.encoder import Encoder
from s3prl_kd.errors import UserError
from s3prl_kd.student.build import StudentConfig, build_student
from s3prl_kd.teacher.load import EncoderTeacher, load_teacher

QUICK = ["layers=[2, 3]", "batch_seconds=6", "trainer.max_steps=6", "trainer.steps_per_epoch=2"]


@pytest.fixture(scope="module")
def expdir(tmp_path_factory):
    torch.manual_seed(0)
    expdir = tmp_path_factory.mktemp("exp")
    Encoder.from_config(HubertConfig(**SMALL)).save_pretrained(expdir / "toy")
    return expdir


def run(data, expdir, *more):
    args = ["--teacher", "toy", "--data", str(data), "--expdir", str(expdir)]
    distill.main([*args, "--set", *QUICK, *more])


def test_objective_against_numbers_by_hand():
    """Two frames of two dimensions; the third frame is padding and must not count."""
    guess = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [50.0, 50.0]]])
    true = torch.tensor([[[0.0, 1.0], [0.0, 1.0], [-9.0, 3.0]]])
    loss, parts = L1Cosine(2.0)({4: guess}, {4: true}, torch.tensor([2]))
    l1 = (1.0 + 0.5) / 2
    log_sigmoid = (-math.log(1 + math.exp(0)) - math.log(1 + math.exp(-1))) / 2
    assert loss.item() == pytest.approx(l1 - 2.0 * log_sigmoid)
    assert parts["l1"].item() == pytest.approx(l1)
    assert parts["cosine"].item() == pytest.approx(0.5)


def test_loss_does_not_depend_on_padding(expdir):
    teacher = load_teacher("toy", expdir)
    student = build_student(teacher, StudentConfig(layers=2))
    config = load_config(DistillConfig, "conf/distill/mini.yaml", ["layers=[2, 3]"])
    module = Distiller(student, teacher, config).eval()
    wavs = torch.randn(1, 8000)
    with torch.no_grad():
        alone, _ = module(wavs, torch.tensor([8000]))
        padded, _ = module(torch.nn.functional.pad(wavs, (0, 9000)), torch.tensor([8000]))
    assert alone.item() == pytest.approx(padded.item(), abs=1e-5)


def test_layer_that_the_teacher_has_not(expdir):
    teacher = load_teacher("toy", expdir)
    config = load_config(DistillConfig, "conf/distill/mini.yaml")
    with pytest.raises(UserError, match=r"hidden states 0 to 3, not \[4, 8, 12\]"):
        Distiller(build_student(teacher, StudentConfig(layers=2)), teacher, config)


@pytest.mark.slow
def test_killed_and_resumed_ends_in_the_same_weights(tiny_synth, expdir, monkeypatch):
    run(tiny_synth, expdir)
    whole = expdir / "two_layer_toy"
    curve = pd.read_csv(whole / "metrics.csv")
    assert curve["step"].tolist() == [2, 4, 6]
    assert {"train_loss", "valid_loss"} <= set(curve)
    record = json.loads((whole / "distillation.json").read_text())
    assert record["teacher"] == "toy" and record["steps"] == 6
    before = whole / "model.safetensors"
    expected = load_file(before)
    start = build_student(load_teacher("toy", expdir), StudentConfig(layers=2)).model.state_dict()
    assert any(not torch.equal(start[name], expected[name]) for name in expected)

    step = Distiller.training_step

    def dies(self, batch, index):
        if self.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batch, index)

    copy = expdir.parent / "killed"
    copy.mkdir()
    shutil.copytree(expdir / "toy", copy / "toy")
    monkeypatch.setattr(Distiller, "training_step", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tiny_synth, copy)
    assert not (copy / "two_layer_toy" / "model.safetensors").exists()
    monkeypatch.undo()
    run(tiny_synth, copy)
    resumed = load_file(copy / "two_layer_toy" / "model.safetensors")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    again = pd.read_csv(copy / "two_layer_toy" / "metrics.csv")
    assert again["train_loss"].tolist() == curve["train_loss"].tolist()

    # Done and unchanged: skipped. Another seed: made again.
    stamp = before.stat().st_mtime_ns
    run(tiny_synth, expdir)
    assert before.stat().st_mtime_ns == stamp
    run(tiny_synth, expdir, "--seed", "2")
    assert before.stat().st_mtime_ns > stamp


@pytest.mark.slow
def test_scratch_student(tiny_synth, expdir):
    run(tiny_synth, expdir, "--scratch")
    student = Encoder.from_pretrained(expdir / "two_layer_scratch_toy")
    assert student.num_layers == 2


@pytest.mark.slow
def test_loss_that_is_not_finite_stops(tiny_synth, expdir, monkeypatch):
    forward = EncoderTeacher.forward

    def broken(self, wavs, lengths):
        hidden, frames = forward(self, wavs, lengths)
        return tuple(state * float("nan") for state in hidden), frames

    monkeypatch.setattr(EncoderTeacher, "forward", broken)
    with pytest.raises(UserError, match="loss is nan"):
        run(tiny_synth, expdir, "--name", "broken")


def test_unknown_names_and_keys(tiny_synth, expdir):
    with pytest.raises(UserError, match="two_layer"):
        run(tiny_synth, expdir, "--student", "no_such")
    with pytest.raises(UserError, match=r"distilhubert, mini"):
        run(tiny_synth, expdir, "--config", "no_such")
    with pytest.raises(UserError, match="unknown key 'no_such'"):
        distill.main(["--teacher", "toy", "--data", "x", "--set", "no_such=1"])


@pytest.mark.slow
def test_two_nodes_train_one_student(tiny_synth, expdir):
    """The same command on two nodes, here two processes on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "s3prl_kd.bin.distill", "--teacher", "toy", "--num_nodes", "2"]
    command += ["--data", str(tiny_synth), "--expdir", str(expdir), "--name", "two_nodes"]
    nodes = [
        subprocess.Popen(
            [*command, "--set", *QUICK],
            env=os.environ
            | {"NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(output)
    student = load_file(expdir / "two_nodes" / "model.safetensors")
    assert all(value.isfinite().all() for value in student.values())
    assert pd.read_csv(expdir / "two_nodes" / "metrics.csv")["step"].tolist() == [2, 4, 6]
    assert "step 6/6" in output[0] and "step 6/6" not in output[1]
