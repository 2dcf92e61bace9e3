"""A download that breaks off or arrives damaged is told in one line and leaves nothing."""

from __future__ import annotations

import http.client
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from s3prl_kd.data import fetch
from s3prl_kd.errors import UserError


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """A .tar.gz of noise, which gzip stores as it is: a changed byte still unpacks."""
    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    for take in range(4):
        (source / f"0_theo_{take}.wav").write_bytes(rng.bytes(20000))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as content:
        content.add(source, "corpus/recordings")
    return (tmp_path / "a.tar.gz").read_bytes()


def download(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "home.tar.gz").write_bytes(content)
    target = tmp_path / "downloads" / "corpus"
    fetch.download_archive((tmp_path / "home.tar.gz").as_uri(), target, "--fsdd_root")
    return target


def test_whole_archive(archive: bytes, tmp_path: Path) -> None:
    got = download(tmp_path, archive)
    assert len(list(got.glob("corpus/recordings/*.wav"))) == 4
    assert [path.name for path in got.iterdir()] == ["corpus"]


@pytest.mark.parametrize("damage", ["half", "start", "empty", "changed", "tail"])
def test_damaged_archive(archive: bytes, tmp_path: Path, damage: str) -> None:
    changed = bytearray(archive)
    changed[30000:30100] = bytes(100)
    content = {
        "half": archive[: len(archive) // 2],
        "start": archive[:10],
        "empty": b"",
        "changed": bytes(changed),
        "tail": archive[:-4],
    }[damage]
    with pytest.raises(UserError, match="--fsdd_root DIR") as error:
        download(tmp_path, content)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_connection_cut(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(io.BytesIO):
        headers: dict[str, str] = {}  # noqa: RUF012

        def read(self, size: int | None = -1) -> bytes:
            raise http.client.IncompleteRead(b"")

    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda *args, **kwargs: Cut(archive))
    with pytest.raises(UserError, match=r"IncompleteRead.*--fsdd_root DIR"):
        download(tmp_path, archive)
    assert list((tmp_path / "downloads").iterdir()) == []
