"""Images in tar files, as WebDataset lays them out: the parts of a sample share a name.

    shard-000000.tar:  0001.jpg  0001.cls  0002.jpg  0002.cls ...     .cls holds the label as text; without any: label 0

WebDataset itself reads a tar from its start and shuffles in a buffer, so the order of its samples depends on the number
of processes and a restart loses its place. Here the place of every image is looked up once (40 bytes per image, cached
for the next start in $XDG_CACHE_HOME), and any image is read by its number: the order is the same pure function of
(seed, position) as for folders. Names of shards and samples follow the package webdataset. Shards are local and not
compressed; images are compressed already.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.data.base import PathKind, SourceConfig, Survey
from engine.data.folders import identity_of, is_hidden, is_image_name, version_of
from engine.data.identity import digest_of
from engine.data.images import IMAGE_SUFFIXES, ImageError, decode_image, printable
from engine.messages import UserError, logger

LABEL_SUFFIX = ".cls"
MAX_LABEL_BYTES = 32
INDEX_FORMAT = 2  # of the cached index; 1 had no hidden names
MAX_CLASSES = 10**6


def webdataset() -> Any:
    """Imports the package, which is an optional extra. Raises UserError if it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise UserError("data.name=shards needs the package webdataset: bash env_install.sh --extras shards") from error
    return webdataset


def shard_paths(root: str, key: str) -> list[Path]:
    """The tar files of a folder, in alphabetical order, or those of a pattern.

    A pattern is such as `train-{000000..000123}.tar`. Raises UserError if there are none, or some of the pattern are
    missing; `key` is what named `root`.
    """
    paths = sorted(Path(root).glob("*.tar"))
    if not paths and root.endswith(".tar") and ":" not in root:
        paths = [Path(url) for url in webdataset().shardlists.expand_urls(root)]
    if not paths:
        raise UserError(f"{key}={root!r} names no tar files on this machine; accepted: a folder, a-{{0000..0123}}.tar")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{key}={root!r}: {missing[0]} does not exist ({len(missing)} of {len(paths)} are missing)")
    return paths


# ------------------------------------------------------------------------------------------------ one shard
@dataclass(slots=True)
class _Sample:
    """What is known of one sample while the members of its shard come along."""

    start: int | None = None  # first byte of the image in the tar file; None = no image yet
    size: int = 0  # bytes of the image
    label: int = -1  # -1 = no label


def _scan(path: Path, skip_broken: bool) -> tuple[list[_Sample], int]:
    """Looks up the samples of one shard that have an image, in the order of the file; counts hidden names."""
    try:
        with tarfile.open(path, "r:") as tar:
            samples, num_misnamed, num_hidden = _read_members(tar, path)
            _check_end(tar)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is not a readable tar file without compression ({error}); fetch it again") from error

    without_image = [name for name, sample in samples.items() if sample.start is None]
    if without_image and not skip_broken:
        raise ImageError(
            f"{path}: sample {without_image[0]} has a label but no image; fix the shard or set data.skip_broken=true"
        )
    if without_image or num_misnamed:
        logger.warning(
            "%s: left out %d labels without image, %d images named a.b.png", path, len(without_image), num_misnamed
        )
    return [sample for sample in samples.values() if sample.start is not None], num_hidden


def _read_members(tar: tarfile.TarFile, path: Path) -> tuple[dict[str, _Sample], int, int]:
    """{name: sample} of a tar file, the number of images whose name has a second dot, and that of hidden names.

    WebDataset's rule is that the name of a sample ends at its first dot: the rest of `a.b.png` is no image suffix.
    """
    split_name = webdataset().tariterators.base_plus_ext
    samples: dict[str, _Sample] = {}
    num_misnamed = 0
    num_hidden = 0
    for member in tar:
        if _is_hidden_member(member.name):
            num_hidden += 1
            continue

        name, suffix = split_name(member.name)
        suffix = f".{(suffix or '').lower()}"
        if suffix not in {LABEL_SUFFIX, *IMAGE_SUFFIXES} or not member.isreg():
            if is_image_name(member.name):
                num_misnamed += 1
            continue

        sample = samples.setdefault(name, _Sample())
        if suffix == LABEL_SUFFIX:
            sample.label = _read_label(tar, member, path)
        elif sample.start is not None:
            raise UserError(f"{path}: sample {name} has two images; a sample is one image and its label")
        else:
            sample.start, sample.size = member.offset_data, member.size
    return samples, num_misnamed, num_hidden


