"""ESPnet's HuBERT task, with what it lacks for short trainings on a CPU.

Added to ESPnet's: a progress bar with an ETA, a second checkpoint (ESPnet writes its only one in
place, so a kill while it writes would lose the training), bf16 autocast off the GPU, and logits
by a matrix product, of units that start in random directions.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.models.wav2vec2.components import LogitGenerator

# What ESPnet imports for its other tasks is talkative, and would fetch dictionaries.
with contextlib.redirect_stdout(io.StringIO()), mock.patch("nltk.download"):
    from espnet2.tasks.hubert import HubertTask
    from espnet2.train.trainer import Trainer

CHECKPOINT = "checkpoint.pth"
PREVIOUS = "checkpoint.previous.pth"


class MatmulLogits(LogitGenerator):
    """torchaudio's logits, cosine similarity to each unit over 0.1, without its (units, frames,
    dim) intermediate: the same numbers in a tenth of the time on a CPU.

    Logit 0 is the right unit's, and that unit's own column is -inf, as in torchaudio.
    """

    def forward(
        self, x: Tensor, label: Tensor, mask_m: Tensor, mask_u: Tensor
    ) -> tuple[Tensor, Tensor]:
        embeddings = F.normalize(self.label_embeddings, dim=-1)
        return self._logits(x, label, mask_m, embeddings), self._logits(
            x, label, mask_u, embeddings
        )

    def _logits(self, x: Tensor, label: Tensor, mask: Tensor, embeddings: Tensor) -> Tensor:
        projected = F.normalize(self.final_proj(x[mask]).float(), dim=-1)
        target = label[mask].long()[:, None]
        logits = projected @ embeddings.T.to(projected.dtype) / 0.1
        return torch.cat([logits.gather(1, target), logits.scatter(1, target, -torch.inf)], 1)


class _Iterator:
    """An iterator over batches that reports each one taken."""

    def __init__(self, batches: Any, taken: Callable[[], None]) -> None:
        self.batches, self.taken = batches, taken

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch
            self.taken()


def make_task(
    on_step: Callable[[int, int], None],
    on_epoch: Callable[[int], None],
    bf16: bool,
    unmasked_weight: float,
) -> type[HubertTask]:
    """ESPnet's task with the additions.

    Args:
        on_step: called after each batch with (epoch from 1, batch in it from 1).
        on_epoch: called as an epoch begins, with the number of the last complete one. That one's
            checkpoint is then on the disk.
        bf16: forward passes under bf16 autocast.
        unmasked_weight: of the loss on unmasked frames, for which ESPnet's torchaudio model has
            an argument but no option.
    """

    class CpuTrainer(Trainer):
        @classmethod
        def train_one_epoch(cls, model, iterator, reporter, options, **kwargs):
            checkpoint = Path(options.output_dir) / CHECKPOINT
            if checkpoint.exists():
                partial = checkpoint.with_suffix(".partial")
                shutil.copyfile(checkpoint, partial)
                os.replace(partial, checkpoint.with_name(PREVIOUS))
            epoch = reporter.epoch
            on_epoch(epoch - 1)
            count = 0

            def taken() -> None:
                nonlocal count
                count += 1
                on_step(epoch, count)

            return super().train_one_epoch(
                model=model,
                iterator=_Iterator(iterator, taken),
                reporter=reporter,
                options=options,
                **kwargs,
            )

    class CpuTask(HubertTask):
        trainer = CpuTrainer

        @classmethod
        def build_model(cls, args):
            model = super().build_model(args)
            hubert = model.encoder.hubert_pretrain_model
            slow = hubert.logit_generator
            units, final_dim = slow.label_embeddings.shape
            fast = MatmulLogits(
                slow.final_proj.in_features, units, final_dim, slow.skip_masked, slow.skip_nomask
            )
            fast.load_state_dict(slow.state_dict())
            # torchaudio's uniform ones all point one way, which a short training cannot mend.
            torch.nn.init.normal_(fast.label_embeddings)
            hubert.logit_generator = fast
            model._calc_hubert_loss = functools.partial(
                model._calc_hubert_loss, unmasked_weight=unmasked_weight
            )
            compute_correct = model._compute_correct

            def at_least_one(logits: Tensor) -> tuple[int, int]:
                # ESPnet divides by it, and short speech can be masked from end to end.
                correct, count = compute_correct(logits)
                return correct, max(count, 1)

            model._compute_correct = at_least_one
            if bf16:
                # Around each forward pass, not around the epoch: autocast keeps its copies of
                # the weights until it is left, and would never see an optimiser step.
                device = "cuda" if args.ngpu else "cpu"
                model.forward = torch.autocast(device, torch.bfloat16)(model.forward)
            return model

    return CpuTask
