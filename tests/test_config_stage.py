"""Configurations, stage markers, atomic files and one-line errors."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from s3prl_kd.bin import common
from s3prl_kd.config import load_config, resolve_config
from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_dir, atomic_write
from s3prl_kd.stage import Stage

BIN = sorted(
    path.stem
    for path in (Path(common.__file__).parent).glob("*.py")
    if path.stem not in ("__init__", "common")
)


@dataclasses.dataclass
class Inner:
    rate: float
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass
class Outer:
    inner: Inner
    names: list[str] = dataclasses.field(default_factory=list)
    limit: int | None = None
    flag: bool = False
    weights: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.limit == 13:
            raise ValueError("limit must not be 13")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("inner: {rate: 1e-4}\nnames: [x]\nweights: {kws: 1}\n")
    return path


def test_load_with_overrides(file):
    config = load_config(Outer, file, ["inner.kind=b", "limit=3", "flag=true"])
    assert config == Outer(Inner(1e-4, "b"), ["x"], 3, True, {"kws": 1.0})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("no_such=1", "unknown key 'no_such'; known: inner, names, limit, flag, weights"),
        ("inner.no_such=1", "inner: unknown key 'no_such'; known: rate, kind"),
        ("inner.kind=c", "'c' is not one of a, b"),
        ("inner.rate=fast", "inner: rate: expected a number, found 'fast'"),
        ("limit=1.5", "limit: expected int, found 1.5"),
        ("limit=true", "limit: expected int"),
        ("flag=1", "flag: expected bool"),
        ("names=x", "names: expected a list"),
        ("inner=3", "inner: expected keys and values"),
        ("limit=13", "limit must not be 13"),
        ("inner.rate.deeper=1", "rate is not a section"),
        ("limit", "expected key=value"),
        ("inner={kind: a}", "missing key 'rate'"),
    ],
)
def test_wrong_values_are_named(file, override, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(Outer, file, [override])
    assert "\n" not in str(error.value)


def test_wrong_files(file, tmp_path):
    with pytest.raises(UserError, match=r"other\.yaml.*there are: c"):
        load_config(Outer, tmp_path / "other.yaml")
    file.write_text("a: [b\nc: d")
    with pytest.raises(UserError, match="not valid YAML") as error:
        load_config(Outer, file)
    assert "\n" not in str(error.value)
    file.write_text("- a\n")
    with pytest.raises(UserError, match="expected keys and values"):
        load_config(Outer, file)
    with pytest.raises(UserError, match="unknown thing 'd'; there are: c"):
        resolve_config(tmp_path, "d", "thing")
    assert resolve_config(tmp_path, "c", "thing") == resolve_config("/", str(file), "thing") == file


def test_every_configuration_in_conf_is_valid():
    from s3prl_kd.data import corpora
    from s3prl_kd.distill.module import DistillConfig
    from s3prl_kd.downstream.config import DownstreamConfig
    from s3prl_kd.student.build import StudentConfig
    from s3prl_kd.teacher.config import MiniConfig

    kinds = {
        "student": StudentConfig,
        "distill": DistillConfig,
        "downstream": DownstreamConfig,
        "teacher": MiniConfig,
    }
    seen = 0
    for path in Path("conf").rglob("*.yaml"):
        cls = kinds.get(path.parent.name) or corpora.get(path.stem).config
        load_config(cls, path)
        seen += 1
    assert seen >= 9


def test_stage_skips_resumes_and_starts_anew(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("one")

    def stage(**config):
        return Stage(tmp_path / "out", "thing", config, [source])

    assert stage(a=1).begin() == "fresh"
    assert stage(a=1).begin() == "resume"  # never finished: it was killed
    stage(a=1).finish()
    assert stage(a=1).begin() == "skip"
    assert stage(a=1).begin(force=True) == "fresh"
    assert stage(a=1).begin(force=True) == "resume"  # the forced one was killed
    stage(a=1).finish()
    assert stage(a=2).begin() == "fresh"
    stage(a=2).finish()
    source.write_text("two")
    assert stage(a=2).begin() == "fresh"
    stage(a=2).finish()
    source.touch()
    assert stage(a=2).begin() == "skip"  # content counts, not time


def test_further_ranks_leave_the_marker_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    stage = Stage(tmp_path, "thing", {})
    assert stage.begin() == "resume"
    stage.finish()
    assert not stage.marker.exists()


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as handle:
        handle.write("half")
        raise RuntimeError
    assert path.read_text() == "old"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "d") as partial:
        (partial / "half").touch()
        raise RuntimeError
    with atomic_dir(tmp_path / "e") as partial:
        (partial / "new").touch()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["d", "e", "f", "new", "old"]


@pytest.mark.parametrize("name", BIN)
def test_entry_points_explain_themselves_without_heavy_imports(name):
    code = (
        "import sys, runpy\n"
        "sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('s3prl_kd.bin.{name}', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 's3prl', 'lightning', 'transformers', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_errors_are_one_line_with_their_status():
    def call(*args):
        command = [sys.executable, "-m", "s3prl_kd.bin.fetch", *args]
        return subprocess.run(command, capture_output=True, text=True)

    wrong = call("--corpus", "no_such")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: unknown corpus")
    unknown = call("--corpus", "synth", "--no_such", "1")
    assert unknown.returncode == 2 and "--no_such" in unknown.stderr
    for done in (wrong, unknown):
        assert len(done.stderr.strip().splitlines()) == 1
