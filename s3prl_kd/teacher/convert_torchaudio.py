"""A HuBERT of torchaudio's (which ESPnet trains) as one of transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

# torchaudio nests what transformers has side by side; inside, the names agree.
_PREFIXES = (
    ("wav2vec2.feature_extractor.", "feature_extractor."),
    ("wav2vec2.encoder.feature_projection.", "feature_projection."),
    ("wav2vec2.encoder.transformer.", "encoder."),
)


def hubert_config(encoder_conf: Mapping[str, Any]) -> HubertConfig:
    """The transformers configuration of ``torchaudio.models.hubert_pretrain_model(**conf)``.

    Masking and layer drop are off, so that fine-tuning is plain; dropout is as in training.
    """
    channels, kernels, strides = zip(*encoder_conf["extractor_conv_layer_config"], strict=True)
    group_norm = encoder_conf["extractor_mode"] == "group_norm"
    return HubertConfig(
        feat_extract_norm="group" if group_norm else "layer",
        conv_dim=list(channels),
        conv_kernel=list(kernels),
        conv_stride=list(strides),
        conv_bias=encoder_conf["extractor_conv_bias"],
        num_feat_extract_layers=len(channels),
        hidden_size=encoder_conf["encoder_embed_dim"],
        num_hidden_layers=encoder_conf["encoder_num_layers"],
        num_attention_heads=encoder_conf["encoder_num_heads"],
        intermediate_size=encoder_conf["encoder_ff_interm_features"],
        num_conv_pos_embeddings=encoder_conf["encoder_pos_conv_kernel"],
        num_conv_pos_embedding_groups=encoder_conf["encoder_pos_conv_groups"],
        do_stable_layer_norm=encoder_conf["encoder_layer_norm_first"],
        feat_proj_dropout=encoder_conf["encoder_projection_dropout"],
        attention_dropout=encoder_conf["encoder_attention_dropout"],
        activation_dropout=encoder_conf["encoder_ff_interm_dropout"],
        hidden_dropout=encoder_conf["encoder_dropout"],
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
    )


def to_transformers(state: Mapping[str, Tensor], encoder_conf: Mapping[str, Any]) -> HubertModel:
    """Build a ``HubertModel`` in eval mode with the weights of a torchaudio HuBERT.

    Args:
        state: the state dict of a ``torchaudio.models.HuBERTPretrainModel``. The unit embeddings
            and the projection onto them are left behind: they only served the pre-training.
        encoder_conf: the arguments the model was made with.
    """
    config = hubert_config(encoder_conf)
    model = HubertModel(config)
    converted = {}
    for name, value in state.items():
        for theirs, ours in _PREFIXES:
            if name.startswith(theirs):
                converted[ours + name.removeprefix(theirs)] = value
    if "masked_spec_embed" in model.state_dict():
        converted["masked_spec_embed"] = state["mask_generator.mask_embedding"]
    model.load_state_dict(converted, strict=True)
    return model.eval()


def save_transformers(model: HubertModel, directory: str | Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``."""
    model.save_pretrained(directory)
    Wav2Vec2FeatureExtractor(
        sampling_rate=16000, do_normalize=False, return_attention_mask=True
    ).save_pretrained(directory)
