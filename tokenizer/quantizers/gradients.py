"""The two ways to send a gradient through a choice: straight-through, and the rotation trick."""

from __future__ import annotations

from torch import Tensor


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Value of `z_q`, gradient of `z` (van den Oord et al., arXiv:1711.00937, section 3.2)."""
    return z + (z_q - z).detach()


def rotation_trick(z: Tensor, z_q: Tensor) -> Tensor:
    """Value of `z_q`; the gradient to `z` is rotated by the reflection pair that turns z into z_q (arXiv:2410.06424,
    Eq. 4).

    The direction of `z` alone enters: z is divided by its norm first, as in the released code of GigaTok, so for
    l2-normalised latents nothing changes. The value equals `z_q` up to about 4e-6.
    """
    eps = 1e-6
    z = z / z.norm(dim=-1, keepdim=True)
    z_norm, q_norm = z.norm(dim=-1, keepdim=True), z_q.norm(dim=-1, keepdim=True)
    u, v = (z / (z_norm + eps)).detach(), (z_q / (q_norm + eps)).detach()
    r = u + v
    r = r / r.norm(dim=-1, keepdim=True)
    rotated = z - 2 * (z * r).sum(-1, keepdim=True) * r + 2 * (z * u).sum(-1, keepdim=True) * v
    return rotated * (q_norm / (z_norm + eps)).detach()
