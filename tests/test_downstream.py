"""Downstream training: tasks alone and jointly, the upstream frozen or fine-tuned, and scores."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from tiny import SMALL
from transformers import HubertConfig

from s3prl_kd.bin import downstream as stage
from s3prl_kd.config import load_config
from s3prl_kd.data.kaldi import DataDir
from s3prl_kd.downstream import train
from s3prl_kd.downstream.config import DownstreamConfig, KwsConfig, SvConfig
from s3prl_kd.downstream.data import TaskDataset, collate, equal_length_batches
from s3prl_kd.downstream.predict import load_system, write_scores
from s3prl_kd.downstream.tasks import cosine_scores, xvector
from s3prl_kd.downstream.train import System, train_system
from s3prl_kd.encoder import Encoder
from s3prl_kd.errors import UserError
from s3prl_kd.upstream import load_upstream

RATE = 16000
CLASSES = ["low", "mid", "high"]
PITCH = dict(zip(CLASSES, (300, 900, 2500), strict=True))
CONFIG = {
    "frozen": {"max_steps": 6, "steps_per_epoch": 3, "lr": 3e-3},
    "finetuned": {"max_steps": 6, "steps_per_epoch": 3, "lr": 3e-3},
    "upstream_lr": 1e-3,
    "loss_weights": {"kws": 1.0, "sv": 0.25},
    "lr_grid": [1e-7, 3e-3],
    "upstream_lr_grid": [1e-4],
    "lr_search_steps": 4,
    "kws": {"hidden_size": 16, "batch_size": 6},
    "sv": {
        "hidden_size": 16,
        "tdnn_size": 16,
        "aggregation_size": 24,
        "embedding_size": 16,
        "batch_size": 4,
        "min_seconds": 0.35,
    },
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Tones: a keyword is a pitch, a speaker an amount of vibrato."""
    root = tmp_path_factory.mktemp("tones")
    noise = np.random.default_rng(0)
    for place, split in enumerate(("train", "valid", "test")):
        kws, sv = [], []
        for speaker in range(4):
            name = f"{split}{speaker}"
            for take, label in enumerate(CLASSES * 2):
                kws.append((f"{name}-{label}{take}", name, label, 0.25 + 0.05 * speaker))
            sv += [(f"{name}-long{take}", name, "_", 0.4 + 0.1 * take) for take in range(3)]
        for task, rows in (("kws", kws), ("sv", sv)):
            directory = root / f"{task}_{split}"
            (directory / "wav").mkdir(parents=True)
            files = {key: [] for key in ("wav.scp", "utt2spk", "text", "utt2num_samples")}
            speakers = {}
            for utt, speaker, label, seconds in sorted(rows):
                time = np.arange(int(seconds * RATE)) / RATE
                vibrato = (place * 4 + int(speaker[-1]) + 1) * np.sin(2 * np.pi * 5 * time)
                tone = np.sin(2 * np.pi * PITCH.get(label, 600) * time + vibrato)
                wav = directory / "wav" / f"{utt}.wav"
                soundfile.write(wav, 0.3 * tone + 0.01 * noise.standard_normal(len(time)), RATE)
                for key, value in zip(files, (wav, speaker, label, len(time)), strict=True):
                    files[key].append(f"{utt} {value}\n")
                speakers.setdefault(speaker, []).append(utt)
            for key, lines in files.items():
                (directory / key).write_text("".join(lines))
            (directory / "spk2utt").write_text(
                "".join(f"{spk} {' '.join(utts)}\n" for spk, utts in sorted(speakers.items()))
            )
            if task == "sv" and split != "train":
                utts = sorted(row[0] for row in rows)
                pairs = [(a, b) for a in utts for b in utts if a < b]
                (directory / "trials").write_text(
                    "".join(
                        f"{a} {b} {'target' if a[:-1] == b[:-1] else 'nontarget'}\n"
                        for a, b in pairs
                    )
                )
    about = {"name": "tones", "tag": "tones", "classes": CLASSES, "train_speakers": 4}
    (root / "corpus.json").write_text(json.dumps(about))
    return root


