"""KWS accuracy and confusion; SV error rates, EER and minDCF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from sklearn.metrics import roc_curve as sklearn_roc_curve

from s3prl_kd.errors import UserError


def kws_metrics(
    labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """Accuracy, per-class recall and precision, confusion matrix.

    Args:
        labels: true class of each utterance.
        predicted: decided class of each utterance.
        classes: all class names, in the order of the matrix.

    Returns:
        ``accuracy`` (a share of 1), ``per_class`` ``{class: {"recall", "precision",
        "utterances"}}`` (``None`` where the class is absent or never decided) and ``confusion``,
        a list of rows: true class by decided class, in utterances.
    """
    if not len(labels):
        raise UserError("KWS: no utterance to score; the test set is empty")
    precision, recall, _, support = precision_recall_fscore_support(
        labels, predicted, labels=list(classes), zero_division=np.nan
    )
    per_class = {
        name: {
            "recall": None if np.isnan(recall[i]) else float(recall[i]),
            "precision": None if np.isnan(precision[i]) else float(precision[i]),
            "utterances": int(support[i]),
        }
        for i, name in enumerate(classes)
    }
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "per_class": per_class,
        "confusion": confusion_matrix(labels, predicted, labels=list(classes)).tolist(),
    }


def error_rates(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False-alarm and miss rates at every useful threshold, the strictest first.

    scikit-learn's ``roc_curve``: trials of equal score are accepted together, and both ends
    (nothing accepted, everything accepted) are included. ESPnet's ``ComputeErrorRates`` does
    neither, so it splits ties in the order of the file.

    Args:
        scores: (trials,), larger for "same speaker".
        targets: (trials,) of bool.

    Returns:
        ``fpr`` rising from 0 to 1 and ``fnr`` falling from 1 to 0, each (thresholds,).

    Raises:
        UserError: trials of one kind only, or a score that is not a number.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    check_trials(scores, targets)
    fpr, tpr, _ = sklearn_roc_curve(targets, scores)
    return fpr, 1 - tpr


def check_trials(scores: np.ndarray, targets: np.ndarray) -> None:
    """Refuse trials that have no EER."""
    if targets.all() or not targets.any():
        kind = "no target" if not targets.any() else "no non-target"
        raise UserError(f"SV: {kind} trial among {len(targets)}; both kinds are needed in trials")
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise UserError(f"SV: {bad} of {len(scores)} scores are not finite; train the system again")


def eer(fpr: np.ndarray, fnr: np.ndarray) -> np.ndarray:
    """Equal error rate by linear interpolation of the DET curve's crossing of fpr = fnr.

    Between the last threshold with ``fnr > fpr`` and the first with ``fnr <= fpr`` both rates
    are taken as straight lines, so the value does not depend on which of the two is kept.

    Args:
        fpr: (..., thresholds), rising from 0 to 1.
        fnr: (..., thresholds), falling from 1 to 0.

    Returns:
        (...), a share of 1; NaN where a rate is NaN.
    """
    gap = fnr - fpr
    after = np.argmax(gap <= 0, axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    pick = np.take_along_axis
    gap_before, gap_after = pick(gap, before, -1), pick(gap, after, -1)
    share = gap_before / (gap_before - gap_after)
    fpr_before, fpr_after = pick(fpr, before, -1), pick(fpr, after, -1)
    return (fpr_before + share * (fpr_after - fpr_before))[..., 0]


def min_dcf(
    fpr: np.ndarray,
    fnr: np.ndarray,
    p_target: float,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> np.ndarray:
    """Smallest detection cost over thresholds, normalised by the better blind decision.

    NIST SRE 2016 plan, equations 2 to 4 (as ESPnet's ``ComputeMinDcf``): 1 means no better than
    rejecting (or accepting) everything.

    Args:
        fpr: (..., thresholds).
        fnr: (..., thresholds).
        p_target: prior of a target trial.
    """
    cost = c_miss * p_target * fnr + c_fa * (1 - p_target) * fpr
    return cost.min(axis=-1) / min(c_miss * p_target, c_fa * (1 - p_target))


P_TARGETS = (0.01, 0.05)
SV_METRICS = ("eer", *(f"min_dcf_{p}" for p in P_TARGETS))


def sv_metrics(fpr: np.ndarray, fnr: np.ndarray) -> dict[str, np.ndarray]:
    """``eer``, ``min_dcf_0.01`` and ``min_dcf_0.05`` of error rates (..., thresholds)."""
    return {"eer": eer(fpr, fnr)} | {f"min_dcf_{p}": min_dcf(fpr, fnr, p) for p in P_TARGETS}
