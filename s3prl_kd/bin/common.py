"""What every entry point shares: options, and errors told in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from s3prl_kd.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose complaint is one line, and which takes no abbreviations."""

    def __init__(self, **kwargs) -> None:
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message} (see --help)", file=sys.stderr)
        sys.exit(2)


def boolean(text: str) -> bool:
    """``true`` or ``false``, as Kaldi-style options write them."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() == "true"


def run(main: Callable[[], None]) -> NoReturn:
    """Run an entry point; a :class:`UserError` ends in one line and exit status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(0)
