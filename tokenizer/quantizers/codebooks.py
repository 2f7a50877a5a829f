"""Quantizers whose token has one index of each of several learned codebooks: what residual and product codes share.

Each codebook is a `VectorQuantizer` with the options of `vq`. Their losses are averaged, so that a weight of the
section `loss` means the same for any number of codebooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from engine.seeds import NUM_SEEDS
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig


def section_of_book(config: VQConfig, **changes: Any) -> VQConfig:
    """The options of one codebook: those that `config`, a section derived from `VQConfig`, shares with it."""
    options = {field.name: getattr(config, field.name) for field in fields(VQConfig)}
    return VQConfig(**options | changes)


class SeveralCodebooks(Quantizer):
    """Base class of quantizers that are made of vector quantizers, which have no window of indices of their own.

    A subclass defines `forward` and `decode_indices`. An index of a token has its codebook at the same place of
    `book_of_index`; one codebook may serve several indices.
    """

    books: nn.ModuleList  # a VectorQuantizer each

    def __init__(self, books: Sequence[VectorQuantizer], num_indices: int, codebook_dim: int) -> None:
        """`num_indices` per token: as many as there are codebooks, or any number for a single one that all share."""
        super().__init__([books[0].codebook_size] * num_indices, codebook_dim)
        self.books = nn.ModuleList(books)
        for book in books:
            book.recent_indices = None
        self.loss_names = books[0].loss_names

    @property
    def book_of_index(self) -> list[VectorQuantizer]:
        """The codebook of each index of a token."""
        return list(self.books) if len(self.books) > 1 else [self.books[0]] * self.num_groups

    # ------------------------------------------------------------------------------------------------ parts of forward
    def join(self, columns: Sequence[Tensor]) -> Tensor:
        """Indices (B,N) of each codebook as those of tokens: (B,N,G), or (B,N) for one."""
        return torch.stack(list(columns), dim=-1) if self.num_groups > 1 else columns[0]

    def split(self, indices: Tensor) -> Sequence[Tensor]:
        """The way back from `join`, int64."""
        return indices.long().unbind(-1) if self.num_groups > 1 else [indices.long()]

    @staticmethod
    def mean_losses(losses: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The mean over codebooks of each of their losses."""
        return {name: torch.stack([each[name] for each in losses]).mean() for name in losses[0]}

    def idle_gradient(self) -> Tensor:
        """Zero, with a gradient of zero for every parameter: data-parallel training waits for all of them."""
        return 0.0 * sum(parameter.sum() for parameter in self.parameters())

    # ------------------------------------------------------------------------------------------------ the update
    def after_update(self, step: int, seed: int, is_skipped: Tensor) -> Mapping[nn.Parameter, Tensor]:
        """That of each codebook, with random numbers of its own."""
        new_rows: dict[nn.Parameter, Tensor] = {}
        for number, book in enumerate(self.books):
            new_rows |= book.after_update(step, (seed + number) % NUM_SEEDS, is_skipped)
        return new_rows

    def usage(self) -> dict[str, Tensor]:
        """Also the restarted codes of all codebooks, where they restart."""
        restarts = [book.restarts() for book in self.books]
        return super().usage() | {name: sum(each[name] for each in restarts) for name in restarts[0]}

    @property
    def can_restart_codes(self) -> bool:
        return self.books[0].can_restart_codes

    # ------------------------------------------------------------------------------------------------ what others ask
    def require_warmup(self, num_latents: int) -> None:
        self.books[0].require_warmup(num_latents)

    def warnings(self) -> Iterator[str]:
        return self.books[0].warnings()

    def empty_windows(self) -> dict[str, Tensor]:
        of_books = (
            {f"books.{number}.{name}": window for name, window in book.empty_windows().items()}
            for number, book in enumerate(self.books)
        )
        return super().empty_windows() | _merged(of_books)

    def training_flops(self, num_latents: int, entropy: bool) -> int:
        return sum(book.training_flops(num_latents, entropy) for book in self.book_of_index)

    def health(self) -> dict[str, float]:
        """That of one codebook: losses are means over codebooks, and all codebooks are alike."""
        return self.books[0].health()


def _merged(tables: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All entries of several tables."""
    return {name: value for table in tables for name, value in table.items()}
