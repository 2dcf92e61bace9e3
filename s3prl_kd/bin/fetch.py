"""Fetch a corpus, or check the one given (stage 0)."""

from __future__ import annotations

from pathlib import Path

from s3prl_kd.bin import common


def main(argv: list[str] | None = None) -> None:
    """Leave the corpus' root in ``<downloads>/<corpus>.root``."""
    parser = common.Parser(prog="fetch", description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--root", default="", help="a copy of the corpus; none: fetch it")
    parser.add_argument("--downloads", default=Path("downloads"), type=Path)
    args = parser.parse_args(argv)

    from s3prl_kd.data import corpora
    from s3prl_kd.files import atomic_write

    corpus = corpora.get(args.corpus)
    if corpus.locate is None:
        print(f"fetch: {args.corpus} is made on the spot; nothing to fetch")
        return
    root = corpus.locate(args.root, args.downloads)
    with atomic_write(args.downloads / f"{args.corpus}.root") as handle:
        handle.write(f"{root}\n")
    print(f"fetch: {args.corpus} is in {root}")


if __name__ == "__main__":
    common.run(main)
