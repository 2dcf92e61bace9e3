"""The student's shape, its initialisation and the directory it is saved in."""

import pytest
import torch
from tiny import SMALL
from transformers import AutoModel, HubertConfig

from s3prl_kd.config import load_config
from s3prl_kd.encoder import Encoder, parameters_of
from s3prl_kd.errors import UserError
from s3prl_kd.student.build import PredictionHeads, StudentConfig, build_student, share_of
from s3prl_kd.student.save import save_student
from s3prl_kd.teacher.load import EncoderTeacher

ARCHITECTURE = SMALL | {"num_hidden_layers": 4}


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return EncoderTeacher("toy", Encoder.from_config(HubertConfig(**ARCHITECTURE)))


def test_default_is_a_quarter_of_hubert_base():
    """The paper's figures: 94.4 M parameters to 23.5 M."""
    with torch.device("meta"):
        teacher = EncoderTeacher("hubert_base", Encoder.from_config(HubertConfig()))
        student = Encoder.from_config(HubertConfig(num_hidden_layers=2))
    shape = load_config(StudentConfig, "conf/student/two_layer.yaml")
    assert shape.layers == 2 and shape.width == shape.cnn_width == 1
    assert round(parameters_of(teacher) / 1e6, 1) == 94.4
    assert round(parameters_of(student) / 1e6, 1) == 23.5
    assert share_of(student, teacher) < 0.25


def test_first_layers_come_from_the_teacher(teacher):
    student = build_student(teacher, StudentConfig(layers=2))
    wavs, lengths = torch.randn(2, 8000), torch.tensor([8000, 6000])
    with torch.no_grad():
        expected, frames = teacher(wavs, lengths)
        got, _ = student.eval()(wavs, lengths)
    assert len(got) == 3
    for layer in range(3):
        for index, count in enumerate(frames):
            assert torch.allclose(got[layer][index, :count], expected[layer][index, :count])


def test_chosen_layers_are_copied(teacher):
    student = build_student(teacher, StudentConfig(layers=2, copy_layers=[2, 4]))
    own, theirs = student.model.encoder.layers, teacher.encoder.model.encoder.layers
    for mine, source in ((0, 1), (1, 3)):
        assert torch.equal(
            own[mine].attention.q_proj.weight, theirs[source].attention.q_proj.weight
        )


def test_scratch_has_the_shape_and_nothing_else(teacher):
    student = build_student(teacher, StudentConfig(layers=2), scratch=True)
    distilled = build_student(teacher, StudentConfig(layers=2))
    assert parameters_of(student) == parameters_of(distilled)
    assert not torch.equal(
        student.model.feature_extractor.conv_layers[0].conv.weight,
        teacher.encoder.model.feature_extractor.conv_layers[0].conv.weight,
    )


def test_half_width(teacher):
    student = build_student(teacher, StudentConfig(layers=4, width=0.5))
    assert student.hidden_size == 16
    cnn = student.model.feature_extractor.conv_layers[3].conv.weight
    assert torch.equal(cnn, teacher.encoder.model.feature_extractor.conv_layers[3].conv.weight)


def test_impossible_shapes_end_in_one_line(teacher):
    with pytest.raises(UserError, match="has 4"):
        build_student(teacher, StudentConfig(layers=5))
    with pytest.raises(UserError, match="groups"):
        build_student(teacher, StudentConfig(layers=2, width=0.3))
    with pytest.raises(ValueError, match="copy_layers"):
        StudentConfig(layers=2, copy_layers=[1])


def test_student_dir_opens_elsewhere_and_keeps_heads_apart(teacher, tmp_path):
    student = build_student(teacher, StudentConfig(layers=2)).eval()
    heads = PredictionHeads(32, 32, [2, 4])
    record = {"name": "toy_student", "teacher": "toy", "steps": 3}
    save_student(tmp_path, student, heads, record)
    model = AutoModel.from_pretrained(tmp_path).eval()
    wav = torch.randn(1, 8000)
    with torch.no_grad():
        expected = student(wav, torch.tensor([8000]))[0][-1]
        assert torch.allclose(model(wav).last_hidden_state, expected, atol=1e-5)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"distillation_heads.safetensors", "README.md", "distillation.json"} <= names
    assert "distilled from `toy`" in (tmp_path / "README.md").read_text()
