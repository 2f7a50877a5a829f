"""Progress bars: the main process shows one in a terminal, the other processes and log files see none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from engine.world import World

T = TypeVar("T")


def progress(iterable: Iterable[T], title: str, world: World, unit: str = "it") -> tqdm[T]:
    """Passes on the items of `iterable` under a bar that counts them."""
    return tqdm(iterable, desc=title, unit=unit, disable=_disable(world))


def image_bar(count: int, title: str, world: World) -> tqdm:
    """A bar over `count` images, for a caller that advances it itself."""
    return tqdm(total=count, desc=title, unit="image", disable=_disable(world))


def _disable(world: World) -> bool | None:
    """The argument of tqdm; None means that it looks for a terminal."""
    return None if world.is_main else True
