"""How a gradient passes through the choice of a code: straight-through, and the rotation trick.

Shapes    z, z_q (...,D): latents and the codes chosen for them      result (...,D)

    straight-through    z + sg(z_q - z): the gradient at z is the gradient at z_q
    rotation trick      |z_q| / |z| R z, where R turns the direction of z into that of z_q; R and the factor are
                        constants, so the gradient at z is that at z_q, turned back and scaled. With unit vectors
                        u = z / |z|, v = z_q / |z_q| and r = (u + v) / |u + v|

                            R = I - 2 r r^T + 2 v u^T                        arXiv:2410.06424, Eq. 4

                        Two places have no value there, and get one here. Where the code is opposite, v = -u, the
                        limit of r depends on the way there; without it R = I - 2 u u^T still turns u into v and leaves
                        all directions beside it. Where z = 0, nothing has a direction: the gradient is straight-through
"""

from __future__ import annotations

from torch import Tensor

ROTATION_EPS = 1e-6  # added to norms before a division, as released
OPPOSITE = 1e-3  # |u + v| below this: the rounding of u and v decides about r


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Value of `z_q`, gradient of `z` (van den Oord et al., arXiv:1711.00937, section 3.2)."""
    return z + (z_q - z).detach()


def rotation_trick(z: Tensor, z_q: Tensor) -> Tensor:
    """Value of `z_q` up to about 4e-6; the gradient is turned from the direction of z_q back to that of z.

    Only the direction of `z` matters: it is divided by its norm first, as in GigaTok's released code. Latents that are
    l2-normalized are unit vectors anyway. Values and gradients are finite for all finite latents; see the module
    docstring for latents of length 0, and for those opposite to their code.
    """
    length = z.norm(dim=-1, keepdim=True)
    is_zero = length == 0
    z = z / length.masked_fill(is_zero, 1.0)

    # The two directions, and the one in their middle.
    z_norm = z.norm(dim=-1, keepdim=True)
    q_norm = z_q.norm(dim=-1, keepdim=True)
    u = (z / (z_norm + ROTATION_EPS)).detach()
    v = (z_q / (q_norm + ROTATION_EPS)).detach()
    r = u + v
    middle_norm = r.norm(dim=-1, keepdim=True)
    is_limit = is_zero | (middle_norm < OPPOSITE)
    r = (r / middle_norm.masked_fill(is_limit, 1.0)).masked_fill(is_limit, 0.0)

    # R z, without the matrix R.
    rotated = z - 2 * (z * r).sum(-1, keepdim=True) * r + 2 * (z * u).sum(-1, keepdim=True) * v
    scaled = rotated * (q_norm / (z_norm + ROTATION_EPS)).masked_fill(is_zero, 1.0).detach()
    return scaled + (z_q - scaled).masked_fill(~is_limit, 0.0).detach()
