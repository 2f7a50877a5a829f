"""A plain convolutional classifier for small images such as digits: its network, and how a trained one is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoint.weights import find_weights, load_strict, read_weights
from engine.config import load_sections
from engine.data.images import to_float


@dataclass(kw_only=True, slots=True)
class ClassifierConfig:
    """A small CNN: four 3x3 convolutions with two poolings, then one linear layer on a 4x4 map."""

    width: int = 24  # channels of the first layers; the later ones have twice as many
    num_classes: int = 10
    dropout: float = 0.3
    max_shift: int = 2  # training images move by up to this many pixels


class Classifier(nn.Module):
    """Images (B,3,H,W) in [-1,1] -> logits (B,num_classes)."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        w = config.width
        self.layers = nn.Sequential(
            nn.Conv2d(3, w, 3, padding=1), nn.ReLU(), nn.Conv2d(w, w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(w, 2 * w, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * w, 2 * w, 3, padding=1), nn.ReLU(),
            nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(32 * w, config.num_classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@torch.no_grad()
def classify(network: nn.Module, images_u8: Tensor, batch_size: int = 250) -> Tensor:
    """Predicted classes (n,) of uint8 images (n,3,H,W)."""
    device = next(network.parameters()).device
    network.eval()
    return torch.cat([network(to_float(chunk.to(device))).argmax(1).cpu() for chunk in images_u8.split(batch_size)])


@dataclass(kw_only=True, slots=True)
class _Sections:
    model: ClassifierConfig = field(default_factory=ClassifierConfig)


def load_classifier(path: str | Path) -> nn.Module:
    """A trained classifier in evaluation mode."""
    found = find_weights(path, "auto", "classifier")
    network = Classifier(load_sections(_Sections, found.folder / "config.yaml").model)
    load_strict(network, read_weights(found.path), found.path)
    return network.eval().requires_grad_(False)
