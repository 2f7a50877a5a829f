"""Pictures as people hold them -> float32 (B,3,H,W) in [-1,1]: the input side of `Tokenizer.tokenize`.

Accepted, alone or in a list:

    PIL image, path of an image file      any mode; transparent pixels lie on the background of the `Decoding`
    uint8 array or tensor, 0..255         (H,W), (H,W,C) or (C,H,W), or a batch (B,H,W,C) or (B,C,H,W); C is 1 or 3
    float array or tensor                 the same shapes, in [-1,1], or in the `value_range` that is named

What could mean two things is refused: floats that all lie in [0,1] may be dark-to-bright or mid-gray-to-bright, and an
array (3,H,3) may have its channels in front or behind.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.crops import center_crop
from engine.data.decoding import DEFAULT_DECODING, Decoding, rgb_of
from engine.data.images import image_tensor, read_image, to_float, to_pil, to_uint8
from engine.finite import NonFiniteValuesError, finite_rows, has_values
from engine.messages import UserError
from engine.validation import is_number

Picture = Image.Image | np.ndarray | Tensor | str | Path
Fit = Literal["crop", "resize"]
FITS = ("crop", "resize")
CHANNELS = (1, 3)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_PATH = 200  # characters of a path in a message
RANGE_SLACK = 1e-3  # floats may leave their range by so much, which rounding does
NOT_A_NUMBER = "pixels must be numbers: mend the images before"  # advice for pixels that are NaN or infinite


@dataclass(frozen=True)
class ImageSizes:
    """The sizes of images that a network takes: `size` x `size` pixels, and with a `factor` others too."""

    size: int  # the usual side, in pixels
    factor: int | None = None  # with it, height and width may be any multiples of it
    min_side: int = 0  # but not less than this

    def fit(self, height: int, width: int) -> bool:
        """Whether the network takes an image of this size."""
        if self.factor is None:
            return height == width == self.size
        return all(side >= self.min_side and side % self.factor == 0 for side in (height, width))

    def text(self) -> str:
        """For messages."""
        usual = f"{self.size} x {self.size} pixels"
        if self.factor is None:
            return usual
        return f"multiples of {self.factor} from {self.min_side} up, such as {usual}"


def float_images(
    images: Picture | Sequence[Picture],
    sizes: ImageSizes,
    *,
    fit: Fit | None = None,
    value_range: tuple[float, float] | None = None,
    decoding: Decoding = DEFAULT_DECODING,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Images of any accepted kind (see the module docstring) as float32 (B,3,H,W) in [-1,1]; a single one has B = 1.

    `fit` changes images of other than `sizes.size` pixels: `crop` as evaluations do (short side to the size, then the
    center), `resize` squeezes the whole picture into the square; both round floats to 8 bits. `value_range` says what
    black and white are in floats. `names` are those of the images of a list, for messages; by default their numbers.

    A float32 batch (B,3,H,W) that fits is returned as it is. Raises UserError for any other kind of input, for another
    size, for values out of range, and for what could mean two things, and NonFiniteValuesError for NaN and infinity.
    """
    if fit is not None and fit not in FITS:
        raise UserError(f"fit={fit!r} is not known; choose one of: {', '.join(FITS)}, or None for images that fit")
    _require_range(value_range)

    # Each item is a batch of its own; a list holds single pictures.
    is_list = isinstance(images, list | tuple)
    items = list(images) if is_list else [images]
    if not items:
        raise UserError("there are no images: the list is empty")
    batches = []
    for number, item in enumerate(items):
        where = (names[number] if names else f"image {number}") if is_list else "images"
        batch = _batch_of(item, where, value_range, decoding)
        if is_list and len(batch) != 1:
            raise UserError(f"{where} is a batch of {len(batch)}; a list holds single images")
        batches.append(_fitted(batch, where, sizes, fit))

    # One size for all.
    shapes = {tuple(batch.shape[2:]) for batch in batches}
    if len(shapes) > 1:
        found = ", ".join(f"{height} x {width}" for height, width in sorted(shapes))
        raise UserError(f"images of one call must have one size, found {found} (height x width); give fit='crop'")
    return batches[0] if len(batches) == 1 else torch.cat([batch.to(batches[0].device) for batch in batches])


