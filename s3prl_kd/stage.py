"""Which stages are done: a marker beside what each stage makes.

The marker holds a fingerprint of the stage's configuration and of its inputs' content, so a
stage runs again exactly when one of them changed, and a killed one is known as unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from s3prl_kd.files import read_json, write_json

Decision = Literal["skip", "resume", "fresh"]


def fingerprint(config: Mapping[str, Any], inputs: Iterable[str | Path]) -> str:
    """Hash a configuration and the content of input files.

    Args:
        config: anything JSON can hold.
        inputs: files, or directories of which the visible files at the top level count.
            A missing input counts as missing, so its appearance changes the hash.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for given in inputs:
        given = Path(given)
        files = sorted(given.iterdir()) if given.is_dir() else [given]
        for file in files:
            if file.name.startswith(".") or file.is_dir():
                continue
            digest.update(file.name.encode())
            if file.exists():
                with open(file, "rb") as handle:
                    digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


class Stage:
    """One unit of work, its output directory and whether it is done.

    Args:
        directory: what the stage makes; the marker lies in it.
        name: the stage's name, in the marker's file name and in messages.
        config: every option that changes the outcome.
        inputs: files and directories read (see :func:`fingerprint`).
    """

    def __init__(
        self,
        directory: str | Path,
        name: str,
        config: Mapping[str, Any],
        inputs: Iterable[str | Path] = (),
    ) -> None:
        self.directory = Path(directory)
        self.name = name
        self.marker = self.directory / f".stage-{name}.json"
        self.fingerprint = fingerprint(config, inputs)

    def begin(self, force: bool = False) -> Decision:
        """Decide what to do, and mark the stage as running unless it is skipped.

        Returns:
            ``"skip"`` when done and nothing changed (and not forced), ``"resume"`` when an
            earlier run with the same configuration and inputs was cut short, else ``"fresh"``:
            what lies in the directory is of another configuration and must not be built upon.
        """
        if self._is_child():
            return "resume"
        try:
            seen = read_json(self.marker)
        except (OSError, ValueError):
            seen = {}
        same = seen.get("fingerprint") == self.fingerprint
        if same and seen.get("state") == "done" and not force:
            print(f"{self.name}: {self.directory} is done and unchanged; skipped", flush=True)
            return "skip"
        write_json(self.marker, {"state": "running", "fingerprint": self.fingerprint})
        resumed = same and seen.get("state") == "running"
        print(f"{self.name}: {'resuming' if resumed else 'writing'} {self.directory}", flush=True)
        return "resume" if resumed else "fresh"

    def finish(self) -> None:
        """Mark the stage as done."""
        if not self._is_child():
            write_json(self.marker, {"state": "done", "fingerprint": self.fingerprint})

    @staticmethod
    def _is_child() -> bool:
        # Lightning re-executes the program for every further rank; rank 0 keeps the marker.
        return os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("NODE_RANK", "0") != "0"
