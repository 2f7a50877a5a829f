"""Random masks (MaskGIT, arXiv:2202.04200): which indices of an image are hidden in training and on held-out images.

An image has S slots, one index of one token each.

    training    n = max(1, round(S share(u))) of them are masked, u uniform in [0, 1), with a schedule of
                `autoregressive.passes`
    held out    n is uniform in 1..S. Then S times the mean cross entropy of the masked slots is, on average over n and
                over which slots are masked, -log p of the image on average over all orders of drawing one slot after
                the other: an upper bound of the -log p of the model that first draws an order

Shapes    masks (B,N,k) bool, true where an index is hidden; (N,) or (N,k) for one sample
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from autoregressive.passes import MASK_SCHEDULES
from engine.seeds import counter_rng

HELD_OUT_PASSES = 4  # masks per held-out image
HELD_OUT_KEY = 0x3A5C  # keeps the masks of held-out images apart from other random numbers


# ---------------------------------------------------------------------------------------------- training
def draw_mask(token_shape: tuple[int, ...], schedule: str, rng: np.random.Generator) -> dict[str, Tensor]:
    """The mask of one sample of training, by the name that it has in a batch."""
    slots = math.prod(token_shape)
    masked = max(1, round(slots * MASK_SCHEDULES[schedule].share(rng.random())))
    mask = rng.permutation(slots) < masked
    return {"mask": torch.from_numpy(mask.reshape(token_shape))}


def expected_share(slots: int, schedule: str) -> float:
    """The mean share of slots that `draw_mask` masks: P(n >= j) = inverse((j - 1/2) / S) for j of 2..S, added up."""
    inverse = MASK_SCHEDULES[schedule].inverse
    return (1 + sum(inverse((j - 0.5) / slots) for j in range(2, slots + 1))) / slots


# ---------------------------------------------------------------------------------------------- held-out images
def held_out_masks(tokens: Tensor) -> list[Tensor]:
    """`HELD_OUT_PASSES` masks for each image of tokens (B,N,k).

    They depend on the tokens of the image alone: neither on its batch nor on a seed. Counts are stratified: the masks
    of an image have counts in each of as many equal parts of 1..S.
    """
    masks = np.stack([_masks_of(image) for image in tokens.cpu().numpy()], axis=1)
    return list(torch.from_numpy(masks).to(tokens.device))


def _masks_of(image: np.ndarray) -> np.ndarray:
    """The masks (HELD_OUT_PASSES,N,k) of one image of indices (N,k)."""
    digest = hashlib.blake2b(np.ascontiguousarray(image, dtype="<i8").tobytes(), digest_size=8).digest()
    rng = counter_rng(int.from_bytes(digest, "little"), HELD_OUT_KEY, 0)
    masks = np.empty((HELD_OUT_PASSES, image.size), dtype=bool)
    for number in range(HELD_OUT_PASSES):
        masked = math.floor((number + rng.random()) / HELD_OUT_PASSES * image.size) + 1
        masks[number] = rng.permutation(image.size) < masked
    return masks.reshape(HELD_OUT_PASSES, *image.shape)
