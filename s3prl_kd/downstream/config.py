"""What a downstream system is trained with: the keys of ``conf/downstream/*.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from s3prl_kd.training import TrainerConfig

Mode = Literal["frozen", "finetuned"]
MODES: tuple[Mode, ...] = ("frozen", "finetuned")
TASKS = ("kws", "sv")


@dataclasses.dataclass
class KwsConfig:
    """Keyword spotting as in SUPERB KS: linear, mean pooling over time, linear, cross-entropy.

    Attributes:
        hidden_size: width of the first linear layer.
        batch_size: utterances per batch.
        lr_scale: this head's learning rate as a multiple of the section's ``lr``.
    """

    hidden_size: int = 256
    batch_size: int = 32
    lr_scale: float = 1.0


@dataclasses.dataclass
class SvConfig:
    """Speaker verification as in SUPERB ASV: x-vector with AM-softmax, cosine scoring.

    Attributes:
        hidden_size: width of the linear projection in front of the x-vector.
        tdnn_size: width of the x-vector's TDNN layers (512 in SUPERB).
        aggregation_size: width of the layer that is pooled over time (1500 in SUPERB).
        embedding_size: width of the speaker embedding.
        margin: AM-softmax's margin.
        scale: AM-softmax's scale.
        batch_size: utterances per batch.
        lr_scale: this head's learning rate as a multiple of the section's ``lr``.
        min_seconds: shorter training utterances are left out.
        max_seconds: of longer training utterances every batch takes a random piece this long.
    """

    hidden_size: int = 512
    tdnn_size: int = 512
    aggregation_size: int = 1500
    embedding_size: int = 512
    margin: float = 0.4
    scale: float = 30.0
    batch_size: int = 10
    lr_scale: float = 1.0
    min_seconds: float = 2.0
    max_seconds: float = 8.0


@dataclasses.dataclass
class DownstreamConfig:
    """One configuration for every task and both modes.

    Attributes:
        frozen: how to train heads on a frozen upstream; ``lr`` is the heads'.
        finetuned: how to train heads and upstream; ``lr`` is the heads'.
        steps: ``max_steps`` of single systems, by ``mode/tasks`` (``frozen/kws``,
            ``finetuned/kws+sv``), in place of their section's; validated as often.
        upstream_lr: peak learning rate of a fine-tuned upstream.
        freeze_steps: steps at the start of fine-tuning in which the upstream stays frozen.
        heads_from_frozen: fine-tuning starts from the heads of the frozen systems of the same
            upstream and tasks, so that random heads do not spoil the upstream first (linear
            probing, then fine-tuning: arXiv 2202.10054).
        loss_weights: weight of each task's loss where tasks are trained jointly.
        cache_frozen: keep a frozen upstream's hidden states in memory instead of computing them in
            every step.
        cache_limit_gb: above this many gigabytes of hidden states they are computed in every step.
        lr_grid: head learning rates that ``--lr_search`` tries.
        upstream_lr_grid: upstream learning rates it tries with each of them, if fine-tuned.
        lr_search_steps: steps of each trial.
        kws: the head of keyword spotting.
        sv: the head of speaker verification.
    """

    frozen: TrainerConfig
    finetuned: TrainerConfig
    steps: dict[str, int] = dataclasses.field(default_factory=dict)
    upstream_lr: float = 1e-4
    freeze_steps: int = 0
    heads_from_frozen: bool = False
    loss_weights: dict[str, float] = dataclasses.field(
        default_factory=lambda: {task: 1.0 for task in TASKS}
    )
    cache_frozen: bool = True
    cache_limit_gb: float = 4.0
    lr_grid: list[float] = dataclasses.field(default_factory=lambda: [1e-4, 1e-3, 1e-2])
    upstream_lr_grid: list[float] = dataclasses.field(default_factory=lambda: [1e-5, 1e-4])
    lr_search_steps: int = 100
    kws: KwsConfig = dataclasses.field(default_factory=KwsConfig)
    sv: SvConfig = dataclasses.field(default_factory=SvConfig)

    def __post_init__(self) -> None:
        if set(self.loss_weights) != set(TASKS):
            raise ValueError(f"loss_weights: needs a weight for each of {', '.join(TASKS)}")
        keys = {system_key(mode, tasks) for mode in MODES for tasks in [("kws",), ("sv",), TASKS]}
        if not set(self.steps) <= keys:
            raise ValueError(f"steps: its keys are {', '.join(sorted(keys))}")
        for mode in MODES:
            for tasks in (("kws",), ("sv",), TASKS):
                self.trainer(mode, tasks)
        if not self.lr_grid or not self.upstream_lr_grid:
            raise ValueError("lr_grid and upstream_lr_grid must not be empty")

    def trainer(self, mode: Mode, tasks: Sequence[str]) -> TrainerConfig:
        """How the system of ``mode`` and ``tasks`` is trained."""
        section: TrainerConfig = getattr(self, mode)
        steps = self.steps.get(system_key(mode, tasks))
        if steps is None:
            return section
        chunk = steps // (section.max_steps // section.steps_per_epoch)
        return dataclasses.replace(section, max_steps=steps, steps_per_epoch=max(1, chunk))

    def relevant(self, mode: Mode, tasks: tuple[str, ...], lr_search: bool) -> dict[str, Any]:
        """The keys that can change the outcome of one system, for its stage's fingerprint."""
        content = dataclasses.asdict(self)
        content["steps"] = self.steps.get(system_key(mode, tasks))
        for other in (*MODES, *TASKS):
            if other != mode and other not in tasks:
                del content[other]
        if mode == "frozen":
            for key in ("upstream_lr", "freeze_steps", "heads_from_frozen", "upstream_lr_grid"):
                del content[key]
        if len(tasks) == 1:
            del content["loss_weights"]
        if not lr_search:
            for key in ("lr_grid", "upstream_lr_grid", "lr_search_steps"):
                content.pop(key, None)
        # Neither changes a result: a cached hidden state is the one a step would compute.
        for key in ("cache_frozen", "cache_limit_gb"):
            del content[key]
        return content


def system_key(mode: Mode, tasks: Sequence[str]) -> str:
    """A system's name in configurations: ``frozen/kws``, ``finetuned/kws+sv``."""
    return f"{mode}/{'+'.join(tasks)}"
