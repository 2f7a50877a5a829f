"""What a tokenizer returns in training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenizer.quantizers.base import Quantized


@dataclass
class TokenizerOutput:
    """One training forward pass."""

    reconstructions: Tensor  # (B,3,H,W), not clamped
    quantized: Quantized
    encoder_features: Tensor  # CNN encoder output (B,z_channels,h,w)
    decoder_features: Tensor  # transformer decoder output (B,z_channels,h,w), what the CNN decoder sees
    shortcut_reconstructions: Tensor | None = None  # CNN decoder applied to `encoder_features`
    semantic_features: Tensor | None = None  # (B,h*w,semantic_dim)
