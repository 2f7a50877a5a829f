"""The losses of generator and discriminator by name, and LeCam's regularization.

hinge: arXiv:1705.02894; non-saturating: arXiv:1406.2661; LeCam: arXiv:2104.03310.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.world import mean_over_ranks


def generator_hinge(fake_logits: Tensor) -> Tensor:
    """-mean D(generated)."""
    return -fake_logits.float().mean()


def discriminator_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(mean max(0, 1 - D(real)) + mean max(0, 1 + D(generated))) / 2."""
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2


def generator_non_saturating(fake_logits: Tensor) -> Tensor:
    """Mean over images of -log sigmoid(mean D(generated)); logits (B,1,h,w)."""
    return F.softplus(-fake_logits.float().flatten(1).mean(1)).mean()


# name -> function of the logits of generated images; of the logits of real and of generated images
GENERATOR_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": generator_hinge,
    "non_saturating": generator_non_saturating,
}
DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hinge": discriminator_hinge}


class LeCam:
    """LeCam's regularization: mean relu(real - average generated)^2 + mean relu(average real - generated)^2.

    The averages of the batches' mean logits, over all ranks, take in the present batch first, unless its logits are not
    finite: such an update is skipped, and must not spoil those after it. They are training state.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        self.decay = decay
        self.averages = torch.zeros(2, device=device)  # of real and of generated logits

    def __call__(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        real, fake = real_logits.float(), fake_logits.float()
        means = mean_over_ranks(torch.stack([real.mean(), fake.mean()]).detach())
        self.averages = self.averages.lerp(torch.where(means.isfinite(), means, self.averages), 1 - self.decay)
        average_real, average_fake = self.averages
        return F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()

    def state_dict(self) -> dict[str, Tensor]:
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.averages = state["averages"].to(self.averages.device)