@pytest.fixture(scope="module")
def expdir(tmp_path_factory):
    torch.manual_seed(0)
    expdir = tmp_path_factory.mktemp("exp")
    tiny = HubertConfig(**SMALL | {"num_hidden_layers": 2})
    Encoder.from_config(tiny).save_pretrained(expdir / "tiny_tones")
    return expdir


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("conf") / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture
def system(corpus, expdir, config_file):
    def make(mode="frozen", tasks=("kws", "sv"), *overrides):
        config = load_config(DownstreamConfig, config_file, overrides)
        upstream = load_upstream("tiny_tones", expdir)
        return System(upstream, "tiny_tones", mode, tasks, corpus, config, seed=3)

    return make


def weights(module):
    return {name: value.clone() for name, value in module.named_parameters()}


def first_batches(system):
    return {
        name: next(iter(loader)) for name, loader in system.train_loaders(system.config).items()
    }


def test_joint_loss_is_the_weighted_sum_of_single_losses(system):
    joint = system("finetuned")
    batches = first_batches(joint)
    module = joint.module().eval()
    single = {}
    for task in ("kws", "sv"):
        alone = system("finetuned", (task,)).module().eval()
        single[task] = alone.joint_loss(alone.losses({task: batches[task]}))
    loss = module.joint_loss(module.losses(batches))
    assert loss.item() == pytest.approx(single["kws"].item() + 0.25 * single["sv"].item())

    module.train()
    module.joint_loss(module.losses(batches)).backward()
    parts = {"kws": module.tasks["kws"], "sv": module.tasks["sv"], "upstream": module.upstream}
    for name, part in parts.items():
        norm = sum(p.grad.norm() for p in part.parameters() if p.grad is not None)
        assert norm > 0, name


def test_each_task_reaches_the_shared_upstream(system):
    joint = system("finetuned")
    batches = first_batches(joint)
    for task in ("kws", "sv"):
        module = joint.module().train()
        module.zero_grad()
        module.losses(batches)[task].backward()
        assert any(p.grad is not None and p.grad.norm() > 0 for p in module.upstream.parameters())
        other = module.tasks["sv" if task == "kws" else "kws"]
        assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("mode", ["frozen", "finetuned"])
def test_only_a_finetuned_upstream_changes(system, tmp_path, mode):
    made = system(mode, ("kws",))
    before = weights(made.upstream)
    train_system(made, tmp_path, resume=False)
    moved = [n for n, p in made.upstream.named_parameters() if not torch.equal(p, before[n])]
    assert bool(moved) == (mode == "finetuned")
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert any(key.startswith("upstream.") for key in state) == (mode == "finetuned")
    layers = json.loads((tmp_path / "layer_weights.json").read_text())["kws"]
    assert len(layers) == 3 and sum(layers) == pytest.approx(1.0)


def test_freeze_steps_hold_the_upstream(system, tmp_path):
    made = system("finetuned", ("kws",), "freeze_steps=6")
    before = weights(made.upstream)
    train_system(made, tmp_path, resume=False)
    assert all(torch.equal(p, before[n]) for n, p in made.upstream.named_parameters())


