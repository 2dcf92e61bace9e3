"""From trained systems on disk to ``results.json``."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.stats import norm

from s3prl_kd.data.audio import SAMPLE_RATE
from s3prl_kd.data.kaldi import DataDir
from s3prl_kd.errors import UserError
from s3prl_kd.files import read_json
from s3prl_kd.scoring import intervals, metrics
from s3prl_kd.scoring.results import (
    TRAININGS,
    Dataset,
    Det,
    Estimate,
    Kws,
    Results,
    Row,
    Sv,
    Training,
)
from s3prl_kd.scoring.scores import (
    KwsScores,
    SvScores,
    pool_kws,
    pool_sv,
    read_kws_scores,
    read_sv_scores,
)

TASKS = ("kws", "sv")
# The system directories of each training: upstream's mode / tasks.
DIRECTORIES: dict[Training, dict[str, str]] = {
    "frozen": {"kws": "frozen/kws", "sv": "frozen/sv"},
    "alone": {"kws": "finetuned/kws", "sv": "finetuned/sv"},
    "joint": {"kws": "finetuned/kws+sv", "sv": "finetuned/kws+sv"},
}
DET_POINTS = 300


class Data:
    """A dataset dir's test sets."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.corpus = read_json(self.path / "corpus.json")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path / 'corpus.json'}: cannot read it ({error}); prepare the data first"
            ) from None
        self.tag: str = self.corpus["tag"]
        self.name: str = self.corpus["name"]

    @cached_property
    def test(self) -> dict[str, DataDir]:
        """``{"kws": ..., "sv": ...}``, the test splits."""
        return {task: DataDir(self.path / f"{task}_test") for task in TASKS}

    def describe(self) -> Dataset:
        """Sizes of all splits."""
        splits = {}
        for directory in sorted(self.path.glob("*/wav.scp")):
            split = DataDir(directory.parent)
            splits[directory.parent.name] = {
                "utterances": float(len(split.utts)),
                "speakers": float(len(set(split.utt2spk.values()))),
                "hours": round(sum(split.num_samples.values()) / SAMPLE_RATE / 3600, 4),
            }
        return Dataset(path=str(self.path), tag=self.tag, splits=splits)


def system_dir(expdir: str | Path, upstream: str, tag: str, kind: str) -> Path:
    """Where a system lies; ``kind`` is ``mode/tasks``."""
    return Path(expdir) / upstream / "downstream" / tag / kind


def is_trained(directory: Path) -> bool:
    """Whether a system's training is complete."""
    for marker in directory.glob(".stage-*.json"):
        if marker.name != ".stage-score.json" and read_json(marker).get("state") != "done":
            return False
    return all((directory / name).exists() for name in ("system.json", "checkpoints/best.ckpt"))


def find_systems(
    expdir: str | Path, rows: Mapping[str, str], data: Sequence[Data]
) -> tuple[dict[Path, Data], list[str]]:
    """The trained systems of all rows, and those that are missing.

    Args:
        expdir: where systems lie.
        rows: row name to upstream template, in which ``{tag}`` stands for the dataset's tag.
        data: the folds.

    Returns:
        ``{system dir: its dataset}`` and the missing directories, relative to ``expdir``.
        Fine-tuned systems of an upstream without parameters are not missed.

    Raises:
        UserError: none exists.
    """
    found: dict[Path, Data] = {}
    missing: list[str] = []
    for template in rows.values():
        for fold in data:
            upstream = upstream_name(template, fold.tag)
            absent = []
            parameters = None
            for training in TRAININGS:
                for kind in dict.fromkeys(DIRECTORIES[training].values()):
                    directory = system_dir(expdir, upstream, fold.tag, kind)
                    if is_trained(directory):
                        found[directory] = fold
                        parameters = read_json(directory / "system.json")["upstream_params"]
                    else:
                        absent.append((kind, str(directory.relative_to(expdir))))
            missing += [
                path for kind, path in absent if parameters != 0 or kind.startswith("frozen/")
            ]
    if not found:
        raise UserError(
            f"{expdir}: none of the systems exists (first: {missing[0]}); "
            "train them first, with stages 4 and 5"
        )
    return found, missing


def upstream_name(template: str, tag: str) -> str:
    """An upstream's name for a dataset, e.g. ``mini_{tag}``."""
    return template.replace("{tag}", tag)


