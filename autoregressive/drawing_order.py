"""In which order the cells of an image are drawn, as a sampler is asked for it: a name, or the cells one by one.

An order of N cells is a permutation of 0..N-1: the cell that is drawn first comes first. All images of a call have the
same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral

from engine.messages import ConfigError
from engine.seeds import counter_rng
from engine.validation import Problem, is_number

DrawingOrder = str | tuple[int, ...]  # one of NAMED_ORDERS, or the cells

ORDER_KEY = 0x04DE4  # keeps a random order apart from other random numbers of the same seed


def _raster(num_cells: int, seed: int) -> tuple[int, ...]:
    return tuple(range(num_cells))


def _reversed(num_cells: int, seed: int) -> tuple[int, ...]:
    return tuple(reversed(range(num_cells)))


def _random(num_cells: int, seed: int) -> tuple[int, ...]:
    return tuple(counter_rng(seed, ORDER_KEY, 0).permutation(num_cells).tolist())


NAMED_ORDERS: dict[str, Callable[[int, int], tuple[int, ...]]] = {  # (cells, seed of the sampler) -> the cells
    "raster": _raster,
    "reversed": _reversed,
    "random": _random,
}
ACCEPTED_ORDERS = f"{', '.join(NAMED_ORDERS)}, or all cells in their order, such as 3,2,1,0"


def order_problems(order: DrawingOrder | None) -> Iterator[Problem]:
    """What is wrong with an order, whatever the number of cells."""
    if order is None or (isinstance(order, str) and order in NAMED_ORDERS):
        return
    are_cells = isinstance(order, tuple) and all(is_number(cell) and isinstance(cell, Integral) for cell in order)
    if not are_cells or sorted(order) != list(range(len(order))):
        yield Problem("order", order, f"{ACCEPTED_ORDERS}: each cell from 0 on once")


def cells_in_order(order: DrawingOrder, num_cells: int, seed: int) -> tuple[int, ...]:
    """The cells of an image in the order in which they are drawn. Raises ConfigError for another number of them."""
    if isinstance(order, str):
        return NAMED_ORDERS[order](num_cells, seed)
    if len(order) != num_cells:
        raise ConfigError(f"--order names {len(order)} cells, but an image has {num_cells}: 0..{num_cells - 1}")
    return order


def order_text(order: str | Sequence[int]) -> str:
    """An order in a few words for people; a list, as a JSON file has it, may stand for a tuple."""
    return f"{order} order" if isinstance(order, str) else "a given order"
