"""The packed code store: one memory-mapped array per split, with a manifest that names the tokenizer it came from.

    <codes>/train/codes.npy     (num_images, num_views, num_tokens) uint16, or wider for codebooks above 65,536; with
                                k indices per token (num_images, num_views, num_tokens, k)
    <codes>/train/labels.npy    (num_images,) int64
    <codes>/train/manifest.json the tokenizer's fingerprint, sizes, crops, class names; written when every code is there

An interrupted extraction leaves `progress.json` and continues where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.aliases import current_manifest
from engine.arithmetic import ceil_div
from engine.atomic_file import write_atomic
from engine.data.classes import Classes, labels_among
from engine.data.identity import changes, digest_of, text_of
from engine.data.stream import position_rng
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.outputs import free_name

FORMAT = 1
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
            raise CodesError(f"{self.folder} holds {state}; run: bash scripts/extract_code_c2i.sh --code-path {folder}")

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

    def require(self, fingerprint: str, tokenizer: str) -> None:
        """Raises CodesError unless these codes were made by the tokenizer with this fingerprint."""
        if self.manifest.fingerprint != fingerprint:
            raise CodesError(
                f"{self.folder} holds codes of another tokenizer: theirs {self.manifest.fingerprint[:16]} "
                f"({self.manifest.tokenizer}), given {fingerprint[:16]} ({tokenizer}); extract codes with that one"
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


def code_item(store: CodeStore, seed: int, class_dropout_prob: float) -> Callable[[int, int], dict[str, Tensor]]:
    """Returns `item(index, position)`: a random view of image `index`, and whether its label is dropped there."""

    def item(index: int, position: int) -> dict[str, Tensor]:
        rng = position_rng(seed, position)
        view = int(rng.integers(store.manifest.num_views))
        return {
            "tokens": store.tokens(index, view),
            "labels": torch.tensor(int(store.labels[index])),
            "drop": torch.tensor(bool(rng.random() < class_dropout_prob)),
        }

    return item


# ---------------------------------------------------------------------------------------------- writing
def write_rows(path: Path, first: int, rows: np.ndarray) -> None:
    """Writes rows of an array file in place, and syncs them."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    content = rows.astype(array.dtype).tobytes()
    row_bytes = array[:1].nbytes
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), content, array.offset + first * row_bytes)
        os.fdatasync(file.fileno())


def create_array(path: Path, shape: tuple[int, ...], dtype: type) -> None:
    """Makes an array file of zeros with all its blocks on disk, so that a full disk is noticed now and not later."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


class CodeWriter:
    """One rank's part of a split under construction. Rank r of W writes blocks r, r + W, ... of `block` images.

    All ranks call the constructor, `pending` and `write`; only the main process calls `create` (before a barrier) and
    `finish` (after one).
    """

    def __init__(self, folder: str | Path, manifest: CodesManifest, block: int, rank: int) -> None:
        self.folder = Path(folder) / manifest.split
        self.manifest = manifest
        self.shape = manifest.shape
        self.block = block
        self.progress_path = self.folder / f"progress_{rank}.json"
        self.done: set[int] = set()  # first images of the blocks that are on disk

    def finished(self) -> bool:
        """Whether the same extraction was finished before. Raises CodesError if other codes are there."""
        path = self.folder / "manifest.json"
        if not path.is_file():
            return False
        self._require_same(path)
        return True

    def _require_same(self, path: Path) -> dict[str, Any]:
        """The facts in `path`. Raises CodesError unless they are those of this extraction."""
        try:
            present = read_manifest(path)
        except (OSError, ValueError) as error:
            raise CodesError(f"{path} is damaged: {error}; remove {path.parent} or use another --code-path") from error

        # The tokenizer may have been moved. Older files lack facts that were added later, and that are empty for them.
        facts_now = asdict(self.manifest)
        images_now = facts_now.pop("image_facts")
        changed = [
            f"{key}: {present.get(key)!r} there, {value!r} now"
            for key, value in facts_now.items()
            if key != "tokenizer" and present.get(key, type(value)()) != value
        ]

        # The images, which an older version does not describe.
        images_then = present.get("image_facts")
        if images_then:
            changed += changes(images_then, images_now)
        elif images_now:
            logger.warning("%s, of an older version, does not say of which images: not compared", path.parent)
        if changed:
            other = free_name(self.folder.parent)
            told = text_of(changed)[:600]
            raise CodesError(f"{path.parent} holds other codes ({told}); use another --code-path, such as {other}")
        return present

    def create(self, labels: np.ndarray) -> None:
        """Makes the arrays, or keeps those of an interrupted extraction of the same kind. For the main process."""
        extraction_path = self.folder / "progress.json"  # the facts of the extraction, and its block size
        if extraction_path.is_file():
            if self._require_same(extraction_path).get("block") == self.block:
                return
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            other = free_name(self.folder.parent)
            raise CodesError(
                f"{self.folder} is not empty and holds no extraction; nothing is overwritten: give another "
                f"--code-path, such as {other}"
            )

        # Blocks of another size do not line up with these; all of them are made again.
        self.folder.mkdir(parents=True, exist_ok=True)
        for progress in self.folder.glob("progress_*.json"):
            progress.unlink()
        create_array(self.folder / "codes.npy", self.shape, code_dtype(self.manifest.codebook_size))
        np.save(self.folder / "labels.npy", labels.astype(np.int64))
        write_atomic(extraction_path, to_json(asdict(self.manifest) | {"block": self.block}))

    def pending(self, rank: int, size: int) -> list[range]:
        """The blocks of images that this rank of `size` still has to do."""
        if self.progress_path.is_file():
            self.done = set(json.loads(self.progress_path.read_text())["done"])
        num_images = self.shape[0]
        starts = range(0, num_images, self.block)
        blocks = [range(start, min(start + self.block, num_images)) for start in starts]
        return [block for block in blocks[rank::size] if block.start not in self.done]

    def write(self, block: range, codes: Tensor, labels: list[int] | None = None) -> None:
        """Writes the codes (images, views, tokens[, k]) of one block, and the labels of the images that were read.

        They are on disk before the progress says so. Bytes are written in place: ranks on several machines share the
        file.
        """
        write_rows(self.folder / "codes.npy", block.start, codes.cpu().numpy())
        if labels is not None:
            write_rows(self.folder / "labels.npy", block.start, np.array(labels))
        self.done.add(block.start)
        write_atomic(self.progress_path, to_json({"done": sorted(self.done)}))

    def finish(self) -> None:
        """Writes the manifest and removes the progress files. For the main process, after a barrier."""
        write_atomic(self.folder / "manifest.json", to_json(asdict(self.manifest), indent=1))
        for path in self.folder.glob("progress*.json"):
            path.unlink()
