"""The Free Spoken Digit Dataset: ten digits, six speakers, 8 kHz (CC BY-SA 4.0).

KWS is the ten digits; by the corpus' convention takes 0 to 4 are for testing. SV is on utterances
of some seconds, joined from one speaker's digits. Each fold holds two speakers out and is an
experiment of its own: no train or valid split of it, labelled or not, has speech of theirs. Its SV
trials are of the held-out speakers; its KWS test is of the others (known speakers, unseen takes).
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile

from s3prl_kd.data.audio import SAMPLE_RATE, read_audio
from s3prl_kd.data.fetch import download_archive
from s3prl_kd.data.prepare import Utterance, balanced_trials, scan, write_dataset
from s3prl_kd.errors import UserError

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
RECORDINGS = 3000
URL = "https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/tar.gz/refs/tags/v1.0.10"
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


@dataclasses.dataclass
class Config:
    """``conf/corpus/fsdd.yaml``.

    Attributes:
        folds: the speakers held out in each.
        test_takes, valid_takes: takes from 0 on that are for KWS testing, and the next ones for
            validation; the rest trains.
        sv_seconds: shortest and longest joined utterance, in seconds.
        sv_train: joined utterances of each training speaker.
        sv_valid: of each training speaker, from the valid takes.
        sv_test: of each held-out speaker, from all takes.
        valid_trials, test_trials: trials per fold, half of them targets.
    """

    folds: list[list[str]]
    test_takes: int = 5
    valid_takes: int = 4
    sv_seconds: list[float] = dataclasses.field(default_factory=lambda: [2.0, 3.0])
    sv_train: int = 80
    sv_valid: int = 15
    sv_test: int = 60
    valid_trials: int = 400
    test_trials: int = 1000


class _Recording:
    def __init__(self, path: Path) -> None:
        digit, self.speaker, take = _NAME.fullmatch(path.name).groups()
        self.path, self.digit, self.take = path, int(digit), int(take)
        self.utt = f"{self.speaker}-{digit}-{self.take:02d}"


def locate(root: str, downloads: Path) -> Path:
    """The corpus' root: the one given, or the one fetched into ``downloads``.

    Raises:
        UserError: no recordings there, or no network.
    """
    if root:
        found = _recordings(Path(root))
        if len(found) < RECORDINGS:
            there = {path.name for path in found}
            absent = [name for name in _all_names() if name not in there]
            print(
                f"{root}: {len(found)} of the corpus' {RECORDINGS} recordings, without "
                f"{', '.join(absent[:3])}{' ...' if len(absent) > 3 else ''}; going on with them"
            )
        return Path(root).resolve()
    directory = downloads / "fsdd"
    if not directory.exists():
        download_archive(URL, directory, "--fsdd_root")
    _recordings(directory)
    return directory.resolve()


def _all_names() -> list[str]:
    return [f"{d}_{s}_{take}.wav" for d in range(10) for s in SPEAKERS for take in range(50)]


def _recordings(root: Path) -> list[Path]:
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; --fsdd_root is the corpus' own")
    for candidate in (root, root / "recordings", *sorted(root.glob("*/recordings"))):
        found = sorted(path for path in candidate.glob("*.wav") if _NAME.fullmatch(path.name))
        if found:
            return found
    raise UserError(
        f"{root}: no recordings named like 7_jackson_0.wav, nor in {root / 'recordings'}; "
        "--fsdd_root is the corpus' own directory"
    )


def prepare(
    root: Path, out: Path, config: Config, *, seed: int, nj: int, max_bad_share: float
) -> list[Path]:
    """Make the dataset dirs ``out/fold1`` ..., with joined audio in ``out/wav``.

    Args:
        root: the corpus, with its ``recordings``.
        out: where to.
        config: see :class:`Config`.
        seed: of the joined utterances and the trials.
        nj: processes that read audio.
        max_bad_share: see :func:`s3prl_kd.data.prepare.scan`.
    """
    recordings = {one.utt: one for one in map(_Recording, _recordings(root))}
    lengths = scan(
        {utt: one.path.resolve() for utt, one in recordings.items()},
        nj,
        max_bad_share,
        out / "skipped",
    )
    single = {
        utt: Utterance(str(one.path.resolve()), one.speaker, DIGITS[one.digit], lengths[utt])
        for utt, one in recordings.items()
        if utt in lengths
    }
    speakers = sorted({one.speaker for one in single.values()})
    held_out = {speaker for fold in config.folds for speaker in fold}
    if not held_out <= set(speakers) or any(len(fold) < 2 for fold in config.folds):
        raise UserError(
            f"folds {config.folds}: each needs two speakers or more of {', '.join(speakers)}"
        )
    first_train = config.test_takes + config.valid_takes
    parts = {
        "train": (lambda take: take >= first_train, config.sv_train),
        "valid": (lambda take: config.test_takes <= take < first_train, config.sv_valid),
        "test": (lambda take: True, config.sv_test),
    }
    joined = {
        (part, speaker): _join(
            [
                utt
                for utt, one in single.items()
                if one.speaker == speaker and keep(recordings[utt].take)
            ],
            single,
            f"{speaker}-sv-{part}",
            count,
            config.sv_seconds,
            np.random.default_rng([seed, index, order]),
            out / "wav" / speaker,
        )
        for index, (part, (keep, count)) in enumerate(parts.items())
        for order, speaker in enumerate(speakers)
    }
    directories = []
    for number, fold in enumerate(config.folds, start=1):
        others = [speaker for speaker in speakers if speaker not in fold]
        kws: dict[str, dict[str, Utterance]] = defaultdict(dict)
        for utt, one in single.items():
            take = recordings[utt].take
            part = (
                "test" if take < config.test_takes else "valid" if take < first_train else "train"
            )
            if one.speaker in others:
                kws[f"kws_{part}"][utt] = one
        sv = {
            f"sv_{part}": {
                utt: one
                for speaker in (fold if part == "test" else others)
                for utt, one in joined[part, speaker].items()
            }
            for part in parts
        }
        trials = {
            f"sv_{part}": balanced_trials(
                {utt: one.speaker for utt, one in sv[f"sv_{part}"].items()},
                count,
                np.random.default_rng([seed, 9, number]),
            )
            for part, count in (("valid", config.valid_trials), ("test", config.test_trials))
        }
        directories.append(
            write_dataset(
                out / f"fold{number}",
                {**kws, **sv},
                trials,
                {
                    "name": "fsdd",
                    "tag": f"fsdd_fold{number}",
                    "fold": number,
                    "classes": DIGITS,
                    "train_speakers": others,
                    "test_speakers": sorted(fold),
                    "description": "Free Spoken Digit Dataset; SV on digits joined to 2-3 s",
                    "licence": "CC BY-SA 4.0",
                },
            )
        )
    return directories


def _join(
    utts: list[str],
    single: dict[str, Utterance],
    prefix: str,
    count: int,
    limits: list[float],
    rng: np.random.Generator,
    directory: Path,
) -> dict[str, Utterance]:
    """``count`` utterances, each of random recordings up to a random length within ``limits``."""
    directory.mkdir(parents=True, exist_ok=True)
    made = {}
    pause = np.zeros(round(0.05 * SAMPLE_RATE), dtype=np.float32)
    shortest = round(limits[0] * SAMPLE_RATE)
    for number in range(count if utts else 0):
        wanted = round(rng.uniform(*limits) * SAMPLE_RATE)
        chosen, total = [], 0
        for index in rng.permutation(len(utts)):
            length = single[utts[index]].num_samples + len(pause)
            if total >= shortest and total + length > wanted:
                break
            chosen.append(utts[index])
            total += length
        pieces = [piece for utt in chosen for piece in (read_audio(single[utt].wav), pause)]
        wav = np.concatenate(pieces)[: round(limits[1] * SAMPLE_RATE)]
        utt = f"{prefix}-{number:03d}"
        path = directory / f"{utt}.flac"
        soundfile.write(path, wav, SAMPLE_RATE, subtype="PCM_16")
        speaker = single[utts[0]].speaker
        text = " ".join(single[one].text for one in chosen)
        made[utt] = Utterance(str(path.resolve()), speaker, text, len(wav))
    return made
