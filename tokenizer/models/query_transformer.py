"""The Q-Formers of GigaTok's 1D tokenizers (arXiv:2504.08736, section 3.1 and figure 3).

`QueryEncoder` turns a map into a sequence of N latent tokens, `QueryDecoder` turns them back into a map.

Shapes    maps (B,z_channels,h,w), whose h*w grid cells are in row-major order      tokens (B,N,C), C = width
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.flops import conv_flops, linear_flops
from engine.messages import ConfigError
from engine.registry import lookup
from engine.validation import Problem, Section, at_least, one_of
from tokenizer.models.attention import QFormerBlock

Dims = tuple[int, int, int]  # width, layers, heads
SIZES: dict[str, Dims] = {  # GigaTok, table 1
    "small": (512, 6, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "xl": (1280, 36, 20),
    "xxl": (1536, 48, 24),
}


@dataclass(kw_only=True, slots=True)
class TransformerConfig(Section):
    """A named size, or a width, number of layers and number of heads."""

    size: str | None = None  # small | base | large | xl | xxl
    width: int | None = None
    layers: int | None = None
    heads: int | None = None

    def problems(self) -> Iterator[Problem]:
        if self.size is not None:
            yield from one_of(self, "size", SIZES)

        numbers = {"width": self.width, "layers": self.layers, "heads": self.heads}
        present = [name for name, number in numbers.items() if number is not None]
        absent = [name for name, number in numbers.items() if number is None]
        for name in present:
            yield from at_least(self, name, 1)

        # Either a size or all three numbers. A section that sets nothing is right where its model is not in use;
        # where it is, `dims` refuses it.
        if self.size is not None:
            for name in present:
                yield Problem(name, numbers[name], f"null where size={self.size} is set")
        elif present:
            for name in absent:
                yield Problem(name, None, f"1 or more where {' and '.join(present)} is set; or give size alone")
        if not absent and self.heads > 0 and self.width % self.heads != 0:
            yield Problem("width", self.width, f"divisible by heads={self.heads}")

    def dims(self, key: str) -> Dims:
        """(width, layers, heads): those of the named size, or its own. `key` is the dotted key of this section.

        Raises ConfigError where both or neither are given.
        """
        explicit = (self.width, self.layers, self.heads)
        if self.size is not None:
            if explicit != (None, None, None):
                raise ConfigError(f"{key}: give either size={self.size} or width, layers and heads, not both")
            return lookup(SIZES, self.size, f"{key}.size")
        if None in explicit or min(explicit) < 1:
            raise ConfigError(
                f"{key}: give size (one of {', '.join(SIZES)}) or width, layers and heads, each 1 or more"
            )
        return explicit


def is_power_of_two(number: int) -> bool:
    """Whether `number` is 1, 2, 4, 8, ..."""
    return number > 0 and number.bit_count() == 1


def pooling_boxes(num_tokens: int) -> list[tuple[int, int]]:
    """(rows, columns) of the boxes of each pooling level: 1x1, 1x1, 1x2, 2x2, 2x4, ...

    All levels together have `num_tokens` boxes.

    Raises ValueError where `num_tokens` is not a power of 2.
    """
    if not is_power_of_two(num_tokens):
        raise ValueError(f"num_tokens={num_tokens} is not a power of 2")
    num_levels = num_tokens.bit_length()

    # Each further level has as many boxes as all levels before it together: 1, then 1, 2, 4, ...
    boxes = [(1, 1)]
    for exponent in range(num_levels - 1):
        rows = 2 ** (exponent // 2)
        columns = 2 ** ((exponent + 1) // 2)
        boxes.append((rows, columns))
    return boxes


def multi_level_pooling(x: Tensor, num_tokens: int) -> Tensor:
    """Averages a map over ever finer boxes, the initial 1D queries: (B,C,h,w) -> (B,num_tokens,C).

    Tokens go from coarse to fine. From level to level the boxes are halved, first in width, then in height, and so on;
    those of a level are in row-major order. The mean of the whole map stands twice, as tokens 0 and 1.
    """
    pooled = [F.adaptive_avg_pool2d(x, box).flatten(2) for box in pooling_boxes(num_tokens)]
    return torch.cat(pooled, dim=2).transpose(1, 2)


def position_table(length: int, width: int, std: float | None) -> nn.Parameter:
    """A learned table (length, width), initially normal with std `std`, by default width ** -0.5."""
    return nn.Parameter(torch.randn(length, width) * (width**-0.5 if std is None else std))


def semantic_mlp(width: int, out_dim: int) -> nn.Module:
    """The head that maps inner decoder features to the teacher's width. It is used in training only."""
    hidden = 4 * width
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, out_dim),
    )


def mlp_flops(mlp: nn.Module, rows: int) -> int:
    """Operations of the linear layers of `mlp` on `rows` vectors (engine/flops.py)."""
    return sum(linear_flops(layer, rows) for layer in mlp.modules() if isinstance(layer, nn.Linear))


