"""espeak-ng from the wheel ``espeakng-loader``, called in process.

The library carries noise state from one call to the next: what it says depends on everything it
has said before in the same process. For the same audio, begin in a fresh process.
"""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

import numpy as np

from s3prl_kd.errors import UserError

_RETRIEVAL = 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_CHARACTER = 1
_UTF8 = 1
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def variants() -> dict[str, str]:
    """Voice variants by name, with ``female``, ``male`` or, where it is not said, ``unknown``."""
    import espeakng_loader

    found = {}
    for file in sorted((Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir()):
        text = file.read_text(encoding="utf-8", errors="replace")
        gender = re.search(r"^gender\s+(male|female)", text, re.MULTILINE)
        found[file.name] = gender[1] if gender else "unknown"
    return found


def say(text: str, voice: str, *, pitch: int, pitch_range: int, rate: int) -> np.ndarray:
    """Speak.

    Args:
        text: in the voice's language.
        voice: language and variant, e.g. ``en-us+f3``.
        pitch, pitch_range: 0 to 100; 50 is the voice's own.
        rate: words per minute, 80 to 450.

    Returns:
        float32 (samples,) at :func:`sample_rate`, full scale at 1.

    Raises:
        UserError: no such voice.
    """
    library, pieces, _ = _engine()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise UserError(f"espeak-ng has no voice {voice!r}")
    for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)
    # Left alone it is seeded with the time of day.
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    pieces.clear()
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, _CHARACTER, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
    return samples.astype(np.float32) / 32768


def sample_rate() -> int:
    """Of :func:`say`'s audio, in Hz."""
    return _engine()[2]


@functools.cache
def _engine() -> tuple[ctypes.CDLL, list[np.ndarray], int]:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(
        _RETRIEVAL, 0, str(espeakng_loader.get_data_path()).encode(), 0
    )
    if rate <= 0:
        raise UserError("espeak-ng did not start; install the package espeakng-loader again")
    pieces: list[np.ndarray] = []

    def take(wav, count, events) -> int:
        if wav and count > 0:
            pieces.append(np.ctypeslib.as_array(wav, (count,)).copy())
        return 0

    callback = _CALLBACK(take)
    library.espeak_SetSynthCallback(callback)
    library.callback = callback  # kept from the garbage collector
    return library, pieces, rate
