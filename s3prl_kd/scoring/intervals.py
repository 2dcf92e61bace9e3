"""95 % intervals by bootstrap over speakers.

Utterances of one speaker are not independent, so speakers are drawn with replacement, not
utterances. A speaker's *multiplicity* is how often it was drawn. The interval runs from the 2.5th
to the 97.5th percentile of the replicates. It is coarse when speakers are few (with 6 there are
only 462 distinct draws, and rare speakers' behaviour is not in any of them), and has no width
where no speaker makes an error: then it says nothing about speakers not met.

Multiplicities depend on the seed and the number of speakers alone, so two systems scored on the
same test set see the same draws and the interval of their difference is a paired one.
"""

from __future__ import annotations

import numpy as np

from s3prl_kd.scoring.metrics import sv_metrics

# Entries of the replicates-by-trials weight matrix held at once (8 bytes each).
_BLOCK = 4_000_000


def draw(speakers: int, replicates: int, seed: int) -> np.ndarray:
    """Multiplicities (replicates, speakers); every row sums to ``speakers``."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(speakers, np.full(speakers, 1 / speakers), size=replicates)


def interval(replicates: np.ndarray, share: float = 0.95) -> tuple[float | None, float | None]:
    """Percentile interval of replicates (replicates,).

    Replicates that are NaN (draws with no trial of one kind left) do not count; where none is
    left there is no interval: ``(None, None)``.
    """
    valid = replicates[~np.isnan(replicates)]
    if not len(valid):
        return None, None
    tail = 50 * (1 - share)
    low, high = np.percentile(valid, [tail, 100 - tail])
    return float(low), float(high)


def accuracy_replicates(
    correct: np.ndarray, speaker: np.ndarray, multiplicity: np.ndarray
) -> np.ndarray:
    """Accuracy of each replicate: every utterance of a drawn speaker, as often as it was drawn.

    Args:
        correct: (utterances,) of bool.
        speaker: (utterances,) index of the speaker, a column of ``multiplicity``.
        multiplicity: (replicates, speakers), see :func:`draw`.

    Returns:
        (replicates,), shares of 1.
    """
    speakers = multiplicity.shape[1]
    right = np.bincount(speaker, weights=correct, minlength=speakers)
    count = np.bincount(speaker, minlength=speakers)
    return (multiplicity @ right) / (multiplicity @ count)


def trial_weights(
    enrol_speaker: np.ndarray, test_speaker: np.ndarray, multiplicity: np.ndarray
) -> np.ndarray:
    """How often each trial counts in each replicate, (replicates, trials).

    A non-target trial counts as often as there are pairs of copies of its two speakers, the
    product of their multiplicities: the pigeonhole bootstrap (Owen, Annals of Applied Statistics
    1, 2007). A target trial lies within one speaker, who is drawn whole, so it counts as often as
    the speaker was drawn: the subsets bootstrap (Bolle, Ratha & Pankanti, Computer Vision and
    Image Understanding 93, 2004). Two copies of one speaker are never compared with each other:
    as a non-target it would be false, as a target it would repeat a recording.
    """
    enrol, test = multiplicity[:, enrol_speaker], multiplicity[:, test_speaker]
    return np.where(enrol_speaker == test_speaker, enrol, enrol * test)


def weighted_error_rates(
    scores: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`metrics.error_rates` with weighted trials, for many weightings at once.

    Args:
        scores: (trials,).
        targets: (trials,) of bool.
        weights: (replicates, trials).

    Returns:
        ``fpr`` and ``fnr``, each (replicates, thresholds); NaN for a replicate that weighs all
        trials of one kind with 0.
    """
    order = np.argsort(-scores, kind="stable")
    scores, targets, weights = scores[order], targets[order], weights[:, order]
    last_of_tie = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)

    def accepted(of_kind: np.ndarray) -> np.ndarray:
        total = np.cumsum(weights * of_kind, axis=1, dtype=np.float64)[:, last_of_tie]
        total = np.concatenate([np.zeros((len(total), 1)), total], axis=1)
        with np.errstate(invalid="ignore"):
            return total / total[:, -1:]

    return accepted(~targets), 1 - accepted(targets)


def sv_replicates(
    scores: np.ndarray,
    targets: np.ndarray,
    enrol_speaker: np.ndarray,
    test_speaker: np.ndarray,
    multiplicity: np.ndarray,
) -> dict[str, np.ndarray]:
    """EER and minDCF of each replicate.

    Args:
        scores: (trials,).
        targets: (trials,) of bool.
        enrol_speaker, test_speaker: (trials,) indices, columns of ``multiplicity``.
        multiplicity: (replicates, speakers), see :func:`draw`.

    Returns:
        ``{metric: (replicates,)}`` with the keys of :func:`metrics.sv_metrics`.
    """
    rows = max(1, _BLOCK // max(1, len(scores)))
    blocks = []
    for start in range(0, len(multiplicity), rows):
        weights = trial_weights(enrol_speaker, test_speaker, multiplicity[start : start + rows])
        blocks.append(sv_metrics(*weighted_error_rates(scores, targets, weights)))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
