"""Audio of any source as 16 kHz mono float32."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from s3prl_kd.errors import UserError

SAMPLE_RATE = 16000
# One HuBERT frame, 25 ms: what is shorter has no hidden state.
MIN_SAMPLES = 400


class BadAudio(UserError):
    """Audio that cannot be used; the message names the file and what is wrong with it."""


def read_audio(
    source: str | Path | BinaryIO, start: float = 0.0, end: float | None = None, name: str = ""
) -> np.ndarray:
    """Read a sound file, or a stretch of it.

    Args:
        source: the path of anything soundfile opens (WAV of 8 to 32 bit or float, FLAC, Ogg ...
            at any rate and with any number of channels), or such a file opened for reading.
        start, end: of the stretch, in seconds; None: up to the end.
        name: of the source in messages; default: its path.

    Returns:
        float32 (samples,) at 16 kHz, channels averaged, full scale at 1.

    Raises:
        BadAudio: no file, not decodable, empty, shorter than 400 samples (25 ms) at 16 kHz, or
            with samples that are not finite.
    """
    import soundfile

    name = name or str(source)
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise BadAudio(f"{name}: no such audio file")
        source = str(source)
    try:
        with soundfile.SoundFile(source) as sound:
            rate = sound.samplerate
            first = round(start * rate)
            if first:
                sound.seek(min(first, len(sound)))
            count = -1 if end is None else max(0, round(end * rate) - first)
            samples = sound.read(count, dtype="float32", always_2d=True)
    # A damaged header may promise more samples than there is memory; a name in .raw has no rate.
    except (RuntimeError, MemoryError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadAudio(f"{name}: cannot be decoded ({reason})") from None
    return to_16k_mono(samples, rate, name)


def to_16k_mono(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    """Bring samples to 16 kHz mono and check them.

    Args:
        samples: (samples,) or (samples, channels); integers are scaled by their full range
            (unsigned ones, as in 8-bit WAV, around its middle).
        rate: in Hz.
        name: of the source, for the message.

    Raises:
        BadAudio: see :func:`read_audio`.
    """
    if np.issubdtype(samples.dtype, np.unsignedinteger):
        middle = (np.iinfo(samples.dtype).max + 1) / 2
        samples = (samples - middle) / middle
    elif np.issubdtype(samples.dtype, np.integer):
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
