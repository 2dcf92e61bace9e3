"""Score every system on its test sets and pool them into one results.json (stage 6)."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from s3prl_kd.bin import common


def _row(text: str) -> tuple[str, str]:
    name, equals, template = text.partition("=")
    if not (name and equals and template):
        raise argparse.ArgumentTypeError(f"expected NAME=UPSTREAM, found {text!r}")
    return name, template


def main(argv: list[str] | None = None) -> None:
    """Write ``<out>/results.json``, and score files and result.json into every system dir."""
    parser = common.Parser(prog="score", description=__doc__)
    parser.add_argument(
        "--data", required=True, nargs="+", type=Path, help="dataset dirs; several are pooled folds"
    )
    parser.add_argument(
        "--row",
        required=True,
        action="append",
        type=_row,
        metavar="NAME=UPSTREAM",
        help="a row of the table and its upstream; {tag} in it stands for the dataset's tag",
    )
    parser.add_argument("--expdir", default=Path("exp"), type=Path)
    parser.add_argument("--out", required=True, type=Path, help="directory of results.json")
    parser.add_argument("--seed", default=1, type=int, help="of the bootstrap")
    parser.add_argument("--bootstrap", default=1000, type=int, help="replicates")
    parser.add_argument("--teacher_row", default="teacher", help="row that others are compared to")
    parser.add_argument("--scratch_row", default="scratch", help="row of the untrained student")
    parser.add_argument("--student_row", default="distilled", help="row of the distilled student")
    parser.add_argument("--ngpu", default=0, type=int, help="1 to score on a GPU")
    parser.add_argument("--command", help="to record in results.json; default: this one")
    parser.add_argument("--force", action="store_true", help="score again though it is done")
    args = parser.parse_args(argv)

    import dataclasses

    from s3prl_kd.errors import UserError
    from s3prl_kd.files import write_json
    from s3prl_kd.scoring.results import write_results
    from s3prl_kd.scoring.systems import Data, evaluate_system, find_systems, make_results
    from s3prl_kd.stage import Stage

    if args.bootstrap < 1:
        raise UserError("--bootstrap: at least 1 replicate is needed")
    rows = dict(args.row)
    if len(rows) < len(args.row):
        raise UserError("--row: a name is given twice; each row needs its own")
    data = [Data(path) for path in args.data]
    found, missing = find_systems(args.expdir, rows, data)
    for path in missing:
        print(f"score: {args.expdir / path} is missing; left out", flush=True)

    files = []
    for directory, fold in found.items():
        tests = [fold.path / "kws_test", fold.path / "sv_test"]
        stage = Stage(
            directory,
            "score",
            {"seed": args.seed, "bootstrap": args.bootstrap},
            [directory / "checkpoints" / "best.ckpt", directory / "system.json", *tests],
        )
        own = sorted(directory.glob("*_scores"))
        if stage.begin(args.force or not own) != "skip":
            from s3prl_kd.downstream.predict import write_scores

            own = write_scores(directory, fold.path, args.expdir, args.ngpu)
            scored = evaluate_system(directory, fold, args.bootstrap, args.seed)
            write_json(
                directory / "result.json",
                {
                    "metrics": {k: dataclasses.asdict(v) for k, v in scored.estimates().items()},
                    "kws": scored.kws and dataclasses.asdict(scored.kws),
                    "sv": scored.sv and dataclasses.asdict(scored.sv),
                },
            )
            stage.finish()
        files += [*own, directory / "system.json"]

    roles = {
        "teacher": args.teacher_row,
        "scratch": args.scratch_row,
        "distilled": args.student_row,
    }
    options = {
        "rows": rows,
        "data": [str(path) for path in args.data],
        "roles": roles,
        "seed": args.seed,
        "bootstrap": args.bootstrap,
        "missing": missing,
    }
    stage = Stage(args.out, "score", options, files)
    if stage.begin(args.force or not (args.out / "results.json").exists()) == "skip":
        return
    given = sys.argv[1:] if argv is None else argv
    command = args.command or shlex.join(["python", "-m", "s3prl_kd.bin.score", *given])
    results = make_results(
        args.expdir, rows, data, roles, args.bootstrap, args.seed, command=command
    )
    write_results(args.out / "results.json", results)
    stage.finish()
    print(f"score: {len(results.rows)} rows are in {args.out / 'results.json'}", flush=True)


if __name__ == "__main__":
    common.run(main)
