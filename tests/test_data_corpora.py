"""The corpora: speakers kept apart, trials balanced, the same bytes from the same seed."""

import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_kd.bin import fetch, prepare_data
from s3prl_kd.config import load_config
from s3prl_kd.data import fetch as fetching
from s3prl_kd.data import fsdd, synth
from s3prl_kd.data.kaldi import DataDir, check
from s3prl_kd.data.prepare import balanced_trials
from s3prl_kd.errors import UserError
from s3prl_kd.files import read_json

PARTS = ("train", "valid", "test")
TINY = [
    *("speakers={train: 2, valid: 2, test: 2}", "sv={train: 2, valid: 2, test: 2}"),
    *("keywords=['yes']", "takes=1", "unknown=1", "valid_trials=4", "test_trials=4"),
]


def speakers(path):
    return set(DataDir(path).utt2spk.values())


def balanced(path):
    trials = DataDir(path).trials
    return len(trials) > 0 and sum(trial.target for trial in trials) * 2 == len(trials)


def test_default_synth_has_sixty_speakers_each_a_voice_of_its_own():
    config = load_config(synth.Config, "conf/corpus/synth.yaml")
    chosen = synth.choose_speakers(config, seed=1)
    assert len(chosen) >= 60 and len(config.keywords) == 10
    assert len({one.voice.split("+")[1] for one in chosen}) == len(chosen)
    assert len({one.name for one in chosen}) == len(chosen)


def test_synth_dataset(tiny_synth):
    for task in ("kws", "sv"):
        seen = [speakers(tiny_synth / f"{task}_{part}") for part in PARTS]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert not speakers(tiny_synth / "unlabelled_train") & speakers(tiny_synth / "sv_test")
    facts = read_json(tiny_synth / "corpus.json")
    train = DataDir(tiny_synth / "kws_train")
    assert set(train.text.values()) == set(facts["classes"]) == {
        "yes", "no", "stop", "_unknown_", "_silence_",
    }  # fmt: skip
    assert all(train.num_samples[utt] == len(train.read(utt)) == 16000 for utt in train.utts)
    spoken = DataDir(tiny_synth / "sv_test")
    assert all(32000 <= count <= 48000 for count in spoken.num_samples.values())
    assert balanced(tiny_synth / "sv_valid") and balanced(tiny_synth / "sv_test")
    levels = {train.text[utt]: np.abs(train.read(utt)).max() for utt in train.utts}
    assert levels["_silence_"] < levels["yes"]


def test_synth_is_the_same_bytes_in_another_process_and_for_any_nj(tmp_path):
    contents = []
    for nj in ("1", "3"):
        out = tmp_path / "synth"
        command = [sys.executable, "-m", "s3prl_kd.bin.prepare_data", "--corpus", "synth"]
        subprocess.run(
            [*command, "--out", out, "--nj", nj, "--set", *TINY], check=True, capture_output=True
        )
        files = sorted(path for path in out.rglob("*") if path.is_file())
        contents.append({path: path.read_bytes() for path in files if "stage" not in path.name})
        out.rename(tmp_path / f"synth{nj}")
    assert len(contents[0]) > 30
    assert contents[0] == contents[1]


def test_espeak_says_the_same_in_another_second():
    """Left alone it seeds its noise, which some voices breathe with, with the time of day."""
    code = (
        "import hashlib; from s3prl_kd.data import espeak\n"
        "for voice in ('f1', 'f2', 'f3'):\n"
        "    wav = espeak.say('yes', f'en-us+{voice}', pitch=50, pitch_range=50, rate=170)\n"
        "    print(hashlib.sha256(wav.tobytes()).hexdigest())"
    )
    said = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        said.append(done.stdout)
        time.sleep(1.1)
    assert said[0] and said[0] == said[1] == said[2]


def test_too_many_speakers_for_the_voices():
    config = load_config(
        synth.Config, "conf/corpus/synth.yaml", ["speakers={train: 99, valid: 9, test: 9}"]
    )
    with pytest.raises(UserError, match="117 speakers wanted"):
        synth.choose_speakers(config, 1)


