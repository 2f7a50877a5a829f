"""A foreign quantizer: every channel is one of -1, 0, 1; a loss of its own keeps the latents spread."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.devices import full_precision
from engine.validation import Problem, Section, in_range
from tokenizer.models.registry import QUANTIZERS
from tokenizer.quantizers.base import Quantized, Quantizer
from tokenizer.quantizers.gradients import straight_through


@dataclass(kw_only=True, slots=True)
class LatticeConfig(Section):
    """The number of channels; 3 ** channels codes."""

    channels: int = 3

    def problems(self) -> Iterator[Problem]:
        yield from in_range(self, "channels", 1, 12)


class Lattice(Quantizer):
    """Latents (B,N,D) -> tanh, rounded. `spread` is small where the channels are far from 0."""

    config_class = LatticeConfig
    loss_names = frozenset({"commitment", "spread"})
    loss_weights = {"spread": 0.1}

    def __init__(self, config: LatticeConfig) -> None:
        super().__init__((3**config.channels,), config.channels)
        self.register_buffer("places", 3 ** torch.arange(config.channels), persistent=False)

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        with full_precision(z.device):
            bounded = z.float().tanh()
            steps = (1.4 * bounded).round()
            indices = ((steps.long() + 1) * self.places).sum(-1)
            if self.training:
                self.remember(indices)
            if not quantize:
                return Quantized(bounded, indices)
            losses = {
                "commitment": (bounded - steps).square().mean(),
                "spread": 1 - bounded.abs().mean(),
            }
            return Quantized(straight_through(bounded, steps), indices, losses)

    def decode_indices(self, indices: Tensor) -> Tensor:
        return (indices.long()[..., None] // self.places % 3 - 1).float()


QUANTIZERS["lattice"] = Lattice
