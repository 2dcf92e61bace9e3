"""What every corpus' preparation shares: scanning audio, trials, dataset dirs.

A *dataset dir* is one experiment's data: ``corpus.json`` and the data dirs
``{kws,sv}_{train,valid,test}`` and ``unlabelled_{train,valid}``. A corpus is a dataset dir, or
one of them per fold.
"""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from s3prl_kd.data.audio import BadAudio, read_audio
from s3prl_kd.data.kaldi import Trial, check, write_data_dir
from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_write, write_json

T = TypeVar("T")
R = TypeVar("R")


class Utterance(NamedTuple):
    """A line of each file of a data dir.

    Attributes:
        wav: entry of ``wav.scp``.
        speaker: for ``utt2spk``.
        text: transcript or class.
        num_samples: at 16 kHz.
    """

    wav: str
    speaker: str
    text: str
    num_samples: int


def scan(
    items: Mapping[str, Path], nj: int, max_bad_share: float, skipped: str | Path
) -> dict[str, int]:
    """Read every audio file once and leave out those that cannot be used.

    Args:
        items: id and file.
        nj: processes.
        max_bad_share: largest share of unusable files.
        skipped: gets a line ``id<TAB>path<TAB>reason`` for each of them; empty where there is none.

    Returns:
        Samples at 16 kHz of each usable file, by id.

    Raises:
        UserError: more than ``max_bad_share`` are unusable, or there is none at all.
    """
    if not items:
        raise UserError(f"{Path(skipped).parent}: no audio to prepare; check the corpus' root")
    ids = sorted(items)
    lengths, bad = {}, []
    results = parallel(_measure, [items[key] for key in ids], nj, "reading audio")
    for key, (length, reason) in zip(ids, results, strict=True):
        if reason is None:
            lengths[key] = length
        else:
            bad.append((key, str(items[key]), reason))
    with atomic_write(skipped) as handle:
        handle.writelines("\t".join(line) + "\n" for line in bad)
    if bad:
        print(f"{len(bad)} of {len(ids)} audio files are unusable, listed in {skipped}", flush=True)
    if len(bad) > max_bad_share * len(ids) or not lengths:
        raise UserError(
            f"{skipped}: {len(bad)} of {len(ids)} audio files are unusable, more than the share "
            f"of {max_bad_share:g} allowed; mend them or raise --max_bad_share"
        )
    return lengths


def _measure(path: Path) -> tuple[int, str | None]:
    try:
        return len(read_audio(path)), None
    except BadAudio as error:
        return 0, str(error).removeprefix(f"{path}: ")


def parallel(
    function: Callable[[T], R], items: Sequence[T], nj: int, title: str, *, fresh: bool = False
) -> Iterator[R]:
    """``map(function, items)`` in ``nj`` processes, in order, with a progress bar and an ETA.

    Args:
        fresh: a new process for each item, for libraries that carry state from call to call.
    """
    from rich.progress import track

    if nj <= 1 and not fresh:
        yield from track(map(function, items), description=title, total=len(items))
        return
    context = multiprocessing.get_context("fork")
    with context.Pool(max(1, nj), maxtasksperchild=1 if fresh else None) as pool:
        chunk = 1 if fresh else max(1, len(items) // (nj * 32))
        results = pool.imap(function, items, chunksize=chunk)
        yield from track(results, description=title, total=len(items))


def balanced_trials(
    utt2spk: Mapping[str, str],
    number: int,
    rng: np.random.Generator,
    group: Mapping[str, str] | None = None,
) -> list[Trial]:
    """Trials of which half are targets, sorted, none twice nor with its ends exchanged.

    Args:
        utt2spk: the utterances to pair.
        number: of trials wanted; fewer where there are not so many pairs.
        rng: draws them.
        group: of each speaker (say its gender); non-targets are drawn within a group as far as
            there are such pairs, which are the harder ones.
    """
    of_speaker = defaultdict(list)
    for utt in sorted(utt2spk):
        of_speaker[utt2spk[utt]].append(utt)
    speakers = sorted(of_speaker)
    target = [
        (a, b)
        for s in speakers
        for i, a in enumerate(of_speaker[s])
        for b in of_speaker[s][i + 1 :]
    ]
    near, far = [], []
    for i, first in enumerate(speakers):
        for second in speakers[i + 1 :]:
            same = group is None or group.get(first) == group.get(second)
            pairs = near if same else far
            pairs += [(a, b) for a in of_speaker[first] for b in of_speaker[second]]
    half = min(number // 2, len(target), len(near) + len(far))

    def draw(pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
        return [pairs[i] for i in rng.choice(len(pairs), size=count, replace=False)]

    chosen = draw(near, min(half, len(near)))
    chosen += draw(far, half - len(chosen)) if half > len(chosen) else []
    return sorted(
        [Trial(a, b, True) for a, b in draw(target, half)] + [Trial(a, b, False) for a, b in chosen]
    )


def write_dataset(
    directory: str | Path,
    splits: Mapping[str, Mapping[str, Utterance]],
    trials: Mapping[str, Iterable[Trial]],
    facts: Mapping[str, Any],
) -> Path:
    """Write a dataset dir and validate it.

    Args:
        directory: the dataset dir.
        splits: utterances of ``kws_train`` ... ``sv_test``; the unlabelled splits are the unions.
        trials: of ``sv_valid`` and ``sv_test``.
        facts: what ``corpus.json`` holds, written last.
    """
    directory = Path(directory)
    (directory / "corpus.json").unlink(missing_ok=True)
    unlabelled = {
        f"unlabelled_{part}": {**splits[f"kws_{part}"], **splits[f"sv_{part}"]}
        for part in ("train", "valid")
    }
    for name, utterances in {**splits, **unlabelled}.items():
        if not utterances:
            raise UserError(f"{directory / name}: no utterance is left; see what was skipped")
        columns = {
            field: {utt: getattr(one, field) for utt, one in utterances.items()}
            for field in Utterance._fields
        }
        write_data_dir(
            directory / name,
            columns["wav"],
            columns["speaker"],
            columns["text"],
            columns["num_samples"],
            trials.get(name),
        )
        check(directory / name)
    write_json(directory / "corpus.json", facts)
    return directory
