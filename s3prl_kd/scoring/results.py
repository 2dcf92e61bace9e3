"""``results.json``: what it holds, and reading it back with every key checked.

All rates (accuracy, EER, shares) are shares of 1; minDCF is normalised; times are in seconds.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from s3prl_kd.config import build
from s3prl_kd.errors import UserError
from s3prl_kd.files import write_json

FORMAT = 1
Training = Literal["frozen", "alone", "joint"]
TRAININGS: tuple[Training, ...] = ("frozen", "alone", "joint")
ROLES = ("teacher", "scratch", "distilled")
METRICS = ("accuracy", "eer", "min_dcf_0.01", "min_dcf_0.05")


@dataclasses.dataclass
class Estimate:
    """A value and its 95 % interval (``None``: no interval could be drawn)."""

    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass
class Kws:
    """Details of keyword spotting.

    Attributes:
        classes: class names, in the order of ``confusion``.
        per_class: ``{class: {"recall", "precision", "utterances"}}``.
        confusion: rows of true, columns of decided classes, in utterances.
        utterances: decisions scored, over all folds.
        speakers: speakers among them.
    """

    classes: list[str]
    per_class: dict[str, dict[str, float | None]]
    confusion: list[list[int]]
    utterances: int
    speakers: int


@dataclasses.dataclass
class Det:
    """A thinned DET curve: false-alarm and miss rates, the strictest threshold first."""

    fpr: list[float]
    fnr: list[float]


@dataclasses.dataclass
class Sv:
    """Details of speaker verification."""

    trials: int
    targets: int
    speakers: int
    det: Det


@dataclasses.dataclass
class Row:
    """One system in one training.

    Attributes:
        system: name of the row (``fbank``, ``teacher``, ...).
        training: upstream ``frozen``, fine-tuned per task (``alone``) or for both (``joint``).
        upstream: the upstream's name in each dataset.
        upstream_params: parameters of one upstream, without heads.
        share_of_teacher: ``upstream_params`` by the teacher's.
        head_params: parameters of the heads of all tasks.
        metrics: ``accuracy``, ``eer``, ``min_dcf_0.01``, ``min_dcf_0.05``, those that exist.
        differences: per reference, this row's metrics minus the reference's, paired over the
            same draws: ``teacher`` and ``scratch`` in the same training, ``frozen`` of the same
            system.
        kws, sv: details, ``None`` if the task was not scored.
        layer_weights: per task, the featurizer's weights, averaged over folds.
        curves: metrics.csv of the downstream systems, relative to expdir.
        seconds: training time of the downstream systems together.
    """

    system: str
    training: Training
    upstream: list[str]
    upstream_params: int
    share_of_teacher: float | None
    head_params: int
    metrics: dict[str, Estimate]
    differences: dict[str, dict[str, Estimate]]
    kws: Kws | None
    sv: Sv | None
    layer_weights: dict[str, list[float]]
    curves: list[str]
    seconds: float


@dataclasses.dataclass
class Dataset:
    """One dataset dir; ``splits`` is ``{split: {"utterances", "speakers", "hours"}}``."""

    path: str
    tag: str
    splits: dict[str, dict[str, float]]


@dataclasses.dataclass
class Results:
    """All of a run; see :class:`Row`.

    Attributes:
        roles: names of the rows that are ``teacher``, ``scratch`` and ``distilled``.
        upstream_curves: per upstream that was trained here, its metrics.csv relative to expdir.
        missing: systems that were asked for and do not exist.
    """

    corpus: str
    datasets: list[Dataset]
    seed: int
    bootstrap: int
    command: str
    commit: str | None
    created: str
    versions: dict[str, str]
    roles: dict[str, str]
    rows: list[Row]
    upstream_curves: dict[str, str]
    missing: list[str]
    format: int = FORMAT

    def row(self, system: str, training: Training) -> Row | None:
        """The row of a system in a training, if it was scored."""
        for row in self.rows:
            if (row.system, row.training) == (system, training):
                return row
        return None

    @property
    def systems(self) -> list[str]:
        """Names of the systems, in the order of the rows."""
        return list(dict.fromkeys(row.system for row in self.rows))


def write_results(path: str | Path, results: Results) -> None:
    """Write ``results.json``, atomically."""
    write_json(path, dataclasses.asdict(results))


def read_results(path: str | Path) -> Results:
    """Read ``results.json``.

    Raises:
        UserError: no such file, not JSON, another format, or a key missing, unknown or of
            another type; the message names it.
    """
    path = Path(path)
    again = "make it again with the scoring stage"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); {again}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {again}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not a results.json of format {FORMAT}; {again}")
    results = build(Results, content, str(path))
    if not results.rows:
        raise UserError(f"{path}: it has no rows; {again}")
    lacking = [role for role in ROLES if role not in results.roles]
    if lacking:
        raise UserError(f"{path}: roles lack {lacking[0]!r}; {again}")
    for row in results.rows:
        where = f"{path}: {row.system} {row.training}"
        unknown = sorted(set(row.metrics) - set(METRICS))
        if unknown:
            raise UserError(f"{where}: unknown metric {unknown[0]!r}; {again}")
        needed = (METRICS[:1] if row.kws else ()) + (METRICS[1:] if row.sv else ())
        absent = [name for name in needed if name not in row.metrics]
        if absent:
            raise UserError(f"{where}: lacks metric {absent[0]!r}; {again}")
    return results
