"""Fetching a corpus from its public home."""

from __future__ import annotations

import gzip
import http.client
import tarfile
import urllib.request
import zlib
from pathlib import Path

from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_dir


def download_archive(url: str, directory: Path, option: str) -> None:
    """Fetch a ``.tar.gz`` and unpack it into ``directory``, whole or not at all.

    Args:
        url: of the archive.
        directory: made, with what the archive holds.
        option: of run.sh that takes a copy of one's own, for the message.

    Raises:
        UserError: it cannot be had, is no such archive or not a whole one.
    """
    from rich.progress import Progress

    print(f"fetching {url}", flush=True)
    try:
        with atomic_dir(directory) as partial:
            archive = partial / "archive.tar.gz"
            with urllib.request.urlopen(url, timeout=60) as answer:
                # A forge makes its archives on the spot and does not say how long they are.
                size = int(answer.headers.get("Content-Length") or 0) or None
                with Progress() as bar, open(archive, "wb") as target:
                    task = bar.add_task("fetching", total=size)
                    while block := answer.read(1 << 20):
                        target.write(block)
                        bar.advance(task, len(block))
            with gzip.open(archive) as plain:
                with tarfile.open(fileobj=plain) as content:
                    content.extractall(partial, filter="data")
                # The checksum lies at the end, where tarfile need not come.
                while plain.read(1 << 20):
                    pass
            archive.unlink()
    # URLError is an OSError; a connection cut short and an archive cut short are not.
    except (OSError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise UserError(
            f"{url}: cannot be fetched ({reason}); give a copy of the corpus with {option} DIR"
        ) from None
