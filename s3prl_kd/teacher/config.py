"""The embedded teacher's configuration."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass
class MiniConfig:
    """The embedded teacher and its pre-training.

    Attributes:
        channels: channels of the seven convolutions, which have HuBERT Base's kernels and strides.
        width: width of the transformer, a multiple of 16 (groups of its positional convolution)
            and of ``heads``.
        layers: transformer layers.
        heads: attention heads.
        ffn: inner width of the feed-forward parts.
        dropout: in attention, after it and after the feed-forward part, and after the projection
            of the convolutions' output. Fine-tuning inherits it.
        final_dim: dimension in which frames and units are compared.
        units: k-means clusters.
        iterations: how often units are made and predicted; 1 is MFCC units alone.
        unit_layer: the hidden state (1 is the first layer's) later units are made of.
        warm_start: a later iteration goes on from the weights of the one before (its unit
            embeddings start anew); otherwise from random ones, as in the paper.
        kmeans_frames: frames that k-means is fitted on.
        steps: optimiser steps of each iteration.
        steps_per_epoch: steps between two validations, checkpoints and rows of metrics.csv.
        batch_seconds: speech in a batch.
        min_seconds: shorter utterances are left out; too short to mask.
        max_valid_seconds: speech to validate on, drawn from unlabelled_valid.
        lr: peak learning rate of AdamW.
        warmup_share: share of the steps over which it rises linearly from 0; then it falls to 0.
        weight_decay: AdamW's.
        grad_clip: largest norm of the gradient of the loss per masked frame.
        mask_prob: HuBERT's: this share of the frames if spans did not overlap.
        mask_length: frames in a masked span.
        unmasked_weight: of the loss on unmasked frames; 0 in the paper, whose trainings are a
            thousand times longer. It teaches the model to hear the units, masks to foresee them.
        feature_grad_mult: factor on the gradient into the convolutions; null for 1.
        precision: ``bf16-mixed`` runs forward passes under bf16 autocast; ``auto`` does so on a
            GPU and on a CPU with bf16 instructions.
    """

    channels: int = 64
    width: int = 144
    layers: int = 12
    heads: int = 4
    ffn: int = 576
    dropout: float = 0.0
    final_dim: int = 64
    units: int = 50
    iterations: int = 2
    unit_layer: int = 6
    warm_start: bool = True
    kmeans_frames: int = 150_000
    steps: int = 400
    steps_per_epoch: int = 100
    batch_seconds: float = 8.0
    min_seconds: float = 0.3
    max_valid_seconds: float = 60.0
    lr: float = 5e-4
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    mask_prob: float = 0.5
    mask_length: int = 6
    unmasked_weight: float = 1.0
    feature_grad_mult: float | None = 0.1
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"

    def __post_init__(self) -> None:
        if self.width % 16 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of 16 and of heads")
        if not 1 <= self.unit_layer <= self.layers:
            raise ValueError(f"unit_layer {self.unit_layer} must be one of 1 to {self.layers}")
        if self.steps % self.steps_per_epoch:
            raise ValueError(
                f"steps {self.steps} must be a multiple of steps_per_epoch {self.steps_per_epoch}"
            )

    def encoder_conf(self) -> dict[str, Any]:
        """Arguments of ESPnet's ``TorchAudioHuBERTPretrainEncoder`` (and of torchaudio)."""
        kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
        return {
            "extractor_mode": "group_norm",
            "extractor_conv_layer_config": [
                [self.channels, kernel, stride]
                for kernel, stride in zip(kernels, strides, strict=True)
            ],
            "extractor_conv_bias": False,
            "encoder_embed_dim": self.width,
            "encoder_projection_dropout": self.dropout,
            "encoder_pos_conv_kernel": 128,
            "encoder_pos_conv_groups": 16,
            "encoder_num_layers": self.layers,
            "encoder_num_heads": self.heads,
            "encoder_attention_dropout": self.dropout,
            "encoder_ff_interm_features": self.ffn,
            "encoder_ff_interm_dropout": 0.0,
            "encoder_dropout": self.dropout,
            "encoder_layer_norm_first": False,
            "encoder_layer_drop": 0.0,
            "mask_prob": self.mask_prob,
            "mask_length": self.mask_length,
            "final_dim": self.final_dim,
            "feature_grad_mult": self.feature_grad_mult,
        }
