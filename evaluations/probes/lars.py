"""The optimizer of linear probes, LARS (arXiv:1708.03888), and its learning rate.

LARS scales the step of each weight matrix by the ratio of the norms of the weights and of their gradient. Probes of
frozen features are trained with it at large batches, as in MAE (arXiv:2111.06377) and in GigaTok.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn


def lr_fraction(step: int, total: int, warmup: int) -> float:
    """Computes the learning rate of a step (from 0) as a fraction of its peak.

    It rises linearly from 0 in `warmup` steps, then falls as a cosine to 0 after `total` steps.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def lars(heads: Mapping[float, nn.Linear]) -> torch.optim.Optimizer:
    """Makes LARS as MAE configures it: momentum 0.9, trust coefficient 0.001, no weight decay.

    Biases have no trust ratio. `heads` are {base learning rate: head}. Each parameter has a group of its own, with its
    base learning rate under `base_lr`.
    """
    from timm.optim import Lars

    rates_and_parameters = [(rate, p) for rate, head in heads.items() for p in head.parameters()]
    groups = [{"params": [p], "always_adapt": p.ndim > 1, "base_lr": rate} for rate, p in rates_and_parameters]
    optimizer = Lars(groups, lr=0.0, momentum=0.9, trust_coeff=0.001, weight_decay=0.0)

    # Zeros from the start, so that a checkpoint has the same entries before the first step.
    for _, p in rates_and_parameters:
        optimizer.state[p] = {"momentum_buffer": torch.zeros_like(p)}
    return optimizer
