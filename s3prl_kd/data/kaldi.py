"""Kaldi data dirs: reading, writing and checking.

A data dir holds ``wav.scp utt2spk spk2utt text utt2num_samples``, each line a key and its value,
sorted by the key's bytes (``LC_ALL=C``), all of the same utterances; optionally ``segments`` (an
utterance is a stretch of a recording of ``wav.scp``) and ``trials`` (speaker verification).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from s3prl_kd.data.audio import SAMPLE_RATE, BadAudio, read_audio, to_16k_mono
from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_dir


class Trial(NamedTuple):
    """A verification trial: is the speaker of ``test`` the one of ``enrol``?"""

    enrol: str
    test: str
    target: bool


class DataDir:
    """A Kaldi data dir.

    Attributes:
        path: the directory.
        utts: utterance ids, sorted.

    Raises:
        UserError: the directory or a file of it is missing or malformed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such data dir; run stage 1")
        self._wavs = _read_map(self.path / "wav.scp")
        self._segments = self.path / "segments"
        self.utts = (
            sorted(_read_map(self._segments)) if self._segments.exists() else sorted(self._wavs)
        )

    def __len__(self) -> int:
        return len(self.utts)

    @functools.cached_property
    def utt2spk(self) -> dict[str, str]:
        """Speaker of each utterance."""
        return _read_map(self.path / "utt2spk")

    @functools.cached_property
    def text(self) -> dict[str, str]:
        """Transcript, or class, of each utterance."""
        return _read_map(self.path / "text")

    @functools.cached_property
    def num_samples(self) -> dict[str, int]:
        """Length of each utterance, in samples at 16 kHz."""
        file = self.path / "utt2num_samples"
        return {utt: _count(file, utt, value) for utt, value in _read_map(file).items()}

    @functools.cached_property
    def trials(self) -> list[Trial]:
        """The trials, in the file's order; empty where there is no such file."""
        file = self.path / "trials"
        if not file.exists():
            return []
        return [_trial(file, number, line) for number, line in _lines(file)]

    def read(self, utt: str) -> np.ndarray:
        """An utterance's float32 samples, (samples,), at 16 kHz.

        Raises:
            BadAudio: see :func:`s3prl_kd.data.audio.read_audio`.
        """
        entry = self._wavs.get(utt, "")
        if not self._segments.exists() and Path(entry).is_file():
            # soundfile reads more formats than kaldiio's loader, which is for pipes and arks.
            return read_audio(entry)
        try:
            # kaldiio gives (rate, samples) as wave files and sound arks have it, or the other
            # way round where it read a FLAC.
            first, second = self._loader[utt]
        except KeyError:
            raise UserError(f"{self.path / 'wav.scp'}: no utterance {utt!r}") from None
        except Exception as error:
            raise BadAudio(f"{self.path / 'wav.scp'}: {utt}: cannot be read ({error})") from None
        rate, samples = (first, second) if np.isscalar(first) else (second, first)
        return to_16k_mono(samples, int(rate), f"{self.path}: {utt}")

    @functools.cached_property
    def _loader(self) -> Mapping[str, tuple[int, np.ndarray]]:
        import kaldiio

        segments = str(self._segments) if self._segments.exists() else None
        return kaldiio.load_scp(str(self.path / "wav.scp"), segments=segments)


def write_data_dir(
    path: str | Path,
    wavs: Mapping[str, str],
    utt2spk: Mapping[str, str],
    text: Mapping[str, str],
    num_samples: Mapping[str, int],
    trials: Iterable[Trial] | None = None,
) -> None:
    """Write a data dir, sorted, whole or not at all.

    Args:
        path: the directory; one already there is replaced.
        wavs: per utterance its entry of ``wav.scp``: a path, a pipe or an offset in an ark.
        utt2spk, text, num_samples: per utterance; further utterances in them are left out.
        trials: written in the order given.
    """
    utts = sorted(wavs, key=str.encode)
    spk2utt: dict[str, list[str]] = defaultdict(list)
    for utt in utts:
        spk2utt[utt2spk[utt]].append(utt)
    with atomic_dir(path) as partial:
        for name, value in (
            ("wav.scp", {utt: wavs[utt] for utt in utts}),
            ("utt2spk", {utt: utt2spk[utt] for utt in utts}),
            ("text", {utt: text[utt] for utt in utts}),
            ("utt2num_samples", {utt: num_samples[utt] for utt in utts}),
            ("spk2utt", {spk: " ".join(spk2utt[spk]) for spk in sorted(spk2utt, key=str.encode)}),
        ):
            (partial / name).write_text(
                "".join(f"{key} {entry}\n" for key, entry in value.items()), encoding="utf-8"
            )
        if trials is not None:
            (partial / "trials").write_text(
                "".join(
                    f"{trial.enrol} {trial.test} {'target' if trial.target else 'nontarget'}\n"
                    for trial in trials
                ),
                encoding="utf-8",
            )


