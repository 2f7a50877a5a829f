"""Windows of resized images, with the bits of Pillow, without the rest of the resized image.

Pillow resizes rows and columns one after the other, each by fixed-point sums that are rounded to 8 bits (Pillow's
src/libImaging/Resample.c). The same sums are done here for the rows and columns of a window only: a picture of
1 x 10000 pixels, enlarged to 256 x 2560000, is never held. Where the whole resized image is small, Pillow makes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from engine.messages import UserError

MAX_WHOLE_BYTES = 80 * 2**20  # Pillow resizes a whole image if that takes no more memory than this
STRIP_BYTES = 8 * 2**20  # of the input that is resized at a time, else
BYTES_PER_PIXEL = 4  # of an RGB image in Pillow
PRECISION_BITS = 32 - 8 - 2  # of Pillow's coefficients for 8-bit channels


@dataclass(frozen=True)
class Resize:
    """One step of a chain: the whole image becomes `size` (width, height)."""

    size: tuple[int, int]
    resample: Image.Resampling


PROBES = [
    ((31, 30), Resize((15, 15), Image.Resampling.BOX)),
    ((15, 33), Resize((7, 16), Image.Resampling.BOX)),
    ((40, 80), Resize((31, 62), Image.Resampling.BICUBIC)),
    ((20, 61), Resize((16, 49), Image.Resampling.BICUBIC)),
    ((61, 20), Resize((49, 16), Image.Resampling.BICUBIC)),
    ((5, 30), Resize((16, 96), Image.Resampling.BICUBIC)),
    ((30, 5), Resize((96, 16), Image.Resampling.BICUBIC)),
    ((23, 50), Resize((17, 37), Image.Resampling.BILINEAR)),
]  # images that show the order of passes

Window = tuple[int, int, int, int]  # left, top, right, bottom; in pixels


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _triangle(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _cubic(x: float) -> float:
    """The cubic kernel with a = -0.5, in Pillow's order of operations."""
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x != 0.0 else 1.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


KERNELS: dict[Image.Resampling, tuple[Callable[[float], float], float]] = {
    Image.Resampling.BOX: (_box, 0.5),
    Image.Resampling.BILINEAR: (_triangle, 1.0),
    Image.Resampling.BICUBIC: (_cubic, 2.0),
    Image.Resampling.LANCZOS: (_lanczos, 3.0),
}  # kernel, and how far it reaches


def resized_window(image: Image.Image, steps: list[Resize], window: Window) -> Image.Image:
    """The part `window` of an RGB image after all `steps`: what `image.resize(...)...crop(window)` gives."""
    # Small images as ever; most are.
    for number, step in enumerate(steps):
        if _bytes_of(image.size, step.size) > MAX_WHOLE_BYTES:
            return _through_windows(image, steps[number:], window)
        image = image.resize(step.size, step.resample)
    return image.crop(window)


def _bytes_of(size: tuple[int, int], new_size: tuple[int, int]) -> int:
    """The memory that Pillow takes to resize an image: the result, and one with resized rows only."""
    return BYTES_PER_PIXEL * new_size[0] * (size[1] + new_size[1])


def _through_windows(image: Image.Image, steps: list[Resize], window: Window) -> Image.Image:
    """Resizes only what the window needs: each step asks the one before for the strips that it reads.

    Raises UserError if this version of Pillow resizes in an order that is not known here.
    """
    order = pillow_order()
    if order is None:
        raise UserError(
            f"an image of {image.width} x {image.height} pixels needs more than {MAX_WHOLE_BYTES >> 20} MiB to be "
            f"resized to {steps[0].size[0]} x {steps[0].size[1]}; make it smaller, or use another version of Pillow"
        )

    def read_image(left: int, top: int, right: int, bottom: int) -> np.ndarray:
        return np.asarray(image.crop((left, top, right, bottom)))

    read: Reader = read_image
    size = image.size
    for step in steps:
        read = _StepReader(read, size, step, order(size, step.size), is_first=read is read_image)
        size = step.size
    return Image.fromarray(read(*window))


# ------------------------------------------------------------------------------------------------ order of passes
Size = tuple[int, int]
Order = Callable[[Size, Size], bool]  # (size, new size) -> whether columns are resized before rows


def rows_first(size: Size, new_size: Size) -> bool:
    """The order of Pillow up to version 12."""
    return False


def larger_saving_first(size: Size, new_size: Size) -> bool:
    """The order of Pillow 13: columns first where that removes clearly more rows than the other removes columns."""
    removed_columns = size[0] - new_size[0]
    removed_rows = size[1] - new_size[1]
    return removed_rows > 0 and removed_rows > 2 * removed_columns


@lru_cache(maxsize=1)
def pillow_order() -> Order | None:
    """The order of the installed Pillow, by the results of small images; None if it is neither."""
    rng = np.random.default_rng(0)
    cases = []
    for size, step in PROBES:
        image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        cases.append((image, step, np.asarray(image.resize(step.size, step.resample))))

    def fits(order: Order) -> bool:
        return all(
            np.array_equal(
                _StepReader(partial(_crop, np.asarray(image)), image.size, step, order(image.size, step.size))(
                    0, 0, *step.size
                ),
                expected,
            )
            for image, step, expected in cases
        )

    return next((order for order in (larger_saving_first, rows_first) if fits(order)), None)