@dataclasses.dataclass
class Scored:
    """Metrics of pooled scores, with the replicates that intervals are made of.

    Attributes:
        keys: per task what was scored, to tell whether two systems can be compared.
        points: ``{metric: value}``.
        replicates: ``{metric: (replicates,)}``.
    """

    kws: Kws | None
    sv: Sv | None
    keys: dict[str, list[tuple[str, ...]]]
    points: dict[str, float]
    replicates: dict[str, np.ndarray]

    def estimates(self) -> dict[str, Estimate]:
        """Each metric with its interval."""
        return {
            name: Estimate(point, *intervals.interval(self.replicates[name]))
            for name, point in self.points.items()
        }

    def minus(self, other: Scored) -> dict[str, Estimate]:
        """Paired differences to another system, of the metrics that both have.

        Raises:
            UserError: the two were not scored on the same utterances or trials.
        """
        for task in set(self.keys) & set(other.keys):
            if set(self.keys[task]) != set(other.keys[task]):
                raise UserError(
                    f"{task}_scores: two systems were scored on different test sets; "
                    "score again with --force"
                )
        return {
            name: Estimate(
                self.points[name] - other.points[name],
                *intervals.interval(self.replicates[name] - other.replicates[name]),
            )
            for name in self.points
            if name in other.points
        }


def evaluate(
    kws: KwsScores | None, sv: SvScores | None, replicates: int = 1000, seed: int = 1
) -> Scored:
    """Metrics of (pooled) scores and their bootstrap replicates, see :mod:`.intervals`."""
    scored = Scored(None, None, {}, {}, {})
    if kws is not None:
        speakers = sorted(set(kws.speakers))
        detail = metrics.kws_metrics(kws.labels, kws.predicted, kws.classes)
        scored.keys["kws"] = list(kws.keys)
        scored.points["accuracy"] = detail["accuracy"]
        scored.replicates["accuracy"] = intervals.accuracy_replicates(
            np.array(kws.labels) == np.array(kws.predicted),
            np.searchsorted(speakers, kws.speakers),
            intervals.draw(len(speakers), replicates, seed),
        )
        scored.kws = Kws(
            kws.classes, detail["per_class"], detail["confusion"], len(kws.keys), len(speakers)
        )
    if sv is not None:
        speakers = sorted({*sv.enrol_speakers, *sv.test_speakers})
        fpr, fnr = metrics.error_rates(sv.scores, sv.targets)
        scored.keys["sv"] = list(sv.keys)
        scored.points |= {name: float(v) for name, v in metrics.sv_metrics(fpr, fnr).items()}
        scored.replicates |= intervals.sv_replicates(
            sv.scores,
            sv.targets,
            np.searchsorted(speakers, sv.enrol_speakers),
            np.searchsorted(speakers, sv.test_speakers),
            intervals.draw(len(speakers), replicates, seed),
        )
        scored.sv = Sv(
            trials=len(sv.keys),
            targets=int(sv.targets.sum()),
            speakers=len(speakers),
            det=thin(fpr, fnr),
        )
    return scored


def thin(fpr: np.ndarray, fnr: np.ndarray, points: int = DET_POINTS) -> Det:
    """At most ``points`` of a DET curve, evenly spaced as it is drawn (normal deviates)."""
    if len(fpr) > points:
        edge = 1e-6
        x, y = (norm.ppf(np.clip(rate, edge, 1 - edge)) for rate in (fpr, fnr))
        way = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        keep = np.unique(np.searchsorted(way, np.linspace(0, way[-1], points)))
        keep = keep[keep < len(fpr)]
        fpr, fnr = fpr[keep], fnr[keep]
    return Det(fpr=[round(float(v), 7) for v in fpr], fnr=[round(float(v), 7) for v in fnr])


def evaluate_system(directory: Path, fold: Data, replicates: int, seed: int) -> Scored:
    """Metrics of one system on one fold."""
    tasks = read_json(directory / "system.json")["tasks"]
    return evaluate(
        _kws([directory], [fold]) if "kws" in tasks else None,
        _sv([directory], [fold]) if "sv" in tasks else None,
        replicates,
        seed,
    )


def _kws(directories: Sequence[Path], data: Sequence[Data]) -> KwsScores:
    return pool_kws(
        [
            read_kws_scores(directory / "kws_scores", fold.test["kws"], fold.tag)
            for directory, fold in zip(directories, data, strict=True)
        ]
    )


