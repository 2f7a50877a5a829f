"""The Q-Formers of GigaTok's 1D tokenizers: `query_encoder` turns a 2D map into N latent tokens, `query_decoder` turns
them back.

Paper: arXiv:2504.08736, section 3.1 and figure 3. Shapes: maps (B,C,h,w) with h*w grid cells in row-major order; tokens
(B,N,C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.messages import ConfigError
from engine.registry import transformer_size
from tokenizer.models.attention import QFormerBlock

SIZES = {  # width, layers, heads (GigaTok, table 1)
    "small": (512, 6, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "xl": (1280, 36, 20),
    "xxl": (1536, 48, 24),
}


@dataclass(kw_only=True, slots=True)
class TransformerConfig:
    """A named size, or its own width, layers and heads."""

    size: str | None = None  # small | base | large | xl | xxl
    width: int | None = None
    layers: int | None = None
    heads: int | None = None

    def dims(self, key: str) -> tuple[int, int, int]:
        """(width, layers, heads); `key` names the section in messages."""
        width, layers, heads = transformer_size(self, SIZES, key)
        if width % heads:
            raise ConfigError(f"{key}: width={width} must be divisible by heads={heads}")
        return width, layers, heads


def pooling_boxes(num_tokens: int) -> list[tuple[int, int]]:
    """(rows, columns) of the boxes of each pooling level: 1x1, 1x1, 1x2, 2x2, 2x4, ...; `num_tokens` boxes in all."""
    levels = num_tokens.bit_length() - 1
    if num_tokens != 2**levels:
        raise ConfigError(f"model.hybrid.num_tokens={num_tokens} must be a power of 2")
    counted = [max(group - 1, 0) for group in range(levels + 1)]
    return [(2 ** (level // 2), 2 ** ((level + 1) // 2)) for level in counted]


def multi_level_pooling(x: Tensor, num_tokens: int) -> Tensor:
    """Averages of a map over ever finer boxes: the initial 1D queries. (B,C,h,w) -> (B,num_tokens,C), coarse to fine.

    The width is split first; boxes are in row-major order. The global mean stands twice, as tokens 0 and 1.
    """
    pooled = [nn.functional.adaptive_avg_pool2d(x, box).flatten(2) for box in pooling_boxes(num_tokens)]
    return torch.cat(pooled, dim=2).transpose(1, 2)


def position_table(count: int, width: int, std: float | None) -> nn.Parameter:
    """A learned table (count, width), normal with deviation `std`, by default width ** -0.5."""
    return nn.Parameter(torch.randn(count, width) * (width**-0.5 if std is None else std))


def semantic_mlp(width: int, out_dim: int) -> nn.Module:
    """The head that maps inner decoder features to the teacher's width; for training only."""
    hidden = 4 * width
    layers = (nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out_dim))
    return nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])


class QueryEncoder(nn.Module):
    """Grid features (B,z_channels,h,w) -> N latent tokens (B,N,z_channels)."""

    def __init__(
        self, dims: tuple[int, int, int], grid: int, num_tokens: int, z_channels: int, position_std: float | None
    ) -> None:
        super().__init__()
        width, layers, heads = dims
        self.grid, self.num_tokens = grid, num_tokens
        self.positional_embedding = position_table(grid * grid, width, position_std)  # of the memory
        self.latent_positional_embedding = position_table(num_tokens, width, position_std)  # of the queries
        self.ln_pre = nn.LayerNorm(z_channels)
        self.embed = nn.Linear(z_channels, width)
        self.global_proj = nn.Linear(width, width)
        self.transformer = nn.ModuleList(QFormerBlock(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, z_channels)

    def features(self, grid_features: Tensor) -> Tensor:
        """Tokens of width C after the last norm (B,N,C): the features of the encoder's linear probe."""
        memory = self.embed(self.ln_pre(grid_features.flatten(2).transpose(1, 2)))
        as_map = memory.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        tokens = self.global_proj(multi_level_pooling(as_map, self.num_tokens))
        for block in self.transformer:
            tokens = block(tokens, memory, self.latent_positional_embedding, self.positional_embedding)
        return self.ln_post(tokens)

    def forward(self, grid_features: Tensor) -> Tensor:
        return self.out_proj(self.features(grid_features))


class QueryDecoder(nn.Module):
    """Latent tokens (B,N,z_channels) -> grid features (B,z_channels,h,w), with a semantic head on an inner block.

    All grid queries start as the first latent token. The semantic head reads the residual stream right after block
    `semantic_layer` (counted from 1) and returns (B,h*w,semantic_dim); it exists for training and is never needed for
    images.
    """

    def __init__(
        self,
        dims: tuple[int, int, int],
        grid: int,
        num_tokens: int,
        z_channels: int,
        position_std: float | None,
        semantic_layer: int | None,
        semantic_dim: int,
    ) -> None:
        super().__init__()
        width, layers, heads = dims
        self.grid, self.semantic_layer = grid, semantic_layer
        self.positional_embedding = position_table(grid * grid, width, position_std)  # of the queries
        self.latent_positional_embedding = position_table(num_tokens, width, position_std)  # of the memory
        self.ln_pre = nn.LayerNorm(z_channels)
        self.embed = nn.Linear(z_channels, width)
        self.transformer = nn.ModuleList(QFormerBlock(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)
        self.semantic_head = semantic_mlp(width, semantic_dim) if semantic_layer is not None else None

    def features(self, latents: Tensor, last_layer: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The residual stream (B,h*w,C) after block `last_layer` (default all), and after the semantic layer where
        reached.
        """
        memory = self.embed(self.ln_pre(latents))
        tokens = memory[:, :1].expand(-1, self.grid * self.grid, -1)
        inner = None
        for number, block in enumerate(self.transformer[:last_layer], start=1):
            tokens = block(tokens, memory, self.positional_embedding, self.latent_positional_embedding)
            if number == self.semantic_layer:
                inner = tokens
        return tokens, inner

    def forward(self, latents: Tensor, semantic: bool = False) -> tuple[Tensor, Tensor | None]:
        tokens, inner = self.features(latents)
        as_map = self.ln_post(tokens).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.conv_out(as_map), self.semantic_head(inner) if semantic else None