def test_cached_training_equals_uncached(system, tmp_path, capsys):
    ends = []
    for override in ("cache_frozen=true", "cache_limit_gb=0.000001"):
        made = system("frozen", ("kws", "sv"), override)
        assert bool(made.train["sv"].hidden) == (override == "cache_frozen=true")
        train_system(made, tmp_path / override, resume=False)
        ends.append(
            torch.load(tmp_path / override / "checkpoints" / "last.ckpt", weights_only=True)
        )
    assert "above cache_limit_gb" in capsys.readouterr().out
    cached, computed = (end["state_dict"] for end in ends)
    assert cached.keys() == computed.keys()
    for name, value in cached.items():
        torch.testing.assert_close(value, computed[name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_killed_and_resumed_ends_in_the_same_weights(system, tmp_path, monkeypatch):
    ends = []
    fit = System.fit

    def watched_fit(self, module, *args):
        best = fit(self, module, *args)
        ends.append({name: value.clone() for name, value in module.state_dict().items()})
        return best

    monkeypatch.setattr(System, "fit", watched_fit)

    def made_anew():
        # With cuts of long utterances, which depend on the epoch.
        return system("finetuned", ("kws", "sv"), "sv.max_seconds=0.45")

    train_system(made_anew(), tmp_path / "whole", resume=False)
    steps = 0
    step = train.DownstreamModule.training_step

    def dying_step(self, *args):
        nonlocal steps
        steps += 1
        if steps == 5:
            raise RuntimeError("killed")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train.DownstreamModule, "training_step", dying_step)
        with pytest.raises(RuntimeError, match="killed"):
            train_system(made_anew(), tmp_path / "parts", resume=False)
    train_system(made_anew(), tmp_path / "parts", resume=True)

    assert any(name.startswith("upstream.") for name in ends[0])
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    curves = [
        pd.read_csv(tmp_path / name / "metrics.csv").drop(columns="seconds")
        for name in ("whole", "parts")
    ]
    pd.testing.assert_frame_equal(*curves)


def test_cuts_differ_from_epoch_to_epoch_in_training(system, tmp_path, monkeypatch):
    draws = set()
    get = TaskDataset.__getitem__
    monkeypatch.setattr(
        TaskDataset,
        "__getitem__",
        lambda self, at: (draws.add(at[1] if isinstance(at, tuple) else None), get(self, at))[1],
    )
    train_system(system("frozen", ("sv",), "sv.max_seconds=0.45"), tmp_path, resume=False)
    assert draws == {None, 0, 1}


def test_lr_search_records_and_chooses_on_validation(system, tmp_path, monkeypatch):
    made = system("frozen", ("kws",), "frozen.max_steps=3")
    assert {dataset.data.path.name for dataset in made.valid.values()} == {"kws_valid"}
    train_system(made, tmp_path, resume=False, lr_search=True)
    record = json.loads((tmp_path / "lr_search.json").read_text())
    assert [trial["lr"] for trial in record["trials"]] == [1e-7, 3e-3]
    assert record["best"]["valid_score"] == max(t["valid_score"] for t in record["trials"])
    used = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert used["frozen"]["lr"] == record["best"]["lr"]
    assert used["frozen"]["max_steps"] == 3

    # A killed search goes on after its finished trials, and their values count.
    record["trials"][0]["valid_score"] = 2.0
    del record["trials"][1], record["best"]
    (tmp_path / "lr_search.json").write_text(json.dumps(record))
    labels = []
    fit = System.fit
    monkeypatch.setattr(
        System, "fit", lambda self, *a, **k: (labels.append(a[3]), fit(self, *a, **k))[1]
    )
    train_system(system("frozen", ("kws",)), tmp_path, resume=True, lr_search=True)
    assert [label for label in labels if "lr_search" in label] == [
        "tiny_tones frozen kws lr_search 2/2"
    ]
    assert json.loads((tmp_path / "lr_search.json").read_text())["best"]["lr"] == 1e-7


def test_stage_trains_skips_scores_and_refreshes(corpus, expdir, config_file, capsys):
    arguments = ["--data", corpus, "--upstream", "fbank", "tiny_tones", "--tasks", "sv+kws"]
    arguments += ["--config", config_file, "--expdir", expdir]
    arguments = [str(argument) for argument in arguments]
    stage.main(arguments)
    stage.main(arguments)
    assert capsys.readouterr().out.count("skipped") == 2
    for upstream in ("fbank", "tiny_tones"):
        directory = expdir / upstream / "downstream" / "tones" / "frozen" / "kws+sv"
        about = json.loads((directory / "system.json").read_text())
        assert about["tasks"] == ["kws", "sv"] and about["tag"] == "tones"
        written = write_scores(directory, corpus, expdir)
        assert [path.name for path in written] == ["kws_scores", "sv_scores"]

        header, *rows = (directory / "kws_scores").read_text().splitlines()
        assert header == "# utt label predicted low mid high"
        kws = DataDir(corpus / "kws_test")
        assert [row.split()[0] for row in rows] == kws.utts
        for row in rows:
            utt, label, predicted, *scores = row.split()
            scores = [float(score) for score in scores]
            assert label == kws.text[utt]
            assert predicted == CLASSES[scores.index(max(scores))]
            assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-3)

        rows = (directory / "sv_scores").read_text().splitlines()
        trials = DataDir(corpus / "sv_test").trials
        assert [tuple(row.split()[:2]) for row in rows] == [(t.enrol, t.test) for t in trials]
        assert all(-1 <= float(row.split()[2]) <= 1 for row in rows)

    (directory / "sv_scores").write_text("old")
    stage.main([*arguments, "--set", "sv.margin=0.2"])
    assert not (directory / "sv_scores").exists()
    assert "writing" in capsys.readouterr().out


