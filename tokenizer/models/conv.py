"""Base class of purely convolutional tokenizers: CNN encoder, quantizer of grid cells, CNN decoder.

They take images of any height and width that are multiples of the CNN's factor, and a token is one cell of the grid;
but for a quantizer that takes one size of grid (`Quantizer.grid_side`).

Shapes    images (B,3,H,W) in [-1,1]      z, z_q (B,h*w,codebook_dim), row-major      indices (B,h*w) or (B,h*w,G)
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from engine.flops import TRAINED, PartFlops
from engine.messages import ConfigError
from tokenizer.models.base import FeatureSource, Tokenizer, TokenizerOutput
from tokenizer.models.cnn import CNNConfig
from tokenizer.quantizers.base import Quantizer


class ConvTokenizer(Tokenizer):
    """A tokenizer without a transformer.

    `image_size`, `num_cells` of its grid and `num_tokens` are those of training until `set_image_size`.

    A subclass sets `encoder` and `decoder`. Where channels of CNN and quantizer differ it extends `latents` and
    `decoder_input` by projections; a decoder that takes more than features overrides `decode_features`.
    """

    encoder: nn.Module
    decoder: nn.Module
    decoder_parts = ("decoder",)

    def __init__(self, cnn: CNNConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__()
        self.factor = cnn.factor
        self.quantizer = quantizer
        self.set_image_size(image_size)

    @classmethod
    def capabilities_of(cls, section: Any) -> frozenset[str]:
        return frozenset({"any_size"})

    @property
    def capabilities(self) -> frozenset[str]:
        abilities = super().capabilities
        return abilities if self.quantizer.grid_side is None else abilities - {"any_size"}

    def set_image_size(self, image_size: int) -> None:
        """Makes another square size the usual one: nothing in the network depends on it.

        Raises ConfigError where the size is no multiple of `factor`, has fewer than `min_cells` cells per side, or more
        or fewer than the quantizer takes.
        """
        # What the convolutions take, and what the quantizer does.
        min_size = self.min_cells * self.factor
        if image_size < min_size or image_size % self.factor != 0:
            raise ConfigError(
                f"data.image_size={image_size} (--image-size) does not fit the model: it must be a multiple of "
                f"{self.factor}, {min_size} or more"
            )
        side = image_size // self.factor
        if self.quantizer.grid_side not in (None, side):
            raise ConfigError(
                f"data.image_size={image_size} (--image-size) does not fit the quantizer: it takes a grid of "
                f"{self.quantizer.grid_side} cells per side, which is that of {self.quantizer.grid_side * self.factor} "
                "pixels"
            )

        self.image_size = image_size
        self.num_cells = side**2
        self.num_tokens = self.quantizer.num_indices(self.num_cells)

    def forward(
        self,
        images: Tensor,
        *,
        quantize: bool = True,
        entropy: bool = False,
        shortcut: bool = False,
        semantic: bool = False,
        random_bits: Tensor | None = None,
    ) -> TokenizerOutput:
        """A full pass. Raises ValueError for `shortcut` and `semantic`.

        There is no transformer to take a shortcut around, and no semantic head.
        """
        if shortcut or semantic:
            raise ValueError("a convolutional tokenizer has neither a shortcut nor a semantic head")
        features = self.encode_features(images)
        latents = self.latents(features)
        quantized = self.quantize_latents(latents, quantize=quantize, entropy=entropy, random_bits=random_bits)
        decoded = self.decoder_input(quantized.z_q, features.shape[2:])
        return TokenizerOutput(
            reconstructions=self.decode_features(decoded),
            quantized=quantized,
            encoder_features=features,
            decoder_features=decoded,
        )

    def encode_features(self, images: Tensor) -> Tensor:
        """Images -> CNN features (B,z_channels,h,w).

        Raises ValueError for a size that is no multiple of the factor.
        """
        _, channels, height, width = images.shape
        if channels != 3 or height % self.factor != 0 or width % self.factor != 0:
            raise ValueError(f"images must be (B, 3, multiples of {self.factor}), found {tuple(images.shape)}")
        return self.encoder(images)

    def latents(self, features: Tensor) -> Tensor:
        """CNN features -> latents before quantization (B,h*w,codebook_dim)."""
        return features.flatten(2).transpose(1, 2)

    def decoder_input(self, z_q: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Quantized latents (B,h*w,codebook_dim) -> features (B,z_channels,h,w). `grid` is (h, w); None: square."""
        if grid is None:
            side = math.isqrt(z_q.shape[1])
            grid = (side, side)
        return z_q.transpose(1, 2).unflatten(2, tuple(grid))

    def decode_features(self, features: Tensor) -> Tensor:
        """Features (B,z_channels,h,w) -> images, not clamped."""
        return self.decoder(features)

    def decode(self, z_q: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Quantized latents (B,h*w,codebook_dim) -> images, not clamped. `grid` is (h, w), by default square."""
        return self.decode_features(self.decoder_input(z_q, grid))

    def training_flops(
        self, *, entropy: bool = False, shortcut: bool = False, semantic: bool = False
    ) -> tuple[PartFlops, ...]:
        is_encoder_trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
        count = self.encoder.training_flops if is_encoder_trained else self.encoder.flops
        decoder = TRAINED * self.decoder.flops(self.image_size // self.factor)
        return (
            PartFlops("encoder", "convolution", count(self.image_size), recomputed=is_encoder_trained),
            PartFlops("quantizer", "matrix", self.quantizer.training_flops(self.num_cells, entropy), True),
            PartFlops("decoder", "convolution", decoder, recomputed=True),
        )

    def encoding_flops(self) -> tuple[PartFlops, ...]:
        quantizer = self.quantizer.training_flops(self.num_cells, entropy=False)
        return (
            PartFlops("tokenizer's encoder", "convolution", self.encoder.flops(self.image_size), True),
            PartFlops("tokenizer's quantizer", "matrix", quantizer, True),
        )

    @property
    def token_grid(self) -> tuple[int, int] | None:
        return self._grid if self.num_tokens == self.num_cells else None

    @property
    def _grid(self) -> tuple[int, int]:
        """(rows, columns) of the features of an image of `image_size`."""
        side = self.image_size // self.factor
        return side, side

    def feature_sources(self) -> dict[str, FeatureSource]:
        def encoder_features(images: Tensor, layer: int | None) -> Tensor:
            return self.encode_features(images).flatten(2).mT

        return {"encoder": FeatureSource("encoder features", encoder_features, grid=self._grid)}
