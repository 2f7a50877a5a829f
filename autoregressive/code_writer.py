"""Writing the code store: the codes of one split, block by block, by any number of processes.

    <codes>/train/progress.json      while an extraction is under way: its facts, as in the manifest, and its block size
    <codes>/train/progress_<r>.txt   of rank r: one line per block that is on disk, the number of its first image

A killed extraction continues where it stopped. A block takes the same time however many came before: its rows are
written in place, and one line is appended.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from autoregressive.codes import CodesError, CodesManifest, code_dtype, read_manifest
from engine.atomic_file import sync_to_disk, write_atomic
from engine.checkpoint.code_maker import CodeMaker
from engine.data.identity import changes, text_of
from engine.facts import without_facts
from engine.json_text import to_json
from engine.messages import logger
from engine.outputs import free_name

HAS_ARRAYS = "has_arrays"  # false in progress.json until the arrays are there


class RowFile:
    """An array file that is there, into which rows are written in place. Several processes may write other rows."""

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        self._dtype = array.dtype
        self._start = array.offset
        self._row_bytes = array[:1].nbytes
        self._file = path.open("r+b", buffering=0)

    def write(self, first: int, rows: np.ndarray) -> None:
        """Writes rows from number `first` on; they are on disk when this returns."""
        content = rows.astype(self._dtype).tobytes()
        os.pwrite(self._file.fileno(), content, self._start + first * self._row_bytes)
        os.fdatasync(self._file.fileno())

    def read(self, first: int, count: int) -> np.ndarray:
        """The rows from number `first` on, flat."""
        content = os.pread(self._file.fileno(), count * self._row_bytes, self._start + first * self._row_bytes)
        return np.frombuffer(content, dtype=self._dtype)

    def close(self) -> None:
        self._file.close()


def create_array(path: Path, shape: tuple[int, ...], dtype: type) -> None:
    """Makes an array file of zeros with all its blocks on disk, so that a full disk is noticed now and not later."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


class Progress:
    """The blocks of one rank that are on disk, by the numbers of their first images."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"progress_{rank}.txt"
        self.older_path = folder / f"progress_{rank}.json"  # of older versions, which wrote the whole list anew
        self._file: BinaryIO | None = None

    def read(self) -> set[int]:
        """The blocks on disk. A line that a killed process tore does not count."""
        done = set(json.loads(self.older_path.read_text())["done"]) if self.older_path.is_file() else set()
        if self.path.is_file():
            *lines, _ = self.path.read_bytes().split(b"\n")
            done |= {int(line) for line in lines}
        return done

    def add(self, first: int) -> None:
        """Notes one more block; the note is on disk when this returns."""
        if self._file is None:
            self._file = self._opened()
        self._file.write(b"%d\n" % first)
        os.fdatasync(self._file.fileno())

    def _opened(self) -> BinaryIO:
        """The file, which ends with a whole line."""
        file = self.path.open("ab", buffering=0)
        content = self.path.read_bytes()
        file.truncate(content.rfind(b"\n") + 1)
        sync_to_disk(self.path.parent)
        return file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class CodeWriter:
    """One rank's part of a split under construction. Rank r of W writes blocks r, r + W, ... of `block` images.

    All ranks call the constructor, `pending` and `write`; only the main process calls `create` (before a barrier) and
    `finish` (after one). To be used in a `with`, which closes the files of the rank.
    """

    def __init__(
        self, folder: str | Path, manifest: CodesManifest, block: int, rank: int, maker: CodeMaker | None = None
    ) -> None:
        """`maker` is the tokenizer, which may know more of what it was than the manifest: whose decoder it has
        trained on.
        """
        self.folder = Path(folder) / manifest.split
        self.manifest = manifest
        self.maker = maker or manifest.maker
        self.shape = manifest.shape
        self.block = block
        self._progress = Progress(self.folder, rank)
        self._codes: RowFile | None = None  # opened for the first block
        self._labels: RowFile | None = None

    def __enter__(self) -> CodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._codes, self._labels, self._progress):
            if file is not None:
                file.close()

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
        maker_then = CodeMaker(present.get("fingerprint", ""), present.get("codes_fingerprint", ""))
        path_then, path_now = present.get("tokenizer", "?"), facts_now["tokenizer"]
        facts_now = without_facts(facts_now, {"tokenizer", "fingerprint", "codes_fingerprint"})
        changed = []
        if not self.maker.makes_codes_of(maker_then):  # which has perhaps another decoder
            fingerprints = maker_then.fingerprint[:16], self.manifest.fingerprint[:16]
            names = [f"{name} ({path})" for name, path in zip(fingerprints, (path_then, path_now), strict=True)]
            changed.append(f"of another tokenizer: {names[0]} there, {names[1]} now; {maker_then.why_not()}")
        changed += [
            f"{key}: {present.get(key)!r} there, {value!r} now"
            for key, value in facts_now.items()
            if present.get(key, type(value)()) != value
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
            present = self._require_same(extraction_path)
            if present.get("block") == self.block and present.get(HAS_ARRAYS, True):
                return
        elif self.folder.is_dir() and not all(path.name.startswith(".") for path in self.folder.iterdir()):
            other = free_name(self.folder.parent)
            raise CodesError(
                f"{self.folder} is not empty and holds no extraction; nothing is overwritten: give another "
                f"--code-path, such as {other}"
            )

        # A kill while large arrays are made must leave a folder that says whose it is.
        facts = asdict(self.manifest) | {"block": self.block}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(extraction_path, to_json(facts | {HAS_ARRAYS: False}))

        # Blocks of another size do not line up with these; all of them are made again.
        for progress in self.folder.glob("progress_*"):
            progress.unlink()
        create_array(self.folder / "codes.npy", self.shape, code_dtype(self.manifest.codebook_size))
        np.save(self.folder / "labels.npy", labels.astype(np.int64))
        write_atomic(extraction_path, to_json(facts))

    def pending(self, rank: int, size: int) -> list[range]:
        """The blocks of images that this rank of `size` still has to do."""
        done = self._progress.read()
        num_images = self.shape[0]
        starts = range(0, num_images, self.block)
        blocks = [range(start, min(start + self.block, num_images)) for start in starts]
        return [block for block in blocks[rank::size] if block.start not in done]

    def write(self, block: range, codes: Tensor, labels: list[int] | None = None) -> None:
        """Writes the codes (images, views, tokens[, k]) of one block, and the labels of the images that were read.

        They are on disk before the progress says so. Bytes are written in place: ranks on several machines share the
        file.
        """
        if self._codes is None:
            self._codes = RowFile(self.folder / "codes.npy")
        self._codes.write(block.start, codes.cpu().numpy())
        if labels is not None:
            if self._labels is None:
                self._labels = RowFile(self.folder / "labels.npy")
            if self._labels.read(block.start, len(block)).tolist() != labels:
                self._labels.write(block.start, np.array(labels))
        self._progress.add(block.start)

    def finish(self) -> None:
        """Writes the manifest and removes the progress files. For the main process, after a barrier."""
        write_atomic(self.folder / "manifest.json", to_json(asdict(self.manifest), indent=1))
        for path in [*self.folder.glob("progress_*"), self.folder / "progress.json"]:
            path.unlink()
