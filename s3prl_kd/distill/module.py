"""Distillation: a student learns to predict its teacher's hidden states."""

from __future__ import annotations

import dataclasses

import lightning as L
import torch
from torch import Tensor

from s3prl_kd.distill.objective import L1Cosine
from s3prl_kd.encoder import Encoder
from s3prl_kd.errors import UserError
from s3prl_kd.student.build import PredictionHeads
from s3prl_kd.teacher.load import Teacher
from s3prl_kd.training import TrainerConfig, optimizer_and_schedule


@dataclasses.dataclass
class DistillConfig:
    """How a student is distilled; ``conf/distill/*.yaml``.

    Attributes:
        trainer: steps, learning rate and the like.
        layers: the teacher's hidden states to predict, each by a head of its own; n is the
            output of its n-th transformer layer.
        cosine_weight: weight of the cosine term, see :class:`~s3prl_kd.distill.objective.L1Cosine`.
        batch_seconds: speech in a batch, padding included.
        max_seconds: longer utterances are cut to a random stretch of this length.
        teacher_bf16: run the teacher under bf16 autocast: faster where the processor has bf16
            matrix instructions and the teacher is of Base size or more.
    """

    trainer: TrainerConfig
    layers: list[int] = dataclasses.field(default_factory=lambda: [4, 8, 12])
    cosine_weight: float = 1.0
    batch_seconds: float = 60.0
    max_seconds: float = 15.6
    teacher_bf16: bool = False

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError("layers must name at least one layer, and each once")


class Distiller(L.LightningModule):
    """Trains ``student`` and its heads on ``teacher``'s hidden states.

    Args:
        student: what is kept.
        teacher: frozen; its weights are no part of the checkpoints.
        config: see :class:`DistillConfig`.

    Raises:
        UserError: a layer to predict that the teacher has not.
    """

    def __init__(self, student: Encoder, teacher: Teacher, config: DistillConfig) -> None:
        super().__init__()
        wrong = [layer for layer in config.layers if not 0 <= layer <= teacher.num_layers]
        if wrong:
            raise UserError(
                f"distillation: teacher {teacher.name!r} has hidden states 0 to "
                f"{teacher.num_layers}, not {wrong}; set layers"
            )
        self.config = config
        self.student = student
        self.heads = PredictionHeads(student.hidden_size, teacher.hidden_size, config.layers)
        self.objective = L1Cosine(config.cosine_weight)
        teacher.keep_layers(max(config.layers))
        # Kept in a list so that it is not among the module's parameters.
        self._teacher = [teacher]

    def on_fit_start(self) -> None:
        self._teacher[0].to(self.device)

    def forward(self, wavs: Tensor, lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and its parts.

        Args:
            wavs: (batch, samples) at 16 kHz.
            lengths: LongTensor (batch,), samples.
        """
        bf16 = self.config.teacher_bf16
        with torch.no_grad(), torch.autocast(wavs.device.type, torch.bfloat16, enabled=bf16):
            hidden, frames = self._teacher[0](wavs, lengths)
            target = {layer: hidden[layer] for layer in self.config.layers}
        states, own = self.student(wavs, lengths)
        count = min(states[-1].size(1), hidden[0].size(1))
        predicted = self.heads(states[-1][:, :count])
        target = {layer: state[:, :count] for layer, state in target.items()}
        return self.objective(predicted, target, torch.minimum(frames, own))

    def _step(self, batch: dict, stage: str) -> Tensor:
        loss, parts = self(batch["wavs"], batch["lengths"])
        values = {"loss": loss.detach(), **parts}
        self.log_dict(
            {f"{stage}_{name}": value for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch["wavs"]),
            sync_dist=True,
        )
        return loss

    def training_step(self, batch: dict, index: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: dict, index: int) -> Tensor:
        return self._step(batch, "valid")

    def configure_optimizers(self):
        return optimizer_and_schedule(self.parameters(), self.config.trainer)
