"""The optimizer of linear probes, LARS (arXiv:1708.03888), and its learning rate.

LARS scales the step of each weight matrix by the ratio of the norms of the weights and of their gradient. Probes of
frozen features are trained with it at large batches, as in MAE (arXiv:2111.06377) and in GigaTok.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

MOMENTUM = 0.9
TRUST = 0.001  # the trust coefficient
EPS = 1e-8  # added to the norm of a gradient


def lr_fraction(step: int, total: int, warmup: int) -> float:
    """Computes the learning rate of a step (from 0) as a fraction of its peak.

    It rises linearly from 0 in `warmup` steps, then falls as a cosine to 0 after `total` steps.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


class LARS(torch.optim.Optimizer):
    """LARS without weight decay. Each parameter has a group of its own, with the rate `lr`.

        g <- g * TRUST |w| / (|g| + EPS)    of weight matrices, where both norms are above 0
        m <- MOMENTUM m + g;  w <- w - lr m

    Nothing is read by the host, and nothing is copied to the device.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update from the gradients that backward left."""
        parameters = [p for group in self.param_groups for p in group["params"]]

        # The trust ratio of each matrix; biases have none.
        matrices = [p for p in parameters if p.ndim > 1]
        gradients = [p.grad for p in matrices]
        weight_norms = torch.stack(torch._foreach_norm(matrices))
        gradient_norms = torch.stack(torch._foreach_norm(gradients))
        ratios = TRUST * weight_norms / (gradient_norms + EPS)
        ratios = torch.where((weight_norms > 0) & (gradient_norms > 0), ratios, 1.0)
        torch._foreach_mul_(gradients, ratios.unbind())

        # Momentum, and the step of each group at its rate.
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, [p.grad for p in parameters])
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(self.state[p]["momentum_buffer"], alpha=-group["lr"])


def lars(heads: Mapping[float, nn.Linear]) -> LARS:
    """LARS as MAE configures it. `heads` are {base learning rate: head}; each group has its head's as `base_lr`."""
    rates_and_parameters = [(rate, p) for rate, head in heads.items() for p in head.parameters()]
    optimizer = LARS([{"params": [p], "base_lr": rate} for rate, p in rates_and_parameters], {"lr": 0.0})

    # Zeros from the start, so that a checkpoint has the same entries before the first step.
    for _, p in rates_and_parameters:
        optimizer.state[p] = {"momentum_buffer": torch.zeros_like(p)}
    return optimizer