def _is_hidden_member(name: str) -> bool:
    """Whether a file of a tar, or a folder that it lies in, is hidden. `tar cf x.tar .` lets names begin with "./"."""
    return any(is_hidden(part) for part in PurePosixPath(name).parts if part != "..")


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    """Reads the label in a member of a tar file. Raises UserError if it is none."""
    text = tar.extractfile(member).read(MAX_LABEL_BYTES)
    if not text.strip().isdigit() or len(text) == MAX_LABEL_BYTES or int(text) >= MAX_CLASSES:
        raise UserError(f"{path}: {member.name} holds {text!r}; a label is from 0 to {MAX_CLASSES - 1}")
    return int(text)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError unless a block of zeros ends the file.

    tarfile itself takes a file that was cut between two members for a whole one.
    """
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")


# ------------------------------------------------------------------------------------------------ the index
def _open_index(paths: list[Path], skip_broken: bool) -> tuple[np.ndarray, int]:
    """int64 (N, 4): shard, first byte, size and label of every image; and the number of hidden names.

    Both are cached until a shard changes.
    """
    cache = _cache_path(paths, skip_broken)
    if cache.is_file():
        try:
            return _split_index(np.load(cache, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            logger.warning("the cached shard index %s is damaged (%s); rebuilding it", cache, error)

    index = _build_index(paths, skip_broken)
    try:
        # Written under a name of this process and renamed: other ranks may do the same at this moment.
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f".{cache.stem}.{os.getpid()}.npy")
        np.save(temporary, index)
        temporary.replace(cache)
        logger.info("wrote shard index (%d images in %d shards) to %s", len(index) - 1, len(paths), cache)
    except OSError as error:
        logger.warning("the shard index cannot be cached for the next start (%s)", error)
    return _split_index(index)


def _split_index(index: np.ndarray) -> tuple[np.ndarray, int]:
    """The rows of the images, and the number of hidden names, which stands in front of them."""
    index = index.reshape(-1, 4)
    return index[1:], int(index[:1].sum())


def _cache_path(paths: list[Path], skip_broken: bool) -> Path:
    """The file of the cached index; its name changes when a shard does."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    digest = hashlib.sha256(repr((INDEX_FORMAT, stats, skip_broken)).encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "visual-tokenizers" / f"shards-{digest}.npy"


def _build_index(paths: list[Path], skip_broken: bool) -> np.ndarray:
    """Scans all shards: a row (hidden names, 0, 0, 0), then a row per image as `_open_index` describes them."""
    rows = [np.zeros((1, 4), dtype=np.int64)]
    for shard, path in enumerate(tqdm(paths, desc="looking up images", unit="shard", disable=None)):
        in_shard, num_hidden = _scan(path, skip_broken)
        rows[0][0, 0] += num_hidden
        samples = [(shard, s.start, s.size, s.label) for s in in_shard]
        rows.append(np.array(samples, dtype=np.int64).reshape(-1, 4))
    return np.concatenate(rows)


class ShardSource(PathKind):
    """The images of tar files, by number.

    Raises UserError for a shard that is missing, torn or without images, and where only some images have a label.
    """

    decodes_files = True
    mixed_held_out = True

    def __init__(self, root: str | Path, key: str, skip_broken: bool = False) -> None:
        self.name = printable(root)
        self.paths = shard_paths(str(root), key)
        index, self.num_hidden = _open_index(self.paths, skip_broken)
        if self.num_hidden:
            logger.info("%s: left out %d hidden names", self.name, self.num_hidden)
        if not len(index):
            raise UserError(f"{key}={self.name!r}: no images in {len(self.paths)} shards")
        self.shards, self.starts, self.sizes, labels = index.T
        if labels.min() < 0 <= labels.max():
            unlabeled = self.where(int(labels.argmin()))
            raise UserError(f"{unlabeled} has no label, others have one; give all images one ({LABEL_SUFFIX}), or none")
        self.labels = np.maximum(labels, 0)
        self.class_names = [str(i) for i in range(labels.max() + 1)] or ["all"]

    @classmethod
    def survey(cls, config: SourceConfig, split: str) -> Survey:
        """Looks whether all tar files are there; opens them only where their index is cached already."""
        root, key = cls.root(config, split), "data.root" if split == "train" else "data.val_root"
        paths = shard_paths(root, key)
        webdataset()
        empty = [path for path in paths if path.stat().st_size == 0]
        if empty:
            raise UserError(f"{key}={root!r}: {empty[0]} is empty; fetch it again")
        if _cache_path(paths, config.skip_broken).is_file():
            return super().survey(config, split)
        return Survey(f"{printable(root)}, {len(paths)} tar file(s)")

    @classmethod
    def holds(cls, path: str | Path) -> bool:
        """Tar files: a pattern that ends in .tar, or a folder that holds some."""
        return str(path).endswith(".tar") or (Path(path).is_dir() and any(Path(path).glob("*.tar")))

    def __len__(self) -> int:
        return len(self.labels)

    def _bytes(self, index: int) -> bytes:
        with self.paths[self.shards[index]].open("rb") as file:
            file.seek(int(self.starts[index]))
            return file.read(int(self.sizes[index]))

    def image(self, index: int) -> Image.Image:
        return decode_image(lambda: self._bytes(index), self.where(index), self.decoding)

    def where(self, index: int) -> str:
        return f"{printable(self.paths[self.shards[index]])} (image at byte {self.starts[index]})"

    def identity(self) -> str:
        """SHA-256 over sizes and labels of all images, and the content of evenly spread ones."""
        return (
            identity_of(np.stack([self.sizes, self.labels]).tobytes(), len(self), self._bytes) + self.decoding.suffix()
        )

    def contents(self) -> dict[str, str]:
        """Digests of the names of the tar files, and of the sizes and labels of the images in them."""
        return {
            "names of tar files": digest_of(os.fsencode(path.name) for path in self.paths),
            "sizes of images": digest_of([np.stack([self.shards, self.sizes, self.labels]).tobytes()]),
        }

    def version(self) -> str:
        return version_of(self.paths) + self.decoding.suffix()
