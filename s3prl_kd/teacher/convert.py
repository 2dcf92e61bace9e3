"""Models of fairseq's layout, as s3prl holds them, into transformers' classes.

s3prl's ``hubert*``, ``wav2vec2*`` and ``wavlm*`` upstreams are fairseq's modules. transformers has
the same architectures under other names; in its classes a teacher can initialise a student and
be made exact under padding (:mod:`s3prl_kd.encoder`).
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from transformers import HubertConfig, Wav2Vec2Config, WavLMConfig

from s3prl_kd.encoder import Encoder

# fairseq's name -> transformers'; {i} is a layer's number.
_NAMES = {
    r"feature_extractor\.conv_layers\.(\d+)\.0\.(weight|bias)": (
        r"feature_extractor.conv_layers.\1.conv.\2"
    ),
    r"feature_extractor\.conv_layers\.(\d+)\.2(?:\.1)?\.(weight|bias)": (
        r"feature_extractor.conv_layers.\1.layer_norm.\2"
    ),
    r"layer_norm\.(\w+)": r"feature_projection.layer_norm.\1",
    r"post_extract_proj\.(\w+)": r"feature_projection.projection.\1",
    r"mask_emb": r"masked_spec_embed",
    r"encoder\.pos_conv\.0\.bias": r"encoder.pos_conv_embed.conv.bias",
    r"encoder\.pos_conv\.0\.(?:weight_g|parametrizations\.weight\.original0)": (
        r"encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    ),
    r"encoder\.pos_conv\.0\.(?:weight_v|parametrizations\.weight\.original1)": (
        r"encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    ),
    r"encoder\.layer_norm\.(\w+)": r"encoder.layer_norm.\1",
    r"encoder\.layers\.(\d+)\.self_attn\.([kvq]_proj|out_proj)\.(\w+)": (
        r"encoder.layers.\1.attention.\2.\3"
    ),
    r"encoder\.layers\.(\d+)\.self_attn\.grep_linear\.(\w+)": (
        r"encoder.layers.\1.attention.gru_rel_pos_linear.\2"
    ),
    r"encoder\.layers\.(\d+)\.self_attn\.grep_a": (
        r"encoder.layers.\1.attention.gru_rel_pos_const"
    ),
    r"encoder\.layers\.(\d+)\.self_attn\.relative_attention_bias\.(\w+)": (
        r"encoder.layers.\1.attention.rel_attn_embed.\2"
    ),
    r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)": r"encoder.layers.\1.layer_norm.\2",
    r"encoder\.layers\.(\d+)\.fc1\.(\w+)": (
        r"encoder.layers.\1.feed_forward.intermediate_dense.\2"
    ),
    r"encoder\.layers\.(\d+)\.fc2\.(\w+)": r"encoder.layers.\1.feed_forward.output_dense.\2",
    r"encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)": (r"encoder.layers.\1.final_layer_norm.\2"),
}
_CONFIGS = {"HubertModel": HubertConfig, "Wav2Vec2Model": Wav2Vec2Config, "WavLM": WavLMConfig}


def from_s3prl(expert: nn.Module) -> Encoder | None:
    """The :class:`Encoder` equal to an s3prl upstream expert, or None where there is no such.

    Args:
        expert: what ``getattr(s3prl.hub, name)()`` returns.
    """
    model = getattr(expert, "model", None)
    if model is None:
        return None
    if hasattr(model, "config") and hasattr(model, "save_pretrained"):
        extractor = getattr(expert, "extracter", None) or getattr(expert, "processor", None)
        return Encoder(model, bool(getattr(extractor, "do_normalize", False)))
    config_class = _CONFIGS.get(type(model).__name__)
    if config_class is None:
        return None
    cfg = getattr(model, "cfg", None) or getattr(expert, "cfg", None)
    if getattr(cfg, "pos_conv_depth", 1) > 1 or cfg is None:
        # data2vec's convolutions are not of this layout.
        return None
    task = getattr(expert, "task_cfg", None)
    normalize = bool(getattr(task, "normalize", getattr(cfg, "normalize", False)))
    encoder = Encoder.from_config(_config(config_class, cfg), normalize)
    wanted = encoder.model.state_dict()
    weights = rename(model.state_dict())
    encoder.model.load_state_dict({k: v for k, v in weights.items() if k in wanted}, strict=True)
    return encoder


def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A fairseq state dict under transformers' names; what has no counterpart is left out."""
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in _NAMES.items():
            match = re.fullmatch(pattern, name)
            if match:
                renamed[match.expand(replacement)] = value
                break
    return renamed


def _config(config_class: type, cfg: Any) -> Any:
    layers = cfg.conv_feature_layers
    if isinstance(layers, str):
        layers = _conv_layers(layers)
    extra = {}
    if config_class is WavLMConfig:
        extra = {"num_buckets": cfg.num_buckets, "max_bucket_distance": cfg.max_distance}
    return config_class(
        hidden_size=cfg.encoder_embed_dim,
        num_hidden_layers=cfg.encoder_layers,
        num_attention_heads=cfg.encoder_attention_heads,
        intermediate_size=cfg.encoder_ffn_embed_dim,
        hidden_act=str(getattr(cfg.activation_fn, "value", cfg.activation_fn)),
        hidden_dropout=cfg.dropout,
        activation_dropout=cfg.activation_dropout,
        attention_dropout=cfg.attention_dropout,
        feat_proj_dropout=cfg.dropout_input,
        feat_extract_norm="group" if cfg.extractor_mode == "default" else "layer",
        conv_dim=[layer[0] for layer in layers],
        conv_kernel=[layer[1] for layer in layers],
        conv_stride=[layer[2] for layer in layers],
        conv_bias=cfg.conv_bias,
        num_feat_extract_layers=len(layers),
        num_conv_pos_embeddings=cfg.conv_pos,
        num_conv_pos_embedding_groups=cfg.conv_pos_groups,
        do_stable_layer_norm=cfg.layer_norm_first,
        **extra,
    )


def _conv_layers(text: str) -> list[tuple[int, int, int]]:
    # fairseq writes e.g. "[(512,10,5)] + [(512,3,2)] * 4"; it evaluates that, this reads it.
    layers: list[tuple[int, int, int]] = []
    term = r"\[((?:\s*\(\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\)\s*,?)+)\s*\]\s*(?:\*\s*(\d+))?"
    for group, times in re.findall(term, text):
        triples = [
            tuple(int(number) for number in re.findall(r"\d+", triple))
            for triple in re.findall(r"\([^)]*\)", group)
        ]
        layers += triples * int(times or 1)
    return layers
