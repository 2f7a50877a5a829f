"""What all tokenizers share: from images to codes and back, and what they return in training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

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


class Tokenizer(nn.Module):
    """A network with `encode_features`, `latents`, a `quantizer` and `decode`."""

    def encode(self, images: Tensor) -> Quantized:
        """Images -> quantized latents and indices."""
        return self.quantizer(self.latents(self.encode_features(images)))

    def decode_indices(self, indices: Tensor, *grid: tuple[int, int] | None) -> Tensor:
        """Indices (B,N) or (B,N,G) -> images, for `decode`. The published rFID is that of encode -> decode_indices."""
        return self.decode(self.quantizer.decode_indices(indices), *grid)
