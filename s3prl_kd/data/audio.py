"""Audio of any source as 16 kHz mono float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from s3prl_kd.errors import UserError

SAMPLE_RATE = 16000
# One HuBERT frame, 25 ms: what is shorter has no hidden state.
MIN_SAMPLES = 400


class BadAudio(UserError):
    """Audio that cannot be used; the message names the file and what is wrong with it."""


def read_audio(path: str | Path) -> np.ndarray:
    """Read a sound file.

    Args:
        path: anything soundfile opens: WAV (8 to 32 bit, float), FLAC, Ogg ... at any rate and
            with any number of channels.

    Returns:
        float32 (samples,) at 16 kHz, channels averaged, full scale at 1.

    Raises:
        BadAudio: no file, not decodable, empty, shorter than 400 samples (25 ms) at 16 kHz, or
            with samples that are not finite.
    """
    import soundfile

    if not Path(path).is_file():
        raise BadAudio(f"{path}: no such audio file")
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadAudio(f"{path}: cannot be decoded ({str(error).strip()})") from None
    return to_16k_mono(samples, rate, str(path))


def to_16k_mono(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    """Bring samples to 16 kHz mono and check them.

    Args:
        samples: (samples,) or (samples, channels); integers are scaled by their full range.
        rate: in Hz.
        name: of the source, for the message.

    Raises:
        BadAudio: see :func:`read_audio`.
    """
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / float(np.iinfo(samples.dtype).max + 1)
    samples = samples.astype(np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise BadAudio(f"{name}: {bad} of {len(samples)} samples are not finite")
    if rate != SAMPLE_RATE and len(samples) > 1:
        import soxr

        samples = soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)
    if len(samples) < MIN_SAMPLES:
        raise BadAudio(f"{name}: {len(samples)} samples; at least {MIN_SAMPLES} are needed")
    return samples
