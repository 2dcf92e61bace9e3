"""Train downstream systems (stages 4 and 5): keyword spotting, speaker verification, or both."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from s3prl_kd.bin import common
from s3prl_kd.errors import UserError
from s3prl_kd.files import read_json

MODES = ("frozen", "finetuned")
TASKS = ("kws", "sv")
CONFIGS = Path("conf/downstream")


def parser() -> common.Parser:
    """The options."""
    options = common.Parser(prog="python -m s3prl_kd.bin.downstream", description=__doc__)
    options.add_argument("--data", type=Path, required=True, help="dataset dir, e.g. data/synth")
    options.add_argument(
        "--upstream", nargs="+", required=True, metavar="NAME", help="upstreams, by s3prl name"
    )
    options.add_argument("--mode", choices=MODES, default="frozen", help="what is done to it")
    options.add_argument(
        "--tasks", nargs="+", default=["kws", "sv"], help="tasks; kws+sv trains both jointly"
    )
    options.add_argument("--config", default="mini", help=f"name in {CONFIGS}, or a YAML file")
    options.add_argument("--expdir", type=Path, default=Path("exp"), help="where systems go")
    options.add_argument("--seed", type=int, default=1, help="of weights, batches and cuts")
    options.add_argument("--ngpu", type=int, default=0, help="GPUs per node, 0 for the CPU")
    options.add_argument("--num_nodes", type=int, default=1, help="nodes")
    options.add_argument("--nj", type=int, default=2, help="data loading processes with a GPU")
    options.add_argument(
        "--lr_search", type=common.boolean, default=False, help="find learning rates first"
    )
    options.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="configuration overrides",
    )
    options.add_argument("--force", action="store_true", help="train again what is done")
    return options


def parse_tasks(text: str) -> tuple[str, ...]:
    """``kws``, ``sv`` or ``kws+sv`` (in any order) as a tuple in the order of the report."""
    names = text.split("+")
    if not set(names) <= set(TASKS) or len(set(names)) < len(names):
        raise UserError(f"--tasks {text!r}: expected kws, sv or kws+sv")
    return tuple(task for task in TASKS if task in names)


def main(argv: list[str] | None = None) -> None:
    """Train every upstream on every tasks given, one system after the other."""
    args = parser().parse_args(argv)
    systems = [(name, parse_tasks(text)) for name in args.upstream for text in args.tasks]
    if max(1, args.ngpu) * args.num_nodes > 1 and len(systems) > 1:
        # Lightning starts further ranks by running this program again: each then has to find
        # exactly one system to train.
        _one_by_one(argv if argv is not None else sys.argv[1:], systems)
        return

    from s3prl_kd.config import load_config, resolve_config
    from s3prl_kd.downstream.config import DownstreamConfig

    config = load_config(
        DownstreamConfig, resolve_config(CONFIGS, args.config, "downstream config"), args.set
    )
    tag = _tag(args.data)
    from s3prl_kd.upstream import load_upstream

    opened: dict = {}
    for name, tasks in systems:
        outdir = args.expdir / name / "downstream" / tag / args.mode / "+".join(tasks)
        stage = _stage(outdir, name, tasks, config, args)
        # Where this was trained before, the name is known to be good and opening can wait: it takes
        # seconds. Elsewhere nothing is written until it is.
        known = stage.marker.exists()
        if known and (decision := stage.begin(args.force)) == "skip":
            continue
        if name not in opened or args.mode == "finetuned":
            # Fine-tuning changes it: the next tasks start from the upstream as it was.
            opened = {name: load_upstream(name, args.expdir)}
        upstream = opened[name]
        if args.mode == "finetuned" and not any(True for _ in upstream.parameters()):
            print(f"{name} has no parameters: nothing to fine-tune; skipped", flush=True)
            continue
        if not known:
            decision = stage.begin(args.force)
        if decision == "fresh":
            _clear(outdir)
        _train(upstream, name, tasks, outdir, config, args, decision == "resume")
        stage.finish()


def _tag(data: Path) -> str:
    try:
        return read_json(data / "corpus.json")["tag"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{data / 'corpus.json'}: cannot be read; run stage 1 (data preparation)"
        ) from None


def _stage(outdir: Path, name: str, tasks: tuple[str, ...], config, args):
    from s3prl_kd.stage import Stage

    inputs = [args.data / "corpus.json"]
    inputs += [args.data / f"{task}_{split}" for task in tasks for split in ("train", "valid")]
    if (args.expdir / name / "config.json").is_file():
        inputs += [args.expdir / name / file for file in ("config.json", "model.safetensors")]
    inputs += _heads(outdir, tasks, config, args.mode).values()
    options = {
        "upstream": name,
        "mode": args.mode,
        "tasks": tasks,
        "seed": args.seed,
        "lr_search": args.lr_search,
        **config.relevant(args.mode, tasks, args.lr_search),
    }
    return Stage(outdir, "downstream", options, inputs)


def _heads(outdir: Path, tasks: tuple[str, ...], config, mode: str) -> dict[str, Path]:
    """Per task the checkpoint of the frozen system to start the head from, if so configured."""
    if mode == "frozen" or not config.heads_from_frozen:
        return {}
    frozen = outdir.parents[1] / "frozen"
    return {task: frozen / task / "checkpoints" / "best.ckpt" for task in tasks}


def _train(upstream, name, tasks, outdir, config, args, resume: bool) -> None:
    from s3prl_kd.downstream.train import System, train_system

    system = System(
        upstream,
        name,
        args.mode,
        tasks,
        args.data,
        config,
        args.seed,
        args.ngpu,
        args.num_nodes,
        args.nj,
        _heads(outdir, tasks, config, args.mode),
    )
    train_system(system, outdir, resume, args.lr_search)


def _clear(outdir: Path) -> None:
    """Remove what was made with another configuration; the stage's marker stays."""
    for old in outdir.iterdir():
        if old.name.startswith("."):
            continue
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


def _one_by_one(argv: list[str], systems: list[tuple[str, tuple[str, ...]]]) -> None:
    for name, tasks in systems:
        # A repeated option's last value counts.
        given = [*argv, "--upstream", name, "--tasks", "+".join(tasks)]
        done = subprocess.run([sys.executable, "-m", "s3prl_kd.bin.downstream", *given])
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    common.run(main)
