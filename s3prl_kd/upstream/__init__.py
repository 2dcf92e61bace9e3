"""Our models among s3prl's upstreams, by name.

s3prl resolves an upstream with ``getattr(s3prl.hub, name)`` and lists names from that module's
globals, so a name set there is found by ``S3PRLUpstream``, the SUPERB problems, the legacy runner
and ESPnet's front end alike. ``s3prl.hub`` takes some ten seconds to import; the names are set
when, and only if, somebody imports it.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from unittest import mock

from s3prl_kd.errors import UserError

if TYPE_CHECKING:
    from s3prl.nn import S3PRLUpstream

# Opens any directory: S3PRLUpstream("s3prl_kd_local", path_or_url=DIRECTORY).
LOCAL = "s3prl_kd_local"
_directories: dict[str, Path] = {}


def default_expdirs() -> list[Path]:
    """Where students are looked for.

    ``$S3PRL_KD_EXP`` (paths separated by ``:``), else ``exp`` in the working directory and in the
    recipe's own.
    """
    given = os.environ.get("S3PRL_KD_EXP")
    if given:
        return [Path(part) for part in given.split(os.pathsep) if part]
    return [Path("exp"), Path(__file__).resolve().parents[2] / "exp"]


def find_models(expdir: str | Path) -> dict[str, Path]:
    """Name and directory of every model directly under ``expdir``, or of ``expdir`` itself."""
    expdir = Path(expdir)
    if (expdir / "config.json").is_file():
        return {expdir.resolve().name: expdir.resolve()}
    return {
        file.parent.name: file.parent.resolve() for file in sorted(expdir.glob("*/config.json"))
    }


def register(*directories: str | Path) -> list[str]:
    """Make models known to s3prl by their directory's name.

    Args:
        directories: each a model directory or a folder of such; none: :func:`default_expdirs`.

    Returns:
        The names found. One that s3prl has already keeps s3prl's meaning, with a warning.
    """
    found: dict[str, Path] = {}
    for directory in directories or default_expdirs():
        found = find_models(directory) | found
    _directories.update(found)
    hub = sys.modules.get("s3prl.hub")
    if hub is not None and hasattr(hub, "options"):
        _publish(hub)
    return sorted(found)


def load_upstream(name: str, expdir: str | Path = "exp") -> S3PRLUpstream:
    """``S3PRLUpstream(name)``, with our names registered and failures told in one line.

    Raises:
        UserError: no such name, or its weights cannot be had.
    """
    register(expdir)
    from s3prl import hub
    from s3prl.nn import S3PRLUpstream

    if name not in hub.options():
        theirs = sorted(set(hub.options(only_registered_ckpt=True)) - set(_directories))
        raise UserError(
            f"unknown upstream {name!r}; there are: {', '.join(sorted(_directories)) or 'none'} "
            f"(of yours); {', '.join(theirs)} (of s3prl)"
        )
    try:
        return S3PRLUpstream(name)
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"upstream {name!r} cannot be opened: {first}") from error


def _publish(hub: ModuleType) -> None:
    def entry(directory: Path | None):
        def open_upstream(ckpt: str | None = None, **kwargs):
            from s3prl_kd.upstream.expert import UpstreamExpert

            # Others' runners pass options of their own (refresh, model_config ...).
            return UpstreamExpert(directory if directory is not None else ckpt)

        open_upstream.s3prl_kd = True
        return open_upstream

    for name, directory in {LOCAL: None, **_directories}.items():
        present = getattr(hub, name, None)
        if present is not None and not hasattr(present, "s3prl_kd"):
            warnings.warn(
                f"{directory}: s3prl has an upstream {name!r} already; rename the directory",
                stacklevel=2,
            )
            continue
        setattr(hub, name, entry(directory))


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep s3prl's import quiet and off the network.

    Through ESPnet it imports a phonemiser that fetches dictionaries, and its modules print advice
    about packages that nothing here needs.
    """
    try:
        import nltk
    except ImportError:
        fetching = contextlib.nullcontext()
    else:
        fetching = mock.patch.object(nltk, "download", lambda *args, **kwargs: True)
    with warnings.catch_warnings(), fetching, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class _HubFinder(importlib.abc.MetaPathFinder):
    """Publishes our names at the end of ``s3prl.hub``'s own import."""

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname != "s3prl.hub":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with _hushed():
                execute(module)
            register()
            _publish(module)

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Register the default directories now or when ``s3prl.hub`` is imported."""
    if not any(isinstance(finder, _HubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HubFinder())
    if "s3prl.hub" in sys.modules:
        register()
