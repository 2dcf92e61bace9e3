"""The corpora the recipe knows, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from s3prl_kd.errors import UserError


class Corpus(NamedTuple):
    """How a corpus is prepared.

    Attributes:
        config: the dataclass of its ``conf/corpus/<name>.yaml``.
        prepare: ``(root, out, config, *, seed, nj, max_bad_share) -> [dataset dir, ...]``.
        locate: ``(root given, downloads) -> root``, fetching the corpus if none is given; None
            for one that is made on the spot.
    """

    config: type
    prepare: Callable[..., list[Path]]
    locate: Callable[[str, Path], Path] | None


NAMES = ("fsdd", "synth")


def get(name: str) -> Corpus:
    """The corpus ``name``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in NAMES:
        raise UserError(f"unknown corpus {name!r}; there are: {', '.join(NAMES)}")
    module: Any = importlib.import_module(f"s3prl_kd.data.{name}")
    return Corpus(module.Config, module.prepare, getattr(module, "locate", None))
