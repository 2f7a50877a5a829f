"""Images as tokens of a trained tokenizer, made when they are asked for: in training, and of held-out images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.data.images import to_float
from engine.data.samples import labeled_batch
from engine.data.sources import ImageSource
from engine.devices import DeviceClock, full_precision
from engine.finite import deferred_checks, numbered
from tokenizer.models.base import Tokenizer


@torch.no_grad()
def tokens_of(tokenizer: Tokenizer, images_u8: Tensor) -> Tensor:
    """Images uint8 (B,3,H,W) -> tokens int64 (B,N), or (B,N,k) where a token has k indices.

    They are computed in float32 without TF32, whatever the precision of the training around, as an extraction of codes
    computes them. Raises NonFiniteValuesError where latents are not finite; inside `deferred_checks` later.
    """
    with full_precision(images_u8.device):
        return tokenizer.encode(to_float(images_u8)).indices


class TokenizedImages:
    """The center crops of labeled images as tokens."""

    def __init__(self, source: ImageSource, tokenizer: Tokenizer, device: torch.device, skip_broken: bool) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.device = device
        self.skip_broken = skip_broken

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Numbers of images (B,) -> tokens (B,N) or (B,N,k) on the device, labels (B,) on the CPU."""
        images, labels = labeled_batch(self.source, self.tokenizer.image_size, rows, self.skip_broken)
        return tokens_of(self.tokenizer, images.to(self.device)), labels


class RememberedTokens(TokenizedImages):
    """The same, where the same batches are read again and again: their tokens are made once, and stay on the CPU."""

    def __init__(self, source: ImageSource, tokenizer: Tokenizer, device: torch.device, skip_broken: bool) -> None:
        super().__init__(source, tokenizer, device, skip_broken)
        self._batches: dict[bytes, tuple[Tensor, Tensor]] = {}  # rows -> tokens, labels

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        key = rows.tobytes()
        if key not in self._batches:
            with numbered("held-out image", rows.tolist()):
                tokens, labels = super().read(rows)
            self._batches[key] = tokens.cpu(), labels
        return self._batches[key]


class Tokenization:
    """The part of a training step that makes tokens of images. It does not wait for the device."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer = tokenizer
        self.clock = DeviceClock(device)

    def __call__(self, images_u8: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (B,3,H,W) -> tokens (B,N) or (B,N,k), and a scalar on the device: 1, or NaN where the latents
        of an image were not finite.
        """
        with self.clock.running(), deferred_checks() as checks:
            tokens = tokens_of(self.tokenizer, images_u8)
        is_bad = torch.zeros((), dtype=torch.bool, device=tokens.device)
        for check in checks:
            is_bad = is_bad | check.any()
        return tokens, torch.where(is_bad, torch.nan, 1.0)