def _sv(directories: Sequence[Path], data: Sequence[Data]) -> SvScores:
    return pool_sv(
        [
            read_sv_scores(directory / "sv_scores", fold.test["sv"], fold.tag)
            for directory, fold in zip(directories, data, strict=True)
        ]
    )


def make_results(
    expdir: str | Path,
    rows: Mapping[str, str],
    data: Sequence[Data],
    roles: Mapping[str, str],
    replicates: int = 1000,
    seed: int = 1,
    command: str = "",
) -> Results:
    """Pool the systems of all folds into rows.

    A task of a row is scored only if its system exists in every fold, so that all rows are of the
    same test data; what lacks is in ``missing``.

    Args:
        rows: row name to upstream template (see :func:`find_systems`).
        data: dataset dirs of one corpus.
        roles: which rows are the ``teacher``, ``scratch`` and ``distilled``.
    """
    expdir = Path(expdir)
    if len({fold.name for fold in data}) != 1:
        raise UserError("--data: the dataset dirs are of different corpora; score each on its own")
    found, missing = find_systems(expdir, rows, data)
    scored: dict[tuple[str, Training], Scored] = {}
    made: list[Row] = []
    for name, template in rows.items():
        upstreams = [upstream_name(template, fold.tag) for fold in data]
        for training in TRAININGS:
            of_task = {}
            for task, kind in DIRECTORIES[training].items():
                directories = [
                    system_dir(expdir, upstream, fold.tag, kind)
                    for upstream, fold in zip(upstreams, data, strict=True)
                ]
                if all(directory in found for directory in directories):
                    of_task[task] = directories
            if not of_task:
                continue
            scored[name, training] = evaluate(
                _kws(of_task["kws"], data) if "kws" in of_task else None,
                _sv(of_task["sv"], data) if "sv" in of_task else None,
                replicates,
                seed,
            )
            made.append(_row(expdir, name, training, upstreams, of_task, scored[name, training]))
    if not made:
        raise UserError(
            f"{expdir}: no system exists in every fold (first missing: {missing[0]}); "
            "train the others, or give fewer --data"
        )
    teacher = next((row for row in made if row.system == roles.get("teacher")), None)
    for row in made:
        if teacher is not None and teacher.upstream_params:
            row.share_of_teacher = row.upstream_params / teacher.upstream_params
        references: dict[str, tuple[str | None, Training]] = {
            "teacher": (roles.get("teacher"), row.training),
            "scratch": (roles.get("scratch"), row.training),
            "frozen": (row.system, "frozen"),
        }
        own = (row.system, row.training)
        row.differences = {
            label: scored[own].minus(scored[key])
            for label, key in references.items()
            if key != own and key in scored
        }
    upstream_curves = {
        name: f"{name}/metrics.csv"
        for row in made
        for name in row.upstream
        if (expdir / name / "metrics.csv").exists()
    }
    return Results(
        corpus=data[0].name,
        datasets=[fold.describe() for fold in data],
        seed=seed,
        bootstrap=replicates,
        command=command,
        commit=commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        roles=dict(roles),
        rows=made,
        upstream_curves=upstream_curves,
        missing=missing,
    )


def _row(
    expdir: Path,
    name: str,
    training: Training,
    upstreams: list[str],
    of_task: Mapping[str, list[Path]],
    scored: Scored,
) -> Row:
    directories = list(dict.fromkeys(d for group in of_task.values() for d in group))
    about = {directory: read_json(directory / "system.json") for directory in directories}
    first = [about[group[0]] for group in of_task.values()]
    weights = {
        task: np.mean(
            [read_json(directory / "layer_weights.json")[task] for directory in group], axis=0
        ).tolist()
        for task, group in of_task.items()
    }
    return Row(
        system=name,
        training=training,
        upstream=upstreams,
        upstream_params=first[0]["upstream_params"],
        share_of_teacher=None,
        head_params=sum(
            system["head_params"][task] for task, system in zip(of_task, first, strict=True)
        ),
        metrics=scored.estimates(),
        differences={},
        kws=scored.kws,
        sv=scored.sv,
        layer_weights=weights,
        curves=[
            str((directory / "metrics.csv").relative_to(expdir))
            for directory in directories
            if (directory / "metrics.csv").exists()
        ],
        seconds=round(sum(float(system.get("seconds", 0)) for system in about.values()), 1),
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in (
        "torch",
        "s3prl",
        "espnet",
        "transformers",
        "lightning",
        "numpy",
        "scikit-learn",
    ):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of this code, with ``-dirty`` for uncommitted changes; ``None`` outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
