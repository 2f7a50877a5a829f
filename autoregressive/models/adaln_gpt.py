"""The GPT of IBQ (arXiv:2412.02692): that of LlamaGen, whose layers are also modulated by the class (AdaLN).

The class c = class_embedding[label] is the first input, as in the GPT. It also scales and shifts the normed input of
every attention and MLP, gates what they add (as released, without 1 +), and scales and shifts the last norm:

    (g1, g2, s1, s2, b1, b2) = W SiLU(c) + b           six chunks, W is (6C,C)
    x <- x + g1 * Attention(RMS(x) * (1 + s1) + b1)
    x <- x + g2 * SwiGLU(RMS(x) * (1 + s2) + b2)
    logits = output(RMS(x) * (1 + s) + b)              (s, b) = W' SiLU(c) + b'

A modulation is one vector per image, the same at all positions. While tokens are decoded, it is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.conditioned_cache import ConditionedCache
from autoregressive.models.functional_steps import FunctionalStep
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.kv_cache import KVCache, LayerStep, Position
from autoregressive.models.layers import Layer, RMSNorm
from engine.flops import linear_flops

SIZES = {  # width, layers, heads
    "b": (1024, 16, 16),
    "l": (1280, 20, 20),
    "xl": (1536, 24, 24),
    "xxl": (1920, 30, 30),
}
INIT_STD = 0.02
GATE_INIT, SHIFT_INIT = 1e-3, 0.5  # factors of the initial weights of gates, and of scales and shifts


@dataclass(kw_only=True, slots=True)
class AdaLNGPTConfig(GPTConfig):
    """The section of a GPT; its sizes are those of IBQ: b | l | xl | xxl."""

    SIZES: ClassVar[Mapping[str, tuple[int, int, int]]] = SIZES
    KEY: ClassVar[str] = "model.adaln_gpt"


class AdaLNLayer(Layer):
    """A layer of the GPT with AdaLN; see the module docstring."""

    forward_methods = ("modulations",)  # called from outside beside `forward`, also while the layer is sharded

    def __init__(self, width: int, heads: int, dropout: float, qk_norm: bool = False) -> None:
        super().__init__(width, heads, dropout, qk_norm)
        self.modulation = nn.Linear(width, 6 * width)

    def modulations(self, condition: Tensor) -> Tensor:
        """The class (B,C) -> its six vectors, (B,6C). Not for `forward` itself: a sharded layer would be let go of."""
        return self.modulation(F.silu(condition))

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None,
        cached: LayerStep | None = None,
        *,
        condition: Tensor | None = None,
        modulation: Tensor | None = None,
    ) -> Tensor:
        """x (B,N,C) with the class `condition` (B,C), or with what `modulations` has made of it."""
        if modulation is None:
            modulation = self.modulation(F.silu(condition))
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = modulation[:, None].chunk(6, dim=-1)
        x = x + gate_1 * self.attention(self.attention_norm(x) * (1 + scale_1) + shift_1, rope, cached)
        return x + gate_2 * self.feed_forward(self.ffn_norm(x) * (1 + scale_2) + shift_2)

    def flops(self, num_tokens: int) -> int:
        return super().flops(num_tokens) + linear_flops(self.modulation, 1)


class ModulatedNorm(nn.Module):
    """The last norm: RMSNorm, scaled and shifted by the class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.modulation = nn.Linear(width, 2 * width)

    def modulations(self, condition: Tensor) -> Tensor:
        """The class (B,C) -> scale and shift, (B,2C)."""
        return self.modulation(F.silu(condition))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B,N,C) with the result of `modulations`."""
        scale, shift = modulation[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class AdaLNGPT(GPT):
    """See the module docstring. The state that a factorized head reads has been through the modulated norm, too."""

    config_class = AdaLNGPTConfig
    in_words = "autoregressive transformer, modulated by the class"
    layer_class = AdaLNLayer
    head_norms = False

    def __init__(self, config: AdaLNGPTConfig) -> None:
        super().__init__(config)
        self.published_size = None  # the published settings of sampling by size are those of other GPTs
        width, _, _ = config.dims()
        self.final_norm = ModulatedNorm(width)

        # Initial values, as released: gates are almost closed.
        self._init(self.final_norm.modulation)
        with torch.no_grad():
            for layer in self.layers:
                weight = layer.modulation.weight
                weight[: 2 * width] *= GATE_INIT
                weight[2 * width :] *= SHIFT_INIT
            self.final_norm.modulation.weight *= SHIFT_INIT
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def pass_layers(self, x: Tensor, rope: Tensor | None, labels: Tensor, layer: int) -> Tensor:
        condition = self.class_embedding(labels)
        for block in self.layers[:layer]:
            x = block(x, rope, condition=condition)
        return x

    def finished(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return self.final_norm(hidden, self.final_norm.modulations(self.class_embedding(labels)))

    # ---------------------------------------------------------------------------------------- token by token
    def decode_hidden(
        self, inputs: Tensor, position: Position, cache: ConditionedCache, order: Tensor | None = None
    ) -> Tensor:
        if isinstance(position, int) and position == 0:
            cache.remember(self._conditions(inputs))
        return super().decode_hidden(inputs, position, cache, order)

    def decode_layers(self, x: Tensor, rope: Tensor | None, position: Position, cache: ConditionedCache) -> Tensor:
        modulations, of_norm = cache.conditions
        for layer, cached, modulation in zip(self.layers, cache.step(position), modulations, strict=True):
            x = layer(x, rope, cached, modulation=modulation)
        return self.final_norm(x, of_norm)

    def _conditions(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The modulations (layers,B,6C) of all layers and (B,2C) of the last norm, for classes (B,)."""
        condition = self.class_embedding(labels)
        of_layers = torch.stack([layer.modulations(condition) for layer in self.layers])
        return of_layers, self.final_norm.modulations(condition)

    def new_cache(self, batch_size: int) -> ConditionedCache:
        cache = super().new_cache(batch_size)
        width, layers, _ = self.config.dims()
        of_layers = torch.zeros(layers, batch_size, 6 * width, dtype=self.dtype, device=self.device)
        of_norm = torch.zeros(batch_size, 2 * width, dtype=self.dtype, device=self.device)
        return ConditionedCache(cache.keys, cache.values, (of_layers, of_norm))

    def cache_of(self, keys: Tensor, values: Tensor, labels: Tensor) -> KVCache:
        return ConditionedCache(keys, values, self._conditions(labels))

    def functional_step(self) -> FunctionalStep | None:
        """As of the GPT, for tokens of one index; the label is read at every position."""
        return super().functional_step() if len(self.codebook_sizes) == 1 else None

    def functional_head(self) -> None:
        return None
