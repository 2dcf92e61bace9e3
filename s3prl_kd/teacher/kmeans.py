"""K-means units: what a HuBERT predicts where its input is masked (arXiv 2106.07447, 2.1).

Every feature here has one vector per frame of a HuBERT at 50 Hz: frame ``i`` covers the 400
samples from sample ``320 * i`` on, at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

RECEPTIVE_FIELD = 400
STRIDE = 320

Features = Callable[[str], np.ndarray]


def num_frames(samples: int) -> int:
    """Frames that a HuBERT makes of ``samples`` samples; 0 where there are too few."""
    return max(0, (samples - RECEPTIVE_FIELD) // STRIDE + 1)


def mfcc(wav: np.ndarray) -> np.ndarray:
    """13 MFCCs with their first and second differences.

    Args:
        wav: (samples,) at 16 kHz, in [-1, 1].

    Returns:
        (frames, 39): Kaldi's features of every 10 ms, of which every second one is kept.
    """
    import torchaudio

    # Kaldi's scale of 16-bit integers, so that its floor of the log energies means the same.
    scaled = torch.from_numpy(np.asarray(wav, dtype=np.float32))[None] * 32768
    static = torchaudio.compliance.kaldi.mfcc(
        scaled, sample_frequency=16000, use_energy=False, dither=0.0
    ).T
    first = torchaudio.functional.compute_deltas(static[None])[0]
    second = torchaudio.functional.compute_deltas(first[None])[0]
    return torch.cat([static, first, second]).T[::2].contiguous().numpy()


def learn_units(
    utts: Sequence[str],
    to_label: Sequence[str],
    features: Features,
    clusters: int,
    max_frames: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
    """Fit k-means on ``utts`` and label every utterance's frames with it.

    Args:
        utts: the utterances to fit on, a random part of them if they have too many frames.
        to_label: the utterances to label.
        features: gives (frames, dim) for an utterance.
        clusters: how many units; fewer where there are fewer frames.
        max_frames: about how many frames to fit on, all of them held in memory.
        seed: for the random part and for k-means.
        progress: told how many of how many utterances are done.

    Returns:
        For each utterance of ``to_label`` the units (frames,) of its frames.
    """
    order = np.random.RandomState(seed).permutation(len(utts))
    kept: dict[str, np.ndarray] = {}
    held = 0
    for index in order:
        if held >= max_frames:
            break
        kept[utts[index]] = features(utts[index])
        held += len(kept[utts[index]])
        progress(len(kept), len(to_label))
    # In the order of the names: the fit must not depend on how the dictionary was filled.
    data = np.concatenate([kept[utt] for utt in sorted(kept)])
    kmeans = MiniBatchKMeans(
        n_clusters=min(clusters, len(data)),
        batch_size=10_000,
        n_init=3,
        max_iter=50,
        random_state=seed,
    ).fit(data)
    units = {}
    for done, utt in enumerate(to_label, 1):
        units[utt] = kmeans.predict(kept[utt] if utt in kept else features(utt))
        progress(max(done, len(kept)), len(to_label))
    return units
