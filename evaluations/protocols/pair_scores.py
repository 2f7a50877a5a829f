"""Scores of pairs of images: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.devices import full_precision
from engine.image_metrics import psnr, ssim
from evaluations.protocols.reconstruction import ReconstructionProtocol

MAX_PSNR = 100.0  # dB, of identical pairs


def score_names(rules: ReconstructionProtocol, lpips: bool) -> list[str]:
    """The scores of each pair, in the order of `pair_scores`."""
    if rules.float_features:
        return ["psnr", "ssim", *(rules.lpips if lpips else ())]
    return ["psnr", "ssim", "ssim_range2", *(("lpips", "lpips_raw") if lpips else ())]


def pair_scores(
    rules: ReconstructionProtocol, made: Tensor, originals: Tensor, resized: bool, networks: dict[str, nn.Module]
) -> Tensor:
    """The scores (S,B) of pairs of float images in [-1,1], float64. Originals that were resized are not rounded, as
    published. `lpips` is of clamped images, `lpips_raw` of images as decoded (the published values of GigaTok).
    """
    made_u8 = rules.to_uint8(made)
    target = (originals.double() + 1) / 2 if resized else rules.to_uint8(originals)
    scores = {"psnr": psnr(made_u8, target).clamp_max(MAX_PSNR), "ssim": ssim(made_u8, target)}
    scores["ssim_range2"] = ssim(made_u8, target, data_range=2.0)
    with full_precision(made.device):
        for name, network in networks.items():
            scores[name] = network(made.clamp(-1, 1), originals).flatten().double()
            if name == "lpips":
                scores["lpips_raw"] = network(made, originals).flatten().double()
    return torch.stack([scores[name] for name in score_names(rules, bool(networks))])
