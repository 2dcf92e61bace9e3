"""A teacher by name, in the forms people have."""

import pytest
import torch

from s3prl_kd.encoder import Encoder, parameters_of
from s3prl_kd.errors import UserError
from s3prl_kd.teacher.convert import from_s3prl
from s3prl_kd.teacher.load import EncoderTeacher, UpstreamTeacher, load_teacher

CONV = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"
SMALL = dict(
    encoder_layers=3,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=4,
    conv_feature_layers=CONV,
    conv_pos=16,
    conv_pos_groups=4,
)
LARGE = dict(extractor_mode="layer_norm", layer_norm_first=True, conv_bias=True)


def hubert(path, **extra):
    """A checkpoint in s3prl's converted form, with s3prl's own class and random weights."""
    from s3prl.upstream.hubert.hubert_model import (
        HubertConfig,
        HubertModel,
        HubertPretrainingConfig,
    )

    cfg = dict(label_rate=50.0, final_dim=16, **SMALL, **extra)
    task = dict(normalize=bool(extra), label_rate=50.0)
    symbols = [["a", "b", "c"]]
    model = HubertModel(HubertConfig(**cfg), HubertPretrainingConfig(**task), symbols)
    torch.save(
        {
            "task_cfg": task,
            "model_cfg": cfg,
            "model_weight": model.state_dict(),
            "dictionaries_symbols": symbols,
        },
        path,
    )


def wav2vec2(path, **extra):
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model

    cfg = dict(quantize_targets=True, final_dim=16, latent_vars=8, **SMALL, **extra)
    task = dict(normalize=bool(extra))
    model = Wav2Vec2Model(Wav2Vec2Config(**cfg))
    torch.save({"task_cfg": task, "model_cfg": cfg, "model_weight": model.state_dict()}, path)


def wavlm(path, **extra):
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    relative = dict(
        relative_position_embedding=True, gru_rel_pos=True, num_buckets=32, max_distance=80
    )
    cfg = SMALL | relative | extra | {"normalize": bool(extra)}
    torch.save({"cfg": cfg, "model": WavLM(WavLMConfig(cfg)).state_dict()}, path)


@pytest.mark.parametrize("extra", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("family", [hubert, wav2vec2, wavlm])
def test_s3prl_models_keep_their_hidden_states(family, extra, tmp_path):
    from s3prl import hub

    torch.manual_seed(0)
    family(tmp_path / "model.pt", **extra)
    entry = {"hubert": "hubert_local", "wav2vec2": "wav2vec2_local", "wavlm": "wavlm_local"}
    expert = getattr(hub, entry[family.__name__])(ckpt=str(tmp_path / "model.pt")).eval()
    encoder = from_s3prl(expert)
    assert encoder.normalize == bool(extra)
    encoder.eval()
    wav = torch.randn(16000)  # as loud as normalisation makes it: s3prl and HF differ in eps
    with torch.no_grad():
        expected = expert([wav])["hidden_states"]
        got, _ = encoder(wav[None], torch.tensor([16000]))
    assert len(got) == len(expected) == 4
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-4


def test_a_directory_by_path_or_by_name(tmp_path):
    from transformers import HubertConfig

    small = HubertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    Encoder.from_config(small).save_pretrained(tmp_path / "mine")
    for name in (str(tmp_path / "mine"), "mine"):
        teacher = load_teacher(name, tmp_path)
        assert isinstance(teacher, EncoderTeacher) and teacher.num_layers == 3
        assert not any(p.requires_grad for p in teacher.parameters())
        assert not teacher.train().encoder.training
    full = teacher(torch.randn(1, 4000), torch.tensor([4000]))[0]
    before = parameters_of(teacher)
    teacher.keep_layers(2)
    assert len(full) == 4 and parameters_of(teacher) < before


def test_another_upstream_never_sees_padding(tmp_path):
    """An upstream of no known kind: exact all the same, by going through it length by length."""

    class Mean(torch.nn.Module):
        num_layers, hidden_sizes, downsample_rates = 2, [4, 4], [320, 320]

        def forward(self, wavs, lengths):
            frames = int((lengths.max() - 1) // 320 + 1)
            state = wavs.mean(1)[:, None, None].expand(-1, frames, 4)
            return [state, state * 2], None

    teacher = UpstreamTeacher("mean", Mean())
    wavs = torch.randn(3, 4000)
    lengths = torch.tensor([4000, 3000, 4000])
    together, frames = teacher(wavs, lengths)
    alone, count = teacher(wavs[1:2, :3000], lengths[1:2])
    assert frames[1] == count[0] == 9
    assert torch.equal(together[1][1, : count[0]], alone[1][0])


def test_unknown_teacher(tmp_path):
    with pytest.raises(UserError, match="unknown upstream 'nobody'"):
        load_teacher("nobody", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json"):
        load_teacher(str(tmp_path / "empty"), tmp_path)
