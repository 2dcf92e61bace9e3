"""run.sh: its options, its messages, and which stages call what.

The stages themselves run elsewhere; here ``python`` is a stand-in that writes down its arguments.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def recipe(tmp_path):
    """A copy of the shell layer whose environment is a python that records its calls."""
    for name in ("run.sh", "path.sh", "uv.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("utils", "conf", "egs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(
        f'#!/bin/bash\nprintf "%s\\t" "$@" >> {tmp_path}/calls\necho >> {tmp_path}/calls\n'
    )
    python.chmod(0o755)
    made_from = subprocess.run(
        "cat uv.lock pyproject.toml | sha256sum | cut -d ' ' -f 1",
        shell=True, cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (tmp_path / ".venv" / ".made_from").write_text(made_from)
    return tmp_path


def run(recipe, *args, script="run.sh"):
    return subprocess.run(
        [recipe / script, *args], cwd=recipe, capture_output=True, text=True, timeout=60
    )


def calls(recipe):
    file = recipe / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.rstrip("\t").replace("s3prl_kd.bin.", "").split("\t")[1:] for line in lines]


def option(call, name):
    return call[call.index(name) + 1]


def with_data(recipe, *dirs):
    for name in dirs:
        (recipe / "data" / name).mkdir(parents=True)
        (recipe / "data" / name / "corpus.json").write_text("{}")


def test_help_needs_no_environment(recipe):
    shutil.rmtree(recipe / ".venv")
    done = run(recipe, "--help")
    assert done.returncode == 0
    for text in (
        "Stages:",
        "--stop_stage",
        "synth",
        "fsdd",
        "two_layer",
        "superb",
        "mini",
        "fbank",
    ):
        assert text in done.stdout
    assert not (recipe / ".venv").exists()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--no_such", "1"], "--corpus"),
        (["--corpus", "no_such"], "fsdd synth"),
        (["--student", "no_such"], "two_layer"),
        (["--distill_config", "no_such"], "distilhubert mini"),
        (["--downstream_config=no_such"], "mini superb"),
        (["--lr_search", "maybe"], "true or false"),
        (["--stage", "two"], "'two' is not a number"),
        (["--seed"], "needs a value"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_made(recipe, args, expected):
    done = run(recipe, *args)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1 and expected in done.stderr
    assert not calls(recipe)


def test_all_stages_in_order(recipe):
    with_data(recipe, "synth")
    done = run(recipe, "--seed=7", "--downstream-config", "superb")
    assert done.returncode == 0, done.stderr
    made = calls(recipe)
    assert [call[0] for call in made] == [
        "fetch", "prepare_data", "teacher", "distill", "distill", "downstream", "downstream",
        "score", "report",
    ]  # fmt: skip
    assert "--scratch" not in made[3] and "--scratch" in made[4]
    assert option(made[3], "--teacher") == "mini_synth"
    assert all(option(call, "--seed") == "7" for call in made[1:8])
    frozen, finetuned = made[5:7]
    first = frozen.index("--upstream")
    assert frozen[first + 1 : first + 5] == [
        "fbank", "mini_synth", "two_layer_scratch_mini_synth", "two_layer_mini_synth",
    ]  # fmt: skip
    assert option(frozen, "--mode") == "frozen" and "kws+sv" not in frozen
    assert option(finetuned, "--mode") == "finetuned" and "kws+sv" in finetuned
    assert option(frozen, "--config") == "superb"
    assert "distilled=two_layer_mini_{tag}" in made[7]
    assert not any("--force" in call for call in made)


def test_folds_are_experiments_of_their_own(recipe):
    with_data(recipe, "fsdd/fold1", "fsdd/fold2")
    assert run(recipe, "--stage", "2", "--fsdd_root", "/somewhere", script="egs/fsdd/run.sh")
    made = calls(recipe)
    assert [option(call, "--data") for call in made if call[0] == "teacher"] == [
        "data/fsdd/fold1",
        "data/fsdd/fold2",
    ]
    distilled = [call for call in made if call[0] == "distill"]
    assert {option(call, "--teacher") for call in distilled} == {
        "mini_fsdd_fold1",
        "mini_fsdd_fold2",
    }
    score = next(call for call in made if call[0] == "score")
    assert score[score.index("--data") + 1 :][:2] == ["data/fsdd/fold1", "data/fsdd/fold2"]


def test_root_goes_to_fetch_and_prepare(recipe):
    run(recipe, "--corpus", "fsdd", "--fsdd_root", "/my corpus", "--stop_stage", "1")
    assert [option(call, "--root") for call in calls(recipe)] == ["/my corpus"] * 2


def test_stage_alone_is_forced_and_those_after_it_are_not(recipe):
    with_data(recipe, "synth")
    run(recipe, "--stage", "4", "--stop_stage", "6")
    made = calls(recipe)
    assert [call[0] for call in made] == ["downstream", "downstream", "score"]
    assert ["--force" in call for call in made] == [True, False, False]


def test_stage_without_its_predecessors_says_what_to_run(recipe):
    done = run(recipe, "--stage", "3")
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1 and "run stage 1" in done.stderr


def test_another_upstream_by_one_word(recipe):
    with_data(recipe, "synth")
    for name in ("fbank", "hubert_base", "two_layer_mini_synth"):
        (recipe / "calls").unlink(missing_ok=True)
        run(recipe, "--stage", "2", "--upstream", name)
        made = calls(recipe)
        assert [call[0] for call in made] == ["downstream", "downstream", "score", "report"]
        assert option(made[0], "--upstream") == name
        assert option(made[2], "--out") == f"exp/results_synth_{name}"


def test_a_failing_stage_stops_the_rest(recipe):
    python = recipe / ".venv" / "bin" / "python"
    python.write_text(python.read_text() + "exit 3\n")
    done = run(recipe)
    assert done.returncode == 3
    assert [call[0] for call in calls(recipe)] == ["fetch"]


def test_environment_that_cannot_be_made_is_said_in_a_line(recipe):
    shutil.rmtree(recipe / ".venv")
    uv = recipe / "uv"
    uv.write_text("#!/bin/bash\nexit 2\n")
    uv.chmod(0o755)
    env = os.environ | {"PATH": f"{recipe}:{os.environ['PATH']}"}
    done = subprocess.run([recipe / "run.sh"], cwd=recipe, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "run the same command again" in done.stderr
    assert not calls(recipe)
