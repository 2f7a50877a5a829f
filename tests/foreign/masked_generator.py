"""A foreign generator that is no GPT: it predicts masked tokens from the others, and unmasks them one by one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.models.base import Generator
from autoregressive.models.registry import GENERATORS
from autoregressive.sampling import Draw, probabilities
from engine.validation import Problem, Section, at_least


@dataclass(kw_only=True, slots=True)
class MaskedConfig(Section):
    """Sizes, and the data it is for."""

    width: int = 16
    layers: int = 2
    vocab_size: int = 27
    num_tokens: int = 16
    num_classes: int = 2
    class_dropout_prob: float = 0.1

    def problems(self) -> Iterator[Problem]:
        for name in ("width", "layers", "vocab_size", "num_tokens", "num_classes"):
            yield from at_least(self, name, 1)


class Mixer(nn.Module):
    """Tokens exchange what they know, then each thinks for itself."""

    parallel_unit = "shard"

    def __init__(self, width: int, num_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.tokens = nn.Linear(num_tokens, num_tokens)
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).mT).mT
        return x + self.channels(x)


class Masked(Generator):
    """Half of the tokens are masked in training; sampling begins with all of them masked."""

    config_class = MaskedConfig

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes, self.num_tokens = config.num_classes, config.num_tokens
        self.codebook_sizes = (config.vocab_size,)
        self.num_layers = config.layers
        self.class_dropout_prob = config.class_dropout_prob
        self.mask = config.vocab_size  # the index of "masked"
        self.tokens = nn.Embedding(config.vocab_size + 1, config.width)
        self.labels = nn.Embedding(config.num_classes + 1, config.width)
        self.layers = nn.ModuleList(Mixer(config.width, config.num_tokens) for _ in range(config.layers))
        self.output = nn.Linear(config.width, config.vocab_size)

    def features(self, labels: Tensor, tokens: Tensor, layer: int) -> Tensor:
        x = self.tokens(tokens) + self.labels(labels)[:, None]
        for block in self.layers[:layer]:
            x = block(x)
        return x

    def forward(self, labels: Tensor, tokens: Tensor, drop: Tensor | None = None) -> Any:
        if drop is not None:
            labels = torch.where(drop, self.null_class, labels)
        if self.training:
            masked = torch.rand(tokens.shape, device=tokens.device) < 0.5
        else:
            masked = torch.arange(self.num_tokens, device=tokens.device).expand_as(tokens) % 2 == 0
        hidden = self.features(labels, torch.where(masked, self.mask, tokens), self.num_layers)
        return self.output(hidden).float(), masked

    def image_losses(self, outputs: Any, tokens: Tensor) -> Tensor:
        logits, masked = outputs
        losses = F.cross_entropy(logits.mT, tokens, reduction="none") * masked
        return losses.sum(1) / masked.sum(1).clamp_min(1)

    def loss(self, outputs: Any, tokens: Tensor) -> Tensor:
        return self.image_losses(outputs, tokens).mean()

    @torch.inference_mode()
    def sample(
        self,
        labels: Tensor,
        *,
        draw: Draw,
        guidance: Guidance = UNGUIDED,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        tokens = torch.full((len(labels), self.num_tokens), self.mask, device=labels.device)
        nobody = torch.full_like(labels, self.null_class)
        for position, scale in enumerate(guidance.scales(self.num_tokens)):
            logits = self.output(self.features(labels, tokens, self.num_layers)).float()[:, position]
            if scale != 1:
                free = self.output(self.features(nobody, tokens, self.num_layers)).float()[:, position]
                logits = free + scale * (logits - free)
            tokens[:, position] = draw(probabilities(logits, temperature, top_k, top_p), position)
        return tokens


GENERATORS["masked"] = Masked
