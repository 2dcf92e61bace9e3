"""Kaldi data dirs: what they may hold, and what is wrong with one that is wrong."""

import kaldiio
import numpy as np
import pytest
import soundfile

from s3prl_kd.bin import validate_data
from s3prl_kd.data.audio import BadAudio
from s3prl_kd.data.kaldi import DataDir, Trial, check, write_data_dir
from s3prl_kd.errors import UserError


@pytest.fixture
def data(tmp_path):
    """Three utterances: a path with a space, a pipe at 8 kHz, an entry of an ark."""
    rng = np.random.default_rng(0)
    wav = (rng.standard_normal(8000) * 0.1).astype(np.float32)
    spaced = tmp_path / "with space"
    spaced.mkdir()
    soundfile.write(spaced / "a.flac", wav, 16000)
    soundfile.write(tmp_path / "b.wav", wav, 8000)
    with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/c.ark,{tmp_path}/c.scp") as writer:
        writer("c", (16000, (wav * 32768).astype(np.int16)))
    entry = (tmp_path / "c.scp").read_text().split(maxsplit=1)[1].strip()
    wavs = {"a": str(spaced / "a.flac"), "b": f"cat {tmp_path}/b.wav |", "c": entry}
    path = tmp_path / "data"
    write_data_dir(
        path,
        wavs,
        {"a": "s1", "b": "s1", "c": "s2"},
        {"a": "yes", "b": "no way", "c": ""},
        {"a": 8000, "b": 16000, "c": 8000},
        [Trial("a", "b", True), Trial("a", "c", False)],
    )
    return path


def test_paths_pipes_and_arks(data):
    opened = check(data)
    assert opened.utts == ["a", "b", "c"]
    assert [len(opened.read(utt)) for utt in opened.utts] == [8000, 16000, 8000]
    assert np.abs(opened.read("a") - opened.read("c")).max() < 1e-3
    assert all(opened.read(utt).dtype == np.float32 for utt in opened.utts)
    assert opened.text["b"] == "no way" and opened.text["c"] == ""
    assert opened.trials == [Trial("a", "b", True), Trial("a", "c", False)]


def test_segments(data, tmp_path):
    (data / "segments").write_text("a a 0.1 0.3\nb b 0.0 0.5\nc c 0.25 0.5\n")
    opened = DataDir(data)
    (data / "segments").rename(data / "unused")
    whole = DataDir(data).read("a")
    (data / "unused").rename(data / "segments")
    assert np.allclose(opened.read("a"), whole[1600:4800], atol=1e-3)
    assert [len(opened.read(utt)) for utt in opened.utts] == [3200, 8000, 4000]


def test_unreadable_entries(data, tmp_path):
    lines = (data / "wav.scp").read_text().splitlines()
    (data / "wav.scp").write_text(f"a {tmp_path}/gone.wav\nb false |\n{lines[2]}\n")
    opened = DataDir(data)
    for utt in ("a", "b"):
        with pytest.raises(BadAudio, match=rf"wav\.scp: {utt}"):
            opened.read(utt)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("utt2spk", "b s1\na s1\nc s2\n", r"utt2spk:2: 'a' is not sorted"),
        ("utt2spk", "a s1\na s1\nc s2\n", r"utt2spk:2: 'a' is twice"),
        ("utt2spk", "a s1\nc s2\n", r"utt2spk: no line for 'b'"),
        ("utt2spk", "a s1\nb\nc s2\n", r"utt2spk:2: expected a key and a value"),
        ("text", "a yes\nb no\nc\nd z\n", r"text:4: 'd' is not in wav.scp"),
        ("spk2utt", "s1 a\ns2 c\n", r"spk2utt:1: 's1' has other utterances"),
        ("spk2utt", "s1 a b\n", r"spk2utt: no line for 's2'"),
        ("utt2num_samples", "a 8000\nb 0\nc 8000\n", r"utt2num_samples:2: 0 samples"),
        ("utt2num_samples", "a 8000\nb x\nc 8000\n", r"b: 'x' is no number"),
        ("trials", "a b target\na z nontarget\n", r"trials:2: 'z' is not in wav.scp"),
        ("trials", "a b target\na c\n", r"trials:2: expected 'enrol test"),
        ("trials", "a b nontarget\n", r"trials:1: utt2spk contradicts"),
        ("wav.scp", "", r"wav\.scp: empty"),
    ],
)
def test_faults_are_told_with_file_and_line(data, name, content, message):
    (data / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        validate_data.main([str(data)])
    assert "\n" not in str(error.value)


def test_missing_file_or_dir(data, tmp_path):
    with pytest.raises(UserError, match="no such data dir"):
        check(tmp_path / "nowhere")
    (data / "spk2utt").unlink()
    with pytest.raises(UserError, match="spk2utt: cannot be read"):
        check(data)


def test_writing_is_whole_or_not_at_all(data):
    before = (data / "wav.scp").read_text()
    with pytest.raises(KeyError):
        write_data_dir(data, {"a": "x", "b": "y"}, {"a": "s"}, {}, {})
    assert (data / "wav.scp").read_text() == before
    assert [path.name for path in data.parent.iterdir() if "partial" in path.name] == []


def test_sorting_is_bytewise(tmp_path):
    utts = ["b", "B", "a-1", "a1", "é"]
    wavs = {utt: f"{utt}.wav" for utt in utts}
    write_data_dir(tmp_path / "d", wavs, wavs, wavs, dict.fromkeys(utts, 1))
    keys = [line.split()[0] for line in (tmp_path / "d" / "wav.scp").read_text().splitlines()]
    assert keys == ["B", "a-1", "a1", "b", "é"]
    check(tmp_path / "d")