def _batch_of(item: Picture, where: str, value_range: tuple[float, float] | None, decoding: Decoding) -> Tensor:
    """One item as float32 (b,3,H,W) in [-1,1]."""
    # Pictures, decoded as `decoding` says.
    if isinstance(item, str | os.PathLike):
        _require_file(item, where)
        return to_float(image_tensor(read_image(item, decoding, hint=""))[None])
    if isinstance(item, Image.Image):
        return to_float(image_tensor(_decoded(item, where, decoding))[None])

    # Numbers.
    if isinstance(item, np.ndarray):
        item = _tensor_of(item, where)
    if not isinstance(item, Tensor):
        raise UserError(
            f"{where}: {type(item).__name__} is no image; accepted: PIL images, paths of image files, uint8 or float "
            "arrays and tensors, and lists of these"
        )
    return _in_range(_channels_in_front(item, where), where, value_range)


def _require_file(path: str | os.PathLike, where: str) -> None:
    """Raises UserError where a text is not the path of a file, with what it is instead."""
    # os.path: a text that no file can have as its name is no file, and no error.
    if os.path.isfile(path):  # noqa: PTH113
        return
    shown = str(path) if len(str(path)) <= MAX_PATH else f"{str(path)[:MAX_PATH]}..."
    if "://" in shown:
        raise UserError(f"{where}: {shown} is an address; images are not fetched, give files that are here")
    if os.path.isdir(path):  # noqa: PTH112
        raise UserError(f"{where}: {shown} is a folder; give its files, such as sorted(Path({shown!r}).glob('*.png'))")
    raise UserError(f"{where}: there is no image file {shown}")


def _decoded(picture: Image.Image, where: str, decoding: Decoding) -> Image.Image:
    """A PIL image of any mode as RGB. Raises UserError where it has no pixels, or none of a known meaning."""
    if 0 in picture.size:
        raise UserError(f"{where}: a picture of {picture.width} x {picture.height} (width x height) holds no pixels")
    try:
        return rgb_of(picture.copy, decoding)
    except Exception as error:  # a damaged or closed file is read only now: decoders raise whatever they meet
        raise UserError(f"{where}: {str(error) or type(error).__name__}") from error


def _tensor_of(array: np.ndarray, where: str) -> Tensor:
    """A numpy array as a tensor. Raises UserError for kinds of numbers that are no pixels."""
    is_float = np.issubdtype(array.dtype, np.floating)
    if array.dtype != np.uint8 and not is_float:
        raise UserError(_not_pixels(where, str(array.dtype)))
    # A copy: arrays of pictures are often not writable, and may have another order of bytes.
    return torch.from_numpy(array.astype(np.float32 if is_float else np.uint8, order="C"))


def _kind_of(images: Tensor) -> str:
    """The type of the numbers of a tensor, and how they are stored where that is unusual."""
    stored = "" if images.layout == torch.strided else f" ({str(images.layout).removeprefix('torch.')})"
    return f"{str(images.dtype).removeprefix('torch.')}{stored}"


def _not_pixels(where: str, dtype: str) -> str:
    return f"{where}: numbers of type {dtype} are no pixels; accepted: uint8 in 0..255, and floats in [-1, 1]"


# ------------------------------------------------------------------------------------------------ shapes
def _channels_in_front(images: Tensor, where: str) -> Tensor:
    """A tensor of one image or a batch, in either order of axes, as (b,3,H,W)."""
    shape = tuple(images.shape)
    if images.ndim == 2:
        images = images[None]
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4:
        raise UserError(f"{where}: shape {shape} is no image; accepted: (B, 3, H, W), (B, H, W, 3), or without B")

    # Channels in front, behind, or undecided.
    in_front = images.shape[1] in CHANNELS
    behind = images.shape[3] in CHANNELS
    if in_front and behind:
        raise UserError(f"{where}: shape {shape} may have its channels in front or behind; give a PIL image")
    if not in_front and not behind:
        alpha = 4 in (images.shape[1], images.shape[3])
        hint = "; for transparent pixels give PIL images" if alpha else ""
        raise UserError(f"{where}: shape {shape} has no axis of 1 or 3 channels, in front or behind{hint}")
    if behind:
        images = images.permute(0, 3, 1, 2)
    if 0 in images.shape:
        raise UserError(f"{where}: shape {shape} holds no pixels")
    return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)