def _crop(pixels: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    return pixels[top:bottom, left:right]


# ------------------------------------------------------------------------------------------------ one step
Reader = Callable[[int, int, int, int], np.ndarray]  # left, top, right, bottom of an image -> uint8 (H,W,3)


@dataclass(frozen=True)
class _StepReader:
    """Reads windows of an image of `size`, which `read` reads, after one step."""

    read: Reader
    size: Size
    step: Resize
    columns_first: bool
    is_first: bool = False  # whether `read` reads a whole image, in which every part costs the same

    def __call__(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        new_width, new_height = self.step.size
        columns = _taps(self.size[0], new_width, self.step.resample, left, right)

        # Pillow resizes whole rows only, and faster.
        is_shrinking = new_width <= self.size[0]
        with_pillow = self.is_first and is_shrinking and 2 * (columns.stop - columns.start) > self.size[0]

        # Strip by strip, so that neither the input of a strip nor what is made of it takes much memory.
        input_width = self.size[0] if with_pillow else columns.stop - columns.start
        width = max(input_width, right - left)
        row_bytes = BYTES_PER_PIXEL * width * max(1.0, self.size[1] / new_height)
        height = max(1, int(STRIP_BYTES / row_bytes))
        result = np.empty((bottom - top, right - left, 3), dtype=np.uint8)
        for start in range(top, bottom, height):
            stop = min(start + height, bottom)
            rows = _taps(self.size[1], new_height, self.step.resample, start, stop)
            if with_pillow:
                resize_rows: Pass = partial(self._rows_by_pillow, left=left, right=right)
                pixels = self.read(0, rows.start, self.size[0], rows.stop)
            else:
                resize_rows = columns.apply_to_rows
                pixels = self.read(columns.start, rows.start, columns.stop, rows.stop)
            passes = (rows.apply, resize_rows) if self.columns_first else (resize_rows, rows.apply)
            for resize in passes:
                pixels = resize(pixels)
            result[start - top : stop - top] = pixels
        return result

    def _rows_by_pillow(self, pixels: np.ndarray, left: int, right: int) -> np.ndarray:
        """Whole rows, uint8 (M, width, 3), resized; then their part from `left` to `right`."""
        strip = Image.fromarray(pixels).resize((self.step.size[0], len(pixels)), self.step.resample)
        return np.asarray(strip)[:, left:right]


Pass = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Taps:
    """What resized positions are made of, along one axis: positions `first + k` of the input, times `weights[k]`."""

    start: int  # the input positions that are read
    stop: int
    first: np.ndarray  # int64 (positions,), counted from `start`
    weights: np.ndarray  # int32 (positions, taps), fixed point

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Resizes along the first axis: uint8 (stop - start, M, 3) -> uint8 (positions, M, 3)."""
        sums = np.full((len(self.first), *pixels.shape[1:]), 1 << (PRECISION_BITS - 1), dtype=np.int32)
        last = self.stop - self.start - 1
        for k in range(self.weights.shape[1]):
            # A weight beyond the border is 0, whatever it is multiplied with.
            taken = pixels[np.minimum(self.first + k, last)].astype(np.int32)
            taken *= self.weights[:, k, None, None]
            sums += taken
        sums >>= PRECISION_BITS
        return sums.clip(0, 255).astype(np.uint8)

    def apply_to_rows(self, pixels: np.ndarray) -> np.ndarray:
        """Resizes along the second axis: uint8 (M, stop - start, 3) -> uint8 (M, positions, 3)."""
        return self.apply(pixels.transpose(1, 0, 2)).transpose(1, 0, 2)


@lru_cache(maxsize=64)
def _taps(count: int, new_count: int, resample: Image.Resampling, start: int, stop: int) -> _Taps:
    """The taps of positions `start` to `stop` where `count` pixels become `new_count`.

    Follows `precompute_coeffs` and `normalize_coeffs_8bpc` operation by operation, in double precision.
    """
    if count == new_count:  # Pillow leaves out this axis
        ones = np.full((stop - start, 1), 1 << PRECISION_BITS, dtype=np.int32)
        return _Taps(start, stop, np.arange(stop - start), ones)

    kernel, reach = KERNELS[resample]
    scale = count / new_count
    filter_scale = max(scale, 1.0)
    support = reach * filter_scale
    num_taps = math.ceil(support) * 2 + 1

    firsts = np.zeros(stop - start, dtype=np.int64)
    ends = np.zeros(stop - start, dtype=np.int64)
    weights = np.zeros((stop - start, num_taps), dtype=np.int32)
    inverse = 1.0 / filter_scale
    for position in range(start, stop):
        center = (position + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        end = min(int(center + support + 0.5), count)
        values = [kernel((k + first - center + 0.5) * inverse) for k in range(end - first)]
        total = 0.0
        for value in values:
            total += value
        if total != 0.0:
            values = [value / total for value in values]
        row = position - start
        firsts[row] = first
        ends[row] = end
        weights[row, : end - first] = [_fixed_point(value) for value in values]
    return _Taps(int(firsts.min()), int(ends.max()), firsts - firsts.min(), weights)


def _fixed_point(weight: float) -> int:
    """Rounds half away from zero, as Pillow."""
    scaled = weight * (1 << PRECISION_BITS)
    return int(scaled - 0.5) if weight < 0 else int(scaled + 0.5)
