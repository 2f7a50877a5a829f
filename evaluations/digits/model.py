"""A plain convolutional classifier for small images such as digits, and how it is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoint.weights import WeightsFile, find_weights, load_strict, read_weights
from engine.config import load_sections
from engine.data.classes import Classes, labels_among
from engine.data.images import to_float
from engine.messages import UserError
from engine.validation import Problem, Section, at_least, in_range


@dataclass(kw_only=True, slots=True)
class ClassifierConfig(Section):
    """A small CNN: four 3x3 convolutions with two poolings, then one linear layer on a 4x4 map."""

    width: int = 24  # channels of the first two layers; the other two have twice as many
    num_classes: int = 10
    dropout: float = 0.3  # before the linear layer
    max_shift: int = 2  # pixels; training images move by up to this many in each direction

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "width", 1)
        yield from at_least(self, "num_classes", 2)
        yield from in_range(self, "dropout", 0, 1)
        yield from at_least(self, "max_shift", 0)


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
    """Predicts the classes (n,), on the CPU, of uint8 images (n,3,H,W).

    Puts the network into evaluation mode.
    """
    device = next(network.parameters()).device
    network.eval()
    predictions = [network(to_float(batch.to(device))).argmax(1).cpu() for batch in images_u8.split(batch_size)]
    return torch.cat(predictions)


@dataclass(kw_only=True, slots=True)
class _Sections:
    """The part of a training config that a trained classifier needs."""

    model: ClassifierConfig = field(default_factory=ClassifierConfig)


def find_classifier(
    path: str | Path, classes: Classes | None, hashed: bool = True
) -> tuple[WeightsFile, ClassifierConfig]:
    """The weights of a trained classifier for images of `classes` (None: not known yet), and its sizes, unread.

    Raises ConfigError if `path` holds another kind of network, and UserError if it was trained on other classes.
    """
    weights = find_weights(path, "auto", "classifier", hashed=hashed)
    model = load_sections(_Sections, weights.folder / "config.yaml").model
    known = Classes.from_stamp(weights.stamp, model.num_classes, f"the classifier {weights.folder}")
    if classes is not None and len(labels_among(classes, known)) != len(known):
        raise UserError(f"{known.owner} knows {len(known)} classes, {classes.owner} {len(classes)}; it needs the same")
    return weights, model


def load_classifier(path: str | Path, classes: Classes) -> nn.Module:
    """Loads a trained classifier in evaluation mode, for images of `classes`. Raises as `find_classifier` does."""
    weights, model = find_classifier(path, classes)
    network = Classifier(model)
    load_strict(network, read_weights(weights.path), weights.path)
    return network.eval().requires_grad_(False)
