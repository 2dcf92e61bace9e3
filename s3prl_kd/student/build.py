"""The student: a smaller model of the teacher's family, and its prediction heads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from s3prl_kd.encoder import Encoder, parameters_of
from s3prl_kd.errors import UserError
from s3prl_kd.teacher.load import Teacher


@dataclasses.dataclass
class StudentConfig:
    """The student's shape, relative to its teacher's; a preset of ``conf/student``.

    Attributes:
        layers: transformer layers.
        copy_layers: the teacher's layers that initialise them, counted from 1, one for each;
            None: the first ``layers``.
        width: hidden and feed-forward sizes and heads as a share of the teacher's. With a width
            other than 1 the transformer starts random.
        cnn_width: channels of the convolutions as a share of the teacher's. With a share other
            than 1 the convolutions start random.
    """

    layers: int = 2
    copy_layers: list[int] | None = None
    width: float = 1.0
    cnn_width: float = 1.0

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError("layers must be at least 1")
        if self.copy_layers is not None and len(self.copy_layers) != self.layers:
            raise ValueError(f"copy_layers must name {self.layers} layers, one for each")
        if not (0 < self.width <= 1 and 0 < self.cnn_width <= 1):
            raise ValueError("width and cnn_width must be in (0, 1]")


def build_student(teacher: Teacher, config: StudentConfig, *, scratch: bool = False) -> Encoder:
    """A student of ``teacher``.

    Everything that has the shape of its counterpart in the teacher is initialised from it: the
    CNN, the projection, the positional convolution and the chosen transformer layers, as
    DistilHuBERT does (arXiv 2110.01900, section 2). A teacher that is no
    :class:`~s3prl_kd.encoder.Encoder` gives a HuBERT Base's shape and random weights.

    Args:
        teacher: with all its layers.
        config: the shape.
        scratch: leave every weight random.

    Raises:
        UserError: the teacher has not the layers to copy, or sizes do not divide.
    """
    if teacher.encoder is None:
        from transformers import HubertConfig

        base, normalize = HubertConfig(), False
    else:
        base, normalize = copy.deepcopy(teacher.encoder.config), teacher.encoder.normalize
    chosen = _chosen_layers(config)
    if teacher.encoder is not None and not all(1 <= n <= base.num_hidden_layers for n in chosen):
        raise UserError(
            f"student: layers {chosen} of teacher {teacher.name!r}, which has "
            f"{base.num_hidden_layers}; change layers or copy_layers"
        )
    heads = max(1, round(base.num_attention_heads * config.width))
    base.num_attention_heads = heads
    base.hidden_size = round(base.hidden_size * config.width)
    base.intermediate_size = round(base.intermediate_size * config.width)
    base.num_hidden_layers = config.layers
    base.conv_dim = [round(channels * config.cnn_width) for channels in base.conv_dim]
    groups = base.num_conv_pos_embedding_groups
    if base.hidden_size % heads or base.hidden_size % groups:
        raise UserError(
            f"student: width {config.width} makes it {base.hidden_size} wide, which neither "
            f"{heads} heads nor {groups} positional groups may leave a rest of"
        )
    student = Encoder.from_config(base, normalize)
    if scratch:
        return student
    weights = student.model.state_dict()
    for name, origin in _inherited(student, teacher, config).items():
        weights[name].copy_(origin)
    return student


def _chosen_layers(config: StudentConfig) -> list[int]:
    return config.copy_layers or list(range(1, config.layers + 1))


def _inherited(student: Encoder, teacher: Teacher, config: StudentConfig) -> dict[str, Tensor]:
    """The teacher's weights that the student's of the same shape are initialised from, by name."""
    if teacher.encoder is None:
        return {}
    chosen = _chosen_layers(config)
    source = teacher.encoder.model.state_dict()
    return {
        name: source[origin]
        for name, value in student.model.state_dict().items()
        if (origin := _teacher_name(name, chosen)) in source and source[origin].shape == value.shape
    }


def _teacher_name(name: str, chosen: Sequence[int]) -> str:
    head, marker, rest = name.partition("encoder.layers.")
    if not marker or head:
        return name
    index, _, tail = rest.partition(".")
    return f"encoder.layers.{chosen[int(index)] - 1}.{tail}"


class PredictionHeads(nn.Module):
    """One head for each teacher layer to predict, on the student's last hidden state.

    Each is linear, GELU, linear, as in DistilHuBERT (arXiv 2110.01900); they serve the
    distillation alone and are no part of the student.

    Args:
        student_size, teacher_size: widths of the hidden states.
        layers: the teacher's hidden states to predict; 0 is the first transformer layer's input.
    """

    def __init__(self, student_size: int, teacher_size: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {
                str(layer): nn.Sequential(
                    nn.Linear(student_size, student_size),
                    nn.GELU(),
                    nn.Linear(student_size, teacher_size),
                )
                for layer in layers
            }
        )

    def forward(self, hidden: Tensor) -> dict[int, Tensor]:
        """(batch, frames, student_size) -> per teacher layer (batch, frames, teacher_size)."""
        return {int(layer): head(hidden) for layer, head in self.heads.items()}


def share_of(student: nn.Module, teacher: nn.Module) -> float:
    """The student's parameters as a share of the teacher's."""
    return parameters_of(student) / parameters_of(teacher)


def initialised_share(student: Encoder, teacher: Teacher, config: StudentConfig) -> float:
    """Share of the student's parameters that :func:`build_student` took from the teacher."""
    taken = sum(value.numel() for value in _inherited(student, teacher, config).values())
    return taken / sum(value.numel() for value in student.model.state_dict().values())
