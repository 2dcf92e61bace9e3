"""The one training loop: Lightning, counted in steps, resumable to the same weights.

A Lightning epoch here is a *chunk* of ``steps_per_epoch`` steps, whatever the size of the corpus.
At the end of each chunk the model is validated and a checkpoint written; at the start of each the
random generators are seeded with ``seed + chunk``. So a run killed anywhere goes on from the last
chunk and meets the same batches, masks and dropout as one that was not killed.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.data import DataLoader

from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_write

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclasses.dataclass
class TrainerConfig:
    """How long, how fast and in what precision to train.

    Attributes:
        max_steps: optimiser steps in all.
        steps_per_epoch: steps between two validations, checkpoints and log rows.
        lr: peak learning rate of AdamW.
        warmup_share: share of ``max_steps`` over which the rate rises linearly from 0; from there
            it falls linearly to 0.
        weight_decay: AdamW's.
        grad_clip: largest norm of the gradient; 0 for none.
        accumulate: batches whose gradients are added up for one step.
        precision: ``auto`` is bf16 autocast on a GPU that has it, else fp32.
    """

    max_steps: int
    steps_per_epoch: int
    lr: float
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    accumulate: int = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.steps_per_epoch < 1 or self.accumulate < 1:
            raise ValueError("max_steps, steps_per_epoch and accumulate must be at least 1")
        if self.max_steps % self.steps_per_epoch:
            raise ValueError("max_steps must be a multiple of steps_per_epoch")
        if not 0 <= self.warmup_share < 1:
            raise ValueError("warmup_share must be in [0, 1)")


def optimizer_and_schedule(
    params: Iterable[torch.nn.Parameter] | Iterable[Mapping[str, Any]],
    config: TrainerConfig,
) -> dict[str, Any]:
    """AdamW with linear warm-up and linear decay, as ``configure_optimizers`` returns it.

    Args:
        params: parameters, or groups ``{"params": ..., "lr": ...}`` with rates of their own; the
            schedule scales every group alike.
    """
    optimizer = torch.optim.AdamW(params, lr=config.lr, weight_decay=config.weight_decay)
    warmup = max(1, round(config.max_steps * config.warmup_share))
    decay = max(1, config.max_steps - warmup)

    def scale(step: int) -> float:
        # The scheduler asks for the rate of the step to come: the first must not be 0.
        return min((step + 1) / warmup, max(0.0, (config.max_steps - step) / decay))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    module: L.LightningModule,
    train_loaders: DataLoader | Mapping[str, DataLoader],
    valid_loaders: DataLoader | list[DataLoader],
    outdir: str | Path,
    config: TrainerConfig,
    *,
    monitor: str,
    mode: Literal["min", "max"],
    seed: int,
    resume: bool,
    ngpu: int = 0,
    num_nodes: int = 1,
    label: str = "train",
) -> Path:
    """Train ``module`` and keep its best and last state.

    Args:
        module: its ``training_step`` returns the loss and logs ``train_*``; its validation logs
            ``valid_*``, ``monitor`` among them.
        train_loaders: each with a :class:`~s3prl_kd.data.sampler.ChunkedBatchSampler` of
            ``steps_per_epoch * accumulate`` batches; of several, every step takes one batch each.
        valid_loaders: plain loaders.
        outdir: gets ``checkpoints/{best,last}.ckpt``, ``metrics.csv`` (a row per validation) and
            ``tensorboard/``.
        monitor, mode: which logged value decides the best checkpoint, and its direction.
        resume: go on from ``checkpoints/last.ckpt`` if it is there; otherwise start anew.
        ngpu: GPUs per node, 0 for the CPU.
        num_nodes: nodes; each runs the same command (Lightning's own launcher).
        label: what the progress line calls this training.

    Returns:
        The path of the best checkpoint.

    Raises:
        UserError: a GPU was asked for and there is none, or the loss is no longer finite.
    """
    outdir = Path(outdir)
    if ngpu > 0 and torch.cuda.device_count() < ngpu:
        raise UserError(f"--ngpu {ngpu}: this machine has {torch.cuda.device_count()}")
    checkpoints = outdir / "checkpoints"
    last = checkpoints / "last.ckpt"
    _quiet()
    if not resume:
        for old in checkpoints.glob("*.ckpt"):
            old.unlink(missing_ok=True)
    for loader in train_loaders.values() if isinstance(train_loaders, Mapping) else [train_loaders]:
        # Beginning to iterate draws a number; from the global generator it would shift every
        # later draw of a resumed run, which begins to iterate at another moment.
        loader.generator = torch.Generator().manual_seed(seed)
    ranks = max(1, ngpu) * num_nodes
    saved = {"dirpath": checkpoints, "save_on_train_epoch_end": True}
    best = ModelCheckpoint(
        filename="best", monitor=monitor, mode=mode, enable_version_counter=False, **saved
    )
    # Of its own: save_last writes only when the best changes.
    newest = ModelCheckpoint(filename="last", enable_version_counter=False, **saved)
    trainer = L.Trainer(
        # Counted in epochs: told of max_steps, Lightning takes a finished chunk for an unfinished
        # one when it resumes.
        max_epochs=config.max_steps // config.steps_per_epoch,
        accelerator="gpu" if ngpu > 0 else "cpu",
        devices=max(1, ngpu),
        num_nodes=num_nodes,
        strategy="ddp_find_unused_parameters_true" if ranks > 1 else "auto",
        use_distributed_sampler=False,
        precision=resolve_precision(config.precision, ngpu),
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.grad_clip or None,
        callbacks=[
            best,
            newest,
            _Reseed(seed),
            _Curve(outdir / "metrics.csv"),
            _Steps(label, config.max_steps),
        ],
        logger=TensorBoardLogger(str(outdir), name=None, version="tensorboard"),
        log_every_n_steps=min(10, config.steps_per_epoch),
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=outdir,
    )
    trainer.fit(
        module,
        train_loaders,
        valid_loaders,
        ckpt_path=last if resume and last.exists() else None,
        weights_only=True,
    )
    if trainer.interrupted:
        raise KeyboardInterrupt
    return checkpoints / "best.ckpt"


def resolve_precision(precision: Precision, ngpu: int) -> str:
    """Lightning's name of the precision to train in; see :class:`TrainerConfig`."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if ngpu > 0 and torch.cuda.is_bf16_supported() else "32-true"


class _Reseed(Callback):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        seed = self.seed + trainer.current_epoch + 10_000 * trainer.global_rank
        L.seed_everything(seed, verbose=False)


class _Curve(Callback):
    """Writes a row of means per chunk; the rows travel in the checkpoint, so none is lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]
        if self.rows:
            self.began -= self.rows[-1]["seconds"]

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train_", "valid_")) and not name.endswith("_step")
        }
        row = {
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - self.began, 1),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        self.rows.append(row | values)
        if trainer.is_global_zero:
            with atomic_write(self.path) as handle:
                pd.DataFrame(self.rows).to_csv(handle, index=False)


class _Steps(Callback):
    """A progress bar over all steps with an ETA; off a terminal, a line per chunk."""

    def __init__(self, label: str, total: int) -> None:
        self.label = label
        self.total = total
        self.console = Console()
        self.bar: Progress | None = None
        self.loss = float("nan")

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.began, self.first = time.monotonic(), trainer.global_step
        if self.console.is_terminal and trainer.is_global_zero:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.3f}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task(
                self.label, total=self.total, completed=trainer.global_step, loss=self.loss
            )
            self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, index: int) -> None:
        self.loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        if not torch.isfinite(torch.tensor(self.loss)):
            raise UserError(
                f"{self.label}: the loss is {self.loss} at step {trainer.global_step}; "
                "lower the learning rate or set precision: 32-true"
            )
        if self.bar:
            self.bar.update(self.task, completed=trainer.global_step, loss=self.loss)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.console.is_terminal or not trainer.is_global_zero:
            return
        took = time.monotonic() - self.began
        done = trainer.global_step - self.first
        left = took / max(1, done) * (self.total - trainer.global_step)
        valid = ", ".join(
            f"{name} {float(value):.4f}"
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith("valid_")
        )
        print(
            f"{self.label}: step {trainer.global_step}/{self.total}, "
            f"loss {self.loss:.3f}, {valid}, {took:.0f} s, ETA {left:.0f} s",
            flush=True,
        )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def _quiet() -> None:
    """Keep Lightning's advice off the screen where it does not hold here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*GPU available but not used.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message=advice)
