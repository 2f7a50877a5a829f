"""The normalization that pretrained networks expect of images in [0,1]: mean and std per color (RGB)."""

from __future__ import annotations

Color = tuple[float, float, float]
Normalization = tuple[Color, Color]  # mean, std

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Normalization = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CENTERED: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # to [-1,1]
