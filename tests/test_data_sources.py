"""What wav.scp and segments may hold, however it is encoded, and damage told by its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from s3prl_kd.data.audio import BadAudio, read_audio
from s3prl_kd.data.kaldi import DataDir, Trial, check, write_data_dir
from s3prl_kd.errors import UserError

NOISE = np.random.default_rng(0).integers(-9000, 9000, 16000).astype(np.int16)


def write(path: Path, wavs: dict[str, str], **more) -> DataDir:
    write_data_dir(
        path,
        wavs,
        {utt: utt.split("-")[0] for utt in wavs},
        dict.fromkeys(wavs, "yes"),
        dict.fromkeys(wavs, 16000),
        **more,
    )
    return check(path)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("segmented", [False, True])
def test_plain_path_pipe_and_ark(tmp_path: Path, subtype: str, segmented: bool) -> None:
    """The same second of noise whatever holds it; a path and a command have spaces."""
    here = tmp_path / "with space"
    here.mkdir()
    soundfile.write(here / "a.wav", NOISE / 32768, 16000, subtype=subtype)
    soundfile.write(here / "a.flac", NOISE, 16000)
    kaldiio.save_ark(str(tmp_path / "a.ark"), {"x": (16000, NOISE), "y": (16000, NOISE)})
    offset = (tmp_path / "a.ark").read_bytes().rindex(b"RIFF")
    # As ESPnet writes compressed audio.
    kaldiio.save_ark(str(tmp_path / "b.ark"), {"x": (16000, NOISE)}, write_function="soundfile")
    entries = {
        "s-ark": f"{tmp_path}/a.ark:{offset}",
        "s-audio_ark": f"{tmp_path}/b.ark:2",
        "s-flac": str(here / "a.flac"),
        "s-path": str(here / "a.wav"),
        "s-pipe": f"cat '{here}/a.wav' |",
    }
    data = write(tmp_path / "data", entries)
    start = 0
    if segmented:
        # 1.1 s would be beyond the end; -1 is the end.
        lines = [f"{utt} {utt} 0.25 {-1 if utt == 's-ark' else 1.0}\n" for utt in data.utts]
        (data.path / "segments").write_text("".join(lines))
        data = check(data.path)
        start = 4000
    for utt in entries:
        wav = data.read(utt)
        assert wav.dtype == np.float32
        np.testing.assert_allclose(wav, NOISE[start:] / 32768, atol=1e-6, err_msg=utt)


def test_streamed_8_bit_stereo_at_8_khz(tmp_path: Path) -> None:
    """What sox writes into a pipe: a header that does not know the length."""
    time = np.arange(8000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 300 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], 1), 8000, subtype="PCM_U8")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    place = content.index(b"data")
    content[4:8] = content[place + 4 : place + 8] = b"\xff\xff\xff\x7f"
    (tmp_path / "a.wav").write_bytes(content)
    wav = write(tmp_path / "data", {"s-a": f"cat {tmp_path}/a.wav |"}).read("s-a")
    expected = 0.5 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000)
    np.testing.assert_allclose(wav[200:15800], expected[200:15800], atol=0.01)


def test_segments_of_one_recording(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", NOISE[:8000], 8000)
    data = write(tmp_path / "data", {"s-1": "absent.wav", "s-2": "absent.wav"})
    (data.path / "wav.scp").write_text(f"call {tmp_path}/a.flac\n")
    (data.path / "segments").write_text("s-1 call 0 0.25\ns-2 call 0.25 1\n")
    data = check(data.path)
    assert data.utts == ["s-1", "s-2"]
    assert [len(data.read(utt)) for utt in data.utts] == [4000, 12000]


@pytest.mark.parametrize(
    "entry", ["no/such.wav", "no/such.ark:12", "false |", "cat {bad} |", "cat {good}; false |"]
)
def test_entry_that_gives_nothing_is_bad_audio(tmp_path: Path, entry: str, capfd) -> None:
    (tmp_path / "bad").write_text("no sound")
    soundfile.write(tmp_path / "good.wav", NOISE, 16000)
    entry = entry.format(bad=tmp_path / "bad", good=tmp_path / "good.wav")
    data = write(tmp_path / "data", {"s-a": entry})
    with pytest.raises(BadAudio, match=r"wav.scp: s-a") as raised:
        data.read("s-a")
    assert "\n" not in str(raised.value)


def replace(file: str, content: str) -> Callable[[Path], None]:
    return lambda path: (path / file).write_text(content)


FAULTS = {
    "utt2spk:2: expected a key and a value": replace("utt2spk", "a-1 a\n\nb-1 b\n"),
    "spk2utt:3: 'c' has other utterances": replace("spk2utt", "a a-1 a-2\nb b-1\nc b-1\n"),
    "utt2num_samples:3: b-1: 'many' is no number": replace(
        "utt2num_samples", "a-1 5\na-2 7\nb-1 many\n"
    ),
    "segments:2: 'z' is not in wav.scp": replace(
        "segments", "a-1 a-1 0 1\na-2 z 0 1\nb-1 b-1 0 1\n"
    ),
    "segments:1: no stretch from 2 to 1 s": replace("segments", "a-1 a-1 2 1\n"),
    "segments:1: expected 'utt recording start end'": replace("segments", "a-1 a-1 0\n"),
    "utt2spk:1: 'a-1' is not in segments": replace("segments", "a-2 a-2 0 1\nb-1 b-1 0 1\n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_file_and_line(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "data"
    write(path, {"a-1": "x", "a-2": "x", "b-1": "x"}, trials=[Trial("a-1", "a-2", True)])
    FAULTS[fault](path)
    with pytest.raises(UserError) as raised:
        check(path)
    assert str(raised.value).startswith(f"{path}/{fault}")


def test_header_that_promises_more_than_memory(tmp_path: Path) -> None:
    """A FLAC that claims 2^36 - 1 samples is bad audio, not a MemoryError."""
    path = tmp_path / "a.flac"
    soundfile.write(path, NOISE, 16000)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(BadAudio, match="cannot be decoded"):
        read_audio(path)