def test_finetuned_system_loads_its_own_upstream(corpus, expdir, system, tmp_path):
    made = system("finetuned", ("kws",))
    train_system(made, tmp_path, resume=False)
    loaded = load_system(tmp_path, expdir)
    original = load_upstream("tiny_tones", expdir).state_dict()
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    changed = 0
    for name, value in loaded.upstream.state_dict().items():
        assert torch.equal(value, state[f"upstream.{name}"])
        changed += not torch.equal(value, original[name])
    assert changed and not loaded.training


def test_each_finetuned_system_starts_from_the_upstream_itself(
    corpus, expdir, config_file, tmp_path
):
    ends = []
    for tasks in (["kws", "sv"], ["sv"]):
        root = tmp_path / tasks[0]
        root.mkdir()
        (root / "tiny_tones").symlink_to(expdir / "tiny_tones")
        shutil.rmtree(expdir / "tiny_tones" / "downstream", ignore_errors=True)
        stage.main(
            [
                *("--data", str(corpus), "--upstream", "tiny_tones", "--mode", "finetuned"),
                *("--config", str(config_file), "--expdir", str(root), "--tasks", *tasks),
            ]
        )
        best = root / "tiny_tones/downstream/tones/finetuned/sv/checkpoints/last.ckpt"
        ends.append(torch.load(best, weights_only=True)["state_dict"])
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_label_outside_the_classes_is_named(corpus, system, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    about = json.loads((copy / "corpus.json").read_text())
    about["classes"].remove("mid")
    (copy / "corpus.json").write_text(json.dumps(about))
    made = system("frozen", ("kws",))
    with pytest.raises(UserError, match="'mid' is not among the classes"):
        System(made.upstream, "tiny_tones", "frozen", ("kws",), copy, made.config, seed=0)


def test_upstream_without_parameters_is_not_finetuned(corpus, expdir, config_file, capsys):
    stage.main(
        [
            *("--data", str(corpus), "--upstream", "fbank", "--mode", "finetuned"),
            *("--config", str(config_file), "--expdir", str(expdir)),
        ]
    )
    assert "nothing to fine-tune" in capsys.readouterr().out
    assert not (expdir / "fbank" / "downstream" / "tones" / "finetuned").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--upstream", "nobody"], "tiny_tones"),
        (["--tasks", "asr"], "kws+sv"),
        (["--config", "nothing"], "nothing"),
        (["--set", "kws.width=3"], "hidden_size"),
        (["--data", "no/such/data"], "stage 1"),
    ],
)
def test_mistakes_are_told_in_one_line(corpus, expdir, config_file, change, words):
    arguments = ["--data", str(corpus), "--upstream", "tiny_tones", "--config", str(config_file)]
    with pytest.raises(UserError) as caught:
        stage.main([*arguments, "--expdir", str(expdir), *change])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mini", "superb"])
def test_shipped_configs_name_every_key(name):
    path = Path(__file__).parents[1] / "conf" / "downstream" / f"{name}.yaml"
    config = load_config(DownstreamConfig, path)
    given = yaml.safe_load(path.read_text())
    assert set(given) == {field.name for field in dataclasses.fields(DownstreamConfig)}
    if name == "superb":
        assert config.sv == SvConfig() and config.kws == KwsConfig()


