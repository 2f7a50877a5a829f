"""Residual vector quantization (SoundStream, arXiv:2107.03312, algorithm 1; images: RQ-VAE, arXiv:2203.01941).

A latent is approximated by a sum of codes, one per level. With the rest r_0 = z, for level k of `levels`:

    i_k = index of the code nearest to r_k      r_{k+1} = r_k - sg code      z_q = sum of the codes

so that z = z_q + r_levels. The gradient of z_q is copied to z once, for the whole sum.

Level dropout (SoundStream; of a fraction of the examples: RVQGAN, arXiv:2306.06546): in training, a fraction of the
images keeps a number of first levels that is uniform in 1..levels. The others add nothing to z_q and to the losses of
these images, and their indices are -1. The choice is made from 31 random bits of each image
(`Quantizer.takes_random_bits`), so that it depends neither on the number of processes nor on micro-batches. Rests go on
through all levels: entropies, averages of latents (`update=ema`) and restarts see them as without dropout.

Shapes    z, z_q (B,N,D) float32      indices (B,N,levels), or (B,N) for one level; -1 adds nothing
Losses    codebook: mean |code - sg r_k|^2      commitment: mean |sg code - r_k|^2      entropies: those of `vq.py`
          all averaged over levels
Records   rest_level_k (from 0, with several levels): |r_{k+1}|^2 / |z|^2 of each image, what is left after level k
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.devices import full_precision
from engine.seeds import RANDOM_BITS
from engine.validation import Problem, at_least, in_range
from tokenizer.quantizers.base import Quantized
from tokenizer.quantizers.codebooks import SeveralCodebooks, section_of_book
from tokenizer.quantizers.gradients import rotation_trick, straight_through
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig

LEAST_POWER = 1e-20  # that is divided by


@dataclass(kw_only=True, slots=True)
class RVQConfig(VQConfig):
    """As `VQConfig`, of each of `levels` codebooks; codes and rests are compared by distance, not by direction."""

    levels: int = 4
    codebook_size: int = 1024
    codebook_dim: int = 32
    l2_norm: bool = False
    rotation_trick: bool = False
    shared: bool = False  # one codebook for all levels (RQ-VAE)
    zero_code: bool = False  # code 0 of each codebook is zero: a level may add nothing, and no level adds to the error
    level_dropout: float = 0.0  # training: fraction of images that keep a random number of first levels

    def problems(self) -> Iterator[Problem]:
        yield from VQConfig.problems(self)
        yield from at_least(self, "levels", 1)
        yield from in_range(self, "level_dropout", 0, 1)
        if self.l2_norm:
            yield Problem("l2_norm", self.l2_norm, "false: a sum of codes has no length of its own")
        if self.shared and self.init == "kmeans":
            yield Problem("init", self.init, "random with shared: k-means serves the rests of one level")
        if self.shared and self.restart == "random":
            yield Problem("restart", self.restart, "nearest or none with shared: rests of several levels have no order")


class _Level(VectorQuantizer):
    """A codebook whose code 0 may be zero."""

    def __init__(self, config: VQConfig, zero_code: bool) -> None:
        super().__init__(config)
        self.zero_code = zero_code

    def codes(self) -> Tensor:
        codes = super().codes()
        return torch.cat([torch.zeros_like(codes[:1]), codes[1:]]) if self.zero_code else codes

    def init_from(self, latents: Tensor) -> Tensor:
        codes = super().init_from(latents)
        if self.zero_code:
            codes[0] = 0.0
        return codes


class ResidualVQ(SeveralCodebooks):
    """See the module docstring."""

    config_class = RVQConfig
    in_words = "sums of learned code vectors, each nearest to what the ones before leave"
    lowest_index: ClassVar[int] = -1

    def __init__(self, config: RVQConfig) -> None:
        self.config = config
        # The first level keeps the latents of a warm-up; `finish_warmup` serves all levels. Gradients pass the sum.
        first = section_of_book(config, rotation_trick=False)
        later = section_of_book(config, rotation_trick=False, init="random")
        sections = [first] if config.shared else [first, *[later] * (config.levels - 1)]
        books = [_Level(section, config.zero_code) for section in sections]
        super().__init__(books, config.levels, config.codebook_dim)
        self.takes_random_bits = config.level_dropout > 0

    def forward(
        self, z: Tensor, *, quantize: bool = True, entropy: bool = False, random_bits: Tensor | None = None
    ) -> Quantized:
        """See `Quantizer.forward`. Without `random_bits` (B,), and in evaluation, all images keep all levels."""
        with full_precision(z.device):
            # Level by level: the nearest code of what is left.
            z = z.float()
            kept = self._kept_levels(random_bits) if quantize else None
            rest = z
            columns, codes, losses, rests = [], [], [], []
            for level, book in enumerate(self.book_of_index):
                chosen = book(rest, quantize=quantize, entropy=entropy)
                code = book.decode_indices(chosen.indices)
                is_kept = None if kept is None else (kept > level)[:, None]
                columns.append(chosen.indices if is_kept is None else chosen.indices.where(is_kept, -1))
                codes.append(code if is_kept is None else code.where(is_kept[..., None], 0.0))
                losses.append(chosen.losses if is_kept is None else _kept_losses(chosen.losses, rest, code, is_kept))
                rest = rest - code.detach()
                rests.append(rest)

            # Indices of dropped levels are -1, which usage does not count.
            indices = self.join(columns)
            if self.training:
                self.remember(indices)
            if not quantize:
                return Quantized(z + self.idle_gradient(), indices)

            # A gradient for the encoder.
            gradient_copy = rotation_trick if self.config.rotation_trick else straight_through
            values = self.mean_losses(losses) | _fractions_left(z, rests)
            return Quantized(gradient_copy(z, _total(codes)), indices, values)

    def _kept_levels(self, random_bits: Tensor | None) -> Tensor | None:
        """How many first levels each image keeps, int64 (B,), from whole numbers below 2^31; None: all of them."""
        if random_bits is None or not self.training or not self.takes_random_bits:
            return None
        # Numbers below the bound are uniform there, which is divided into `levels` equal parts.
        bound = round(self.config.level_dropout * 2**RANDOM_BITS)
        levels = self.config.levels
        return torch.where(random_bits < bound, 1 + random_bits * levels // max(bound, 1), levels)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (B,N,levels), or (B,N) for one level -> the sum of their codes (B,N,D); -1 adds nothing."""
        codes = []
        for book, column in zip(self.book_of_index, self.split(indices), strict=True):
            code = book.decode_indices(column.clamp_min(0))
            codes.append(code.where((column >= 0)[..., None], 0.0))
        return _total(codes)

    def choice_distances(self, z: Tensor, indices: Tensor) -> Tensor:
        """How much farther the codes are from the rests that their own forerunners leave than the nearest ones, summed
        over levels: squared distances (B,N), 0 for the choice of `forward`.

        After another choice at one level, the later ones are made for another rest.
        """
        with full_precision(z.device):
            rest = z.float()
            regret = torch.zeros_like(rest[..., 0])
            for book, column in zip(self.book_of_index, self.split(indices), strict=True):
                nearest = book.nearest(rest.flatten(0, -2), book.codes()).view(column.shape)
                code = book.decode_indices(column.clamp_min(0)).where((column >= 0)[..., None], 0.0)
                least = (rest - book.decode_indices(nearest)).square().sum(-1)
                rest = rest - code
                regret = regret + rest.square().sum(-1) - least
            return regret

    def finish_warmup(self) -> bool:
        """With `init=kmeans`: sets one codebook after the other by k-means on what the ones before leave of the latents
        of the warm-up.
        """
        if self.config.init != "kmeans":
            return False
        rests = self.books[0].warmup_latents().float().cpu()
        for book in self.books:
            codes = book.init_from(rests)
            rests = rests - F.embedding(book.nearest(rests, codes), codes)
        return True


def _total(codes: list[Tensor]) -> Tensor:
    """The sum of the codes (B,N,D) of all levels, in their order: the same bits wherever it is computed."""
    total = codes[0]
    for code in codes[1:]:
        total = total + code
    return total


@torch.no_grad()
def _fractions_left(z: Tensor, rests: list[Tensor]) -> dict[str, Tensor]:
    """The power of the rest after each level, as a fraction of that of the latents of each image, averaged over images;
    nothing for a single level. A mean over images does not depend on how a batch is divided.
    """
    if len(rests) == 1:
        return {}
    powers = z.square().mean((1, 2)).clamp_min(LEAST_POWER)
    return {f"rest_level_{level}": (rest.square().mean((1, 2)) / powers).mean() for level, rest in enumerate(rests)}


def _kept_losses(losses: dict[str, Tensor], rest: Tensor, code: Tensor, is_kept: Tensor) -> dict[str, Tensor]:
    """The losses of a level, in which latents count 0 where `is_kept` (B,1) is false."""
    weights = is_kept[..., None].to(rest.dtype)
    errors = {"codebook": (code - rest.detach()).square(), "commitment": (code.detach() - rest).square()}
    return losses | {name: (error * weights).mean() for name, error in errors.items() if name in losses}
