"""The measurement: pictures, what became of them, and two anchors, through one reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.data.images import image_tensor, to_float
from engine.data.text_pictures import TextPicture
from engine.finite import numbered
from engine.world import World
from evaluations.image_sets import rank_batches, with_bar
from evaluations.protocols.accumulators import Measurement
from evaluations.readback.crops import WordCrops, cut_words
from evaluations.readback.degradation import ANCHOR_TITLES, ANCHORS
from evaluations.readback.model import read_words
from evaluations.readback.pictures import TextSet
from evaluations.readback.score import LEAST_READABLE, LEAST_WORDS, TOKENIZER, ReadingTable
from tokenizer.models.reconstructing import Reconstructing

Reconstruct = Callable[[Tensor, Tensor], Tensor]  # (numbers (B,), uint8 (B,3,S,S)) -> uint8 (B,3,S,S) on the CPU


def through_network(
    tokenizer: Reconstructing, rounding: Callable[[Tensor], Tensor], device: torch.device
) -> Reconstruct:
    """Pictures to codes, or latents, and back; `rounding` turns floats in [-1,1] or beyond into uint8."""

    def reconstruct(numbers: Tensor, originals: Tensor) -> Tensor:
        with numbered("picture", numbers):
            return rounding(tokenizer.reconstruct(to_float(originals.to(device))).images).cpu()

    return reconstruct


@dataclass(frozen=True)
class TextReadback:
    """Pictures and the reader of them; `reader_facts` say which reader it is."""

    pictures: TextSet
    reader: nn.Module
    reader_facts: Mapping[str, Any]

    def facts(self) -> dict[str, Any]:
        """The section `text_readback` of a protocol: results that differ in it are not ranked by readings."""
        return {
            **self.pictures.facts(),
            "reader": dict(self.reader_facts),
            "anchors": dict(ANCHOR_TITLES),
            "least_readable": LEAST_READABLE,
            "least_words": LEAST_WORDS,
        }

    def measure(self, reconstruct: Reconstruct, batch_size: int, world: World) -> Measurement:
        """Reads all pictures, and for the report keeps one of each height. A collective.

        The arrays are `text_originals` and `text_reconstructions` uint8 (heights,3,S,S), and of each of these pictures
        `text_heights`, and the numbers of `text_words` and of those read exactly (`text_read`).
        """
        heights = self.pictures.heights
        table = ReadingTable(heights)
        examples = Examples(len(set(heights)))
        batches = ((ids,) for ids in rank_batches(len(heights), batch_size, world))
        for (numbers,) in with_bar(batches, len(heights), "drawn text", world):
            pictures = [self.pictures.picture(number) for number in numbers.tolist()]
            originals = torch.stack([image_tensor(picture.image) for picture in pictures])
            reconstructions = reconstruct(numbers, originals)

            # What the reader reads in the originals, in what became of them, and in the anchors.
            read_originals = self._read(originals, pictures)
            reads = {TOKENIZER: self._read(reconstructions, pictures)}
            for anchor, worsened in ANCHORS.items():
                reads[anchor] = self._read(torch.stack([worsened(image) for image in originals]), pictures)

            for row, (number, picture) in enumerate(zip(numbers.tolist(), pictures, strict=True)):
                truth = [word.text for word in picture.words]
                table.add(number, truth, read_originals[row], {name: read[row] for name, read in reads.items()})
                examples.offer(picture, originals[row], reconstructions[row], reads[TOKENIZER][row])
        measurement = table.result(world)
        measurement.arrays |= examples.arrays()
        return measurement

    def _read(self, images_u8: Tensor, pictures: list[TextPicture]) -> list[list[str]]:
        """What the reader reads in the boxes of the words of each picture."""
        crops = WordCrops.joined(
            [cut_words(image, picture.words) for image, picture in zip(images_u8, pictures, strict=True)]
        )
        words = iter(read_words(self.reader, crops))
        return [[next(words) for _ in picture.words] for picture in pictures]


class Examples:
    """The first picture of each height that this rank sees, for the report."""

    def __init__(self, num_heights: int) -> None:
        self.num_heights = num_heights
        self.rows: dict[int, tuple[Tensor, Tensor, int, int]] = {}

    def offer(self, picture: TextPicture, original: Tensor, reconstruction: Tensor, read: list[str]) -> None:
        """Keeps a picture if it is the first of its height."""
        if picture.height in self.rows or len(self.rows) == self.num_heights:
            return
        num_read = sum(text == word.text for text, word in zip(read, picture.words, strict=True))
        self.rows[picture.height] = (original, reconstruction, len(picture.words), num_read)

    def arrays(self) -> dict[str, Any]:
        """Those of this rank, so that the main rank's are written."""
        heights = sorted(self.rows)
        if not heights:
            return {}
        originals, reconstructions, words, read = zip(*(self.rows[height] for height in heights), strict=True)
        return {
            "text_originals": torch.stack(originals).numpy(),
            "text_reconstructions": torch.stack(reconstructions).numpy(),
            "text_heights": torch.tensor(heights).numpy(),
            "text_words": torch.tensor(words).numpy(),
            "text_read": torch.tensor(read).numpy(),
        }
