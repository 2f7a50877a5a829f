"""WeTok's generative decoder (arXiv:2508.05599, section 3.3, Eq. 11): what it needs beside the first stage's decoder.

The generative decoder takes Gaussian noise concatenated to the quantized latents, with the same number of channels. It
is trained as a conditional GAN on a frozen encoder. Its first convolution is that of the first stage, widened by zeros:
at its first step it gives the same images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

FIRST_CONV = "decoder.conv_in.weight"  # the one tensor that is wider in the generative decoder
SIGN_THRESHOLD = 1e-3  # quantized latents are +-1 or +-1/sqrt(D): above it means positive


def widened(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with its first convolution widened by zero columns where `target` has one of twice the input channels.

    A convolution that is already wide stays as it is.
    """
    state = dict(state)
    weight = state[FIRST_CONV]
    if target[FIRST_CONV].shape[1] == 2 * weight.shape[1]:
        state[FIRST_CONV] = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    return state


def evaluation_noise(features: Tensor, seed: int) -> Tensor:
    """Noise that repeats: for each image a function of `seed` and of the signs of its latents, in any batch.

    Features (B,C,h,w) of quantized latents -> standard normal noise (B,C,h,w).
    """
    rows = []
    text = str(seed).encode()  # a salt has 16 bytes, seeds of 64 bits up to 20 digits
    salt = text if len(text) <= 16 else hashlib.blake2b(text, digest_size=16).digest()
    for signs in (features > SIGN_THRESHOLD).flatten(1).to(torch.uint8).cpu().numpy():
        digest = hashlib.blake2b(signs.tobytes(), digest_size=8, salt=salt).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
        rows.append(torch.randn(features.shape[1:], generator=generator))
    return torch.stack(rows).to(features)