@pytest.fixture(scope="module")
def fake_fsdd(tmp_path_factory):
    """Six speakers, two digits, twelve takes of 8 kHz noise; one recording is broken."""
    root = tmp_path_factory.mktemp("fsdd")
    rng = np.random.default_rng(0)
    (root / "recordings").mkdir()
    for speaker in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"):
        for digit in (0, 7):
            for take in range(12):
                wav = 0.1 * rng.standard_normal(rng.integers(2400, 6400))
                soundfile.write(root / "recordings" / f"{digit}_{speaker}_{take}.wav", wav, 8000)
    (root / "recordings" / "7_theo_11.wav").write_bytes(b"broken")
    return root


FEW = ["sv_train=4", "sv_valid=3", "sv_test=4", "valid_trials=12", "test_trials=12"]


@pytest.fixture(scope="module")
def fsdd_data(fake_fsdd, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "fsdd"
    args = ["--corpus", "fsdd", "--root", str(fake_fsdd), "--out", str(out), "--nj", "1"]
    prepare_data.main([*args, "--set", *FEW])
    return out


def test_fsdd_folds_see_nothing_of_their_test_speakers(fsdd_data):
    held_out = set()
    for fold in (1, 2, 3):
        directory = fsdd_data / f"fold{fold}"
        facts = read_json(directory / "corpus.json")
        assert facts["tag"] == f"fsdd_fold{fold}" and len(facts["classes"]) == 10
        test = speakers(directory / "sv_test")
        held_out |= test
        assert test == set(facts["test_speakers"]) and len(test) == 2
        for split in directory.iterdir():
            if split.is_dir() and split.name != "sv_test":
                assert not speakers(split) & test, split
        assert balanced(directory / "sv_valid") and balanced(directory / "sv_test")
        # Not by name alone: no recording of theirs is read either.
        for split in ("unlabelled_train", "unlabelled_valid", "kws_train", "sv_train"):
            text = (directory / split / "wav.scp").read_text()
            assert not any(speaker in text for speaker in test)
    assert len(held_out) == 6


def test_fsdd_takes(fsdd_data):
    takes = {
        part: {int(utt[-2:]) for utt in DataDir(fsdd_data / "fold1" / f"kws_{part}").utts}
        for part in PARTS
    }
    assert takes == {"test": set(range(5)), "valid": set(range(5, 9)), "train": {9, 10, 11}}


def test_fsdd_is_read_at_16k_and_joined_to_some_seconds(fsdd_data, fake_fsdd):
    train = DataDir(fsdd_data / "fold1" / "kws_train")
    utt = train.utts[0]
    source = fake_fsdd / "recordings" / f"0_{train.utt2spk[utt]}_9.wav"
    assert len(train.read(utt)) == train.num_samples[utt] == 2 * soundfile.info(source).frames
    joined = DataDir(fsdd_data / "fold1" / "sv_test")
    assert all(32000 <= joined.num_samples[utt] <= 48000 for utt in joined.utts)
    assert all(len(joined.read(utt)) == joined.num_samples[utt] for utt in joined.utts)


def test_fsdd_lists_the_broken_recording(fsdd_data):
    listed = (fsdd_data / "skipped").read_text().splitlines()
    assert len(listed) == 1 and "7_theo_11.wav" in listed[0]


def test_prepared_data_is_skipped_until_something_changes(fsdd_data, fake_fsdd, capsys):
    args = ["--corpus", "fsdd", "--root", str(fake_fsdd), "--out", str(fsdd_data), "--nj", "1"]
    stamp = (fsdd_data / "fold1" / "corpus.json").stat().st_mtime_ns
    prepare_data.main([*args, "--set", *FEW])
    assert "skipped" in capsys.readouterr().out
    assert (fsdd_data / "fold1" / "corpus.json").stat().st_mtime_ns == stamp
    prepare_data.main([*args, "--seed", "2", "--set", *FEW])
    assert (fsdd_data / "fold1" / "corpus.json").stat().st_mtime_ns > stamp


def test_a_fold_that_is_no_more_is_no_dataset_dir(fake_fsdd, tmp_path):
    args = ["--corpus", "fsdd", "--root", str(fake_fsdd), "--out", str(tmp_path), "--nj", "1"]
    prepare_data.main([*args, "--set", *FEW])
    assert len(list(tmp_path.glob("*/corpus.json"))) == 3
    prepare_data.main([*args, "--set", *FEW, "folds=[[george, jackson], [lucas, nicolas]]"])
    assert {path.parent.name for path in tmp_path.glob("*/corpus.json")} == {"fold1", "fold2"}


@pytest.mark.slow
def test_real_fsdd(fsdd_root, tmp_path):
    out = tmp_path / "fsdd"
    prepare_data.main(["--corpus", "fsdd", "--root", str(fsdd_root), "--out", str(out)])
    assert (out / "skipped").read_text() == ""
    for fold in (1, 2, 3):
        assert len(check(out / f"fold{fold}" / "kws_test")) == 200
        assert len(DataDir(out / f"fold{fold}" / "kws_train")) == 1640
        assert len(DataDir(out / f"fold{fold}" / "sv_test").trials) == 1000


def test_balanced_trials_are_unique_and_prefer_the_group():
    utt2spk = {f"{s}{i}": s for s in "abcd" for i in range(4)}
    group = {"a": "f", "b": "f", "c": "m", "d": "m"}
    trials = balanced_trials(utt2spk, 40, np.random.default_rng(0), group)
    pairs = {frozenset(trial[:2]) for trial in trials}
    assert len(trials) == len(pairs) == 40 and sum(t.target for t in trials) == 20
    others = [t for t in trials if not t.target]
    assert all(group[utt2spk[t.enrol]] == group[utt2spk[t.test]] for t in others)


def test_fetch_given_root(fake_fsdd, tmp_path, capsys):
    fetch.main(["--corpus", "fsdd", "--root", str(fake_fsdd), "--downloads", str(tmp_path)])
    assert (tmp_path / "fsdd.root").read_text().strip() == str(fake_fsdd)
    said = capsys.readouterr().out
    assert "144 of the corpus' 3000 recordings, without 0_george_12.wav, " in said


def test_fetch_from_an_archive(fake_fsdd, tmp_path, monkeypatch):
    """The public archive's layout, from a file: one top folder with recordings."""
    archive = tmp_path / "home.tar.gz"
    with tarfile.open(archive, "w:gz") as content:
        content.add(fake_fsdd / "recordings", "free-spoken-digit-dataset-master/recordings")
    monkeypatch.setattr(fsdd, "URL", archive.as_uri())
    fetch.main(["--corpus", "fsdd", "--downloads", str(tmp_path / "downloads")])
    root = Path((tmp_path / "downloads" / "fsdd.root").read_text().strip())
    assert len(fsdd._recordings(root)) == 144
    archive.unlink()  # fetched once
    fetch.main(["--corpus", "fsdd", "--downloads", str(tmp_path / "downloads")])


def test_fetch_that_fails_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(fetching.urllib.request, "urlopen", no_network)
    with pytest.raises(UserError, match=r"Network is unreachable.*--fsdd_root DIR"):
        fetch.main(["--corpus", "fsdd", "--downloads", str(tmp_path / "downloads")])
    assert not list((tmp_path / "downloads").iterdir())
    bad = io.BytesIO(b"no archive")
    bad.headers = {}
    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *a, **k: bad)
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch.main(["--corpus", "fsdd", "--downloads", str(tmp_path / "downloads")])
    assert not list((tmp_path / "downloads").iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--corpus", "no_such"], "there are: fsdd, synth"),
        (["--corpus", "fsdd", "--root", "/no/such/place"], "no such directory"),
        (["--corpus", "fsdd", "--root", "/"], "no recordings"),
    ],
)
def test_fetch_faults(args, message, tmp_path):
    with pytest.raises(UserError, match=message):
        fetch.main([*args, "--downloads", str(tmp_path)])
    assert not (tmp_path / "fsdd.root").exists()


def test_synth_needs_no_fetching(tmp_path, capsys):
    fetch.main(["--corpus", "synth", "--downloads", str(tmp_path)])
    assert "nothing to fetch" in capsys.readouterr().out
