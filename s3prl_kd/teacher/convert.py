"""Models of fairseq's layout, as s3prl holds them, into transformers' classes.

s3prl's ``hubert*``, ``wav2vec2*`` and ``wavlm*`` upstreams are fairseq's modules. transformers has
the same architectures under other names; in its classes a teacher can initialise a student and
be made exact under padding (:mod:`s3prl_kd.encoder`).
"""

from __future__ import annotations

import re
from typing import Any

import torch
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
    positional = model.encoder.pos_conv
    if not isinstance(positional[0], nn.Conv1d):
        # data2vec's stack of convolutions is not of this layout.
        return None
    settings = getattr(expert, "task_cfg", None) or getattr(expert, "cfg", None)
    normalize = bool(getattr(settings, "normalize", getattr(expert, "wav_normalize", False)))
    encoder = Encoder.from_config(_config(config_class, model), normalize)
    wanted = encoder.model.state_dict()
    weights = rename(model.state_dict())
    if model.post_extract_proj is None:
        # fairseq leaves the projection out where the CNN is as wide as the transformer.
        weights["feature_projection.projection.weight"] = torch.eye(encoder.hidden_size)
        weights["feature_projection.projection.bias"] = torch.zeros(encoder.hidden_size)
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


def _config(config_class: type, model: nn.Module) -> Any:
    # Read off the modules: s3prl's HubertModel does not keep the configuration it was made from.
    convs = [block[0] for block in model.feature_extractor.conv_layers]
    layer = model.encoder.layers[0]
    positional = model.encoder.pos_conv[0]
    attention = layer.self_attn
    first = model.feature_extractor.conv_layers[0]
    group = any(isinstance(module, nn.GroupNorm) for module in first.modules())
    extra = {}
    if config_class is WavLMConfig:
        extra = {
            "num_buckets": attention.num_buckets,
            "max_bucket_distance": attention.max_distance,
        }
    return config_class(
        hidden_size=layer.fc1.in_features,
        num_hidden_layers=len(model.encoder.layers),
        num_attention_heads=attention.num_heads,
        intermediate_size=layer.fc1.out_features,
        hidden_dropout=layer.dropout3.p,
        activation_dropout=layer.dropout2.p,
        attention_dropout=float(getattr(attention.dropout_module, "p", 0.0)),
        feat_proj_dropout=model.dropout_input.p,
        feat_extract_norm="group" if group else "layer",
        conv_dim=[conv.out_channels for conv in convs],
        conv_kernel=[conv.kernel_size[0] for conv in convs],
        conv_stride=[conv.stride[0] for conv in convs],
        conv_bias=convs[0].bias is not None,
        num_feat_extract_layers=len(convs),
        num_conv_pos_embeddings=positional.kernel_size[0],
        num_conv_pos_embedding_groups=positional.groups,
        do_stable_layer_norm=model.encoder.layer_norm_first,
        **extra,
    )
