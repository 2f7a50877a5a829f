"""The images of an atlas: a few that are shown, among more whose codes are counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.data.classes import Classes
from engine.data.images import to_float, to_uint8
from engine.data.samples import center_batch, evenly_spread, fixed_choice
from engine.data.sources import ImageSource
from engine.finite import numbered
from engine.image_metrics import MAX_PSNR, psnr
from engine.progress import image_bar
from engine.world import World
from tokenizer.models.base import Tokenizer


@dataclass(frozen=True)
class ImageChoice:
    """Numbers of images of a source: `counted`, and those of them that are `shown`, spread over the classes."""

    source: ImageSource
    what: str  # what the images are, for people
    counted: np.ndarray
    shown: np.ndarray
    skip_broken: bool

    @classmethod
    def of(
        cls, source: ImageSource, what: str, num_shown: int, num_counted: int, skip_broken: bool = False
    ) -> ImageChoice:
        """The same choice for every tokenizer and in every call. Sources are sorted by class."""
        counted = fixed_choice(len(source), max(num_shown, num_counted))
        rows = evenly_spread(len(counted), num_shown)
        return cls(source, what, counted, counted[rows], skip_broken)

    def titles(self) -> list[str]:
        """The class of each shown image, and the name of its file without the folders of this machine."""
        classes = Classes.of(self.source)
        titles = []
        for index in self.shown:
            file_name = self.source.where(int(index)).rpartition("/")[2]
            class_name = f"{classes.shown_name(int(self.source.labels[index]))}, " if classes.are_labels else ""
            titles.append(f"{class_name}{file_name}")
        return titles


@dataclass(frozen=True)
class CountedImages:
    """Images and the tokens that a tokenizer gives them; rows of `shown` are those that the page shows.

    Shapes    images uint8 (M,3,H,W)      tokens int64 (M,N,G), with G = 1 for tokens of one index
    """

    images: Tensor
    tokens: Tensor
    shown: Tensor  # int64 (n,)

    def token_rows(self) -> Tensor:
        """All tokens of all images (M*N,G)."""
        return self.tokens.flatten(0, 1)


@torch.inference_mode()
def count_images(tokenizer: Tokenizer, choice: ImageChoice, batch_size: int, world: World) -> CountedImages:
    """Reads the chosen images at the tokenizer's size, and tokenizes them."""
    images, tokens = [], []
    with image_bar(len(choice.counted), "tokens", world) as bar:
        for start in range(0, len(choice.counted), batch_size):
            numbers = choice.counted[start : start + batch_size]
            batch = center_batch(choice.source, tokenizer.image_size, numbers, choice.skip_broken)
            with numbered("image", numbers):
                indices = tokenizer.encode(to_float(batch).to(tokenizer.device)).indices
            images.append(batch)
            tokens.append(indices.cpu().reshape(*indices.shape[:2], -1))
            bar.update(len(numbers))
    shown = torch.from_numpy(np.searchsorted(choice.counted, choice.shown))
    return CountedImages(torch.cat(images), torch.cat(tokens), shown)


def decode_tokens(tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
    """Tokens (B,N,G) -> images uint8 (B,3,H,W) on the CPU."""
    indices = tokens if tokenizer.quantizer.num_groups > 1 else tokens[..., 0]
    return to_uint8(tokenizer.decode_indices(indices.to(tokenizer.device))).cpu()


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, tokens: Tensor, batch_size: int) -> Tensor:
    """Tokens (n,N,G) -> their images uint8 (n,3,H,W)."""
    return torch.cat([decode_tokens(tokenizer, part) for part in tokens.split(batch_size)])


def decibels(reconstructions: Tensor, originals: Tensor) -> list[float]:
    """PSNR of each pair of uint8 images (n,3,H,W)."""
    return psnr(reconstructions, originals).clamp_max(MAX_PSNR).tolist()
