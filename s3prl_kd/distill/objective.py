"""What distillation minimises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_kd.encoder import masked_mean


class L1Cosine(nn.Module):
    """L1 plus log-sigmoid cosine, DistilHuBERT's objective (arXiv 2110.01900, equation 1).

    For each teacher layer, the mean over valid frames of

        ``mean_d |h_d - t_d|  -  cosine_weight * log sigmoid(cos(h, t))``,

    ``h`` being the student's prediction and ``t`` the teacher's hidden state; summed over the
    layers. In fp32 whatever the precision of its inputs.

    Args:
        cosine_weight: the paper's lambda.
    """

    def __init__(self, cosine_weight: float = 1.0) -> None:
        super().__init__()
        self.cosine_weight = cosine_weight

    def forward(
        self, predicted: dict[int, Tensor], target: dict[int, Tensor], frames: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            predicted, target: per teacher layer (batch, frames, dim).
            frames: LongTensor (batch,), valid frames; the rest does not count.

        Returns:
            The loss, and its two parts ``l1`` and ``cosine`` (the mean cosine similarity) to log.
        """
        device = frames.device.type
        with torch.autocast(device, enabled=False):
            loss, l1s, cosines = 0.0, [], []
            for layer, guess in predicted.items():
                guess, true = guess.float(), target[layer].float()
                l1 = masked_mean((guess - true).abs().mean(-1), frames)
                cosine = F.cosine_similarity(guess, true, dim=-1)
                similar = masked_mean(F.logsigmoid(cosine), frames)
                loss = loss + l1 - self.cosine_weight * similar
                l1s.append(l1.detach())
                cosines.append(masked_mean(cosine.detach(), frames))
        return loss, {"l1": torch.stack(l1s).mean(), "cosine": torch.stack(cosines).mean()}
