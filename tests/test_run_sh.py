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
        f'echo "${{S3PRL_KD_EXP:-}}" > {tmp_path}/registered\n'
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
        (["--teacher_config", "no_such"], "mini"),
        (["--tasks", "kws asr"], "kws sv kws+sv"),
        (["--stage", "5", "--stop_stage", "4"], "comes after"),
        (["--.*", "1"], "unknown option"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_made(recipe, args, expected):
    before = sorted(recipe.rglob("*"))
    done = run(recipe, *args)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1 and expected in done.stderr
    assert sorted(recipe.rglob("*")) == before


def test_from_another_directory(recipe):
    elsewhere = {"cwd": recipe.parent, "capture_output": True, "text": True}
    done = subprocess.run([f"{recipe.name}/run.sh", "--help"], **elsewhere)
    assert done.returncode == 0 and "--corpus" in done.stdout and not done.stderr
    subprocess.run([f"{recipe.name}/egs/mini/run.sh", "--stop_stage", "0"], **elsewhere)
    assert [(call[0], option(call, "--corpus")) for call in calls(recipe)] == [("fetch", "synth")]


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
    assert option(made[7], "--command") == "./run.sh --seed=7 --downstream-config superb"
    assert "exp/results_synth/RESULTS.md" in done.stdout.splitlines()[-1]


def test_folds_are_experiments_of_their_own(recipe):
    with_data(recipe, "fsdd/fold1", "fsdd/fold2")
    done = run(recipe, "--stage", "2", "--fsdd_root", "/somewhere", script="egs/fsdd/run.sh")
    assert done.returncode == 0, done.stderr
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


def test_no_student_has_heard_another_folds_test_speakers(recipe):
    with_data(recipe, "fsdd/fold1", "fsdd/fold2")
    run(recipe, "--corpus", "fsdd", "--teacher", "hubert_base", "--stage", "3")
    made = calls(recipe)
    names = [option(call, "--name") for call in made if call[0] == "distill"]
    assert len(set(names)) == 4 and names[0] == "two_layer_hubert_base_fsdd_fold1"
    for call in made:
        if call[0] == "downstream":
            fold = option(call, "--data")[-1]
            assert f"two_layer_hubert_base_fsdd_fold{fold}" in call
    score = next(call for call in made if call[0] == "score")
    assert "distilled=two_layer_hubert_base_{tag}" in score


def test_a_teacher_directory_is_an_upstream_by_its_name(recipe):
    with_data(recipe, "synth")
    (recipe / "models" / "mine").mkdir(parents=True)
    run(recipe, "--teacher", "models/mine/", "--stage", "2", "--stop_stage", "4")
    made = calls(recipe)
    assert {option(call, "--teacher") for call in made[:3]} == {"models/mine/"}
    first = made[3].index("--upstream")
    assert made[3][first + 1 : first + 5] == [
        "fbank", "mine", "two_layer_scratch_mine", "two_layer_mine",
    ]  # fmt: skip
    assert "models/mine/" in (recipe / "registered").read_text().split(":")[1]


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
    elsewhere = {"cwd": recipe, "env": env, "capture_output": True, "text": True}
    done = subprocess.run([recipe / "run.sh"], **elsewhere)
    assert done.returncode != 0 and "run the same command again" in done.stderr
    assert not calls(recipe)
    # The shell that sourced path.sh is the user's, and stays.
    done = subprocess.run(["bash", "-c", ". ./path.sh || echo alive"], **elsewhere)
    assert "alive" in done.stdout


def test_environment_is_made_again_when_the_lock_changes(recipe):
    uv = recipe / "uv"
    uv.write_text(f'#!/bin/bash\necho "$@" >> {recipe}/synced\n')
    uv.chmod(0o755)
    env = os.environ | {"PATH": f"{recipe}:{os.environ['PATH']}"}

    def source():
        subprocess.run(["bash", "-c", ". ./path.sh"], cwd=recipe, env=env, check=True)
        file = recipe / "synced"
        return file.read_text().splitlines() if file.exists() else []

    assert not source()
    with open(recipe / "uv.lock", "a") as lock:
        lock.write("# changed\n")
    assert len(source()) == 1 and "--frozen" in source()[0]
    assert len(source()) == 1


def test_no_python_is_said_in_a_line(recipe):
    shutil.rmtree(recipe / ".venv")
    tools = recipe / "tools"
    tools.mkdir()
    for name in ("cat", "sha256sum", "cut"):
        (tools / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [shutil.which("bash"), "-c", ". ./path.sh"],
        cwd=recipe, env={"PATH": str(tools)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1 and "Python 3.11" in done.stderr
