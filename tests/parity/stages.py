"""What the tokenizers of both systems have in common in the goldens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tokenizer.models.registry import ModelConfig


@dataclass(kw_only=True, slots=True)
class ModelSection:
    """The part of a training config that the network depends on."""

    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class Outputs:
    """What our code gives for a case, under the names of its io file and of its json."""

    tensors: dict[str, Tensor]
    facts: dict[str, float]


def code_margins(tokenizer: nn.Module, z: Tensor) -> Tensor:
    """How much farther the second nearest code is than the nearest, squared; z (B,N,D) -> (B*N,)."""
    codes = tokenizer.quantizer.decode_indices(torch.arange(tokenizer.quantizer.codebook_size, device=z.device))
    z = nn.functional.normalize(z.flatten(0, 1), dim=-1)
    nearest = torch.cdist(z.double(), codes.double()).square().topk(2, largest=False).values
    return nearest[:, 1] - nearest[:, 0]
