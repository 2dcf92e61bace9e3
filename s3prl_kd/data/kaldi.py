"""Kaldi data dirs: reading, writing and checking.

A data dir holds ``wav.scp utt2spk spk2utt text utt2num_samples``, each line a key and its value,
sorted by the key's bytes (``LC_ALL=C``), all of the same utterances; optionally ``segments`` (an
utterance is a stretch of a recording of ``wav.scp``) and ``trials`` (speaker verification).
"""

from __future__ import annotations

import functools
import io
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import kaldiio
import numpy as np

from s3prl_kd.data.audio import BadAudio, read_audio, to_16k_mono
from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_dir


class Trial(NamedTuple):
    """A verification trial: is the speaker of ``test`` the one of ``enrol``?"""

    enrol: str
    test: str
    target: bool


class Segment(NamedTuple):
    """An utterance as a stretch of a recording, in seconds; an end of None is the recording's."""

    recording: str
    start: float
    end: float | None


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
        file = self.path / "segments"
        self._segments = _read_segments(file, self._wavs) if file.exists() else {}
        self.utts = sorted(self._segments if file.exists() else self._wavs)

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
        return {
            utt: _count(f"{file}:{number}: {utt}", value)
            for number, line in _lines(file)
            for utt, value in [_split(file, number, line)]
        }

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
        segment = self._segments.get(utt, Segment(utt, 0.0, None))
        entry = self._wavs.get(segment.recording)
        if entry is None:
            raise UserError(f"{self.path}: no utterance {utt!r}")
        if Path(entry).is_file():
            return read_audio(entry, segment.start, segment.end)
        name = f"{self.path / 'wav.scp'}: {segment.recording}"
        try:
            if entry.endswith("|"):
                # kaldiio's own reader of what a pipe gives takes 8 and 16 bit only.
                pipe = kaldiio.open_like_kaldi(entry, "rb")
                content = io.BytesIO(pipe.read())
                if status := pipe.close():
                    raise OSError(f"exit status {status}")
            else:
                # The rate first for a wave file in an ark, the samples first for a FLAC.
                first, second = kaldiio.load_mat(entry)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadAudio(f"{name}: {entry!r} cannot be read ({reason})") from None
        if entry.endswith("|"):
            return read_audio(content, segment.start, segment.end, name)
        rate, samples = (first, second) if np.isscalar(first) else (second, first)
        stop = None if segment.end is None else round(segment.end * rate)
        return to_16k_mono(samples[round(segment.start * rate) : stop], int(rate), name)


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
    source = "segments" if "segments" in keys else "wav.scp"
    for name in ("utt2spk", "text", "utt2num_samples"):
        for utt, number in keys[name].items():
            if utt not in utts:
                raise UserError(f"{data.path / name}:{number}: {utt!r} is not in {source}")
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
        _check_trials(data, utts, source)
    return data


def _check_trials(data: DataDir, utts: set[str], source: str) -> None:
    file = data.path / "trials"
    for number, line in _lines(file):
        trial = _trial(file, number, line)
        for utt in (trial.enrol, trial.test):
            if utt not in utts:
                raise UserError(f"{file}:{number}: {utt!r} is not in {source}")
        same = data.utt2spk[trial.enrol] == data.utt2spk[trial.test]
        if same != trial.target:
            raise UserError(f"{file}:{number}: utt2spk contradicts {line.split()[-1]!r}")


def _check_sorted(file: Path) -> dict[str, int]:
    numbers: dict[str, int] = {}
    before = None
    for number, line in _lines(file):
        key, _ = _split(file, number, line)
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
    # Not splitlines, to which a form feed within a transcript ends a line.
    return list(enumerate(text.removesuffix("\n").split("\n") if text else [], start=1))


def _split(file: Path, number: int, line: str) -> tuple[str, str]:
    key, *rest = line.split(maxsplit=1) or [""]
    # A transcript may be empty; nothing else may.
    if not key or (not rest and file.name != "text"):
        raise UserError(f"{file}:{number}: expected a key and a value, found {line!r}")
    return key, rest[0].rstrip() if rest else ""


def _read_map(file: Path) -> dict[str, str]:
    return dict(_split(file, number, line) for number, line in _lines(file))


def _read_segments(file: Path, recordings: Container[str]) -> dict[str, Segment]:
    segments = {}
    for number, line in _lines(file):
        try:
            utt, recording, start, end = line.split()
            segment = Segment(recording, float(start), None if float(end) == -1 else float(end))
        except ValueError:
            raise UserError(
                f"{file}:{number}: expected 'utt recording start end', found {line!r}"
            ) from None
        if segment.start < 0 or (segment.end is not None and not segment.start < segment.end):
            raise UserError(f"{file}:{number}: no stretch from {start} to {end} s")
        if recording not in recordings:
            raise UserError(f"{file}:{number}: {recording!r} is not in wav.scp")
        segments[utt] = segment
    return segments


def _count(where: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{where}: {value!r} is no number of samples") from None


def _trial(file: Path, number: int, line: str) -> Trial:
    fields = line.split()
    if len(fields) != 3 or fields[2] not in ("target", "nontarget"):
        raise UserError(f"{file}:{number}: expected 'enrol test target|nontarget', found {line!r}")
    return Trial(fields[0], fields[1], fields[2] == "target")
