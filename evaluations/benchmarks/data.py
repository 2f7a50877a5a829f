"""Reading codes and images, the order of samples, indexes of large sets, and what an extraction notes per block."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from autoregressive.code_writer import CodeWriter, Progress
from autoregressive.codes import FORMAT, CodesManifest, CodeStore, code_batch
from engine.atomic_file import write_atomic
from engine.data.config import DataConfig
from engine.data.folders import LooseSource
from engine.data.identity import digest_of_columns, facts_of
from engine.data.index_file import Index
from engine.data.order import SampleOrder
from engine.data.samples import decoding_stamp, training_item
from engine.data.shards import COLUMNS, ShardSource, cache_path
from engine.data.stream import position_rng
from engine.json_text import to_json
from evaluations.benchmarks.cases import OURS, Case, Measurable, Reading, Target
from evaluations.forked import in_fork, process_mib

BATCH, BATCHES = 256, 8  # codes in a batch, batches in a repetition
VIEWS, TOKENS, CODES = 10, 256, 16384
CODED_IMAGES = {"quick": 1000, "default": 4000, "long": 20_000}
PHOTOS = 16  # files, of the mean size of ImageNet's
LOOK_UPS = 2**16  # of the order
ORDERED = {"quick": 10**6, "default": 10**7, "long": 10**8}  # samples
INDEXED = {"quick": 10**5, "default": 10**6, "long": 10**8}  # entries
FEW = 1000  # entries of the index that a large one is compared with
SHARDS = 1000
BLOCK = 3  # images: ten crops at a batch of 32 views
BLOCKS_BEFORE = {"quick": 5000, "default": 50_000, "long": 400_000}  # the last: ImageNet's


def cases(size: str, device: torch.device) -> Iterator[Measurable]:
    """The cases of one size. All of them are work of the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        yield _codes_case(root / "codes", CODED_IMAGES[size])
        yield from _image_cases(root / "pictures")
        yield _order_case(ORDERED[size])
        yield from _index_readings(root / "index", INDEXED[size])
        yield from _progress_cases(root / "progress", BLOCKS_BEFORE[size])


# ------------------------------------------------------------------------------------------------ codes
def write_codes(root: Path, num_images: int) -> CodeStore:
    """A store of random codes in `root`, and the same codes as one file per image, `root/files/<number>.npy`."""
    manifest = CodesManifest(
        FORMAT, "f" * 64, "t", "train", "random", num_images, VIEWS, TOKENS, CODES, 256, "ten-crop", ["a", "b"]
    )
    codes = np.random.default_rng(0).integers(0, CODES, manifest.shape, dtype=np.uint16)
    labels = np.arange(num_images) % 2
    with CodeWriter(root, manifest, block=num_images, rank=0) as writer:
        writer.create(labels)
        writer.write(range(num_images), torch.from_numpy(codes.astype(np.int64)), labels.tolist())
        writer.finish()

    (root / "files").mkdir()
    for number, views in enumerate(codes):
        np.save(root / "files" / f"{number}.npy", views)
    return CodeStore(root, "train")


def plain_code_batch(
    folder: Path, labels: np.ndarray, seed: int, dropout: float, indices: np.ndarray, positions: range
) -> dict[str, Tensor]:
    """A batch as everybody reads it: one file of codes per image, one random generator per sample, then stacked."""
    samples = []
    for index, position in zip(indices, positions, strict=True):
        rng = position_rng(seed, position)
        views = np.load(folder / f"{index}.npy")
        tokens = torch.from_numpy(views[rng.integers(len(views))].astype(np.int64))
        drop = torch.tensor(bool(rng.random() < dropout))
        samples.append({"tokens": tokens, "labels": torch.tensor(int(labels[index])), "drop": drop})
    return default_collate(samples)


def _codes_case(root: Path, num_images: int) -> Case:
    """Batches in the order of a training; files and store are in the cache of the system."""
    store = write_codes(root, num_images)
    read = code_batch(store, seed=0, class_dropout_prob=0.1)
    order = SampleOrder(0, num_images)

    def next_batches(make: Callable[[np.ndarray, range], object]) -> Callable[[], object]:
        starts = itertools.count(0, BATCH)

        def batch() -> object:
            start = next(starts)
            positions = range(start, start + BATCH)
            return make(order.indices(positions), positions)

        return lambda: [batch() for _ in range(BATCHES)]

    return Case(
        f"{BATCHES} batches of {BATCH} codes of {TOKENS} tokens",
        {
            OURS: next_batches(read),
            "one .npy per image": next_batches(
                lambda indices, positions: plain_code_batch(root / "files", store.labels, 0, 0.1, indices, positions)
            ),
        },
        against="one .npy per image",
        target=Target("at least", 50),
        facts={"images": num_images, "cache": "warm"},
    )


