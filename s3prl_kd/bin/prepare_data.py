"""Prepare a corpus as Kaldi data dirs (stage 1)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from s3prl_kd.bin import common


def main(argv: list[str] | None = None) -> None:
    """Make the corpus' dataset dirs under ``--out`` and print their sizes."""
    parser = common.Parser(prog="prepare_data", description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--root", default="", help="where the corpus is")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--config", help="file; default: conf/corpus/<corpus>.yaml")
    parser.add_argument("--nj", default=2, type=int, help="processes")
    parser.add_argument("--seed", default=1, type=int)
    parser.add_argument("--max_bad_share", default=0.1, type=float)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--force", action="store_true", help="do it again though it is done")
    args = parser.parse_args(argv)

    from s3prl_kd.config import load_config
    from s3prl_kd.data import corpora
    from s3prl_kd.errors import UserError
    from s3prl_kd.stage import Stage

    corpus = corpora.get(args.corpus)
    config = load_config(
        corpus.config, args.config or f"conf/corpus/{args.corpus}.yaml", args.overrides
    )
    root = Path(args.root)
    if corpus.locate is not None and not args.root:
        raise UserError(
            f"{args.corpus}: where is it? run stage 0, or give --{args.corpus}_root DIR"
        )
    if args.root and not root.is_dir():
        raise UserError(f"{root}: no such directory; give the corpus' own")
    options = {
        "corpus": args.corpus,
        "config": dataclasses.asdict(config),
        "seed": args.seed,
        "max_bad_share": args.max_bad_share,
        "root": _listing(root) if args.root else None,
    }
    stage = Stage(args.out, "prepare_data", options)
    if stage.begin(args.force) == "skip":
        return
    # Dataset dirs are known by this file: one of another configuration, say a fold that is no
    # more, must not be taken for one of these.
    for stale in (args.out / "corpus.json", *args.out.glob("*/corpus.json")):
        stale.unlink(missing_ok=True)
    made = corpus.prepare(
        root, args.out, config, seed=args.seed, nj=args.nj, max_bad_share=args.max_bad_share
    )
    stage.finish()
    _table(made, args.out)


def _listing(root: Path) -> list[tuple[str, int, int]]:
    # The audio itself is too much to hash; its names, sizes and times tell of a change.
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(str(f.relative_to(root)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def _table(directories: list[Path], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from s3prl_kd.data.audio import SAMPLE_RATE
    from s3prl_kd.data.kaldi import DataDir

    table = Table(f"in {out}", "utterances", "speakers", "minutes", "trials")
    for directory in directories:
        for path in sorted(path for path in directory.iterdir() if (path / "wav.scp").exists()):
            data = DataDir(path)
            minutes = sum(data.num_samples.values()) / SAMPLE_RATE / 60
            speakers = len(set(data.utt2spk.values()))
            trials = str(len(data.trials)) if data.trials else ""
            table.add_row(
                str(path.relative_to(out)), str(len(data)), str(speakers), f"{minutes:.1f}", trials
            )
    Console().print(table)


if __name__ == "__main__":
    common.run(main)
