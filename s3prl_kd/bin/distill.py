"""Distil a student from a teacher (stage 3)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from s3prl_kd.bin import common


def main(argv: list[str] | None = None) -> None:
    """Make ``<expdir>/<student>_<teacher>`` (or ``_scratch_``), a student dir."""
    parser = common.Parser(prog="distill", description=__doc__)
    parser.add_argument("--teacher", required=True, help="name or directory")
    parser.add_argument("--data", required=True, type=Path, help="dataset dir")
    parser.add_argument("--student", default="two_layer", help="name in conf/student or a file")
    parser.add_argument("--config", default="conf/distill/mini.yaml", help="name or file")
    parser.add_argument("--expdir", default=Path("exp"), type=Path)
    parser.add_argument("--name", help="of the student; default: <student>_<teacher>")
    parser.add_argument("--scratch", action="store_true", help="random weights, no training")
    parser.add_argument("--seed", default=1, type=int)
    parser.add_argument("--ngpu", default=0, type=int, help="GPUs per node; 0 for the CPU")
    parser.add_argument("--num_nodes", default=1, type=int)
    parser.add_argument("--nj", default=0, type=int, help="processes reading data, with a GPU")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--force", action="store_true", help="do it again though it is done")
    args = parser.parse_args(argv)

    from s3prl_kd.config import load_config, resolve_config
    from s3prl_kd.distill.module import DistillConfig
    from s3prl_kd.distill.run import distil, scratch
    from s3prl_kd.stage import Stage
    from s3prl_kd.student.build import StudentConfig

    preset = resolve_config("conf/student", args.student, "student")
    shape = load_config(StudentConfig, preset)
    config = load_config(
        DistillConfig,
        resolve_config("conf/distill", args.config, "distillation config"),
        args.overrides,
    )
    teacher = Path(args.teacher).name
    name = args.name or f"{preset.stem}_{'scratch_' if args.scratch else ''}{teacher}"
    directory = args.expdir / name
    teacher_dir = next(
        (d for d in (Path(args.teacher), args.expdir / args.teacher) if d.is_dir()), None
    )
    inputs = [teacher_dir / "config.json", teacher_dir / "model.safetensors"] if teacher_dir else []
    if not args.scratch:
        inputs += [args.data / "unlabelled_train", args.data / "unlabelled_valid"]
    options = {
        "teacher": args.teacher,
        "student": dataclasses.asdict(shape),
        "distill": None if args.scratch else dataclasses.asdict(config),
        "seed": args.seed,
    }
    stage = Stage(directory, "distill", options, inputs)
    decision = stage.begin(args.force)
    if decision == "skip":
        return
    record = {"student": args.student, "distill_config": args.config, "seed": args.seed}
    if args.scratch:
        scratch(directory, args.teacher, shape, args.expdir, args.seed, record)
    else:
        distil(
            directory,
            args.teacher,
            shape,
            config,
            args.data,
            args.expdir,
            seed=args.seed,
            resume=decision == "resume",
            ngpu=args.ngpu,
            num_nodes=args.num_nodes,
            workers=args.nj if args.ngpu else 0,
            record=record,
        )
    stage.finish()
    print(f"distill: {name} is in {directory}", flush=True)


if __name__ == "__main__":
    common.run(main)
