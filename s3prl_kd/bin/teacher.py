"""Stage 2: the teacher. Resolve its name, or pre-train the embedded one."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from s3prl_kd.bin import common
from s3prl_kd.errors import UserError

EMBEDDED = "mini"


def main(argv: list[str] | None = None) -> None:
    """Check that ``--teacher`` opens; ``mini`` is pre-trained on the corpus' own speech first."""
    parser = common.Parser(prog="teacher", description=__doc__)
    parser.add_argument(
        "--teacher",
        default=EMBEDDED,
        help="'mini', a name under --expdir, a model directory or an s3prl upstream",
    )
    parser.add_argument("--data", help="prepared data, for 'mini': it learns from its speech")
    parser.add_argument("--expdir", default="exp", help="where models go and are looked for")
    parser.add_argument("--config", default="conf/teacher/mini.yaml", help="of 'mini'")
    parser.add_argument("--set", nargs="*", default=[], action="extend", help="key=value ...")
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs; 0 for the CPU")
    parser.add_argument("--nj", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of k-means, weights, batches, masks")
    parser.add_argument("--force", action="store_true", help="do it even if it is done")
    args = parser.parse_args(argv)
    name = args.teacher
    if name == EMBEDDED:
        name, skipped = _pretrain(args)
        if skipped:
            print(name)
            return

    from s3prl_kd.teacher.load import describe, load_teacher

    print(describe(load_teacher(name, args.expdir)))
    if args.teacher == EMBEDDED:
        print(name)


def _pretrain(args: argparse.Namespace) -> tuple[str, bool]:
    """Pre-train the embedded teacher; its name under ``--expdir`` and whether it was there."""
    from s3prl_kd.config import load_config, resolve_config
    from s3prl_kd.files import read_json
    from s3prl_kd.stage import Stage
    from s3prl_kd.teacher.config import MiniConfig

    if args.data is None:
        raise UserError("--teacher mini learns from a corpus: give --data, a prepared data dir")
    data = Path(args.data)
    try:
        tag = read_json(data / "corpus.json")["tag"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{data / 'corpus.json'}: cannot be read; prepare the data (stage 1) first"
        ) from None
    preset = resolve_config("conf/teacher", args.config, "teacher configuration")
    config = load_config(MiniConfig, preset, args.set)
    name = f"{EMBEDDED}_{tag}"
    outdir = Path(args.expdir) / name
    train, valid = data / "unlabelled_train", data / "unlabelled_valid"
    stage = Stage(
        outdir,
        "teacher",
        {**dataclasses.asdict(config), "seed": args.seed},
        [train, valid],
    )
    decision = stage.begin(args.force)
    if decision != "skip":
        from s3prl_kd.data.kaldi import DataDir
        from s3prl_kd.teacher.pretrain import pretrain

        pretrain(
            DataDir(train),
            DataDir(valid),
            outdir,
            config,
            seed=args.seed,
            ngpu=args.ngpu,
            nj=args.nj,
            resume=decision == "resume",
        )
        stage.finish()
    return name, decision == "skip"


if __name__ == "__main__":
    common.run(main)
