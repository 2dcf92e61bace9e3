"""Score files: reading them, with the speakers behind them, and pooling them over folds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s3prl_kd.data.kaldi import DataDir
from s3prl_kd.errors import UserError


@dataclasses.dataclass
class KwsScores:
    """Decisions of one system.

    Attributes:
        classes: class names in the order of the score columns.
        keys: (dataset tag, utt) of each decision.
        labels, predicted, speakers: true class, decided class and speaker of each decision.
    """

    classes: list[str]
    keys: list[tuple[str, str]]
    labels: list[str]
    predicted: list[str]
    speakers: list[str]


@dataclasses.dataclass
class SvScores:
    """Trial scores of one system.

    Attributes:
        keys: (dataset tag, enrol utt, test utt) of each trial.
        scores: (trials,) larger for "same speaker".
        targets: (trials,) of bool.
        enrol_speakers, test_speakers: speaker of each side.
    """

    keys: list[tuple[str, str, str]]
    scores: np.ndarray
    targets: np.ndarray
    enrol_speakers: list[str]
    test_speakers: list[str]


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read these scores ({error.strerror}); score again with --force"
        ) from None
    return [(n, line.split()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]


def _same(path: Path, found: set, expected: set, what: str) -> None:
    if found != expected:
        lacking, extra = len(expected - found), len(found - expected)
        raise UserError(
            f"{path}: {lacking} {what} of the test set are missing and {extra} are not in it; "
            "score again with --force"
        )


def read_kws_scores(path: str | Path, data: DataDir, tag: str) -> KwsScores:
    """Read ``kws_scores`` (``# utt label predicted <class> ...``, then a line per utterance).

    Raises:
        UserError: a malformed line, or utterances other than those of ``data``.
    """
    path = Path(path)
    (_, header), *rows = _lines(path) or [(1, [])]
    if header[:4] != ["#", "utt", "label", "predicted"] or len(header) < 5:
        raise UserError(f"{path}:1: expected '# utt label predicted <class> ...'; score again")
    classes = header[4:]
    for number, fields in rows:
        if len(fields) != 3 + len(classes):
            raise UserError(
                f"{path}:{number}: expected {3 + len(classes)} fields, found {len(fields)}; "
                "score again with --force"
            )
        if fields[1] not in classes or fields[2] not in classes:
            raise UserError(f"{path}:{number}: a class that the header lacks; score again")
    utts = [fields[0] for _, fields in rows]
    _same(path, set(utts), set(data.utts), "utterances")
    return KwsScores(
        classes=classes,
        keys=[(tag, utt) for utt in utts],
        labels=[fields[1] for _, fields in rows],
        predicted=[fields[2] for _, fields in rows],
        speakers=[data.utt2spk[utt] for utt in utts],
    )


def read_sv_scores(path: str | Path, data: DataDir, tag: str) -> SvScores:
    """Read ``sv_scores`` (``enrol test score`` a line), in the order of ``data.trials``.

    Raises:
        UserError: a malformed line, or trials other than those of ``data``.
    """
    path = Path(path)
    scores: dict[tuple[str, str], float] = {}
    for number, fields in _lines(path):
        try:
            enrol, test, score = fields
            scores[enrol, test] = float(score)
        except ValueError:
            raise UserError(
                f"{path}:{number}: expected 'enrol test score'; score again with --force"
            ) from None
    trials = data.trials
    _same(path, set(scores), {(trial.enrol, trial.test) for trial in trials}, "trials")
    return SvScores(
        keys=[(tag, trial.enrol, trial.test) for trial in trials],
        scores=np.array([scores[trial.enrol, trial.test] for trial in trials]),
        targets=np.array([trial.target for trial in trials], dtype=bool),
        enrol_speakers=[data.utt2spk[trial.enrol] for trial in trials],
        test_speakers=[data.utt2spk[trial.test] for trial in trials],
    )


def pool_kws(folds: Sequence[KwsScores]) -> KwsScores:
    """Put the decisions of folds together.

    An utterance tested in several folds is a decision in each. Speakers keep their name, so the
    bootstrap draws a speaker with all its decisions, from whichever fold.
    """
    if any(fold.classes != folds[0].classes for fold in folds):
        raise UserError("kws_scores: the folds have different classes; prepare the data again")
    return KwsScores(
        classes=folds[0].classes,
        keys=[key for fold in folds for key in fold.keys],
        labels=[label for fold in folds for label in fold.labels],
        predicted=[label for fold in folds for label in fold.predicted],
        speakers=[speaker for fold in folds for speaker in fold.speakers],
    )


def pool_sv(folds: Sequence[SvScores]) -> SvScores:
    """Put the trials of folds together, under one threshold for all."""
    return SvScores(
        keys=[key for fold in folds for key in fold.keys],
        scores=np.concatenate([fold.scores for fold in folds]),
        targets=np.concatenate([fold.targets for fold in folds]),
        enrol_speakers=[speaker for fold in folds for speaker in fold.enrol_speakers],
        test_speakers=[speaker for fold in folds for speaker in fold.test_speakers],
    )
