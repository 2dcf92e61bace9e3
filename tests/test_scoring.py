"""Metrics, intervals and pooling against cases worked out by hand or by brute force."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from score_tree import make_tree

from s3prl_kd.bin import score
from s3prl_kd.errors import UserError
from s3prl_kd.scoring import intervals, metrics
from s3prl_kd.scoring.results import METRICS, read_results
from s3prl_kd.scoring.scores import KwsScores, SvScores, pool_kws, pool_sv
from s3prl_kd.scoring.systems import evaluate, thin


def test_eer_and_min_dcf_of_a_case_worked_out_by_hand():
    # Strictest first: 9 T, 8 T, 7 N, 6 T, 5 N, 4 N, 3 T, 2 N. At threshold 6 one of four
    # non-targets is accepted and one of four targets rejected.
    scores = np.array([9, 8, 7, 6, 5, 4, 3, 2.0])
    targets = np.array([1, 1, 0, 1, 0, 0, 1, 0], dtype=bool)
    fpr, fnr = metrics.error_rates(scores, targets)
    assert metrics.eer(fpr, fnr) == pytest.approx(0.25)
    # p = 0.01: cheapest is to accept the two best alone: 0.01 * 0.5 / 0.01.
    assert metrics.min_dcf(fpr, fnr, 0.01) == pytest.approx(0.5)
    # p = 0.5: 0.5 * 0.25 + 0.5 * 0.25, by 0.5.
    assert metrics.min_dcf(fpr, fnr, 0.5) == pytest.approx(0.5)


def test_eer_interpolates_and_takes_ties_together():
    # 2 T above; a tie of T N N; 1 N below. Thresholds: (fpr, fnr) = (0, 1) (0, 1/3) (2/3, 0)
    # (1, 0). On the line from (0, 1/3) to (2/3, 0) they meet at 2/9.
    scores = np.array([3, 3, 2, 2, 2, 1.0])
    targets = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
    for order in (slice(None), slice(None, None, -1)):
        rates = metrics.error_rates(scores[order], targets[order])
        assert metrics.eer(*rates) == pytest.approx(2 / 9)
        assert metrics.min_dcf(*rates, 0.01) == pytest.approx(1 / 3)


def test_extreme_eers():
    targets = np.array([1, 1, 0, 0], dtype=bool)
    scores = np.array([4, 3, 2, 1.0])
    assert metrics.eer(*metrics.error_rates(scores, targets)) == 0
    assert metrics.eer(*metrics.error_rates(-scores, targets)) == 1
    assert metrics.eer(*metrics.error_rates(np.zeros(4), targets)) == pytest.approx(0.5)
    # Everything rejected costs 1 after normalisation, whatever the scores.
    assert metrics.min_dcf(*metrics.error_rates(-scores, targets), 0.01) == pytest.approx(1)


@pytest.mark.parametrize("kind, word", [(True, "non-target"), (False, "target")])
def test_trials_of_one_kind_are_refused(kind, word):
    with pytest.raises(UserError, match=f"no {word} trial"):
        metrics.error_rates(np.array([1.0, 2.0]), np.array([kind, kind]))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="1 of 2 scores"):
        metrics.error_rates(np.array([1.0, np.nan]), np.array([True, False]))


def test_kws_counts():
    got = metrics.kws_metrics(list("aabb"), list("abbb"), ["a", "b", "c"])
    assert got["accuracy"] == 0.75
    assert got["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert got["per_class"]["a"] == {"recall": 0.5, "precision": 1.0, "utterances": 2}
    assert got["per_class"]["b"]["precision"] == pytest.approx(2 / 3)
    assert got["per_class"]["c"] == {"recall": None, "precision": None, "utterances": 0}


def trials(speakers=4, per_speaker=3, seed=0, noise=0.7):
    """All pairs of utterances, scored with noise."""
    generator = np.random.default_rng(seed)
    utts = [(s, f"s{s}u{u}") for s in range(speakers) for u in range(per_speaker)]
    pairs = [(a, b) for i, a in enumerate(utts) for b in utts[i + 1 :]]
    targets = np.array([a[0] == b[0] for a, b in pairs])
    return SvScores(
        keys=[("fold", a[1], b[1]) for a, b in pairs],
        scores=np.round(targets + noise * generator.standard_normal(len(pairs)), 1),
        targets=targets,
        enrol_speakers=[f"s{a[0]}" for a, _ in pairs],
        test_speakers=[f"s{b[0]}" for _, b in pairs],
    )


def indices(sv):
    return [
        np.array([int(s[1:]) for s in names]) for names in (sv.enrol_speakers, sv.test_speakers)
    ]


def test_weighted_bootstrap_equals_writing_trials_out():
    sv = trials()
    enrol, test = indices(sv)
    multiplicity = intervals.draw(4, 20, seed=3)
    got = intervals.sv_replicates(sv.scores, sv.targets, enrol, test, multiplicity)
    compared = 0
    for row, drawn in enumerate(multiplicity):
        copies = np.array(
            [drawn[a] if a == b else drawn[a] * drawn[b] for a, b in zip(enrol, test, strict=True)]
        )
        scores, targets = np.repeat(sv.scores, copies), np.repeat(sv.targets, copies)
        if targets.all():
            assert np.isnan(got["eer"][row])
            continue
        fpr, fnr = metrics.error_rates(scores, targets)
        for name, value in metrics.sv_metrics(fpr, fnr).items():
            assert got[name][row] == pytest.approx(value), (row, name)
        compared += 1
    assert compared > 10


def test_accuracy_bootstrap_equals_writing_utterances_out():
    correct = np.array([1, 0, 1, 1, 0, 1, 1], dtype=bool)
    speaker = np.array([0, 0, 0, 1, 1, 2, 2])
    multiplicity = intervals.draw(3, 10, seed=0)
    got = intervals.accuracy_replicates(correct, speaker, multiplicity)
    for value, drawn in zip(got, multiplicity, strict=True):
        assert value == pytest.approx(np.repeat(correct, drawn[speaker]).mean())


def test_blocks_of_replicates_change_nothing(monkeypatch):
    sv = trials()
    arguments = (sv.scores, sv.targets, *indices(sv), intervals.draw(4, 10, seed=1))
    whole = intervals.sv_replicates(*arguments)
    monkeypatch.setattr(intervals, "_BLOCK", 3 * len(sv.scores))
    for name, values in intervals.sv_replicates(*arguments).items():
        np.testing.assert_array_equal(values, whole[name])


def test_intervals_repeat_with_the_seed_and_hold_the_point():
    sv = trials(speakers=10)
    one, again, other = (evaluate(None, sv, 200, seed).estimates() for seed in (1, 1, 2))
    assert one == again
    assert one != other
    for estimate in one.values():
        assert estimate.low < estimate.high
        assert estimate.low <= estimate.value <= estimate.high


def test_paired_difference_is_tighter_than_its_parts():
    sv = trials(speakers=10)
    close = trials(speakers=10)
    close.scores = close.scores + 1e-3 * np.random.default_rng(5).standard_normal(len(sv.scores))
    first, second = evaluate(None, sv, 200), evaluate(None, close, 200)
    own, difference = first.estimates()["eer"], first.minus(second)["eer"]
    assert difference.high - difference.low < 0.3 * (own.high - own.low)
    assert first.minus(first)["eer"].value == first.minus(first)["eer"].high == 0


def test_systems_scored_on_other_trials_are_not_compared():
    sv, fewer = trials(), trials(speakers=3)
    with pytest.raises(UserError, match="different test sets"):
        evaluate(None, sv, 10).minus(evaluate(None, fewer, 10))


def test_pooled_folds():
    first, second = trials(seed=0), trials(seed=1)
    second.keys = [("other", *key[1:]) for key in second.keys]
    pooled = evaluate(None, pool_sv([first, second]), 10)
    scores = np.concatenate([first.scores, second.scores])
    targets = np.concatenate([first.targets, second.targets])
    assert pooled.points["eer"] == metrics.eer(*metrics.error_rates(scores, targets))
    assert pooled.sv.trials == 2 * len(first.keys)
    assert pooled.sv.speakers == 4

    def fold(tag, predicted):
        return KwsScores(["a", "b"], [(tag, "u1"), (tag, "u2")], ["a", "b"], predicted, ["x", "y"])

    kws = evaluate(pool_kws([fold("1", ["a", "b"]), fold("2", ["b", "b"])]), None, 10)
    assert kws.points["accuracy"] == 0.75
    assert (kws.kws.utterances, kws.kws.speakers) == (4, 2)


def test_thinned_det_keeps_both_ends():
    sv = trials(speakers=30, per_speaker=4)
    fpr, fnr = metrics.error_rates(sv.scores + 1e-6 * np.arange(len(sv.scores)), sv.targets)
    det = thin(fpr, fnr, points=50)
    assert len(det.fpr) == len(det.fnr) <= 50 < len(fpr)
    assert (det.fpr[0], det.fnr[0], det.fpr[-1], det.fnr[-1]) == (0, 1, 1, 0)


# The stage, on a fabricated exp tree.


def run_score(tree, *more):
    score.main(
        [
            *("--data", *map(str, tree.data), "--expdir", str(tree.expdir)),
            *("--out", str(tree.expdir / "results"), "--bootstrap", "50"),
            *(part for row in tree.rows for part in ("--row", row)),
            *more,
        ]
    )
    return read_results(tree.expdir / "results" / "results.json")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    tree = make_tree(tmp_path)
    # No model is run, and s3prl, which takes seconds to import, is not needed.
    predict = SimpleNamespace(write_scores=tree.write_scores)
    monkeypatch.setitem(sys.modules, "s3prl_kd.downstream.predict", predict)
    return tree


def test_score_pools_folds_into_rows(tree):
    results = run_score(tree)
    assert [(row.system, row.training) for row in results.rows] == [
        ("fbank", "frozen"),
        *(
            (system, training)
            for system in ("teacher", "scratch", "distilled")
            for training in ("frozen", "alone", "joint")
        ),
    ]
    row = results.row("distilled", "joint")
    assert set(row.metrics) == set(METRICS)
    assert row.upstream == ["student_mini_toy1", "student_mini_toy2"]
    assert row.share_of_teacher == 0.25
    assert row.head_params == 300
    assert row.kws.utterances == 2 * len(tree.utts)
    assert set(row.differences) == {"teacher", "scratch", "frozen"}
    assert set(results.row("teacher", "frozen").differences) == {"scratch"}
    assert row.layer_weights["kws"] == pytest.approx([0.2, 0.3, 0.5])
    assert results.missing == []
    assert "hours" in results.datasets[0].splits["kws_test"]
    one = json.loads(
        (tree.system("student_mini_toy1", "finetuned/kws+sv") / "result.json").read_text()
    )
    assert 0 <= one["metrics"]["accuracy"]["value"] <= 1


def test_score_skips_what_is_done_and_follows_a_new_checkpoint(tree):
    run_score(tree)
    assert len(tree.calls) == 2 * (2 + 3 * 5)
    tree.calls.clear()
    run_score(tree)
    assert tree.calls == []
    system = tree.system("student_mini_toy1", "frozen/kws")
    (system / "checkpoints" / "best.ckpt").write_text("another")
    run_score(tree)
    assert tree.calls == [system]


def test_a_missing_system_is_listed_and_its_row_goes(tree, capsys):
    system = tree.system("student_mini_toy2", "finetuned/kws+sv")
    (system / "checkpoints" / "best.ckpt").unlink()
    half = tree.system("scratch_mini_toy1", "frozen/sv")
    (half / ".stage-downstream.json").write_text('{"state": "running"}')
    results = run_score(tree)
    assert results.missing == [str(d.relative_to(tree.expdir)) for d in (half, system)]
    assert results.row("distilled", "joint") is None
    assert results.row("scratch", "frozen").sv is None
    assert results.row("scratch", "frozen").kws is not None
    assert "is missing" in capsys.readouterr().out


def test_no_system_at_all_is_an_error(tree):
    with pytest.raises(UserError, match="none of the systems exists"):
        score.main(
            [
                *("--data", str(tree.data[0]), "--expdir", str(tree.expdir)),
                *("--out", str(tree.expdir / "results"), "--row", "teacher=absent"),
            ]
        )


@pytest.mark.parametrize(
    "name, line, told",
    [
        ("sv_scores", "one two", "sv_scores:1: expected 'enrol test score'"),
        ("sv_scores", "one two 0.5", "trials of the test set are missing"),
        ("kws_scores", "utt a b", "kws_scores:1: expected '# utt label"),
        ("kws_scores", "# utt label predicted a\nutt a a", "kws_scores:2: expected 4 fields"),
    ],
)
def test_a_malformed_score_file_is_named(tree, name, line, told):
    run_score(tree)
    (tree.system("student_mini_toy1", "finetuned/kws+sv") / name).write_text(line + "\n")
    with pytest.raises(UserError, match=told):
        run_score(tree)


def test_a_thousand_replicates_of_many_trials_fit_in_memory_blocks():
    sv = trials(speakers=20, per_speaker=4)
    assert len(sv.scores) > 3000
    found = evaluate(None, sv, 1000).estimates()
    assert found["eer"].low < found["eer"].high


def test_help_does_not_load_torch():
    code = (
        "import sys\nfrom s3prl_kd.bin import report, score\n"
        "for part in (score, report):\n"
        "    try: part.main(['--help'])\n"
        "    except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--teacher_row" in done.stdout
