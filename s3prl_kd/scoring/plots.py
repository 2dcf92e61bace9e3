"""Pictures of a run: DET curves, confusion matrices, training curves, layer weights."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import norm
from sklearn.metrics import ConfusionMatrixDisplay, DetCurveDisplay

from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_write
from s3prl_kd.scoring.claims import percent
from s3prl_kd.scoring.results import TRAININGS, Results, Row

# Okabe & Ito's palette, told apart with any colour vision; dashes and markers repeat the message.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", "-", "--", "-.")
TITLES = {"frozen": "frozen", "alone": "fine-tuned alone", "joint": "fine-tuned jointly"}
TASKS = {"kws": "KWS", "sv": "SV"}


def make_plots(results: Results, expdir: Path, out: Path) -> list[Path]:
    """Draw every picture for which there are numbers.

    Args:
        results: what :func:`results.read_results` returned.
        expdir: what its curves are relative to; absent files are left out.
        out: directory of the PNGs.

    Returns:
        The files written.
    """
    pictures = {
        "det.png": det_curves(results),
        "confusion.png": confusion_matrices(results),
        "training.png": upstream_training(results, expdir),
        "downstream.png": downstream_training(results, expdir),
        "layer_weights.png": layer_weights(results),
    }
    written = []
    for name, figure in pictures.items():
        if figure is None:
            (out / name).unlink(missing_ok=True)
            continue
        with atomic_write(out / name, "wb") as handle:
            figure.savefig(handle, format="png", dpi=130)
        plt.close(figure)
        written.append(out / name)
    return written


def style(results: Results, system: str) -> dict[str, str]:
    """Colour and dash of a system, the same in every picture."""
    index = results.systems.index(system) % len(COLOURS)
    return {"color": COLOURS[index], "linestyle": DASHES[index]}


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    return plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
    )


def det_curves(results: Results) -> Figure | None:
    """DET curves on normal-deviate axes, a panel per training."""
    trainings = [t for t in TRAININGS if any(r.sv and r.training == t for r in results.rows)]
    if not trainings:
        return None
    figure, axes = _grid(1, len(trainings), 4.6, 4.6)
    edge = 2.6
    for axis, training in zip(axes[0], trainings, strict=True):
        for row in results.rows:
            if row.training != training or row.sv is None:
                continue
            # A rate of 0 or 1 lies at infinity; half a trial stands for it.
            sizes = (row.sv.trials - row.sv.targets, row.sv.targets)
            fpr, fnr = (
                np.clip(rates, 0.5 / size, 1 - 0.5 / size)
                for rates, size in zip((row.sv.det.fpr, row.sv.det.fnr), sizes, strict=True)
            )
            edge = max(edge, -float(norm.ppf(0.5 / max(sizes))) + 0.1)
            label = f"{row.system} (EER {percent(row.metrics['eer'].value)} %)"
            DetCurveDisplay(fpr=fpr, fnr=fnr).plot(
                ax=axis, name=label, linewidth=1.8, **style(results, row.system)
            )
        axis.set(title=TITLES[training], aspect="equal")
        axis.set(xlabel="false alarm rate", ylabel="miss rate")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, loc="upper right")
    # From the smallest rate that the trials can show up to 90 %: above it nobody works.
    for axis in axes[0]:
        ends = (-edge, float(norm.ppf(0.9)))
        axis.plot(ends, ends, color="0.6", linewidth=0.8, zorder=0)
        axis.set(xlim=ends, ylim=ends)
    trials = next(row.sv.trials for row in results.rows if row.sv)
    figure.suptitle(f"Speaker verification on {results.corpus}, {trials} trials")
    return figure


def confusion_matrices(results: Results) -> Figure | None:
    """Confusion matrices of teacher and distilled student, jointly fine-tuned where scored."""
    shown = [row for role in ("teacher", "distilled") if (row := best_kws(results, role))]
    if not shown:
        return None
    size = max(4.5, 0.55 * max(len(row.kws.classes) for row in shown if row.kws))
    figure, axes = _grid(1, len(shown), size, size + 0.4)
    for axis, row in zip(axes[0], shown, strict=True):
        assert row.kws is not None
        counts = np.array(row.kws.confusion)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        ConfusionMatrixDisplay(counts, display_labels=row.kws.classes).plot(
            ax=axis, include_values=False, colorbar=False, xticks_rotation=60
        )
        axis.images[0].set_data(shares)
        axis.images[0].set(cmap="Blues", clim=(0, 1))
        for (true, decided), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[true, decided] > 0.55 else "black"
                axis.text(decided, true, count, ha="center", va="center", color=colour, fontsize=8)
        accuracy = percent(row.metrics["accuracy"].value)
        axis.set(title=f"{row.system}, {TITLES[row.training]} ({accuracy} %)")
        axis.set(xlabel="decided", ylabel="true")
    figure.suptitle(f"Keyword spotting on {results.corpus}, utterances")
    return figure


def best_kws(results: Results, role: str) -> Row | None:
    """The KWS row of a role in the last training that was scored: jointly, alone, frozen."""
    for training in reversed(TRAININGS):
        row = results.row(results.roles.get(role, ""), training)
        if row and row.kws:
            return row
    return None


def read_curve(path: Path) -> pd.DataFrame | None:
    """A metrics.csv, or ``None`` if it is gone; ``step`` counts optimiser steps."""
    try:
        curve = pd.read_csv(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read this training curve ({error})") from None
    if "step" not in curve:
        raise UserError(f"{path}: no column 'step'; train again")
    return curve


def running_steps(curve: pd.DataFrame) -> pd.Series:
    """Steps since the start of training, also where pre-training counts anew per iteration."""
    if "iteration" not in curve:
        return curve["step"]
    lengths = curve.groupby("iteration")["step"].max()
    return curve["step"] + curve["iteration"].map(lengths.cumsum() - lengths)


def upstream_training(results: Results, expdir: Path) -> Figure | None:
    """Loss by step of pre-training and distillation, a panel per upstream trained here."""
    curves = {
        name: curve
        for name, path in results.upstream_curves.items()
        if (curve := read_curve(expdir / path)) is not None
    }
    if not curves:
        return None
    columns = min(3, len(curves))
    figure, axes = _grid(-(-len(curves) // columns), columns, 4.4, 3.2)
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, (name, curve) in zip(axes.flat, curves.items(), strict=False):
        losses = [c for c in ("train_loss", "valid_loss") if c in curve]
        steps = running_steps(curve)
        for index, column in enumerate(losses):
            axis.plot(
                steps,
                curve[column],
                color=COLOURS[index],
                linestyle=DASHES[index],
                marker=MARKERS[index],
                markersize=4,
                label=column.replace("_", " "),
            )
        axis.set(title=name, xlabel="step", ylabel="loss")
        axis.grid(alpha=0.25)
        if losses:
            axis.legend(fontsize=8)
    figure.suptitle(f"Training of upstreams on {results.corpus}")
    return figure


def downstream_training(results: Results, expdir: Path) -> Figure | None:
    """Validation metrics by step, a panel per training and metric, a line per system and fold."""
    lines: dict[tuple[str, str], list[tuple[str, pd.DataFrame]]] = {}
    for row in results.rows:
        for path in row.curves:
            curve = read_curve(expdir / path)
            if curve is None:
                continue
            for column in curve:
                if column.startswith(("valid_kws", "valid_sv")):
                    lines.setdefault((row.training, column), []).append((row.system, curve))
    if not lines:
        return None
    names = sorted({column for _, column in lines})
    trainings = [t for t in TRAININGS if any(training == t for training, _ in lines)]
    figure, axes = _grid(len(names), len(trainings), 4.2, 2.6)
    for down, column in enumerate(names):
        for across, training in enumerate(trainings):
            axis = axes[down, across]
            for system, curve in lines.get((training, column), []):
                known = {line.get_label() for line in axis.lines}
                axis.plot(
                    curve["step"],
                    curve[column],
                    linewidth=1.5,
                    label=system if system not in known else f"_{system}",
                    **style(results, system),
                )
            axis.set(xlabel="step", title=TITLES[training] if down == 0 else "")
            axis.set(ylabel=column.replace("_", " ") if across == 0 else "")
            axis.grid(alpha=0.25)
            if axis.lines:
                axis.legend(fontsize=7)
    figure.suptitle(f"Downstream training on {results.corpus}, validation data")
    return figure


def layer_weights(results: Results) -> Figure | None:
    """The featurizer's weight of each layer, a panel per training and task."""
    rows = [
        row
        for row in results.rows
        if any(len(weights) > 1 for weights in row.layer_weights.values())
    ]
    if not rows:
        return None
    trainings = [t for t in TRAININGS if any(row.training == t for row in rows)]
    tasks = [t for t in TASKS if any(t in row.layer_weights for row in rows)]
    figure, axes = _grid(len(tasks), len(trainings), 4.2, 2.9)
    for down, task in enumerate(tasks):
        for across, training in enumerate(trainings):
            axis = axes[down, across]
            for row in rows:
                weights = row.layer_weights.get(task, [])
                if row.training != training or len(weights) < 2:
                    continue
                index = results.systems.index(row.system) % len(MARKERS)
                axis.plot(
                    weights,
                    marker=MARKERS[index],
                    markersize=5,
                    label=row.system,
                    **style(results, row.system),
                )
            axis.set(xlabel="layer (0: before the first)", ylim=(0, None))
            axis.set(title=f"{TASKS[task]}, {TITLES[training]}", ylabel="weight")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.25)
            if axis.lines:
                axis.legend(fontsize=8)
    figure.suptitle(f"Weights of the upstream's layers on {results.corpus}")
    return figure
