"""LlamaGen's tokenizers VQ-16 and VQ-8 (arXiv:2406.06525): a VQGAN without transformer, the baseline of both papers.

Fully convolutional: images of any height and width that are multiples of the factor (16 or 8).

Shapes    images (B,3,H,W) in [-1,1]      z, z_q (B,h*w,codebook_dim), row-major      indices (B,h*w)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from engine.config import ConfigError
from tokenizer.models.cnn import LLAMAGEN, CNNConfig, CNNDecoder, CNNEncoder
from tokenizer.models.output import TokenizerOutput
from tokenizer.quantizers.base import Quantized, Quantizer


@dataclass(kw_only=True, slots=True)
class LlamaGenConfig:
    """Sizes; the multipliers 1,1,2,2,4 give VQ-16, and 1,2,2,4 VQ-8."""

    z_channels: int = 256  # channels between CNN and quantizer
    cnn: CNNConfig = field(default_factory=CNNConfig)


class LlamaGenTokenizer(nn.Module):
    """See the module docstring. `image_size` and `num_tokens` are those of training until `set_image_size`."""

    def __init__(self, config: LlamaGenConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__()
        self.factor = config.cnn.factor
        self.set_image_size(image_size)
        self.encoder = CNNEncoder(config.cnn, config.z_channels, LLAMAGEN)
        self.decoder = CNNDecoder(config.cnn, config.z_channels, LLAMAGEN)
        self.quantizer = quantizer
        self.quant_proj = nn.Linear(config.z_channels, quantizer.codebook_dim)
        self.post_quant_proj = nn.Linear(quantizer.codebook_dim, config.z_channels)

    def set_image_size(self, image_size: int) -> None:
        """Makes another square size the usual one: nothing of the network depends on it."""
        if image_size < self.factor or image_size % self.factor:
            raise ConfigError(f"image size {image_size} does not fit: it must be a multiple of {self.factor}")
        self.image_size, self.num_tokens = image_size, (image_size // self.factor) ** 2

    def forward(
        self,
        images: Tensor,
        *,
        quantize: bool = True,
        entropy: bool = False,
        shortcut: bool = False,
        semantic: bool = False,
    ) -> TokenizerOutput:
        """A full pass. There is no transformer to take a shortcut around, and no semantic head."""
        if shortcut or semantic:
            raise ValueError("the llamagen tokenizer has neither a shortcut nor a semantic head")
        features = self.encode_features(images)
        quantized = self.quantizer(self.latents(features), quantize=quantize, entropy=entropy)
        decoded = self.decoder_input(quantized.z_q, features.shape[2:])
        return TokenizerOutput(self.decoder(decoded), quantized, features, decoded)

    def encode_features(self, images: Tensor) -> Tensor:
        """CNN features (B,z_channels,h,w); a size that is not a multiple of the factor is an error."""
        if images.shape[1] != 3 or images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ValueError(f"images must be (B, 3, multiples of {self.factor}), found {tuple(images.shape)}")
        return self.encoder(images)

    def latents(self, features: Tensor) -> Tensor:
        """CNN features -> latents before quantization (B,h*w,codebook_dim)."""
        return self.quant_proj(features.flatten(2).transpose(1, 2))

    def decoder_input(self, z_q: Tensor, grid: tuple[int, int]) -> Tensor:
        """Quantized latents -> features (B,z_channels,h,w)."""
        return self.post_quant_proj(z_q).transpose(1, 2).unflatten(2, tuple(grid))

    def encode(self, images: Tensor) -> Quantized:
        """Images -> quantized latents and indices."""
        return self.quantizer(self.latents(self.encode_features(images)))

    def decode(self, z_q: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Quantized latents (B,h*w,codebook_dim) -> images, not clamped. `grid` is (h, w), by default square."""
        side = math.isqrt(z_q.shape[1])
        return self.decoder(self.decoder_input(z_q, grid or (side, side)))

    def decode_indices(self, indices: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Indices (B,h*w) -> images."""
        return self.decode(self.quantizer.decode_indices(indices), grid)
