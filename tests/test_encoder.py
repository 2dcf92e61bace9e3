"""Padding changes nothing, and one unpadded utterance is transformers' own."""

import pytest
import torch
from tiny import SMALL
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    Wav2Vec2Config,
    WavLMConfig,
)

from s3prl_kd.encoder import Encoder
from s3prl_kd.errors import UserError

LAYER_NORM = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
CONFIGS = {
    "hubert_base": HubertConfig(**SMALL),
    "hubert_large": HubertConfig(**SMALL, **LAYER_NORM),
    "wav2vec2_base": Wav2Vec2Config(**SMALL),
    "wavlm_base": WavLMConfig(**SMALL, num_buckets=32, max_bucket_distance=80),
    "data2vec": Data2VecAudioConfig(**(SMALL | {"conv_pos_kernel_size": 7})),
}


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name, normalize):
    torch.manual_seed(0)
    encoder = Encoder.from_config(CONFIGS[name], normalize).eval()
    lengths = torch.tensor([16000, 48000, 7777, 400, 30001])
    wavs = [0.3 * torch.randn(length) + 0.1 for length in lengths]
    batch = torch.full((5, 48000), 9.0)  # junk, not zeros: what lies in the padding is no matter
    for row, wav in zip(batch, wavs, strict=True):
        row[: len(wav)] = wav
    with torch.no_grad():
        together, frames = encoder(batch, lengths)
        for index, wav in enumerate(wavs):
            alone, count = encoder(wav[None], torch.tensor([len(wav)]))
            assert frames[index] == count[0] == alone[0].size(1)
            for in_batch, single in zip(together, alone, strict=True):
                assert close(in_batch[index, : frames[index]], single[0]) < 1e-4


def test_group_norm_over_padding_would_be_seen():
    """The guard of the test above: transformers' own forward fails what ours passes."""
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS["hubert_base"]).eval()
    wav = torch.randn(1, 16000)
    padded = torch.nn.functional.pad(wav, (0, 32000))
    with torch.no_grad():
        alone = model(wav).last_hidden_state
        batch = model(padded, attention_mask=(torch.arange(48000) < 16000).long()[None])
    assert close(alone, batch.last_hidden_state[:, : alone.size(1)]) > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_unpadded_is_transformers_own(name):
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS[name]).eval()
    wavs = torch.randn(2, 16000)
    with torch.no_grad():
        expected = model(wavs, output_hidden_states=True).hidden_states
        got, _ = Encoder(model).eval()(wavs, torch.tensor([16000, 16000]))
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_do_not_depend_on_padding():
    torch.manual_seed(0)
    encoder = Encoder.from_config(CONFIGS["hubert_base"]).eval()
    wav, weight = torch.randn(8000), torch.randn(24, 32)

    def gradient(batch, lengths):
        encoder.zero_grad()
        hidden, frames = encoder(batch, lengths)
        (hidden[-1][0, : frames[0]] * weight).sum().backward()
        return encoder.model.feature_extractor.conv_layers[0].conv.weight.grad.clone()

    alone = gradient(wav[None], torch.tensor([8000]))
    batch = torch.stack([torch.nn.functional.pad(wav, (0, 8000)), torch.randn(16000)])
    shared = gradient(batch, torch.tensor([8000, 16000]))
    assert close(alone, shared) < 1e-3 * float(alone.abs().max())


def test_saved_and_opened_again(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder.from_config(CONFIGS["wav2vec2_base"], normalize=True).eval()
    encoder.save_pretrained(tmp_path)
    again = Encoder.from_pretrained(tmp_path).eval()
    assert again.normalize
    wavs, lengths = torch.randn(2, 8000), torch.tensor([8000, 4000])
    with torch.no_grad():
        for a, b in zip(encoder(wavs, lengths)[0], again(wavs, lengths)[0], strict=True):
            assert torch.equal(a, b)
    # What we write, transformers opens by itself.
    assert AutoModel.from_pretrained(tmp_path).config.model_type == "wav2vec2"


def test_bad_directories_end_in_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        Encoder.from_pretrained(tmp_path)
    encoder = Encoder.from_config(CONFIGS["hubert_base"])
    encoder.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 48'))
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        Encoder.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="'bert'"):
        Encoder.from_pretrained(tmp_path)
