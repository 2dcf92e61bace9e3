"""Training one downstream system: an upstream by name, a mode, and tasks."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
import yaml
from s3prl.nn import S3PRLUpstream
from torch.utils.data import DataLoader

from s3prl_kd.downstream.config import DownstreamConfig, Mode
from s3prl_kd.downstream.data import (
    TaskDataset,
    cache_hidden_states,
    eval_loader,
    open_split,
    open_task,
    read_corpus,
    task_labels,
    train_loader,
)
from s3prl_kd.downstream.module import DownstreamModule
from s3prl_kd.downstream.tasks import build_tasks
from s3prl_kd.encoder import parameters_of
from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_write, read_json, write_json
from s3prl_kd.training import fit

MONITOR = "valid_score"


class System:
    """An upstream with tasks on a corpus: the modules and loaders that training takes.

    Args:
        upstream: opened with :func:`s3prl_kd.upstream.load_upstream`.
        name: its name.
        mode: frozen or finetuned.
        tasks: of ``kws`` and ``sv``.
        data: the dataset dir.
        config: learning rates in it may be replaced by :meth:`fit`'s.
        seed: of the heads' weights, batches and cuts.
        ngpu: GPUs per node.
        nj: data loading processes, used where there is a GPU to keep busy.
        heads: per task the checkpoint of a frozen system whose head training starts from.
    """

    def __init__(
        self,
        upstream: S3PRLUpstream,
        name: str,
        mode: Mode,
        tasks: Sequence[str],
        data: str | Path,
        config: DownstreamConfig,
        seed: int,
        ngpu: int = 0,
        num_nodes: int = 1,
        nj: int = 1,
        heads: Mapping[str, Path] | None = None,
    ) -> None:
        self._heads = dict(heads or {})
        self.upstream, self.name, self.mode, self.task_names = upstream, name, mode, tuple(tasks)
        self.data, self.config, self.seed = Path(data), config, seed
        self.ngpu, self.num_nodes = ngpu, num_nodes
        self.workers = nj if ngpu > 0 else 0
        self.labels = {task: task_labels(self.data, task) for task in tasks}
        self.valid_trials = open_split(self.data, "sv_valid").trials if "sv" in tasks else []
        self._initial = copy.deepcopy(upstream.state_dict()) if mode == "finetuned" else None
        shape = build_tasks(upstream, tasks, self.labels, config, seed)
        self.train, self.valid = (
            {
                name: open_task(self.data, split, task, self.labels[name], config, seed)
                for name, task in shape.items()
            }
            for split in ("train", "valid")
        )
        if mode == "frozen" and config.cache_frozen:
            datasets: list[TaskDataset] = [*self.train.values(), *self.valid.values()]
            device = "cuda" if ngpu > 0 and torch.cuda.is_available() else "cpu"
            cache_hidden_states(upstream, datasets, config.cache_limit_gb, device)

    def module(self, config: DownstreamConfig | None = None) -> DownstreamModule:
        """A module as training starts with: new heads, the upstream as it was opened."""
        config = config or self.config
        if self._initial is not None:
            self.upstream.load_state_dict(self._initial)
        tasks = build_tasks(
            self.upstream, self.task_names, self.labels, config, self.seed, self.valid_trials
        )
        for name, checkpoint in self._heads.items():
            load_head(tasks[name], name, checkpoint)
        return DownstreamModule(self.upstream, tasks, self.mode, config)

    def train_loaders(self, config: DownstreamConfig) -> dict[str, DataLoader]:
        """Per task a loader of one chunk's batches."""
        trainer = config.trainer(self.mode, self.task_names)
        return {
            name: train_loader(
                dataset,
                getattr(config, name).batch_size,
                trainer.steps_per_epoch * trainer.accumulate,
                self.seed,
                self.workers,
            )
            for name, dataset in self.train.items()
        }

    def valid_loaders(self) -> list[DataLoader]:
        """A loader per task, in the tasks' order."""
        return [eval_loader(dataset, workers=self.workers) for dataset in self.valid.values()]

    def fit(
        self, module: DownstreamModule, outdir: Path, resume: bool, label: str, alone: bool = False
    ) -> Path:
        """Train ``module`` in ``outdir``; ``alone`` on one device of this process."""
        # A frozen upstream is meant to be.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        return fit(
            module,
            self.train_loaders(module.config),
            self.valid_loaders(),
            outdir,
            module.config.trainer(self.mode, self.task_names),
            monitor=MONITOR,
            mode="max",
            seed=self.seed,
            resume=resume,
            ngpu=min(self.ngpu, 1) if alone else self.ngpu,
            num_nodes=1 if alone else self.num_nodes,
            label=label,
        )


