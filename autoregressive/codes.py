"""The packed code store: one memory-mapped array per split, with a manifest that names the tokenizer it came from.

    <codes>/train/codes.npy     (num_images, num_views, num_tokens) uint16, or wider for codebooks above 65,536; with
                                several indices per token (num_images, num_views, num_tokens, streams)
    <codes>/train/labels.npy    (num_images,) int64
    <codes>/train/manifest.json the tokenizer's fingerprint, sizes, crops, class names; written when every code is there

An interrupted extraction leaves `progress.json` and continues where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint.manifest import write_atomic
from engine.data.stream import position_rng
from engine.messages import UserError

FORMAT = 1
CENTER_VIEW = {"centre": 0, "flip": 0, "ten-crop": 4}  # kind of views -> the one that is the plain centre crop


class CodesError(UserError):
    """Codes that are missing, damaged, or of another tokenizer."""


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
    codebook_size: int
    image_size: int
    views: str  # centre | flip | ten-crop
    class_names: list[str]
    streams: list[int] = field(default_factory=list)  # codebook size of each index of a token; empty = one index

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the codes."""
        own = (len(self.streams),) if self.streams else ()
        return (self.num_images, self.num_views, self.num_tokens, *own)


def code_dtype(codebook_size: int) -> type:
    """The smallest type that holds every index."""
    return np.uint16 if codebook_size <= 2**16 else np.int32 if codebook_size <= 2**31 else np.int64


class CodeStore:
    """A finished split, memory-mapped."""

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder = Path(folder) / split
        path = self.folder / "manifest.json"
        if not path.is_file():
            state = "an unfinished extraction" if (self.folder / "progress.json").is_file() else "no codes"
            raise CodesError(f"{self.folder} holds {state}; run: bash scripts/extract_code_c2i.sh --code-path {folder}")
        try:
            self.manifest = CodesManifest(**json.loads(path.read_text(encoding="utf-8")))
            self.codes = np.load(self.folder / "codes.npy", mmap_mode="r", allow_pickle=False)
            self.labels = np.load(self.folder / "labels.npy", allow_pickle=False)
        except (OSError, ValueError, TypeError) as error:
            raise CodesError(f"{self.folder} is damaged: {error}") from error
        expected = self.manifest.shape
        if self.codes.shape != expected or len(self.labels) != expected[0]:
            raise CodesError(f"{self.folder / 'codes.npy'} has shape {self.codes.shape}, manifest.json says {expected}")

    def __len__(self) -> int:
        return len(self.labels)

    def require(self, fingerprint: str, tokenizer: str) -> None:
        """An error unless these codes were made by the tokenizer with this fingerprint."""
        if self.manifest.fingerprint != fingerprint:
            raise CodesError(
                f"{self.folder} holds codes of another tokenizer: theirs {self.manifest.fingerprint[:16]} "
                f"({self.manifest.tokenizer}), given {fingerprint[:16]} ({tokenizer}); extract codes with that one"
            )

    def tokens(self, index: int, view: int) -> Tensor:
        """(num_tokens,) or (num_tokens, streams) int64."""
        return torch.from_numpy(self.codes[index, view].astype(np.int64))


def code_item(store: CodeStore, seed: int, class_dropout_prob: float) -> Callable[[int, int], dict[str, Tensor]]:
    """`item(index, position)`: a random view of image `index`, and whether its label is dropped at this position."""

    def item(index: int, position: int) -> dict[str, Tensor]:
        rng = position_rng(seed, position)
        view = int(rng.integers(store.manifest.num_views))
        return {
            "tokens": store.tokens(index, view),
            "labels": torch.tensor(int(store.labels[index])),
            "drop": torch.tensor(bool(rng.random() < class_dropout_prob)),
        }

    return item


def write_rows(path: Path, first: int, rows: np.ndarray) -> None:
    """Writes rows of an array file in place, and syncs them."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    content = rows.astype(array.dtype).tobytes()
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), content, array.offset + first * array[:1].nbytes)
        os.fdatasync(file.fileno())


class CodeWriter:
    """One rank's part of a split under construction. Rank r of W writes blocks r, r + W, ... of `block` images.

    All ranks call the constructor (rank 0 creates the arrays first, then a barrier), `pending`, `write` and `finish`.
    """

    def __init__(self, folder: str | Path, manifest: CodesManifest, block: int, rank: int) -> None:
        self.folder, self.manifest, self.block = Path(folder) / manifest.split, manifest, block
        self.progress_path = self.folder / f"progress_{rank}.json"
        self.shape = manifest.shape

    def finished(self) -> bool:
        """Whether the same extraction was finished before; codes of another tokenizer or other crops are an error."""
        path = self.folder / "manifest.json"
        if not path.is_file():
            return False
        self._require_same(path)
        return True

    def _require_same(self, path: Path) -> dict:
        """The facts in `path`, an error unless they are ours."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CodesError(f"{path} is damaged: {error}; remove {path.parent} or use another --code-path") from error
        wanted = asdict(self.manifest)
        changed = [
            f"{k}: {found.get(k)!r} there, {wanted[k]!r} now"
            for k in wanted
            if k != "tokenizer" and found.get(k, []) != wanted[k]
        ]
        if changed:
            raise CodesError(f"{path.parent} holds other codes ({'; '.join(changed)[:600]}); use another --code-path")
        return found

    def create(self, labels: np.ndarray) -> None:
        """On rank 0: makes the arrays, or keeps those of an interrupted extraction of the same kind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = self.folder / "progress.json"
        wanted = asdict(self.manifest) | {"block": self.block}
        if plan.is_file() and self._require_same(plan).get("block") == self.block:
            return
        for old in self.folder.glob("progress_*.json"):
            old.unlink()
        dtype = code_dtype(self.manifest.codebook_size)
        np.lib.format.open_memmap(self.folder / "codes.npy", mode="w+", dtype=dtype, shape=self.shape).flush()
        with (self.folder / "codes.npy").open("r+b") as file:  # a full disk is told here, not by a crash in between
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        np.save(self.folder / "labels.npy", labels.astype(np.int64))
        write_atomic(plan, json.dumps(wanted))

    def pending(self, rank: int, size: int) -> list[range]:
        """The blocks of images that this rank still has to do."""
        starts = range(0, self.shape[0], self.block)
        blocks = [range(s, min(s + self.block, self.shape[0])) for s in starts][rank::size]
        done = json.loads(self.progress_path.read_text())["done"] if self.progress_path.is_file() else []
        self.done = set(done)
        return [b for b in blocks if b.start not in self.done]

    def write(self, block: range, codes: Tensor, labels: list[int] | None = None) -> None:
        """Codes (images, views, tokens[, streams]) of one block, and the labels of the images that were read; on disk
        before the progress says so. Bytes are written in place: ranks on several machines share the file.
        """
        write_rows(self.folder / "codes.npy", block.start, codes.cpu().numpy())
        if labels is not None:
            write_rows(self.folder / "labels.npy", block.start, np.array(labels))
        self.done.add(block.start)
        write_atomic(self.progress_path, json.dumps({"done": sorted(self.done)}))

    def finish(self) -> None:
        """On rank 0, after a barrier: writes the manifest and removes the progress files."""
        write_atomic(self.folder / "manifest.json", json.dumps(asdict(self.manifest), indent=1))
        for path in self.folder.glob("progress*.json"):
            path.unlink()
