"""The views of an image whose codes a generator is trained on, by the name of their kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageOps

from engine.data.crops import center_crop, ten_crop


@dataclass(frozen=True)
class Views:
    """One kind of views. Codes name it in their manifest, so that names and order of the views are fixed."""

    num_views: int
    center: int  # number of the view that is the plain center crop
    crops: Callable[[Image.Image, int], list[Image.Image]]  # (image, size) -> the views in their order
    crop_name: str  # of the center view, in results
    flag: str | None  # of the extraction; None for the default
    help: str


def _center(image: Image.Image, size: int) -> list[Image.Image]:
    return [center_crop(image, size)]


def _center_and_mirror(image: Image.Image, size: int) -> list[Image.Image]:
    crop = center_crop(image, size)
    return [crop, ImageOps.mirror(crop)]


DEFAULT_VIEWS = "center"
VIEWS = {
    DEFAULT_VIEWS: Views(1, 0, _center, "center", None, "center crop"),
    "flip": Views(2, 0, _center_and_mirror, "center", "--flip", "center crop and its mirror image"),
    "ten-crop": Views(10, 4, ten_crop, "center of 1.1 times the size", "--ten-crop", "ten crops per image"),
}