def load_head(task: torch.nn.Module, name: str, checkpoint: Path) -> None:
    """Give ``task`` the featurizer and head that another system trained.

    Raises:
        UserError: no such checkpoint, or one of another shape.
    """
    if not checkpoint.exists():
        raise UserError(
            f"{checkpoint}: no frozen system to take the {name} head from; run stage 4, "
            "or set heads_from_frozen=false"
        )
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = f"tasks.{name}."
    try:
        task.load_state_dict(
            {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
        )
    except RuntimeError:
        raise UserError(
            f"{checkpoint}: the {name} head is of another shape; run stage 4 again"
        ) from None


def train_system(system: System, outdir: str | Path, resume: bool, lr_search: bool = False) -> Path:
    """Train a system and write its directory.

    Args:
        outdir: gets ``config.yaml`` (as used), ``metrics.csv``, ``checkpoints/best.ckpt``,
            ``layer_weights.json`` ({task: weight of each layer}), ``system.json`` and, with
            ``lr_search``, ``lr_search.json``.
        resume: go on from what an interrupted run of the same configuration left.

    Returns:
        ``outdir``.
    """
    began = time.monotonic()
    outdir = Path(outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    label = f"{system.name} {system.mode} {'+'.join(system.task_names)}"
    config = system.config
    if lr_search:
        config = search_learning_rates(system, outdir, resume, label)
    L.seed_everything(system.seed, verbose=False)
    module = system.module(config)
    best = system.fit(module, outdir, resume, label)
    if module.global_rank != 0:
        return outdir
    state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state, strict=module.strict_loading)
    trainer = config.trainer(system.mode, system.task_names)
    with atomic_write(outdir / "config.yaml") as handle:
        yaml.safe_dump(dataclasses.asdict(config), handle, sort_keys=False)
    write_json(outdir / "layer_weights.json", module.layer_weights())
    corpus = read_corpus(system.data)
    write_json(
        outdir / "system.json",
        {
            "upstream": system.name,
            "tag": corpus["tag"],
            "mode": system.mode,
            "tasks": list(system.task_names),
            "upstream_params": parameters_of(system.upstream),
            "head_params": {name: parameters_of(task) for name, task in module.tasks.items()},
            "head_lr": {
                name: trainer.lr * getattr(config, name).lr_scale for name in system.task_names
            },
            "upstream_lr": config.upstream_lr if system.mode == "finetuned" else None,
            "lr_searched": lr_search,
            "steps": trainer.max_steps,
            "seed": system.seed,
            "seconds": round(time.monotonic() - began, 1),
            "labels": system.labels,
        },
    )
    return outdir


def search_learning_rates(
    system: System, outdir: Path, resume: bool, label: str
) -> DownstreamConfig:
    """Try every pair of the grids for ``lr_search_steps`` steps; the best on validation data wins.

    Each trial runs its whole schedule in those steps. Ties go to the earlier one in the grid.
    ``outdir/lr_search.json`` holds ``{"metric", "steps", "trials": [{"lr", "upstream_lr",
    "valid_score"}], "best": {...}}`` and is written after every trial, so a killed search goes on.

    Returns:
        The configuration with the best learning rates in it.
    """
    config, record = system.config, outdir / "lr_search.json"
    upstream_rates: list[float | None] = (
        list(config.upstream_lr_grid) if system.mode == "finetuned" else [None]
    )
    content: dict[str, Any] = {"metric": MONITOR, "steps": config.lr_search_steps, "trials": []}
    if resume and record.exists():
        content = read_json(record)
    done = {(trial["lr"], trial["upstream_lr"]) for trial in content["trials"]}
    grid = list(itertools.product(config.lr_grid, upstream_rates))
    for number, (lr, upstream_lr) in enumerate(grid, start=1):
        if (lr, upstream_lr) in done:
            continue
        if system.num_nodes > 1:
            raise UserError("--lr_search true: search on one node first, then train on several")
        trial = outdir / "lr_search" / f"{lr:g}_{upstream_lr or 0:g}"
        candidate = with_learning_rates(config, system.mode, lr, upstream_lr)
        steps = config.lr_search_steps
        section = candidate.trainer(system.mode, system.task_names)
        chunk = section.steps_per_epoch
        section = dataclasses.replace(
            section, max_steps=steps, steps_per_epoch=steps if steps % chunk else chunk
        )
        candidate = dataclasses.replace(candidate, steps={}, **{system.mode: section})
        L.seed_everything(system.seed, verbose=False)
        system.fit(
            system.module(candidate),
            trial,
            resume,
            f"{label} lr_search {number}/{len(grid)}",
            alone=True,
        )
        score = float(pd.read_csv(trial / "metrics.csv")[MONITOR].max())
        content["trials"].append({"lr": lr, "upstream_lr": upstream_lr, MONITOR: score})
        write_json(record, content)
        shutil.rmtree(trial)
    shutil.rmtree(outdir / "lr_search", ignore_errors=True)
    order = {pair: place for place, pair in enumerate(grid)}
    best = max(
        content["trials"],
        key=lambda trial: (trial[MONITOR], -order[trial["lr"], trial["upstream_lr"]]),
    )
    if content.get("best") != best:
        write_json(record, {**content, "best": best})
    print(f"{label}: lr_search chose {best}", flush=True)
    return with_learning_rates(config, system.mode, best["lr"], best["upstream_lr"])


def with_learning_rates(
    config: DownstreamConfig, mode: Mode, lr: float, upstream_lr: float | None
) -> DownstreamConfig:
    """``config`` with other learning rates for ``mode``."""
    section = dataclasses.replace(getattr(config, mode), lr=lr)
    changed = dataclasses.replace(config, **{mode: section})
    return changed if upstream_lr is None else dataclasses.replace(changed, upstream_lr=upstream_lr)
