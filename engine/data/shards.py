"""Images in tar files, as WebDataset lays them out: samples side by side, the parts of one sample under one name.

    shard-000000.tar:  0001.jpg  0001.cls  0002.jpg  0002.cls ...     .cls holds the label as text; without any: label 0

WebDataset itself reads a tar from its start and shuffles in a buffer, so the order of its samples depends on the number
of processes and a restart loses its place. Here the place of every image is looked up once (40 bytes an image, kept for
the next start in $XDG_CACHE_HOME), and any image is read by its number: the order is the same pure function of
(seed, position) as for folders. Names of shards and samples follow the package webdataset. Shards are local and not
compressed; images are compressed already.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.data.folders import identity_of, version_of
from engine.data.images import IMAGE_SUFFIXES, ImageError, decode_image
from engine.messages import UserError, logger

LABEL_SUFFIX, MAX_LABEL_BYTES, MAX_CLASSES = ".cls", 32, 10**6


def webdataset() -> Any:
    """The package, which is an optional extra."""
    try:
        import webdataset
    except ImportError as error:
        raise UserError("data.name=shards needs the package webdataset: bash env_install.sh --extras shards") from error
    return webdataset


def is_shards(root: str | Path) -> bool:
    """Whether `root` names tar files: a pattern that ends in .tar, or a folder that holds some."""
    return str(root).endswith(".tar") or (Path(root).is_dir() and any(Path(root).glob("*.tar")))


def shard_paths(root: str, key: str) -> list[Path]:
    """The tar files of a folder, in alphabetical order, or those of a pattern such as `train-{000000..000123}.tar`."""
    paths = sorted(Path(root).glob("*.tar"))
    if not paths and root.endswith(".tar") and ":" not in root:
        paths = [Path(url) for url in webdataset().shardlists.expand_urls(root)]
    if not paths:
        raise UserError(f"{key}={root!r} names no tar files on this machine; accepted: a folder, a-{{0000..0123}}.tar")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{key}={root!r}: {missing[0]} does not exist ({len(missing)} of {len(paths)} are missing)")
    return paths


def _scan(path: Path, skip_broken: bool) -> list[list[int]]:
    """[first byte, size, label or -1] of the images of one shard, in the order of the file."""
    split = webdataset().tariterators.base_plus_ext
    samples: dict[str, list[int]] = {}
    odd = 0  # images that WebDataset's rule (the name ends at its first dot) gives another kind
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name, suffix = split(member.name)
                suffix = f".{(suffix or '').lower()}"
                if suffix not in {LABEL_SUFFIX, *IMAGE_SUFFIXES} or not member.isreg():
                    odd += Path(member.name).suffix.lower() in IMAGE_SUFFIXES
                    continue
                row = samples.setdefault(name, [-1, 0, -1])
                if suffix == LABEL_SUFFIX:
                    text = tar.extractfile(member).read(MAX_LABEL_BYTES)
                    if not text.strip().isdigit() or len(text) == MAX_LABEL_BYTES or int(text) >= MAX_CLASSES:
                        raise UserError(f"{path}: {member.name} holds {text!r}; a label is from 0 to {MAX_CLASSES - 1}")
                    row[2] = int(text)
                elif row[0] >= 0:
                    raise UserError(f"{path}: sample {name} has two images; a sample is one image and its label")
                else:
                    row[:2] = member.offset_data, member.size
            tar.fileobj.seek(tar.offset)  # tarfile takes a file that was cut between two members for a whole one
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is not a readable tar file without compression ({error}); fetch it again") from error
    lonely = [name for name, row in samples.items() if row[0] < 0]
    if lonely and not skip_broken:
        raise ImageError(f"{path}: sample {lonely[0]} has a label and no image; mend it, or set data.skip_broken=true")
    if lonely or odd:
        logger.warning("%s: left out %d labels without image, %d images named a.b.png", path, len(lonely), odd)
    return [row for row in samples.values() if row[0] >= 0]


def _index(paths: list[Path], skip_broken: bool) -> np.ndarray:
    """int64 (N, 4): shard, first byte, size, label of every image; kept until a shard changes."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    digest = hashlib.sha256(repr((stats, skip_broken)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visual-tokenizers"
    kept = cache / f"shards-{digest}.npy"
    if kept.is_file():
        try:
            return np.load(kept, allow_pickle=False).reshape(-1, 4)
        except (OSError, ValueError, EOFError) as error:
            logger.warning("the kept places of images %s are damaged (%s): they are looked up anew", kept, error)
    shards = tqdm(paths, desc="looking up images", unit="shard", disable=None)
    parts = [np.array(_scan(path, skip_broken), dtype=np.int64).reshape(-1, 3) for path in shards]
    index = np.column_stack([np.repeat(np.arange(len(paths)), list(map(len, parts))), np.concatenate(parts)])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.stem}.{os.getpid()}.npy")
        np.save(temporary, index)
        temporary.replace(kept)
        logger.info("places of %d images in %d shards kept in %s", len(index), len(paths), kept)
    except OSError as error:
        logger.warning("the places of the images cannot be kept for the next start (%s)", error)
    return index


class ShardSource:
    """The images of tar files, by number. A shard that is missing or torn is an error that names it."""

    def __init__(self, root: str, key: str, skip_broken: bool = False) -> None:
        self.name, self.paths = str(root), shard_paths(str(root), key)
        index = _index(self.paths, skip_broken)
        if not len(index):
            raise UserError(f"{key}={str(root)!r}: no images in {len(self.paths)} shards")
        self.shards, self.starts, self.sizes, labels = index.T
        if labels.min() < 0 <= labels.max():
            which = self.where(int(labels.argmin()))
            raise UserError(f"{which} has no label, others have one; give all images one ({LABEL_SUFFIX}), or none")
        self.labels = np.maximum(labels, 0)
        self.class_names = [str(i) for i in range(labels.max() + 1)] or ["all"]

    def __len__(self) -> int:
        return len(self.labels)

    def _bytes(self, index: int) -> bytes:
        with self.paths[self.shards[index]].open("rb") as file:
            file.seek(int(self.starts[index]))
            return file.read(int(self.sizes[index]))

    def image(self, index: int) -> Image.Image:
        return decode_image(lambda: self._bytes(index), self.where(index))

    def where(self, index: int) -> str:
        return f"{self.paths[self.shards[index]]} (image at byte {self.starts[index]})"

    def identity(self) -> str:
        """SHA-256 over sizes and labels of all images, and the content of evenly spread ones (all of a small set)."""
        return identity_of(np.stack([self.sizes, self.labels]).tobytes(), len(self), self._bytes)

    def version(self) -> str:
        return version_of(self.paths)
