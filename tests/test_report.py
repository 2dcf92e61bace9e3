"""RESULTS.md, pictures and verdicts, made from a results.json alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from score_tree import make_tree

from s3prl_kd.bin import report
from s3prl_kd.errors import UserError
from s3prl_kd.scoring.claims import judge
from s3prl_kd.scoring.plots import running_steps
from s3prl_kd.scoring.report import write_report
from s3prl_kd.scoring.results import Estimate, read_results, write_results
from s3prl_kd.scoring.systems import Data, make_results

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A results.json beside its exp tree."""
    tree = make_tree(tmp_path_factory.mktemp("run"))
    rows = dict(row.split("=") for row in tree.rows)
    for directory in tree.expdir.glob("*/downstream/*/*/*"):
        fold = next(d for d in tree.data if f"toy{d.name[-1]}" == directory.parts[-3])
        tree.write_scores(directory, fold, tree.expdir)
    roles = {"teacher": "teacher", "scratch": "scratch", "distilled": "distilled"}
    results = make_results(
        tree.expdir, rows, [Data(path) for path in tree.data], roles, 50, command="./run.sh --x y"
    )
    results.missing = ["absent/downstream/toy1/frozen/kws"]
    path = tree.expdir / "results_toy" / "results.json"
    write_results(path, results)
    return path


@pytest.fixture
def results(run):
    return read_results(run)


@pytest.fixture(scope="module")
def made(run):
    report.main(["--results", str(run), "--out", str(run.parent)])
    return run.parent


def test_results_survive_writing_and_reading(results, tmp_path):
    write_results(tmp_path / "again.json", results)
    assert read_results(tmp_path / "again.json") == results


def test_report_has_every_row_and_its_values(made, results):
    text = (made / "RESULTS.md").read_text()
    table = [line for line in text.split("\n\n")[1].splitlines()]
    assert len(table) == 2 + 4 * 3
    row = results.row("distilled", "joint")
    cells = next(line for line in table if "| distilled | fine-tuned jointly |" in line)
    accuracy, eer = row.metrics["accuracy"], row.metrics["eer"]
    for estimate in (accuracy, eer):
        shown = [f"{100 * v:.1f}" for v in (estimate.value, estimate.low, estimate.high)]
        assert f" {shown[0]} [{shown[1]}, {shown[2]}] " in cells
    assert f" {row.metrics['min_dcf_0.01'].value:.3f} [" in cells
    assert f" {100 * row.differences['teacher']['eer'].value:+.1f} [" in cells
    assert "| 1.00 M | 25.0 % | 300 |" in cells
    assert "accuracy -0.1, EER +0.9" in cells
    assert sum("nothing to fine-tune" in line for line in table) == 2
    assert all("fbank" in line for line in table if "nothing to fine-tune" in line)


def test_report_says_how_it_was_made(made, results):
    text = (made / "RESULTS.md").read_text()
    for needed in ("./run.sh --x y", results.created, "torch ", "absent/downstream", "4 speakers"):
        assert needed in text
    assert "coarse" in text


def test_pictures_are_pictures(made):
    names = sorted(path.name for path in made.glob("*.png"))
    assert names == sorted(
        ["det.png", "confusion.png", "training.png", "downstream.png", "layer_weights.png"]
    )
    for name in names:
        content = (made / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000
        assert f"]({name})" in (made / "RESULTS.md").read_text()


def test_steps_of_iterations_follow_each_other():
    curve = pd.DataFrame({"iteration": [0, 0, 1, 1], "step": [10, 20, 10, 20]})
    assert running_steps(curve).tolist() == [10, 20, 30, 40]
    assert running_steps(curve[["step"]]).tolist() == [10, 20, 10, 20]


def test_report_names_its_files_and_is_skipped_the_second_time(made, capsys):
    report.main(["--results", str(made / "results.json")])
    out = capsys.readouterr().out
    assert "skipped" in out
    assert str(made / "RESULTS.md") in out and str(made / "det.png") in out
    assert "distilled" in out and "teacher" in out


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda c: c.pop("rows"), "missing key 'rows'"),
        (lambda c: c.update(rows=[]), "no rows"),
        (lambda c: c.update(format=7), "format 1"),
        (lambda c: c["rows"][0].update(training="half"), "training: 'half' is not one of"),
        (lambda c: c["rows"][0]["metrics"]["eer"].update(value="x"), "value: expected a number"),
        (lambda c: c["rows"][0].update(colour="red"), "unknown key 'colour'"),
        (lambda c: c["rows"][0]["metrics"].update(speed=c["rows"][0]["metrics"]["eer"]), "'speed'"),
        (lambda c: c["roles"].pop("teacher"), "roles"),
    ],
)
def test_a_malformed_file_is_told_in_one_line(run, tmp_path, spoil, told):
    content = json.loads(run.read_text())
    spoil(content)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        report.main(["--results", str(path)])
    message = str(caught.value)
    assert told in message and str(path) in message and "\n" not in message


def test_a_file_that_is_not_json_ends_the_command_in_one_line(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"format": 1,')
    done = subprocess.run(
        [sys.executable, "-m", "s3prl_kd.bin.report", "--results", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and str(path) in done.stderr


def verdict(results, words):
    (found,) = [c for c in judge(results) if words in c.claim]
    return found.verdict


def test_verdicts_follow_the_numbers(results):
    row = results.row("distilled", "joint")
    difference = row.differences["teacher"]
    for low, high, expected in (
        (-0.001, 0.02, "supported"),
        (-0.02, 0.01, "not decided"),
        (-0.05, -0.02, "contradicted"),
    ):
        difference["accuracy"] = Estimate((low + high) / 2, low, high)
        assert verdict(results, "loses no more than 0.1 points") == expected
        assert f"**{expected}**: jointly fine-tuned, the student loses" in write_report(results, [])
    for low, high, expected in (
        (-0.01, 0.009, "supported"),
        (0.0, 0.02, "not decided"),
        (0.01, 0.02, "contradicted"),
        (None, None, "not decided"),
    ):
        difference["eer"] = Estimate(0.01, low, high)
        assert verdict(results, "no more than 0.9 points above") == expected


def test_the_size_claim_follows_the_parameters(results):
    row = results.row("distilled", "joint")
    assert verdict(results, "fewer parameters") == "supported"
    row.share_of_teacher = 0.4
    assert verdict(results, "fewer parameters") == "contradicted"


def test_fine_tuned_and_distilled_must_be_better_beyond_the_interval(results):
    def set_both(estimate):
        for training in ("alone", "joint"):
            results.row("distilled", training).differences["frozen"]["eer"] = estimate

    for estimate, expected in (
        (Estimate(-0.05, -0.08, -0.01), "supported"),
        (Estimate(-0.05, -0.08, 0.01), "not decided"),
        (Estimate(0.05, 0.01, 0.08), "contradicted"),
        (Estimate(0.0, 0.0, 0.0), "not decided"),
    ):
        set_both(estimate)
        assert verdict(results, "beats frozen (distilled, SV EER)") == expected
        results.row("distilled", "joint").differences["scratch"]["eer"] = estimate
        words = "distilled beats from scratch (fine-tuned jointly, SV EER"
        assert verdict(results, words) == expected


def test_a_run_without_the_student_still_reports(results):
    results.rows = [row for row in results.rows if row.system != "distilled"]
    text = write_report(results, [])
    assert "Not scored in this run: distilled" in text
