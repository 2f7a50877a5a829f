"""WeTok's generative decoder: what it needs beside the decoder of the first stage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FIRST_CONV = "decoder.conv_in.weight"  # the tensor that the generative decoder has wider


def widened(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with its first convolution widened by zeros where the model `own` has a generative decoder and `state`
    none; nothing is widened twice.
    """
    state, wanted = dict(state), own[FIRST_CONV].shape
    weight = state[FIRST_CONV]
    if wanted[1] == 2 * weight.shape[1]:
        state[FIRST_CONV] = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    return state