# ------------------------------------------------------------------------------------------------ values
def _require_range(value_range: tuple[float, float] | None) -> None:
    """Raises UserError unless `value_range` is None or (black, white)."""
    if value_range is None:
        return
    is_pair = isinstance(value_range, tuple | list) and len(value_range) == 2
    are_finite = is_pair and all(is_number(value) and math.isfinite(value) for value in value_range)
    if not are_finite or value_range[0] >= value_range[1]:
        raise UserError(f"value_range={value_range!r} must be (black, white), such as (0, 1)")


def _in_range(images: Tensor, where: str, value_range: tuple[float, float] | None) -> Tensor:
    """Pixels (b,3,H,W) as float32 in [-1,1]."""
    if images.dtype == torch.uint8:
        if value_range is not None and tuple(value_range) != (0, 255):
            raise UserError(f"{where}: uint8 pixels lie in 0..255; value_range={value_range} is for floats")
        return to_float(images)
    if images.dtype not in FLOATS or images.layout != torch.strided:
        raise UserError(_not_pixels(where, _kind_of(images)))

    _require_values(images, where, value_range)
    if value_range is None or tuple(value_range) == (-1, 1):
        return images.float()
    black, white = value_range
    return (images.float() - black) / (white - black) * 2 - 1


def _require_values(images: Tensor, where: str, value_range: tuple[float, float] | None) -> None:
    """Raises UserError for floats outside of their range, or where nothing says whether they lie in [0,1] or [-1,1],
    and NonFiniteValuesError for those that are NaN or infinite.
    """
    if not has_values(images):
        return
    low, high = (value.item() for value in images.detach().aminmax())  # NaN if any number is
    if not (math.isfinite(low) and math.isfinite(high)):
        rows = (~finite_rows(images)).nonzero().flatten().tolist()
        raise NonFiniteValuesError(f"{where}: pixels", rows, advice=NOT_A_NUMBER)

    black, white = value_range or (-1.0, 1.0)
    slack = RANGE_SLACK * (white - black)
    if low < black - slack or high > white + slack:
        hint = "; is it value_range=(0, 255)?" if value_range is None and low >= 0 and high > 2 else ""
        raise UserError(
            f"{where}: floats from {low:.4g} to {high:.4g} lie outside of [{black:g}, {white:g}]{hint}; "
            "name another value_range, or clamp them"
        )
    if value_range is None and low >= 0:
        raise UserError(
            f"{where}: floats from {low:.4g} to {high:.4g} may stand for [0, 1] or for the upper half of [-1, 1]; "
            "say value_range=(0, 1) or value_range=(-1, 1)"
        )


# ------------------------------------------------------------------------------------------------ sizes
def _fitted(batch: Tensor, where: str, sizes: ImageSizes, fit: Fit | None) -> Tensor:
    """Images (b,3,H,W) of a size that the network takes, changed where `fit` allows it."""
    height, width = batch.shape[2:]
    if fit is not None and (height, width) != (sizes.size, sizes.size):
        pictures = [to_pil(image) for image in to_uint8(batch).cpu()]
        square = (sizes.size, sizes.size)
        if fit == "crop":
            changed = [center_crop(picture, sizes.size) for picture in pictures]
        else:
            changed = [picture.resize(square, Image.Resampling.BICUBIC) for picture in pictures]
        return to_float(torch.stack([image_tensor(picture) for picture in changed])).to(batch.device)

    if not sizes.fit(height, width):
        raise UserError(
            f"{where}: {height} x {width} pixels (height x width) do not fit; accepted: {sizes.text()}; "
            "fit='crop' takes the center, fit='resize' squeezes the whole picture"
        )
    return batch
