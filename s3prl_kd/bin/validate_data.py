"""Validate Kaldi data dirs."""

from __future__ import annotations

from pathlib import Path

from s3prl_kd.bin import common


def main(argv: list[str] | None = None) -> None:
    """Check each directory; the first fault ends it, naming file and line."""
    parser = common.Parser(prog="validate_data", description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path)
    args = parser.parse_args(argv)

    from s3prl_kd.data.kaldi import check

    for directory in args.directories:
        print(f"{directory}: {len(check(directory))} utterances, valid")


if __name__ == "__main__":
    common.run(main)
