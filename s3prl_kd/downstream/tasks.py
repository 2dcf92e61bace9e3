"""The tasks' heads, losses and validation metrics: SUPERB's, from s3prl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from s3prl.metric.common import compute_eer
from s3prl.nn import Featurizer, MeanPoolingLinear, S3PRLUpstream, SuperbXvector, amsoftmax
from s3prl.nn.speaker_model import TDNN, XVECTOR_TDNNS_LENGTH_REDUCTION
from torch import nn

from s3prl_kd.downstream.config import DownstreamConfig, KwsConfig, SvConfig

if TYPE_CHECKING:
    from s3prl_kd.data.kaldi import Trial


class Task(nn.Module):
    """A weighted sum of the upstream's layers, a head and its loss.

    Hidden states are what :class:`s3prl.nn.S3PRLUpstream` returns: a list over layers of tensors
    (batch, frames, hidden size) and a list of their valid lengths (batch,) in frames.

    Attributes:
        name: ``kws`` or ``sv``.
        min_frames: the fewest frames that the head can take.
    """

    name: str
    min_frames = 1

    def __init__(self, upstream: S3PRLUpstream) -> None:
        super().__init__()
        self.featurizer = Featurizer(upstream)

    def forward(self, hidden: list[torch.Tensor], lengths: list[torch.Tensor]) -> torch.Tensor:
        """The head's output of a batch: class logits or speaker embeddings (batch, size)."""
        return self.head(*self.featurizer(hidden, lengths))

    def loss(
        self, hidden: list[torch.Tensor], lengths: list[torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        """The training loss, a scalar; ``labels`` (batch,) are class or speaker indices."""
        raise NotImplementedError

    def valid_metrics(self, outputs: torch.Tensor, utts: list[str], labels: torch.Tensor):
        """Metrics over the whole validation set, by the name they are logged under."""
        raise NotImplementedError

    def valid_score(self, metrics: Mapping[str, float]) -> float:
        """One number in [-1, 1] that is larger for a better system."""
        raise NotImplementedError

    def layer_weights(self) -> list[float]:
        """The weight of each hidden state, input of the first layer first; they sum to 1."""
        weights = getattr(self.featurizer, "weights", None)
        return [1.0] if weights is None else weights.detach().softmax(dim=-1).tolist()


class KeywordSpotting(Task):
    """SUPERB KS (s3prl's ``MeanPoolingLinear``) with cross-entropy."""

    name = "kws"

    def __init__(self, upstream: S3PRLUpstream, classes: Sequence[str], config: KwsConfig) -> None:
        super().__init__(upstream)
        self.classes = list(classes)
        self.head = MeanPoolingLinear(
            self.featurizer.output_size, len(self.classes), hidden_size=config.hidden_size
        )

    def loss(self, hidden, lengths, labels):
        return F.cross_entropy(self(hidden, lengths), labels)

    def valid_metrics(self, outputs, utts, labels) -> dict[str, float]:
        return {
            "valid_kws_loss": F.cross_entropy(outputs, labels).item(),
            "valid_kws_accuracy": (outputs.argmax(dim=-1) == labels).float().mean().item(),
        }

    def valid_score(self, metrics):
        return metrics["valid_kws_accuracy"]


class SpeakerVerification(Task):
    """SUPERB ASV (s3prl's ``SuperbXvector``) with AM-softmax over the training speakers.

    Validation speakers are other people than the training speakers, so AM-softmax has no
    validation loss: trials are scored by cosine, as in testing.
    """

    name = "sv"
    # Pooling takes a standard deviation, which needs two frames.
    min_frames = XVECTOR_TDNNS_LENGTH_REDUCTION + 2

    def __init__(
        self,
        upstream: S3PRLUpstream,
        speakers: Sequence[str],
        config: SvConfig,
        valid_trials: Sequence[Trial] = (),
    ) -> None:
        super().__init__(upstream)
        self.speakers = list(speakers)
        self.valid_trials = list(valid_trials)
        self.head = xvector(self.featurizer.output_size, config)
        self.criterion = amsoftmax(
            self.head.output_size, len(self.speakers), margin=config.margin, scale=config.scale
        )

    def loss(self, hidden, lengths, labels):
        loss, _ = self.criterion(self(hidden, lengths), labels)
        return loss

    def valid_metrics(self, outputs, utts, labels) -> dict[str, float]:
        scores = cosine_scores(outputs, utts, self.valid_trials)
        targets = [int(trial.target) for trial in self.valid_trials]
        eer, _ = compute_eer(targets, scores)
        return {"valid_sv_eer": float(eer)}

    def valid_score(self, metrics):
        return -metrics["valid_sv_eer"]


class _ConvTDNN(TDNN):
    """s3prl's TDNN, same parameters and outputs, as the dilated convolution it is.

    On a CPU an SUPERB-sized training step takes a twelfth of the time: s3prl unfolds the input.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.kernel.weight.view(self.output_size, self.context_size, self.input_size)
        x = F.conv1d(
            x.transpose(1, 2), kernel.transpose(1, 2), self.kernel.bias, dilation=self.dilation
        )
        return self.nonlinearity(x).transpose(1, 2)


def xvector(input_size: int, config: SvConfig) -> SuperbXvector:
    """SUPERB's x-vector, in other widths if the config says so.

    Its ``state_dict`` is that of ``SuperbXvector``, which loads it where ``tdnn_size`` is 512.
    """
    model = SuperbXvector(
        input_size,
        output_size=config.embedding_size,
        hidden_size=config.hidden_size,
        aggregation_size=config.aggregation_size,
    )
    width = config.tdnn_size
    sizes = [config.hidden_size, width, width, width, width, config.aggregation_size]
    model.tdnns.module = nn.Sequential(
        *(
            _ConvTDNN(before, after, tdnn.context_size, tdnn.dilation, batch_norm=False)
            for before, after, tdnn in zip(sizes[:-1], sizes[1:], model.tdnns.module, strict=True)
        )
    )
    return model


def cosine_scores(
    embeddings: torch.Tensor, utts: Sequence[str], trials: Sequence[Trial]
) -> list[float]:
    """Cosine similarity of each trial's two utterances.

    Args:
        embeddings: (utterances, size), in the order of ``utts``.
        utts: utterance ids, among them all that ``trials`` name.
        trials: with ``enrol`` and ``test`` ids.
    """
    place = {utt: index for index, utt in enumerate(utts)}
    unit = F.normalize(embeddings.double(), dim=-1)
    enrol = torch.tensor([place[trial.enrol] for trial in trials], dtype=torch.long)
    test = torch.tensor([place[trial.test] for trial in trials], dtype=torch.long)
    return (unit[enrol] * unit[test]).sum(dim=-1).tolist()


def build_tasks(
    upstream: S3PRLUpstream,
    names: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    config: DownstreamConfig,
    seed: int,
    valid_trials: Sequence[Trial] = (),
) -> dict[str, Task]:
    """The tasks ``names``, each with weights that depend on ``seed`` and its own shape alone.

    Args:
        labels: for ``kws`` the classes, for ``sv`` the training speakers, in the order of indices.
    """
    tasks: dict[str, Task] = {}
    for name in names:
        # A task starts from the same weights alone and jointly.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kwargs: dict[str, Any] = {"valid_trials": valid_trials} if name == "sv" else {}
            kind = KeywordSpotting if name == "kws" else SpeakerVerification
            tasks[name] = kind(upstream, labels[name], getattr(config, name), **kwargs)
    return tasks
