"""Audio of every kind comes out 16 kHz mono; audio that cannot be used is skipped and told."""

import numpy as np
import pytest
import soundfile

from s3prl_kd.data.audio import BadAudio, read_audio
from s3prl_kd.data.prepare import scan
from s3prl_kd.errors import UserError

TONE = 440


def tone(rate, seconds=0.5):
    return 0.5 * np.sin(2 * np.pi * TONE * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize(
    ("name", "rate", "subtype", "channels"),
    [
        ("8k.wav", 8000, "PCM_16", 1),
        ("stereo.wav", 16000, "PCM_16", 2),
        ("44k.flac", 44100, "PCM_16", 1),
        ("24bit.wav", 16000, "PCM_24", 1),
        ("float.wav", 48000, "FLOAT", 1),
        ("unsigned.wav", 16000, "PCM_U8", 2),
    ],
)
def test_any_source_is_16k_mono(tmp_path, name, rate, subtype, channels):
    samples = np.stack([tone(rate)] * channels, axis=1)
    soundfile.write(tmp_path / name, samples, rate, subtype=subtype)
    wav = read_audio(tmp_path / name)
    assert wav.dtype == np.float32 and wav.shape == (8000,)
    inner = slice(200, -200)  # resampling rings at the ends
    assert np.abs(wav[inner] - tone(16000)[inner]).max() < 0.02


def test_channels_are_averaged(tmp_path):
    both = np.stack([tone(16000), -tone(16000)], axis=1)
    soundfile.write(tmp_path / "cancel.wav", both, 16000)
    assert np.abs(read_audio(tmp_path / "cancel.wav")).max() < 1e-3


@pytest.fixture
def bad_files(tmp_path):
    """Good and bad files by name, and what the message says of the bad ones."""
    soundfile.write(tmp_path / "good.wav", tone(16000), 16000)
    (tmp_path / "empty_file.wav").write_bytes(b"")
    soundfile.write(tmp_path / "no_samples.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "one_sample.wav", np.zeros(1), 16000)
    soundfile.write(tmp_path / "one_sample_8k.wav", np.zeros(1), 8000)
    broken = tone(16000)
    broken[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 16000, subtype="FLOAT")
    broken[100] = np.inf
    soundfile.write(tmp_path / "inf.wav", broken, 16000, subtype="DOUBLE")
    (tmp_path / "text.wav").write_text("not audio")
    cut = (tmp_path / "good.wav").read_bytes()
    (tmp_path / "cut.flac").write_bytes(cut[:30])
    return {
        "empty_file.wav": "decoded",
        "no_samples.wav": "0 samples",
        "one_sample.wav": "1 samples",
        "one_sample_8k.wav": "samples",
        "nan.wav": "not finite",
        "inf.wav": "not finite",
        "text.wav": "decoded",
        "cut.flac": "decoded",
        "missing.wav": "no such",
    }


def test_bad_audio_is_named_with_its_fault(tmp_path, bad_files):
    for name, fault in bad_files.items():
        with pytest.raises(BadAudio, match=fault) as error:
            read_audio(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_scan_skips_counts_and_lists(tmp_path, bad_files, capsys):
    items = {name: tmp_path / name for name in ["good.wav", *bad_files]}
    lengths = scan(items, 2, 0.95, tmp_path / "skipped")
    assert lengths == {"good.wav": 8000}
    listed = [line.split("\t") for line in (tmp_path / "skipped").read_text().splitlines()]
    assert {line[0] for line in listed} == set(bad_files)
    assert all(line[1] == str(tmp_path / line[0]) and line[2] for line in listed)
    assert "9 of 10 audio files are unusable" in capsys.readouterr().out


def test_too_many_bad_files_stop(tmp_path, bad_files):
    items = {name: tmp_path / name for name in ["good.wav", "nan.wav"]}
    assert scan(items, 1, 0.5, tmp_path / "skipped")
    with pytest.raises(UserError, match=r"skipped: 1 of 2 .*--max_bad_share"):
        scan(items, 1, 0.49, tmp_path / "skipped")
    # All bad stops whatever the share.
    with pytest.raises(UserError):
        scan({"nan.wav": tmp_path / "nan.wav"}, 1, 1.0, tmp_path / "skipped")


def test_nothing_bad_leaves_an_empty_list(tmp_path, bad_files):
    scan({"good.wav": tmp_path / "good.wav"}, 1, 0.0, tmp_path / "skipped")
    assert (tmp_path / "skipped").read_text() == ""


def test_published_corrupt_files(tmp_path, corrupt_audio):
    files = {file.name: file for file in corrupt_audio.glob("*.flac")}
    assert len(files) == 14
    soundfile.write(tmp_path / "good.wav", tone(16000), 16000)
    lengths = scan(files | {"good.wav": tmp_path / "good.wav"}, 1, 0.95, tmp_path / "skipped")
    assert set(lengths) == {"good.wav"}
    assert len((tmp_path / "skipped").read_text().splitlines()) == 14