# ------------------------------------------------------------------------------------------------ images
def write_photos(root: Path) -> LooseSource:
    """JPEG files of 500 x 375 pixels: smooth shapes with grain, about as many bytes as a photograph."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        shapes = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(shapes.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = rng.normal(0, 10, pixels.shape[:2]).astype(np.int16)[..., None]
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(root / f"{number:02d}.jpg", quality=90)
    return LooseSource(root, "pictures")


def plain_sample(content: bytes, size: int, rng: np.random.Generator, min_scale: float, flip_prob: float) -> Tensor:
    """ADM's random crop and flip by Pillow and numpy, as released (Dhariwal and Nichol, arXiv:2105.05233)."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    short_side = int(rng.integers(size, math.ceil(size / min_scale) + 1))
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = short_side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)

    pixels = np.asarray(image)
    left = int(rng.integers(0, pixels.shape[1] - size + 1))
    top = int(rng.integers(0, pixels.shape[0] - size + 1))
    pixels = pixels[top : top + size, left : left + size]
    if rng.random() < flip_prob:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _image_cases(root: Path) -> Iterator[Case]:
    """Training samples of all photographs, from the file to a tensor."""
    source = write_photos(root)
    config = DataConfig(image_size=256)
    fast_config = replace(config, fast_decode=True)
    exact, fast = (training_item(source, c, seed=0) for c in (config, fast_config))

    def all_of(read: Callable[[int], object]) -> Callable[[], object]:
        return lambda: [read(index) for index in range(PHOTOS)]

    def plain(index: int) -> Tensor:
        rng = position_rng(0, index)
        return plain_sample(source.path(index).read_bytes(), 256, rng, config.min_crop_scale, config.flip_prob)

    yield Case(
        f"{PHOTOS} training samples of JPEG files, 256 px",
        {OURS: all_of(lambda index: exact(index, index)), "Pillow": all_of(plain)},
        against="Pillow",
        target=Target("at most", 1.1),
        facts={"difference": "none: the same bits"},
    )
    yield Case(
        f"{PHOTOS} training samples with data.fast_decode, 256 px",
        {OURS: all_of(lambda index: fast(index, index)), "default": all_of(lambda index: exact(index, index))},
        against="default",
        target=Target("at least", 1.4),
        facts=decoding_stamp(source, fast_config, seed=0)["fast_decode"],
    )


# ------------------------------------------------------------------------------------------------ the order
def _order_case(count: int) -> Case:
    """What the start of an epoch costs, up to the first samples; each repetition is another seed."""
    seeds = itertools.count()
    positions = range(LOOK_UPS)

    def plain() -> Tensor:
        torch.manual_seed(next(seeds))
        return torch.randperm(count)[:LOOK_UPS]

    return Case(
        f"first {LOOK_UPS:,} samples of an epoch of {count:,}",
        {OURS: lambda: SampleOrder(next(seeds), count).indices(positions), "torch.randperm": plain},
        against="torch.randperm",
        target=Target("at most", 1.0),
        memory_target=Target("at most", 1 / 4) if count >= 10**7 else None,  # below, a table is small too
    )


