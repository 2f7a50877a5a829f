"""What a recipe would do with the images of a folder, and which sizes and steps suit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from engine.arithmetic import ceil_div
from engine.counts import counted
from engine.data.header import UPRIGHT
from engine.messages import UserError
from evaluations.own_data.scan import ORIENTATION
from evaluations.own_data.survey import Survey

MIN_IMAGES = 20  # readable ones that recipes are written for; with fewer nothing can be learned, nor held out
SMALL_SHARE = 0.2  # of the images may be smaller than the image size: they are enlarged, and have no fine detail


# ------------------------------------------------------------------------------------------------ of a recipe
@dataclass(frozen=True)
class Fit:
    """What square crops of `image_size` pixels make of the images."""

    image_size: int
    orientation: str
    enlarged: int  # images with a short side below `image_size`
    much_larger: int  # images with a short side of four times `image_size` or more: most of their detail is lost
    outside_of_crop: float  # share of the pixels that a center crop leaves out, mean over images
    on_their_side: int  # images that EXIF says to turn, where the recipe does not


def fit_of(survey: Survey, image_size: int, orientation: str) -> Fit:
    """What a recipe with `data.image_size` and `data.orientation` would do."""
    sizes = survey.sizes
    short_sides = sizes.min(axis=1)
    turned = sum(image.header.orientation != UPRIGHT for image in survey.scan.images)
    return Fit(
        image_size=image_size,
        orientation=orientation,
        enlarged=int((short_sides < image_size).sum()),
        much_larger=int((short_sides >= 4 * image_size).sum()),
        outside_of_crop=round(float(1 - (short_sides / sizes.max(axis=1)).mean()), 3),
        on_their_side=0 if orientation == ORIENTATION else turned,
    )


def fit_of_recipe(survey: Survey, tree: DictConfig, name: str) -> Fit:
    """The same of the YAML tree of a recipe. Raises UserError for one that does not train on images."""
    image_size = OmegaConf.select(tree, "data.image_size")
    if image_size is None:
        raise UserError(f"{name} has no data.image_size: it does not train on images; name a recipe of a tokenizer")
    return fit_of(survey, int(image_size), OmegaConf.select(tree, "data.orientation", default="as_stored"))


# ------------------------------------------------------------------------------------------------ suggestions
@dataclass(frozen=True)
class Target:
    """A kind of machine, and the recipes and limits for it."""

    title: str
    suffix: str  # of the names of its recipes
    run_name: str  # folder for what they make
    image_sizes: tuple[int, ...]  # that its recipes can be trained at, in rising order
    batch: int  # images per step of the tokenizer
    generator_batch: int
    steps: tuple[int, int]  # fewest and most of the tokenizer
    generator_steps: tuple[int, int]
    step_limits: tuple[str, str]  # why no fewer, and why no more
    passes: int  # over the images, in training the tokenizer
    generator_passes: int

    @property
    def has_gpus(self) -> bool:
        """Whether its commands can use several GPUs."""
        return self.suffix != ""


CPU = Target(
    "2 CPU cores", "", "cpu", image_sizes=(32, 64), batch=16, generator_batch=64,
    steps=(1500, 1500), generator_steps=(150, 750), passes=60, generator_passes=30,
    step_limits=("what takes some ten minutes", "what takes some ten minutes"),
)  # fmt: skip
GPU = Target(
    "GPUs", "_gpu", "gpu", image_sizes=(64, 128, 256), batch=128, generator_batch=256,
    steps=(5_000, 200_000), generator_steps=(2_000, 200_000), passes=200, generator_passes=100,
    step_limits=("fewer leave the codebook half trained", "more change little"),
)  # fmt: skip
GENERATOR_LIMITS = ("fewer leave it untrained", "more need a larger model")


@dataclass(frozen=True)
class Choice:
    """A value, and why."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Suggestion:
    """The sizes and steps for one target."""

    image_size: Choice
    batch: Choice
    steps: Choice
    generator_batch: Choice
    generator_steps: Choice

    def values(self) -> Mapping[str, Any]:
        """For JSON."""
        return asdict(self)


def suggestion_for(survey: Survey, target: Target, num_training: int, image_size: int | None = None) -> Suggestion:
    """What suits the images of a survey, of which `num_training` are trained on. A given `image_size` stays."""
    wanted = Choice(image_size, "as asked for") if image_size else _image_size(survey.short_sides, target)
    return Suggestion(
        image_size=wanted,
        batch=_batch(target.batch, num_training),
        steps=_steps(target.steps, target.passes, num_training, target.batch, target.step_limits),
        generator_batch=_batch(target.generator_batch, num_training),
        generator_steps=_steps(
            target.generator_steps, target.generator_passes, num_training, target.generator_batch, GENERATOR_LIMITS
        ),
    )  # fmt: skip


def _image_size(short_sides: np.ndarray, target: Target) -> Choice:
    """The largest size that few images must be enlarged for."""
    fitting = [size for size in target.image_sizes if (short_sides < size).mean() <= SMALL_SHARE]
    size = fitting[-1] if fitting else target.image_sizes[0]
    small = int((short_sides < size).sum())
    enlarged = f"{small:,} of {len(short_sides):,} images are smaller and get enlarged"
    if size == target.image_sizes[-1]:
        return Choice(size, f"the largest for {target.title}; {enlarged}")
    larger = target.image_sizes[target.image_sizes.index(size) + 1]
    lacking = int((short_sides < larger).sum())
    return Choice(size, f"{enlarged}; at {larger} px it would be {lacking:,}")


def _batch(most: int, num_training: int) -> Choice:
    """A power of two, not above the number of images."""
    batch = min(most, 2 ** (max(1, num_training).bit_length() - 1))
    limit = f"no more than the {counted(num_training, 'training image')}"
    return Choice(batch, "images per step" if batch == most else limit)


def _steps(limits: tuple[int, int], passes: int, num_training: int, batch: int, limited_by: tuple[str, str]) -> Choice:
    """Steps for a number of passes over the images; `limited_by` says why there is a least and a most."""
    fewest, most = limits
    wanted = ceil_div(passes * num_training, batch)
    steps = min(max(wanted, fewest), most)
    reason = f"{steps * batch / max(1, num_training):,.0f} passes over {num_training:,} images"
    if steps != wanted:
        reason += f"; {limited_by[0] if steps == fewest else limited_by[1]}"
    return Choice(steps, reason)
