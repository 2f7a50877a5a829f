"""The packed code store: one memory-mapped array per split, with a manifest that names the tokenizer it came from.

    <codes>/train/codes.npy     (num_images, num_views, num_tokens) uint16, or wider for codebooks above 65,536; with
                                k indices per token (num_images, num_views, num_tokens, k)
    <codes>/train/labels.npy    (num_images,) int64
    <codes>/train/manifest.json the tokenizer's fingerprint, sizes, crops, class names; written when every code is there

`autoregressive.code_writer` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from autoregressive.views import VIEWS
from engine.aliases import current_manifest
from engine.arithmetic import ceil_div
from engine.checkpoint.code_maker import CodeMaker
from engine.data.classes import Classes, labels_among
from engine.data.identity import digest_of
from engine.data.stream import AUGMENTATION_KEY, Batch, position_rng
from engine.messages import UserError
from engine.philox import bounded, first_words, fractions
from engine.seeds import counter_rng

FORMAT = 1
CHOICES_KEY = 0xC401CE  # keeps the random choices of a generator apart from views and dropped labels
COMPARED_IMAGES = 2048  # at most so many images enter the identity of a store with their codes


class CodesError(UserError):
    """Codes that are missing, damaged, or of another tokenizer."""


# ---------------------------------------------------------------------------------------------- the manifest
@dataclass(frozen=True)
class CodesManifest:
    """What a split of codes is."""

    format: int
    fingerprint: str  # SHA-256 of the tokenizer's parameters
    tokenizer: str  # where the tokenizer lay
    split: str
    data: str  # name of the images
    num_images: int
    num_views: int
    num_tokens: int
    codebook_size: int  # the largest one, where a token has several indices
    image_size: int
    views: str  # a key of `autoregressive.views.VIEWS`
    class_names: list[str]
    codebook_sizes: list[int] = field(default_factory=list)  # one per index of a token; empty = one index
    classes_are_named: bool = True  # False: the names of the classes are only numbers
    image_facts: dict[str, Any] = field(default_factory=dict)  # which images; see engine.data.identity
    decoding: str = ""  # how stored pixels became RGB, as far as it is not the default
    codes_fingerprint: str = ""  # SHA-256 of the tokenizer's encoder and quantizer; empty in older files

    @property
    def maker(self) -> CodeMaker:
        """The tokenizer that made the codes."""
        return CodeMaker(self.fingerprint, self.codes_fingerprint)

    @property
    def index_sizes(self) -> tuple[int, ...]:
        """Codebook size of each index of a token."""
        return tuple(self.codebook_sizes) or (self.codebook_size,)

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of one image's tokens: (N,), or (N,k) where a token has k indices."""
        return (self.num_tokens, len(self.codebook_sizes)) if self.codebook_sizes else (self.num_tokens,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the code array."""
        return (self.num_images, self.num_views, *self.token_shape)


def read_manifest(path: Path) -> dict[str, Any]:
    """The facts of a manifest or of a progress file, with present names. Raises OSError or ValueError if damaged."""
    return current_manifest(json.loads(path.read_text(encoding="utf-8")))


def code_dtype(codebook_size: int) -> type:
    """The smallest type that holds every index."""
    if codebook_size <= 2**16:
        return np.uint16
    if codebook_size <= 2**31:
        return np.int32
    return np.int64


# ---------------------------------------------------------------------------------------------- reading
class CodeStore:
    """A finished split, memory-mapped. Raises CodesError if it is missing, unfinished or damaged."""

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder = Path(folder) / split
        path = self.folder / "manifest.json"
        if not path.is_file():
            is_unfinished = (self.folder / "progress.json").is_file()
            state = "an unfinished extraction" if is_unfinished else "no codes"
            command = f"python -m autoregressive.extract_codes --code-path {folder}"
            raise CodesError(f"{self.folder} holds {state}; run: {command}")

        try:
            self.manifest = CodesManifest(**read_manifest(path))
            self.codes = np.load(self.folder / "codes.npy", mmap_mode="r", allow_pickle=False)
            self.labels = np.load(self.folder / "labels.npy", allow_pickle=False)
            names = tuple(self.manifest.class_names)
        except (OSError, ValueError, TypeError) as error:
            raise CodesError(f"{self.folder} is damaged: {error}") from error

        self.classes = Classes(names, f"the codes {self.folder}", self.manifest.classes_are_named)
        expected = self.manifest.shape
        if self.codes.shape != expected or len(self.labels) != expected[0]:
            raise CodesError(f"{self.folder / 'codes.npy'} has shape {self.codes.shape}, manifest.json says {expected}")

    def __len__(self) -> int:
        return len(self.labels)

    def require(self, maker: CodeMaker, tokenizer: str) -> None:
        """Raises CodesError unless these codes are those of the tokenizer `maker`, whose path is `tokenizer`.

        The decoder may be another one than that of the tokenizer that made them.
        """
        theirs = self.manifest.maker
        if not maker.makes_codes_of(theirs):
            raise CodesError(
                f"{self.folder} holds codes of another tokenizer: theirs {theirs.fingerprint[:16]} "
                f"({self.manifest.tokenizer}), given {maker.fingerprint[:16]} ({tokenizer}); {theirs.why_not()}. Use "
                "the one that made them, or extract codes with the given one into another folder"
            )

    def contents(self) -> dict[str, str]:
        """Digests of the labels, and of the codes of evenly spread images, for `engine.data.identity`."""
        spread = self.codes[:: ceil_div(len(self), COMPARED_IMAGES)]
        return {"labels": digest_of([self.labels.tobytes()]), "codes": digest_of([spread.tobytes()])}

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, by label."""
        return list(self.classes.names)

    def take_labels_of(self, expected: Classes) -> None:
        """Takes the labels that the classes have among the expected ones, by name.

        Raises UserError for classes that are not among those.
        """
        self.labels = labels_among(self.classes, expected)[self.labels]
        self.classes = replace(expected, owner=self.classes.owner)

    def tokens(self, index: int, view: int) -> Tensor:
        """The tokens of one view of an image, (num_tokens,) or (num_tokens, k) int64."""
        return torch.from_numpy(self.codes[index, view].astype(np.int64))

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Numbers of images (B,) -> tokens (B, num_tokens[, k]) of their center views, labels (B,)."""
        view = VIEWS[self.manifest.views].center
        tokens = torch.stack([self.tokens(row, view) for row in rows])
        return tokens, torch.tensor([int(self.labels[row]) for row in rows])

    def gather(self, indices: np.ndarray, views: np.ndarray) -> Tensor:
        """The tokens of one view of each image, in one read: (B, num_tokens[, k]) int64."""
        num_images, num_views, *token_shape = self.codes.shape
        rows = self.codes.reshape(num_images * num_views, *token_shape).view(np.ndarray)
        return torch.from_numpy(rows.take(indices * num_views + views, axis=0).astype(np.int64))


# The random choices of one sample beside its view and label; see `Generator.training_choices`.
Choices = Callable[[np.random.Generator], dict[str, Tensor]]


def code_batch(
    store: CodeStore, seed: int, class_dropout_prob: float, choices: Choices | None = None
) -> Callable[[np.ndarray, range], Batch]:
    """Returns `read(indices, positions)`, which makes the batch of images `indices` (B,) at `positions`:

        tokens   int64 (B, num_tokens[, k]): a random view of each image
        labels   int64 (B,)
        drop     bool (B,): whether the label is dropped
        ...      what `choices` draws, stacked

    All depends on (seed, position) only: view and drop are the first two draws of `position_rng`, and `choices` have
    random numbers of their own (`choices_at`).
    """
    num_views = store.manifest.num_views

    def read(indices: np.ndarray, positions: range) -> Batch:
        views, chances = drawn_at(seed, positions, num_views)
        batch = {
            "tokens": store.gather(indices, views),
            "labels": torch.from_numpy(store.labels[indices]),
            "drop": torch.from_numpy(chances < class_dropout_prob),
        }
        if choices is not None:
            batch |= default_collate([choices_at(seed, position, choices) for position in positions])
        return batch

    return read


def choices_at(seed: int, position: int, choices: Choices | None) -> dict[str, Tensor]:
    """What `choices` draws for the sample at a position; nothing without it."""
    return {} if choices is None else choices(counter_rng(seed, CHOICES_KEY, position))


def drawn_at(seed: int, positions: range, num_views: int) -> tuple[np.ndarray, np.ndarray]:
    """A view and a chance in [0, 1) for each position: int64 and float64 (B,).

    With `rng = position_rng(seed, position)` they are `rng.integers(num_views)` and then `rng.random()`.
    """
    words = first_words(seed, AUGMENTATION_KEY, np.array(positions, dtype=np.uint64))
    if num_views == 1:  # numpy draws nothing for a choice of one
        return np.zeros(len(positions), dtype=np.int64), fractions(words[0])

    views, is_rejected = bounded(words[0], num_views)
    chances = fractions(words[1])
    for i in np.flatnonzero(is_rejected):
        rng = position_rng(seed, positions[i])
        views[i], chances[i] = rng.integers(num_views), rng.random()
    return views, chances
