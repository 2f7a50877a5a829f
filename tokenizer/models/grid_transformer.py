"""The transformers of GigaTok's 2D tokenizers (arXiv:2504.08736): every grid cell stays one token.

Two types of blocks were released:

    vit        S-B and B-L: positions are added once, before the first block; the blocks are plain ones
    qformer    what the S-S config really builds: Q-Former blocks whose memory is the current tokens, not normed, and
               whose attentions all add the table of positions to their queries and keys

Shapes    maps (B,z_channels,h,w)      tokens (B,h*w,C), row-major, C = width
"""

from __future__ import annotations

from torch import Tensor, nn

from engine.flops import conv_flops, linear_flops
from tokenizer.models.attention import QFormerBlock, ViTBlock
from tokenizer.models.query_transformer import Dims, mlp_flops, position_table, semantic_mlp

BLOCKS: dict[str, type[nn.Module]] = {"vit": ViTBlock, "qformer": QFormerBlock}


def _run_vit_block(block: nn.Module, tokens: Tensor, positions: Tensor) -> Tensor:
    return block(tokens)  # positions were added before the first block


def _run_qformer_block(block: nn.Module, tokens: Tensor, positions: Tensor) -> Tensor:
    return block(tokens, tokens, positions, positions)


class GridTransformer(nn.Module):
    """Tokens (B,h*w,z_channels) -> residual stream (B,h*w,C). Subclasses add what comes after it."""

    def __init__(self, dims: Dims, grid: int, z_channels: int, block: str, position_std: float | None) -> None:
        super().__init__()
        width, layers, heads = dims
        self.grid = grid  # cells per side
        self.block = block  # a name in BLOCKS
        self.positional_embedding = position_table(grid * grid, width, position_std)
        self.ln_pre = nn.LayerNorm(z_channels)
        self.embed = nn.Linear(z_channels, width)
        self.transformer = nn.ModuleList(BLOCKS[block](width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def stream(
        self, tokens: Tensor, last_layer: int | None = None, tap: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Residual streams (B,h*w,C) after block `last_layer` (default: the last) and after block `tap`.

        Blocks are counted from 1. The second is None where block `tap` is not reached.
        """
        positions = self.positional_embedding
        x = self.embed(self.ln_pre(tokens))
        run_block = _run_qformer_block
        if self.block == "vit":
            x = x + positions
            run_block = _run_vit_block

        tapped = None
        for number, block in enumerate(self.transformer[:last_layer], start=1):
            x = run_block(block, x, positions)
            if number == tap:
                tapped = x
        return x, tapped

    def stream_flops(self) -> int:
        """Operations of `stream` for one image (engine/flops.py)."""
        cells = self.grid**2
        sizes = (cells,) if self.block == "vit" else (cells, cells)
        return linear_flops(self.embed, cells) + sum(block.flops(*sizes) for block in self.transformer)


class GridEncoder(GridTransformer):
    """Grid features (B,z_channels,h,w) -> latent tokens (B,h*w,z_channels)."""

    def __init__(self, dims: Dims, grid: int, z_channels: int, block: str, position_std: float | None) -> None:
        super().__init__(dims, grid, z_channels, block, position_std)
        width, _, _ = dims
        self.out_proj = nn.Linear(width, z_channels)

    def features(self, grid_features: Tensor) -> Tensor:
        """Tokens after the last norm (B,h*w,C): the features of the encoder's linear probe."""
        tokens, _ = self.stream(grid_features.flatten(2).transpose(1, 2))
        return self.ln_post(tokens)

    def forward(self, grid_features: Tensor) -> Tensor:
        return self.out_proj(self.features(grid_features))

    def flops(self) -> int:
        """Operations for one image (engine/flops.py)."""
        return self.stream_flops() + linear_flops(self.out_proj, self.grid**2)


class GridDecoder(GridTransformer):
    """Latent tokens (B,h*w,z_channels) -> grid features (B,z_channels,h,w), with a semantic head.

    The semantic head reads the residual stream right after block `semantic_layer` (counted from 1) and gives
    (B,h*w,semantic_dim). It exists for training only: decoding never calls it.
    """

    def __init__(
        self,
        dims: Dims,
        grid: int,
        z_channels: int,
        block: str,
        position_std: float | None,
        semantic_layer: int | None,
        semantic_dim: int,
    ) -> None:
        super().__init__(dims, grid, z_channels, block, position_std)
        width, _, _ = dims
        self.semantic_layer = semantic_layer  # None: there is no semantic head
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)
        self.semantic_head = semantic_mlp(width, semantic_dim) if semantic_layer is not None else None

    def features(self, latents: Tensor, last_layer: int | None = None) -> tuple[Tensor, Tensor | None]:
        """`stream` with the semantic layer as its tap."""
        return self.stream(latents, last_layer, self.semantic_layer)

    def forward(self, latents: Tensor, semantic: bool = False) -> tuple[Tensor, Tensor | None]:
        """Grid features, and with `semantic` the output of the semantic head."""
        tokens, semantic_tokens = self.features(latents)
        as_map = self.ln_post(tokens).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        semantic_features = self.semantic_head(semantic_tokens) if semantic else None
        return self.conv_out(as_map), semantic_features

    def flops(self, semantic: bool) -> int:
        """Operations for one image (engine/flops.py), with the semantic head or without."""
        cells = self.grid**2
        head = mlp_flops(self.semantic_head, cells) if semantic else 0
        return self.stream_flops() + conv_flops(self.conv_out, cells) + head
