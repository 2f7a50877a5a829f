"""The reader: a small convolutional network with CTC that reads crops of single words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.weights import WeightsFile, find_weights, load_strict, read_weights, tensors_digest
from engine.config import load_sections
from engine.data.text_pictures import ALPHABET
from engine.devices import full_precision
from engine.messages import UserError
from engine.preflight import Preflight
from engine.validation import Problem, Section, at_least
from evaluations.readback.crops import WordCrops, standardized

BLANK = 0  # the output of CTC between letters; letter i of the alphabet is output i + 1
NUM_STEPS = 32  # columns of the last map, from left to right
BLOCKS = ((1, (2, 2)), (2, (2, 1)), (2, (2, 2)), (4, (2, 1)), (4, (2, 1)))  # (channels as a multiple, stride)
STAMP = "text_reader"  # the entry of a stamp that says how a reader was trained


@dataclass(kw_only=True, slots=True)
class ReaderConfig(Section):
    """Sizes of the reader: 364,421 parameters with the default width."""

    width: int = 32  # channels of the first block; the others have 2, 2, 4 and 4 times as many

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "width", 1)


class Reader(nn.Module):
    """Standardized crops (B,1,32,128) -> logits (B,32,37): at each step from the left, no letter or one of 36.

    Connectionist temporal classification (Graves et al., ICML 2006).
    """

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for multiple, stride in BLOCKS:
            width = multiple * config.width
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.blocks = nn.Sequential(*layers)
        self.context = nn.Conv1d(channels, channels, 5, padding=2)
        self.output = nn.Linear(channels, 1 + len(ALPHABET))

    def forward(self, crops: Tensor) -> Tensor:
        columns = self.blocks(crops).squeeze(2)  # (B,C,1,32) -> (B,C,32)
        return self.output(torch.relu(self.context(columns)).transpose(1, 2))


def encoded(word: str) -> list[int]:
    """The outputs that a word stands for."""
    return [ALPHABET.index(letter) + 1 for letter in word]


def decoded(outputs: list[int]) -> str:
    """The word that a sequence of outputs stands for: repeated ones count once, blanks separate."""
    return "".join(ALPHABET[output - 1] for output, _ in groupby(outputs) if output != BLANK)


@torch.no_grad()
def read_words(reader: nn.Module, crops: WordCrops, batch_size: int = 256) -> list[str]:
    """Reads each crop by the most likely output of each step. The network must be in evaluation mode."""
    device = next(reader.parameters()).device
    words: list[str] = []
    for images, sizes in zip(crops.images.split(batch_size), crops.sizes.split(batch_size), strict=True):
        with full_precision(device):
            logits = reader(standardized(images.to(device), sizes.to(device)))
        words += [decoded(outputs) for outputs in logits.argmax(2).tolist()]
    return words


# ------------------------------------------------------------------------------------------------ trained readers
@dataclass(kw_only=True, slots=True)
class _Sections:
    """The part of a training config that a trained reader needs."""

    model: ReaderConfig = field(default_factory=ReaderConfig)


def find_reader(path: str | Path, hashed: bool = True) -> WeightsFile:
    """The weights of a trained reader, unread.

    Raises CheckpointError if there are none, and UserError if they are those of another kind of network.
    """
    weights = find_weights(path, "model", "text reader", hashed=hashed)
    if STAMP not in weights.stamp:
        raise UserError(f"{path} holds no text reader; python -m evaluations.text_reader trains one")
    return weights


def reader_needs(path: str | Path, flag: str, preflight: Preflight) -> None:
    """Looks for a trained reader, which `flag` names."""
    if preflight.comes_later(path, flag):
        return
    with preflight.collecting():
        weights = find_reader(path, hashed=preflight.hashes)
        preflight.ready.append(f"{flag}: {weights.folder}")


def load_reader(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """(a trained reader in evaluation mode, what a protocol says of it). Raises as `find_reader` does."""
    weights = find_reader(path)
    reader = Reader(load_sections(_Sections, weights.folder / "config.yaml").model)
    load_strict(reader, read_weights(weights.path), weights.path)
    # Statistics of batch norms are buffers: they belong to what a reader is.
    facts = {"fingerprint": tensors_digest(reader.state_dict().items()), **weights.stamp[STAMP]}
    return reader.eval().requires_grad_(False).to(device), facts