# ------------------------------------------------------------------------------------------------ indexes
@contextmanager
def cache_folder(folder: Path) -> Iterator[None]:
    """Lets indexes lie in `folder`."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def write_synthetic_index(root: Path, count: int) -> Path:
    """The index of tar files that hold `count` images of 1,000 classes, as a scan would leave it; returns its file.

    The tar files themselves are empty: only their names are there.
    """
    # Tar files, whose names and times decide where their index lies.
    root.mkdir(parents=True)
    paths = [root / f"{number:06d}.tar" for number in range(SHARDS)]
    for path in paths:
        path.write_bytes(b"\0")

    # Places, sizes and labels of the images, in the order of the files.
    per_shard = math.ceil(count / SHARDS)
    numbers = np.arange(count)
    shards = (numbers // per_shard).astype(np.int32)
    sizes = (100_000 + numbers * 7919 % 50_000).astype(np.uint32)
    starts = numbers % per_shard * 150_528
    labels = (numbers * 104_729 % 1000).astype(np.int32)

    # The index that a scan would write.
    facts = {
        "class_names": [f"n{label:08d}" for label in range(1000)],
        "num_hidden": 0,
        "num_links": 0,
        "digest": digest_of_columns(shards, sizes, labels),
    }
    file = cache_path(paths, skip_broken=False)
    Index(facts, dict(zip(COLUMNS, (shards, starts, sizes, labels), strict=True))).save(file)
    return file


def first_numbers(root: Path) -> np.ndarray:
    """What a training does up to the sample numbers of its first batch: opens the images, describes them, orders."""
    source = ShardSource(str(root), "data.root")
    facts_of(source)
    return SampleOrder(0, len(source)).indices(range(BATCH))


def look_up(source: ShardSource, order: SampleOrder, positions: range) -> list[tuple[Path, int, int]]:
    """(file, first byte, label) of the samples at the positions of a batch, as a loader process finds them."""
    return [
        (source.paths[source.shards[index]], int(source.starts[index]), int(source.labels[index]))
        for index in order.indices(positions).tolist()
    ]


def worker_memory(root: Path) -> float:
    """MiB of private memory that a forked loader process adds while it looks up many samples.

    Private is what it has written. Pages of the index that it reads are those of the file, which the system holds once.
    """
    source = ShardSource(str(root), "data.root")
    order = SampleOrder(0, len(source))

    def added() -> float:
        before = process_mib("smaps_rollup", "Private_Dirty")
        for start in range(0, 200 * BATCH, BATCH):
            look_up(source, order, range(start, start + BATCH))
        return process_mib("smaps_rollup", "Private_Dirty") - before

    return in_fork(added)


def _index_readings(root: Path, count: int) -> Iterator[Measurable]:
    """An index of `count` entries, built once."""
    with cache_folder(root / "cache"):
        start = time.perf_counter()
        file = write_synthetic_index(root / "many", count)
        seconds = time.perf_counter() - start
        write_synthetic_index(root / "few", FEW)
        size = file.stat().st_size

        title = f"index of {count:,} images"
        facts = {"MB": round(size / 1e6, 1), "bytes per image": round(size / count, 1), "without": "scanning tar files"}
        yield Reading(f"{title}: written", "s", lambda: seconds, repeats=False, facts=facts)
        yield Reading(
            f"{title}: until the first batch's numbers",
            "s",
            lambda: _seconds(lambda: first_numbers(root / "many")),
            Target("at most", 5),
        )
        source = ShardSource(str(root / "many"), "data.root")
        order = SampleOrder(0, count)
        starts = itertools.count(0, BATCH)

        def milliseconds() -> float:
            first = next(starts)
            return 1e3 * _seconds(lambda: look_up(source, order, range(first, first + BATCH))) / BATCH

        yield Reading(f"{title}: position to file, offset and label", "ms", milliseconds, Target("at most", 1))
        if Path("/proc/self/smaps_rollup").exists():
            yield Reading(
                f"{title}: private memory of a loader process, beyond {FEW:,} images",
                "MiB",
                lambda: max(0.0, worker_memory(root / "many") - worker_memory(root / "few")),
                Target("at most", 50),
            )


def _seconds(form: Callable[[], object]) -> float:
    start = time.perf_counter()
    form()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------ extraction
class PlainProgress:
    """The blocks that are done, as a sorted list that is written anew for each."""

    def __init__(self, path: Path, done: range) -> None:
        self.path = path
        self.done = set(done)

    def add(self, first: int) -> None:
        """Notes one more block."""
        self.done.add(first)
        write_atomic(self.path, to_json({"done": sorted(self.done)}))

    def read(self) -> set[int]:
        """The blocks that are done."""
        return set(json.loads(self.path.read_text())["done"])


def _progress_cases(root: Path, blocks_before: int) -> Iterator[Measurable]:
    """The note of one block, on disk, after many others; and how its time grows with their number."""
    root.mkdir(parents=True)
    before = range(0, blocks_before * BLOCK, BLOCK)
    plain = PlainProgress(root / "plain.json", before)
    late, early = Progress(root, 0), Progress(root, 1)
    late.path.write_bytes(b"".join(b"%d\n" % first for first in before))
    firsts = itertools.count(before.stop, BLOCK)

    yield Case(
        f"progress of an extraction, {blocks_before:,} blocks before",
        {OURS: lambda: late.add(next(firsts)), "list written anew": lambda: plain.add(next(firsts))},
        against="list written anew",
        target=Target("at least", 1),
        facts={"of ours": "the disk's time to sync one line"},
    )
    yield Case(
        f"progress of an extraction, {blocks_before:,} blocks before, against the first ones",
        {OURS: _twenty(late, firsts), "first blocks": _twenty(early, firsts)},
        against="first blocks",
        target=Target("at most", 1.5),
    )
    for progress in (late, early):
        progress.close()


def _twenty(progress: Progress, firsts: Iterator[int]) -> Callable[[], object]:
    return lambda: [progress.add(next(firsts)) for _ in range(20)]
