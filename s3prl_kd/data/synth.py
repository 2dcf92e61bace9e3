"""The embedded corpus: speech made on the spot with espeak-ng.

Every speaker is a voice variant of its own with a pitch, a rate and an accent of its own. KWS: ten
keywords, ``_unknown_`` (other words) and ``_silence_`` (noise alone), 1 s each. SV: 2 to 3 s of
several other words. A share of the utterances is put in a room and in noise. Speakers of train,
valid and test are disjoint. Byte-identical from one seed, whatever the number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from s3prl_kd.data import espeak
from s3prl_kd.data.audio import SAMPLE_RATE
from s3prl_kd.data.prepare import (
    Utterance,
    balanced_trials,
    parallel,
    scan,
    write_dataset,
)
from s3prl_kd.errors import UserError

UNKNOWN, SILENCE = "_unknown_", "_silence_"
WORDS = [
    "bed",
    "bird",
    "cat",
    "dog",
    "happy",
    "house",
    "marvin",
    "sheila",
    "tree",
    "wow",
    "backward",
    "forward",
    "follow",
    "learn",
    "visual",
    "table",
    "window",
    "river",
    "mountain",
    "paper",
    "garden",
    "coffee",
    "music",
    "yellow",
    "orange",
    "seven",
    "morning",
    "winter",
    "summer",
    "doctor",
    "letter",
    "number",
    "people",
    "water",
    "engine",
    "picture",
    "story",
    "market",
    "island",
    "silver",
]
ACCENTS = ["en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029"]
# Effects rather than people.
_NOT_PEOPLE = re.compile(
    r"robosoft|robot|whisper|demonic|croak|fast|tweaky|announcer|anxious", re.IGNORECASE
)


@dataclasses.dataclass
class Config:
    """``conf/corpus/synth.yaml``.

    Attributes:
        speakers: of train, valid and test.
        keywords: the classes beside ``_unknown_`` and ``_silence_``.
        takes: utterances of each keyword, per speaker.
        unknown, silence: utterances of these classes, per speaker.
        sv: SV utterances of each speaker of train, valid and test.
        sv_seconds: their shortest and longest, in seconds.
        room_share, noise_share: share of utterances with reverberation, and with added noise.
        snr_db: lowest and highest signal-to-noise ratio of those.
        valid_trials, test_trials: SV trials, half of them targets.
    """

    speakers: dict[str, int]
    keywords: list[str]
    sv: dict[str, int]
    takes: int = 2
    unknown: int = 3
    silence: int = 1
    sv_seconds: list[float] = dataclasses.field(default_factory=lambda: [2.0, 3.0])
    room_share: float = 0.4
    noise_share: float = 0.6
    snr_db: list[float] = dataclasses.field(default_factory=lambda: [5.0, 25.0])
    valid_trials: int = 500
    test_trials: int = 2800

    def __post_init__(self) -> None:
        if any(set(counts) != {"train", "valid", "test"} for counts in (self.speakers, self.sv)):
            raise ValueError("speakers and sv: need a number for each of train, valid and test")


class Speaker(NamedTuple):
    """A synthetic speaker: its voice and how it speaks."""

    name: str
    voice: str
    gender: str
    pitch: int
    pitch_range: int
    rate: int
    part: str


def choose_speakers(config: Config, seed: int) -> list[Speaker]:
    """The corpus' speakers, each of a variant of its own.

    Raises:
        UserError: more speakers wanted than there are variants.
    """
    people = {
        name: gender for name, gender in espeak.variants().items() if not _NOT_PEOPLE.search(name)
    }
    parts = [part for part, count in config.speakers.items() for _ in range(count)]
    if len(parts) > len(people):
        raise UserError(f"synth: {len(parts)} speakers wanted; espeak-ng has {len(people)} voices")
    rng = np.random.default_rng([seed, 0])
    speakers = []
    for variant, part in zip(rng.permutation(sorted(people)), parts, strict=False):
        speakers.append(
            Speaker(
                name=re.sub(r"\W", "_", variant),
                voice=f"{rng.choice(ACCENTS)}+{variant}",
                gender=people[variant],
                pitch=int(rng.integers(30, 70)),
                pitch_range=int(rng.integers(30, 70)),
                rate=int(rng.integers(150, 200)),
                part=part,
            )
        )
    return speakers


def prepare(
    root: Path, out: Path, config: Config, *, seed: int, nj: int, max_bad_share: float
) -> list[Path]:
    """Make the dataset dir ``out``, with its audio in ``out/wav/<speaker>``.

    Args:
        root: not used; nothing is read.
        out: where to.
        config: see :class:`Config`.
        seed: of everything.
        nj: processes.
        max_bad_share: see :func:`s3prl_kd.data.prepare.scan`.
    """
    speakers = choose_speakers(config, seed)
    work = functools.partial(_speak, config=config, seed=seed, directory=(out / "wav").resolve())
    made: dict[str, tuple[str, Utterance]] = {}
    for spoken in parallel(work, list(enumerate(speakers)), nj, "speaking", fresh=True):
        made.update(spoken)
    lengths = scan(
        {utt: Path(one.wav) for utt, (_, one) in made.items()}, nj, max_bad_share, out / "skipped"
    )
    splits: dict[str, dict[str, Utterance]] = {
        f"{task}_{part}": {} for task in ("kws", "sv") for part in config.speakers
    }
    for utt, (split, one) in made.items():
        if utt in lengths:
            splits[split][utt] = one
    gender = {speaker.name: speaker.gender for speaker in speakers}
    trials = {
        f"sv_{part}": balanced_trials(
            {utt: one.speaker for utt, one in splits[f"sv_{part}"].items()},
            count,
            np.random.default_rng([seed, 1, number]),
            gender,
        )
        for number, (part, count) in enumerate(
            (("valid", config.valid_trials), ("test", config.test_trials))
        )
    }
    facts = {
        "name": "synth",
        "tag": out.name,
        "classes": [*config.keywords, UNKNOWN, SILENCE],
        "train_speakers": [one.name for one in speakers if one.part == "train"],
        "test_speakers": [one.name for one in speakers if one.part == "test"],
        "description": "speech synthesised with espeak-ng",
        "licence": "made by the recipe",
    }
    return [write_dataset(out, splits, trials, facts)]


def _speak(
    numbered: tuple[int, Speaker], config: Config, seed: int, directory: Path
) -> dict[str, tuple[str, Utterance]]:
    """All utterances of one speaker: (split, utterance) by id."""
    number, speaker = numbered
    rng = np.random.default_rng([seed, 2, number])
    directory = directory / speaker.name
    directory.mkdir(parents=True, exist_ok=True)
    plan = [(keyword, keyword) for keyword in config.keywords for _ in range(config.takes)]
    plan += [(str(rng.choice(WORDS)), UNKNOWN) for _ in range(config.unknown)]
    plan += [("", SILENCE) for _ in range(config.silence)]
    made = {}
    for index, (word, label) in enumerate(plan):
        wav = _in_a_second(_say(word, speaker, rng), rng) if word else np.zeros(SAMPLE_RATE)
        wav = _surround(wav, config, rng, silent=not word)
        utt = f"{speaker.name}-kws-{index:03d}"
        made[utt] = (f"kws_{speaker.part}", _write(directory / f"{utt}.flac", wav, speaker, label))
    shortest, longest = (round(limit * SAMPLE_RATE) for limit in config.sv_seconds)
    for index in range(config.sv[speaker.part]):
        words, wav = [], np.zeros(0, np.float32)
        while len(wav) < shortest:
            words += [str(word) for word in rng.choice(WORDS, size=4, replace=False)]
            wav = np.concatenate([wav, _say(" ".join(words[-4:]), speaker, rng)])
        wav = _surround(wav[: rng.integers(shortest, longest + 1)], config, rng)
        utt = f"{speaker.name}-sv-{index:03d}"
        line = _write(directory / f"{utt}.flac", wav, speaker, " ".join(words))
        made[utt] = (f"sv_{speaker.part}", line)
    return made


def _say(text: str, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    wav = espeak.say(
        text,
        speaker.voice,
        pitch=int(speaker.pitch + rng.integers(-4, 5)),
        pitch_range=speaker.pitch_range,
        rate=int(speaker.rate + rng.integers(-12, 13)),
    )
    wav = soxr.resample(wav, espeak.sample_rate(), SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(wav) > 0.02 * np.abs(wav).max(initial=1e-9))
    wav = wav[loud[0] : loud[-1] + 1] if len(loud) else wav
    return 0.1 * wav / max(1e-9, float(np.sqrt(np.mean(wav**2))))


def _in_a_second(wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    wav = wav[:SAMPLE_RATE]
    before = int(rng.integers(0, SAMPLE_RATE - len(wav) + 1))
    return np.pad(wav, (before, SAMPLE_RATE - len(wav) - before))


def _surround(
    wav: np.ndarray, config: Config, rng: np.random.Generator, silent: bool = False
) -> np.ndarray:
    """Put an utterance in a room and in noise, or not, as the shares have it."""
    if rng.random() < config.room_share:
        decay = rng.uniform(0.1, 0.4)  # seconds to fall by 60 dB
        time = np.arange(round(decay * SAMPLE_RATE)) / SAMPLE_RATE
        tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / decay) * 0.1
        tail[0] = 1.0
        wav = np.convolve(wav, tail)[: len(wav)]
    if silent or rng.random() < config.noise_share:
        level = 0.1 * 10 ** (-rng.uniform(*config.snr_db) / 20)
        wav = wav + level * _noise(len(wav), rng)
    wav = wav * rng.uniform(0.5, 1.5)
    return wav / max(1.0, float(np.abs(wav).max()) / 0.99)


def _noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """White, pink or brown noise, or a mains hum with some of it; of unit power."""
    kind = rng.integers(4)
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 20.0)
    noise = np.fft.irfft(spectrum / frequency ** (0.0, 0.5, 1.0, 0.5)[kind], length)
    noise /= noise.std()
    if kind == 3:
        time = np.arange(length) / SAMPLE_RATE
        hum = sum(np.sin(2 * np.pi * 50 * n * time) / n for n in (1, 2, 3, 5))
        noise = 0.5 * noise + hum / hum.std()
    return noise / noise.std()


def _write(path: Path, wav: np.ndarray, speaker: Speaker, text: str) -> Utterance:
    soundfile.write(path, wav, SAMPLE_RATE, subtype="PCM_16")
    return Utterance(str(path), speaker.name, text, len(wav))
