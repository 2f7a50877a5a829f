"""The two halves of a tokenizer, to be exported: images -> indices, and indices -> images.

Shapes    images (B,3,H,W) in [-1,1]      indices int64 (B,N), or (B,N,G) where a token has G of them
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.exporting.parts import BATCHES, CodeComparison, Comparison, Part, Port, Run, Tensors, random_codes
from engine.arithmetic import ceil_div
from engine.finite import deferred_checks
from engine.messages import UserError
from tokenizer.models.base import Tokenizer

MIN_CODES = 2048  # tokens that a file is compared on: one of them in a thousand may be a near tie
MIN_IMAGES = 32


class _Encoder(nn.Module):
    """Images -> indices."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        with deferred_checks():  # a program has no place for an error
            return self.tokenizer.encode(images).indices


class _Decoder(nn.Module):
    """Indices -> images, not clamped."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, indices: Tensor) -> Tensor:
        return self.tokenizer.decode(self.tokenizer.quantizer.decode_indices(indices))


class _GenerativeDecoder(nn.Module):
    """Indices and noise -> images, not clamped. The noise of evaluation is a hash of the codes, which is no tensor."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, indices: Tensor, noise: Tensor) -> Tensor:
        return self.tokenizer.decode_with_noise(self.tokenizer.quantizer.decode_indices(indices), noise)


class TokenizerPart(Part):
    """A part of a tokenizer, with images and codes to compare it on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.takes_noise = "noise" in tokenizer.capabilities

    def batches(self) -> Iterator[int]:
        """Sizes of batches with enough images and codes in all: few images of many tokens come in small ones."""
        remaining = max(MIN_IMAGES, ceil_div(MIN_CODES, self.tokenizer.num_tokens))
        rows = 1
        for number in count():
            rows = BATCHES[number] if number < len(BATCHES) else 2 * rows
            yield min(rows, remaining)
            remaining -= rows
            if remaining <= 0:
                return

    def random_indices(self, rows: int, generator: torch.Generator) -> Tensor:
        """Codes with equal probability, int64 (rows,N) or (rows,N,G)."""
        return random_codes(self.tokenizer.quantizer.group_sizes, rows, self.tokenizer.num_tokens, generator)

    def images(self, rows: int, generator: torch.Generator) -> Tensor:
        """Images with many codes: smooth colors with some noise, every other one drawn by the tokenizer itself."""
        size = self.tokenizer.image_size
        colors = torch.rand(rows, 3, 4, 4, generator=generator) * 2 - 1
        smooth = F.interpolate(colors, size=(size, size), mode="bicubic")
        images = smooth + 0.1 * torch.randn(smooth.shape, generator=generator)
        decoded = self.tokenizer.decode_indices(self.random_indices(rows, generator))
        images[1::2] = decoded[1::2]
        return images.clamp(-1, 1)

    def noise(self, indices: Tensor) -> Tensors:
        """The further input of a generative decoder: none, or the noise of evaluation."""
        if not self.takes_noise:
            return ()
        return (self.tokenizer.decoding_noise(self.tokenizer.quantizer.decode_indices(indices)),)


class EncodePart(TokenizerPart):
    """See the module docstring."""

    name = "encode"
    inputs = (Port("images", "float32 (batch,3,height,width) in [-1,1]"),)

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.module = _Encoder(tokenizer)
        sizes = tokenizer.quantizer.group_sizes
        self.outputs = (Port("indices", _codes_meaning(sizes)),)

    def example(self, rows: int) -> Tensors:
        size = self.tokenizer.image_size
        return (torch.zeros(rows, 3, size, size),)

    def compare(self, run: Run) -> Iterator[Comparison]:
        generator = torch.Generator().manual_seed(0)
        for rows in self.batches():
            images = self.images(rows, generator)
            (indices,) = run(images)
            expected = self.tokenizer.encode(images).indices
            if indices.shape != expected.shape:
                raise UserError(f"the exported file gives indices {tuple(indices.shape)}, not {tuple(expected.shape)}")

            # A token of several indices is one choice.
            latents = self.tokenizer.latents(self.tokenizer.encode_features(images))
            differs = (indices != expected).reshape(rows, self.tokenizer.num_tokens, -1).any(-1)
            distance = self.tokenizer.quantizer.choice_distances
            gaps = distance(latents, indices) - distance(latents, expected)
            yield Comparison(rows, {}, CodeComparison(differs, gaps))


class DecodePart(TokenizerPart):
    """See the module docstring."""

    name = "decode"
    outputs = (Port("images", "float32 (batch,3,height,width), about [-1,1], not clamped"),)

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.module = _GenerativeDecoder(tokenizer) if self.takes_noise else _Decoder(tokenizer)
        indices = Port("indices", _codes_meaning(tokenizer.quantizer.group_sizes))
        noise = Port("noise", "float32, standard normal numbers of the generative decoder")
        self.inputs = (indices, noise) if self.takes_noise else (indices,)

    def example(self, rows: int) -> Tensors:
        indices = self.random_indices(rows, torch.Generator().manual_seed(0))
        return (indices, *self.noise(indices))

    def compare(self, run: Run) -> Iterator[Comparison]:
        generator = torch.Generator().manual_seed(0)
        for rows in self.batches():
            # Codes as images have them, and any.
            indices = self.random_indices(rows, generator)
            indices[1::2] = self.tokenizer.encode(self.images(rows, generator)).indices[1::2]
            (images,) = run(indices, *self.noise(indices))
            yield Comparison(rows, {"images": (self.tokenizer.decode_indices(indices), images)})


def _codes_meaning(sizes: tuple[int, ...]) -> str:
    """What the indices of a tokenizer are."""
    if len(sizes) == 1:
        return f"int64 (batch,tokens) in [0,{sizes[0]})"
    return f"int64 (batch,tokens,{len(sizes)}), below {' x '.join(map(str, sizes))}"


TOKENIZER_PARTS: dict[str, type[TokenizerPart]] = {part.name: part for part in (EncodePart, DecodePart)}
