"""One Lightning module for every system: an upstream, and a task or several at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from s3prl.nn import S3PRLUpstream

from s3prl_kd.downstream.config import DownstreamConfig, Mode
from s3prl_kd.downstream.tasks import Task
from s3prl_kd.training import optimizer_and_schedule


class DownstreamModule(L.LightningModule):
    """Tasks over one upstream, frozen or fine-tuned; the loss is the weighted sum of theirs.

    A training batch is ``{task: batch}``, a validation batch that of the task its loader belongs
    to. A batch is what :func:`s3prl_kd.downstream.data.collate` makes: with waveforms, or with
    hidden states that were computed before.

    Logs ``train_loss``, ``train_<task>_loss``, ``valid_kws_loss``, ``valid_kws_accuracy``,
    ``valid_sv_eer`` and ``valid_score``, by which checkpoints are chosen: KWS accuracy minus SV
    EER, of the tasks there are.

    Args:
        upstream: shared by all tasks.
        tasks: see :func:`s3prl_kd.downstream.tasks.build_tasks`.
        mode: ``frozen``: the upstream is in eval mode, gets no gradient and is left out of
            checkpoints. ``finetuned``: it is trained, after ``config.freeze_steps``.
        config: learning rates and loss weights.
    """

    def __init__(
        self,
        upstream: S3PRLUpstream,
        tasks: Mapping[str, Task],
        mode: Mode,
        config: DownstreamConfig,
    ) -> None:
        super().__init__()
        self.upstream = upstream
        self.tasks = torch.nn.ModuleDict(tasks)
        self.mode = mode
        self.config = config
        # A task alone is trained with its own loss: the weights only balance tasks.
        self.loss_weights = {
            name: config.loss_weights[name] if len(tasks) > 1 else 1.0 for name in tasks
        }
        self.strict_loading = mode == "finetuned"
        upstream.requires_grad_(mode == "finetuned")
        self._seen: dict[str, list[tuple[torch.Tensor, list[str], torch.Tensor]]] = {}

    @property
    def upstream_held(self) -> bool:
        """Whether the upstream gets no gradient in this step."""
        if self.mode == "frozen":
            return True
        return self.training and self.global_step < self.config.freeze_steps

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        content = super().state_dict(*args, **kwargs)
        if self.mode == "frozen":
            for key in [key for key in content if key.startswith("upstream.")]:
                del content[key]
        return content

    def hidden_states(
        self, batch: Mapping[str, Any]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The upstream's hidden states of a batch, computed or cached, and their lengths."""
        if "hidden" in batch:
            hidden = list(batch["hidden"].unbind(0))
            return hidden, [batch["hidden_lengths"]] * len(hidden)
        held = self.upstream_held
        self.upstream.train(self.training and not held)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not held):
            return self.upstream(batch["wavs"], batch["lengths"])

    def forward(self, task: str, batch: Mapping[str, Any]) -> torch.Tensor:
        """The head's output of a batch, see :class:`~s3prl_kd.downstream.tasks.Task`."""
        return self.tasks[task](*self.hidden_states(batch))

    def losses(self, batches: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Each task's unweighted loss on its batch."""
        return {
            name: self.tasks[name].loss(*self.hidden_states(batch), batch["labels"])
            for name, batch in batches.items()
        }

    def joint_loss(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum that is minimised."""
        return sum(self.loss_weights[name] * loss for name, loss in losses.items())

    def training_step(self, batch: Mapping[str, Mapping[str, Any]], index: int) -> torch.Tensor:
        losses = self.losses(batch)
        loss = self.joint_loss(losses)
        for name, value in {
            "train_loss": loss,
            **{f"train_{name}_loss": value for name, value in losses.items()},
        }.items():
            self.log(name, value.detach(), on_step=False, on_epoch=True, batch_size=1)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._seen = {name: [] for name in self.tasks}

    def validation_step(
        self, batch: Mapping[str, Any], index: int, dataloader_idx: int = 0
    ) -> None:
        name = list(self.tasks)[dataloader_idx]
        output = self(name, batch).float().cpu()
        self._seen[name].append((output, batch["utts"], batch["labels"].cpu()))

    def on_validation_epoch_end(self) -> None:
        score = 0.0
        for name, task in self.tasks.items():
            outputs, utts, labels = zip(*self._seen[name], strict=True)
            metrics = task.valid_metrics(
                torch.cat(outputs), [utt for batch in utts for utt in batch], torch.cat(labels)
            )
            score += task.valid_score(metrics)
            # Every rank sees the whole validation set.
            self.log_dict(metrics)
        self.log("valid_score", score)
        self._seen = {}

    def configure_optimizers(self) -> dict[str, Any]:
        trainer = self.config.trainer(self.mode, list(self.tasks))
        groups: list[dict[str, Any]] = [
            {
                "params": list(task.parameters()),
                "lr": trainer.lr * getattr(self.config, name).lr_scale,
            }
            for name, task in self.tasks.items()
        ]
        if self.mode == "finetuned":
            groups.append(
                {"params": list(self.upstream.parameters()), "lr": self.config.upstream_lr}
            )
        return optimizer_and_schedule(groups, trainer)

    def layer_weights(self) -> dict[str, list[float]]:
        """Each task's weights of the upstream's layers."""
        return {name: task.layer_weights() for name, task in self.tasks.items()}