def test_xvector_is_s3prls():
    from s3prl.nn import SuperbXvector

    torch.manual_seed(0)
    ours = xvector(24, SvConfig(hidden_size=32, aggregation_size=40, embedding_size=16)).eval()
    theirs = SuperbXvector(24, output_size=16, hidden_size=32, aggregation_size=40).eval()
    theirs.load_state_dict(ours.state_dict())
    frames, lengths = torch.randn(3, 40, 24), torch.tensor([40, 16, 25])
    torch.testing.assert_close(ours(frames, lengths), theirs(frames, lengths))


def test_cuts_depend_on_seed_utterance_and_epoch(corpus):
    data = DataDir(corpus / "sv_train")

    def cut(index, draw, seed=0):
        dataset = TaskDataset(data, data.utt2spk, [], max_samples=4000, min_samples=100, seed=seed)
        return dataset[index, draw]["wav"]

    assert len(cut(0, 0)) == 4000
    assert torch.equal(cut(0, 1), cut(0, 1))
    assert not torch.equal(cut(0, 1), cut(0, 2))
    assert not torch.equal(cut(0, 1), cut(0, 1, seed=1))


def test_short_utterance_is_repeated_to_what_the_head_needs(corpus):
    data = DataDir(corpus / "kws_test")
    dataset = TaskDataset(data, data.utt2spk, [], min_samples=15 * 320 + 1)
    batch = collate([dataset[0], dataset[len(dataset) - 1]])
    short = data.read(dataset.utts[0])
    assert batch["lengths"].tolist()[0] == 4801 and len(short) == 4000
    assert torch.equal(batch["wavs"][0, 4000:4801], torch.from_numpy(short[:801]))


def test_evaluation_never_pads():
    batches = equal_length_batches([5, 3, 5, 5, 3], batch_size=2)
    assert batches == [[1, 4], [0, 2], [3]]


def test_cosine_scores():
    from types import SimpleNamespace

    embeddings = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, -2.0]])
    trials = [SimpleNamespace(enrol="a", test="b"), SimpleNamespace(enrol="c", test="b")]
    scores = cosine_scores(embeddings, ["a", "b", "c"], trials)
    assert scores == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])


def test_fine_tuning_takes_its_heads_from_the_frozen_systems(
    corpus, expdir, config_file, tmp_path, monkeypatch
):
    root = tmp_path / "exp"
    root.mkdir()
    shutil.copytree(expdir / "tiny_tones", root / "tiny_tones")
    args = ["--data", str(corpus), "--upstream", "tiny_tones", "--config", str(config_file)]
    args += ["--expdir", str(root), "--set", "heads_from_frozen=true", "--mode"]
    with pytest.raises(UserError, match="run stage 4"):
        stage.main([*args, "finetuned", "--tasks", "kws+sv"])
    stage.main([*args, "frozen", "--tasks", "kws", "sv"])
    started = []

    def start_only(self, module, outdir, *rest, **kwargs):
        started.append({name: value.clone() for name, value in module.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(System, "fit", start_only)
    with pytest.raises(KeyboardInterrupt):
        stage.main([*args, "finetuned", "--tasks", "kws+sv"])
    frozen = root / "tiny_tones" / "downstream" / "tones" / "frozen"
    for task in ("kws", "sv"):
        best = frozen / task / "checkpoints" / "best.ckpt"
        state = torch.load(best, weights_only=True)["state_dict"]
        assert state and all(torch.equal(started[0][name], state[name]) for name in state)


def test_steps_of_single_systems(config_file):
    config = load_config(DownstreamConfig, config_file, ["steps={frozen/kws: 12}"])
    special, other = config.trainer("frozen", ["kws"]), config.trainer("frozen", ["sv"])
    assert (special.max_steps, special.steps_per_epoch) == (12, 6)
    assert (other.max_steps, other.steps_per_epoch) == (6, 3)
    with pytest.raises(UserError, match="finetuned/kws\\+sv"):
        load_config(DownstreamConfig, config_file, ["steps={kws: 12}"])
    with pytest.raises(UserError, match="multiple"):
        load_config(DownstreamConfig, config_file, ["steps={frozen/kws: 13}"])
