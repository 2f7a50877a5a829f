"""LARS (arXiv:1708.03888)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn


def lr_share(step: int, total: int, warmup: int) -> float:
    """Learning rate of update `step` (from 0) as a share of its peak: linear from 0, then a cosine to 0."""
    return step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def lars(heads: Mapping[float, nn.Linear]) -> torch.optim.Optimizer:
    """LARS as MAE configures it: momentum 0.9, trust coefficient 0.001, no decay; biases without trust ratio."""
    from timm.optim import Lars

    pairs = [(rate, p) for rate, head in heads.items() for p in head.parameters()]
    groups = [{"params": [p], "always_adapt": p.ndim > 1, "base_lr": rate} for rate, p in pairs]
    optimizer = Lars(groups, lr=0.0, momentum=0.9, trust_coeff=0.001, weight_decay=0.0)
    # zeros from the start: a checkpoint has the same entries before the first update
    optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for _, p in pairs})
    return optimizer
