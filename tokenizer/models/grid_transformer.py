"""The transformers of GigaTok's 2D tokenizers: h*w grid cells stay h*w tokens, row-major.

Two block types were released. `vit` (S-B, B-L): positions are added once, then plain blocks. `qformer` (what the S-S
config really builds): Q-Former blocks whose memory is the current, un-normalised tokens, with the position table on
queries and keys of every attention. Shapes: maps (B,z_channels,h,w), tokens (B,h*w,C).
"""

from __future__ import annotations

from torch import Tensor, nn

from tokenizer.models.attention import QFormerBlock, ViTBlock
from tokenizer.models.query_transformer import position_table, semantic_mlp

BLOCKS = {"vit": ViTBlock, "qformer": QFormerBlock}


class GridTransformer(nn.Module):
    """Tokens of z_channels -> normed residual stream of the transformer's width."""

    def __init__(
        self, dims: tuple[int, int, int], grid: int, z_channels: int, block: str, position_std: float | None
    ) -> None:
        super().__init__()
        width, layers, heads = dims
        self.grid, self.block = grid, block
        self.positional_embedding = position_table(grid * grid, width, position_std)
        self.ln_pre = nn.LayerNorm(z_channels)
        self.embed = nn.Linear(z_channels, width)
        self.transformer = nn.ModuleList(BLOCKS[block](width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def stream(
        self, tokens: Tensor, last_layer: int | None = None, tap: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream after block `last_layer` (default all), and after block `tap` (from 1) where reached."""
        x, inner, positions = self.embed(self.ln_pre(tokens)), None, self.positional_embedding
        if self.block == "vit":
            x = x + positions
        for number, block in enumerate(self.transformer[:last_layer], start=1):
            x = block(x) if self.block == "vit" else block(x, x, positions, positions)
            if number == tap:
                inner = x
        return x, inner


class GridEncoder(GridTransformer):
    """Grid features (B,z_channels,h,w) -> latent tokens (B,h*w,z_channels)."""

    def __init__(
        self, dims: tuple[int, int, int], grid: int, z_channels: int, block: str, position_std: float | None
    ) -> None:
        super().__init__(dims, grid, z_channels, block, position_std)
        self.out_proj = nn.Linear(dims[0], z_channels)

    def features(self, grid_features: Tensor) -> Tensor:
        """Tokens of width C after the last norm (B,h*w,C): the features of the encoder's linear probe."""
        return self.ln_post(self.stream(grid_features.flatten(2).transpose(1, 2))[0])

    def forward(self, grid_features: Tensor) -> Tensor:
        return self.out_proj(self.features(grid_features))


class GridDecoder(GridTransformer):
    """Latent tokens (B,h*w,z_channels) -> grid features (B,z_channels,h,w), with a semantic head on an inner block."""

    def __init__(
        self,
        dims: tuple[int, int, int],
        grid: int,
        z_channels: int,
        block: str,
        position_std: float | None,
        semantic_layer: int | None,
        semantic_dim: int,
    ) -> None:
        super().__init__(dims, grid, z_channels, block, position_std)
        self.semantic_layer = semantic_layer
        self.conv_out = nn.Conv2d(dims[0], z_channels, 3, padding=1)
        self.semantic_head = semantic_mlp(dims[0], semantic_dim) if semantic_layer is not None else None

    def features(self, latents: Tensor, last_layer: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The residual stream (B,h*w,C) after block `last_layer` (default all), and after the semantic layer."""
        return self.stream(latents, last_layer, self.semantic_layer)

    def forward(self, latents: Tensor, semantic: bool = False) -> tuple[Tensor, Tensor | None]:
        tokens, inner = self.features(latents)
        as_map = self.ln_post(tokens).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.conv_out(as_map), self.semantic_head(inner) if semantic else None
