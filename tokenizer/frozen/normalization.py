"""Means and stds that pretrained networks expect of images in [0,1], as (red, green, blue)."""

from __future__ import annotations

Triple = tuple[float, float, float]
IMAGENET: tuple[Triple, Triple] = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # mean and deviation of images in [0,1]
CLIP: tuple[Triple, Triple] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CENTERED: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
