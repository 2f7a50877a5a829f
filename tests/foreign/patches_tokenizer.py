"""A foreign tokenizer: a transformer over image patches, with features for probes and a semantic head."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.messages import ConfigError
from engine.validation import Problem, Section, at_least
from tokenizer.models.base import FeatureSource, Tokenizer, TokenizerOutput
from tokenizer.models.registry import MODELS
from tokenizer.quantizers.base import Quantizer


@dataclass(kw_only=True, slots=True)
class PatchesConfig(Section):
    """Sizes."""

    patch: int = 4  # pixels per side
    width: int = 16
    layers: int = 2  # of the encoder and of the decoder
    semantic_dim: int = 3  # channels of the teacher

    def problems(self) -> Iterator[Problem]:
        for name in ("patch", "width", "layers", "semantic_dim"):
            yield from at_least(self, name, 1)


class Block(nn.Module):
    """Pre-norm attention and MLP; sharded and recomputed as one."""

    parallel_unit = "shard"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm2(x))


class Patches(Tokenizer):
    """One token per patch."""

    config_class = PatchesConfig

    def __init__(self, config: PatchesConfig, quantizer: Quantizer, image_size: int) -> None:
        super().__init__()
        if image_size % config.patch:
            raise ConfigError(f"data.image_size={image_size} must be a multiple of model.patches.patch={config.patch}")
        self.config, self.image_size = config, image_size
        self.semantic_grid = image_size // config.patch
        self.num_tokens = self.semantic_grid**2
        width, pixels = config.width, 3 * config.patch**2
        self.embed = nn.Conv2d(3, width, config.patch, config.patch)
        self.positions = nn.Parameter(torch.randn(self.num_tokens, width) * 0.1)
        self.encoder = nn.ModuleList(Block(width) for _ in range(config.layers))
        self.to_latents = nn.Linear(width, quantizer.codebook_dim)
        self.quantizer = quantizer
        self.from_latents = nn.Linear(quantizer.codebook_dim, width)
        self.decoder = nn.ModuleList(Block(width) for _ in range(config.layers))
        self.semantic_head = nn.Linear(width, config.semantic_dim)
        self.to_pixels = nn.Linear(width, pixels)

    @classmethod
    def capabilities_of(cls, section: PatchesConfig) -> frozenset[str]:
        return frozenset({"semantic"})

    @classmethod
    def semantic_dim_of(cls, section: PatchesConfig) -> int:
        return section.semantic_dim

    def encode_features(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).mT + self.positions
        for block in self.encoder:
            x = block(x)
        return x.mT.unflatten(2, (self.semantic_grid, self.semantic_grid))

    def latents(self, features: Tensor) -> Tensor:
        return self.to_latents(features.flatten(2).mT)

    def decoder_tokens(self, z_q: Tensor, layer: int | None = None) -> Tensor:
        x = self.from_latents(z_q) + self.positions
        for block in self.decoder[:layer]:
            x = block(x)
        return x

    def to_images(self, tokens: Tensor) -> Tensor:
        return nn.functional.fold(
            self.to_pixels(tokens).mT, self.image_size, self.config.patch, stride=self.config.patch
        )

    def decode(self, z_q: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self.to_images(self.decoder_tokens(z_q))

    def forward(
        self,
        images: Tensor,
        *,
        quantize: bool = True,
        entropy: bool = False,
        shortcut: bool = False,
        semantic: bool = False,
    ) -> TokenizerOutput:
        features = self.encode_features(images)
        quantized = self.quantizer(self.latents(features), quantize=quantize, entropy=entropy)
        tokens = self.decoder_tokens(quantized.z_q)
        return TokenizerOutput(
            reconstructions=self.to_images(tokens),
            quantized=quantized,
            encoder_features=features,
            decoder_features=tokens.mT.unflatten(2, (self.semantic_grid, self.semantic_grid)),
            semantic_features=self.semantic_head(tokens) if semantic else None,
        )

    def feature_sources(self) -> dict[str, FeatureSource]:
        def encoder(images: Tensor, layer: int | None) -> Tensor:
            return self.encode_features(images).flatten(2).mT

        def decoder(images: Tensor, layer: int | None) -> Tensor:
            return self.decoder_tokens(self.encode(images).z_q, layer)

        grid = (self.semantic_grid, self.semantic_grid)
        return {
            "encoder": FeatureSource("patch tokens", encoder, grid=grid),
            "decoder": FeatureSource("decoder block", decoder, len(self.decoder), len(self.decoder), grid),
        }

    def facts(self) -> dict[str, Any]:
        return {"patch": self.config.patch}


MODELS["patches"] = Patches