class QueryEncoder(nn.Module):
    """Grid features (B,z_channels,h,w) -> N latent tokens (B,N,z_channels).

    The queries are averages of the embedded map over boxes; the memory is the embedded map itself. With `padding` P the
    last P queries stand twice, the second time with positions of their own (ReTok): then N + P tokens come out. The
    tokens see each other, so the padding is computed in evaluation, too, and cut by the caller.
    """

    def __init__(
        self, dims: Dims, grid: int, num_tokens: int, z_channels: int, position_std: float | None, padding: int = 0
    ) -> None:
        super().__init__()
        width, layers, heads = dims
        self.grid = grid  # cells per side
        self.num_tokens = num_tokens
        self.padding = padding

        # Positions of the memory (grid cells) and of the queries (latent tokens).
        self.positional_embedding = position_table(grid * grid, width, position_std)
        self.latent_positional_embedding = position_table(num_tokens, width, position_std)

        self.ln_pre = nn.LayerNorm(z_channels)
        self.embed = nn.Linear(z_channels, width)
        self.global_proj = nn.Linear(width, width)
        self.transformer = nn.ModuleList(QFormerBlock(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, z_channels)
        if padding > 0:
            self.padding_positional_embedding = position_table(padding, width, position_std)

    def features(self, grid_features: Tensor) -> Tensor:
        """Tokens after the last norm (B,N,C): the features of the encoder's linear probe."""
        # The memory: one token per grid cell.
        memory = self.embed(self.ln_pre(grid_features.flatten(2).transpose(1, 2)))

        # The queries: averages of the memory, laid out as a map again.
        as_map = memory.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        tokens = self.global_proj(multi_level_pooling(as_map, self.num_tokens))
        positions = self.latent_positional_embedding
        if self.padding > 0:
            tokens = torch.cat([tokens, tokens[:, -self.padding :]], dim=1)
            positions = torch.cat([positions, self.padding_positional_embedding])

        for block in self.transformer:
            tokens = block(tokens, memory, positions, self.positional_embedding)
        return self.ln_post(tokens)

    def forward(self, grid_features: Tensor) -> Tensor:
        return self.out_proj(self.features(grid_features))

    def flops(self) -> int:
        """Operations for one image (engine/flops.py)."""
        cells = self.grid**2
        count = self.num_tokens + self.padding
        blocks = sum(block.flops(count, cells) for block in self.transformer)
        on_tokens = linear_flops(self.global_proj, self.num_tokens) + linear_flops(self.out_proj, count)
        return linear_flops(self.embed, cells) + blocks + on_tokens


class QueryDecoder(nn.Module):
    """Latent tokens (B,N,z_channels) -> grid features (B,z_channels,h,w), with a semantic head.

    It takes the first k tokens of an image too, for any k: as fewer tokens, or with the others hidden.

    All grid queries start as the first latent token; the memory is the latent tokens. The semantic head reads the
    residual stream right after block `semantic_layer` (counted from 1) and gives (B,h*w,semantic_dim). It exists for
    training only: decoding never calls it.
    """

    def __init__(
        self,
        dims: Dims,
        grid: int,
        num_tokens: int,
        z_channels: int,
        position_std: float | None,
        semantic_layer: int | None,
        semantic_dim: int,
    ) -> None:
        super().__init__()
        width, layers, heads = dims
        self.grid = grid  # cells per side
        self.semantic_layer = semantic_layer  # None: there is no semantic head

        # Positions of the queries (grid cells) and of the memory (latent tokens).
        self.positional_embedding = position_table(grid * grid, width, position_std)
        self.latent_positional_embedding = position_table(num_tokens, width, position_std)

        self.ln_pre = nn.LayerNorm(z_channels)
        self.embed = nn.Linear(z_channels, width)
        self.transformer = nn.ModuleList(QFormerBlock(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)
        self.semantic_head = semantic_mlp(width, semantic_dim) if semantic_layer is not None else None

    def features(
        self, latents: Tensor, last_layer: int | None = None, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Residual streams (B,h*w,C) after block `last_layer` (default: the last) and the semantic layer.

        The second is None where the semantic layer is not reached. `visible` (B,N) hides tokens where it is false; the
        first one must be visible.
        """
        memory = self.embed(self.ln_pre(latents))
        memory_positions = self.latent_positional_embedding
        if latents.shape[1] < len(memory_positions):
            memory_positions = memory_positions[: latents.shape[1]]
        tokens = memory[:, :1].expand(-1, self.grid * self.grid, -1)
        semantic_tokens = None
        for number, block in enumerate(self.transformer[:last_layer], start=1):
            tokens = block(tokens, memory, self.positional_embedding, memory_positions, visible)
            if number == self.semantic_layer:
                semantic_tokens = tokens
        return tokens, semantic_tokens

    def early_features(self, latents: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens of the grid after the first block, and the mean of the visible latents' embedding: (B,h*w+1,C)."""
        tokens, _ = self.features(latents, last_layer=1, visible=visible)
        memory = self.embed(self.ln_pre(latents))
        if visible is None:
            mean = memory.mean(1, keepdim=True)
        else:
            shares = visible / visible.sum(1, keepdim=True)
            mean = (memory * shares[..., None]).sum(1, keepdim=True)
        return torch.cat([tokens, mean.to(tokens.dtype)], dim=1)

    def forward(
        self, latents: Tensor, semantic: bool = False, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Grid features, and with `semantic` the output of the semantic head. `visible`: see `features`."""
        tokens, semantic_tokens = self.features(latents, visible=visible)
        as_map = self.ln_post(tokens).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        semantic_features = self.semantic_head(semantic_tokens) if semantic else None
        return self.conv_out(as_map), semantic_features

    def flops(self, semantic: bool) -> int:
        """Operations for one image (engine/flops.py), with the semantic head or without."""
        cells = self.grid**2
        num_tokens = len(self.latent_positional_embedding)
        blocks = sum(block.flops(cells, num_tokens) for block in self.transformer)
        head = mlp_flops(self.semantic_head, cells) if semantic else 0
        return linear_flops(self.embed, num_tokens) + blocks + conv_flops(self.conv_out, cells) + head

    def early_flops(self) -> int:
        """Operations of `early_features` for one image (engine/flops.py)."""
        num_tokens = len(self.latent_positional_embedding)
        return 2 * linear_flops(self.embed, num_tokens) + self.transformer[0].flops(self.grid**2, num_tokens)
