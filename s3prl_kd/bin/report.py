"""Write RESULTS.md and pictures from a results.json (stage 7)."""

from __future__ import annotations

from pathlib import Path

from s3prl_kd.bin import common


def main(argv: list[str] | None = None) -> None:
    """Write ``<out>/RESULTS.md`` and PNGs, and print the table."""
    parser = common.Parser(prog="report", description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the results.json")
    parser.add_argument("--out", type=Path, help="directory to write; default: of results.json")
    parser.add_argument(
        "--expdir", type=Path, help="where training curves lie; default: the parent of <out>"
    )
    parser.add_argument("--force", action="store_true", help="do it again though it is done")
    args = parser.parse_args(argv)

    from s3prl_kd.files import atomic_write
    from s3prl_kd.scoring.plots import make_plots
    from s3prl_kd.scoring.report import print_table, write_report
    from s3prl_kd.scoring.results import read_results
    from s3prl_kd.stage import Stage

    results = read_results(args.results)
    out = args.out or args.results.parent
    expdir = args.expdir or out.parent
    report = out / "RESULTS.md"
    stage = Stage(out, "report", {"expdir": str(expdir)}, [args.results])
    if stage.begin(args.force or not report.exists()) != "skip":
        pictures = make_plots(results, expdir, out)
        with atomic_write(report) as handle:
            handle.write(write_report(results, pictures))
        stage.finish()
    print_table(results)
    for path in [report, *sorted(out.glob("*.png"))]:
        print(f"report: {path}", flush=True)


if __name__ == "__main__":
    common.run(main)
