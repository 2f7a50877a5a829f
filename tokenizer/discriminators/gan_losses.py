"""The losses of generator and discriminator by name, and LeCam's regularization.

    hinge             arXiv:1705.02894
    non_saturating    arXiv:1406.2661, section 3
    LeCam             arXiv:2104.03310

Logits (B, ...) are large for images that look real; all losses are scalars in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.world import mean_over_ranks


def generator_hinge(fake_logits: Tensor) -> Tensor:
    """-mean D(generated)."""
    return -fake_logits.float().mean()


def discriminator_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(mean max(0, 1 - D(real)) + mean max(0, 1 + D(generated))) / 2. 1 where it cannot decide."""
    real_loss = F.relu(1 - real_logits.float()).mean()
    fake_loss = F.relu(1 + fake_logits.float()).mean()
    return (real_loss + fake_loss) / 2


def generator_non_saturating(fake_logits: Tensor) -> Tensor:
    """Mean over images of -log sigmoid(m), where m is the mean logit of a generated image."""
    mean_logits = fake_logits.float().flatten(1).mean(1)
    return F.softplus(-mean_logits).mean()


# loss of the generator: (logits of generated images) -> scalar
GENERATOR_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": generator_hinge,
    "non_saturating": generator_non_saturating,
}

# loss of the discriminator: (logits of real images, logits of generated images) -> scalar
DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hinge": discriminator_hinge}


class LeCam(nn.Module):
    """LeCam's regularization: mean relu(D(real) - a_generated)^2 + mean relu(a_real - D(generated))^2.

    a_real and a_generated are exponential moving averages of the batches' mean logits over all ranks. They take in the
    present batch before they are used, unless its logits are not finite: such an update is skipped, and must not spoil
    the updates after it. They are training state, as buffers are.
    """

    averages: Tensor  # (2,) a_real, a_generated

    def __init__(self, decay: float, device: torch.device) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("averages", torch.zeros(2, device=device))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        real = real_logits.float()
        fake = fake_logits.float()

        # The averages, with this batch.
        batch_means = mean_over_ranks(torch.stack([real.mean(), fake.mean()]).detach())
        finite_means = torch.where(batch_means.isfinite(), batch_means, self.averages)
        self.averages = self.averages.lerp(finite_means, 1 - self.decay)

        average_real, average_fake = self.averages
        return F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()