def check(path: str | Path) -> DataDir:
    """Validate a data dir, without reading its audio.

    Returns:
        The data dir.

    Raises:
        UserError: names the file and, where there is one, the line at fault.
    """
    data = DataDir(path)
    if not data.utts:
        raise UserError(f"{data.path / 'wav.scp'}: empty")
    keys = {}
    for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "text", "utt2num_samples"):
        file = data.path / name
        if name != "segments" or file.exists():
            keys[name] = _check_sorted(file)
    utts = set(data.utts)
    for name in ("utt2spk", "text", "utt2num_samples"):
        for utt, number in keys[name].items():
            if utt not in utts:
                raise UserError(f"{data.path / name}:{number}: {utt!r} is not in wav.scp")
        missing = utts - set(keys[name])
        if missing:
            raise UserError(f"{data.path / name}: no line for {min(missing)!r}")
    for utt, count in data.num_samples.items():
        if count < 1:
            number = keys["utt2num_samples"][utt]
            raise UserError(f"{data.path / 'utt2num_samples'}:{number}: {count} samples")
    of_speakers = defaultdict(list)
    for utt in data.utts:
        of_speakers[data.utt2spk[utt]].append(utt)
    file = data.path / "spk2utt"
    listed = {speaker: value.split() for speaker, value in _read_map(file).items()}
    for speaker, number in keys["spk2utt"].items():
        if sorted(listed[speaker]) != sorted(of_speakers.get(speaker, [])):
            raise UserError(f"{file}:{number}: {speaker!r} has other utterances in utt2spk")
    missing = set(of_speakers) - set(listed)
    if missing:
        raise UserError(f"{file}: no line for {min(missing)!r}")
    if (data.path / "trials").exists():
        _check_trials(data, utts)
    return data


def _check_trials(data: DataDir, utts: set[str]) -> None:
    file = data.path / "trials"
    for number, line in _lines(file):
        trial = _trial(file, number, line)
        for utt in (trial.enrol, trial.test):
            if utt not in utts:
                raise UserError(f"{file}:{number}: {utt!r} is not in wav.scp")
        same = data.utt2spk[trial.enrol] == data.utt2spk[trial.test]
        if same != trial.target:
            raise UserError(f"{file}:{number}: utt2spk contradicts {line.split()[-1]!r}")


def _check_sorted(file: Path) -> dict[str, int]:
    numbers: dict[str, int] = {}
    before = None
    for number, line in _lines(file):
        key = line.split(maxsplit=1)[0]
        if before is not None and key.encode() <= before.encode():
            what = "twice" if key == before else "not sorted (LC_ALL=C)"
            raise UserError(f"{file}:{number}: {key!r} is {what}")
        numbers[key] = number
        before = key
    return numbers


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); run stage 1") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8") from None
    return list(enumerate(text.splitlines(), start=1))


def _read_map(file: Path) -> dict[str, str]:
    content = {}
    for number, line in _lines(file):
        key, *rest = line.split(maxsplit=1)[:2] if line.strip() else ("",)
        # A transcript may be empty; nothing else may.
        if not key or (not rest and file.name != "text"):
            raise UserError(f"{file}:{number}: expected a key and a value, found {line!r}")
        content[key] = rest[0].rstrip() if rest else ""
    return content


def _count(file: Path, utt: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{file}: {utt}: {value!r} is no number of samples") from None


def _trial(file: Path, number: int, line: str) -> Trial:
    fields = line.split()
    if len(fields) != 3 or fields[2] not in ("target", "nontarget"):
        raise UserError(f"{file}:{number}: expected 'enrol test target|nontarget', found {line!r}")
    return Trial(fields[0], fields[1], fields[2] == "target")


def seconds(samples: int) -> float:
    """Samples at 16 kHz as seconds."""
    return samples / SAMPLE_RATE
