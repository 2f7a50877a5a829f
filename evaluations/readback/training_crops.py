"""What a reader is trained on: crops of words from drawn pictures, a quarter of which are made worse."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.data.images import image_tensor
from engine.data.text_pictures import LARGE_WORDS, Purpose, TextPicture, draw_picture
from engine.progress import image_bar
from engine.seeds import counter_rng
from engine.world import World
from evaluations.readback.crops import WordCrops, cut_words
from evaluations.readback.degradation import blurred, noisy, shrunk_and_enlarged
from evaluations.readback.model import encoded

CHOICE_KEY = 0x7E87D  # keeps the choice of words and degradations apart from other users of the seed
MAX_PICTURE_WORDS = 8  # that are taken of a picture: small letters leave room for many
DEGRADED = 0.25  # of the pictures
MAX_SIGMA = 1.0  # pixels, of a blur
MIN_SCALE = 0.6  # of the sides of a picture that is shrunk and enlarged
NOISE_STD = 0.04  # of white
MAX_LETTERS = LARGE_WORDS[1]
NUMBERS_PER_SIDE = 2**32


@dataclass(frozen=True)
class LabeledCrops:
    """Crops with their words: `letters` int64 (n,6), outputs of the reader and zeros behind, and `lengths` (n,)."""

    crops: WordCrops
    words: list[str]
    letters: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.words)


def draw_crops(
    purpose: Purpose, seed: int, count: int, sides: Sequence[int], world: World, degrade: bool = True
) -> LabeledCrops:
    """Draws pictures of all `sides` in turn, until there are `count` crops. Every rank draws all of them."""
    parts: list[WordCrops] = []
    words: list[str] = []
    with image_bar(count, "drawing words", world) as bar:
        for number, picture in _pictures(purpose, seed, sides):
            # Some of the words, and perhaps a worse picture.
            rng = counter_rng(seed, CHOICE_KEY, number)
            order = rng.permutation(len(picture.words))[: min(MAX_PICTURE_WORDS, count - len(words))]
            chosen = [picture.words[i] for i in order]
            image = image_tensor(picture.image)
            if degrade and rng.random() < DEGRADED:
                image = _degraded(image, rng)

            parts.append(cut_words(image, chosen))
            words += [word.text for word in chosen]
            bar.update(len(chosen))
            if len(words) == count:
                break
    letters = torch.tensor([encoded(word) + [0] * (MAX_LETTERS - len(word)) for word in words])
    return LabeledCrops(WordCrops.joined(parts), words, letters, torch.tensor([len(word) for word in words]))


def _pictures(purpose: Purpose, seed: int, sides: Sequence[int]) -> Iterator[tuple[int, TextPicture]]:
    """(number, picture) without end. Each side has numbers of its own, so that it shows letters of all heights."""
    for number in itertools.count():
        turn, place = divmod(number, len(sides))
        yield number, draw_picture(purpose, seed, turn + place * NUMBERS_PER_SIDE, sides[place])


def _degraded(image_u8: Tensor, rng: np.random.Generator) -> Tensor:
    """A picture made worse in one of three ways, by a random amount."""
    amount = rng.random()
    match int(rng.integers(3)):
        case 0:
            return blurred(image_u8, MAX_SIGMA * amount)
        case 1:
            return shrunk_and_enlarged(image_u8, MIN_SCALE + (1 - MIN_SCALE) * amount)
        case _:
            return noisy(image_u8, NOISE_STD, rng)
