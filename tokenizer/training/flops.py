"""The operations of one step of a tokenizer's training, of all its networks; see `engine.flops`."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from engine.flops import PartFlops
from tokenizer.discriminators.base import Discriminator
from tokenizer.losses.perceptual import PerceptualLoss
from tokenizer.losses.semantic import Teacher
from tokenizer.losses.terms import outputs_needed
from tokenizer.models.base import Tokenizer


def step_flops(
    network: Tokenizer,
    perceptual: nn.Module | None,
    teacher: Teacher | None,
    discriminator: Discriminator | None,
    active: Collection[str],
    image_size: int,
) -> tuple[PartFlops, ...] | None:
    """What a step computes for one image, by part, with the terms `active`; None where a network does not count it.

    A network that computes nothing in a step, such as a teacher whose features are stored, is None.
    """
    parts = list(network.training_flops(**outputs_needed(active)) or [None])

    # One comparison of each reconstruction with the image.
    comparisons = [name for name in ("perceptual", "prefix_perceptual", "shortcut_perceptual") if name in active]
    if comparisons:
        is_counted = isinstance(perceptual, PerceptualLoss)
        flops = perceptual.training_flops(image_size, len(comparisons)) if is_counted else None
        parts.append(PartFlops("perceptual", "convolution", flops, True) if flops is not None else None)

    # Networks beside the tokenizer.
    if "semantic" in active and teacher is not None:
        parts.append(teacher.training_flops())
    if "adversarial" in active:
        parts += discriminator.training_flops(image_size) or [None]
    return None if None in parts else tuple(parts)
