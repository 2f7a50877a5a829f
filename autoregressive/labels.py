"""Classes as people name them -> labels: numbers, names, or a mixture, alone or in a list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autoregressive.models.base import Generator
from engine.arguments import whole_number, whole_numbers, wrong_argument
from engine.finite import has_values
from engine.messages import UserError

Label = int | str
ACCEPTED = "numbers or names of classes, one or several"
Labels = Label | Sequence[Label] | np.ndarray | Tensor


def as_labels(generator: Generator, labels: Labels) -> Tensor:
    """Labels int64 (B,) on the generator's device, from a number, a name, a list of these, an array or a tensor.

    Names are those of the folders that the generator was trained on (`Generator.classes`). The number after the last
    class is the null class, which stands for "any class". Raises UserError for a class that is not known.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "UO":  # names, or a mixture
        labels = labels.tolist()
    if isinstance(labels, Tensor | np.ndarray):
        numbers = _numbers(labels)
        _require_known(generator, numbers)
        return numbers.to(generator.device)

    # One by one; each is checked before a number that is too large for a tensor becomes one.
    items = [labels] if isinstance(labels, int | str | np.integer) else _items(labels)
    known = [_label_of(generator, item) for item in items]
    if not known:
        raise UserError("there are no labels: the list is empty")
    _require_in_range(generator, min(known), max(known))
    return torch.tensor(known, dtype=torch.int64, device=generator.device)


def _items(labels: Sequence[Label]) -> list[Label]:
    """The entries of a list, tuple or range."""
    if not isinstance(labels, Sequence) or isinstance(labels, bytes | bytearray):
        raise wrong_argument("labels", labels, ACCEPTED)
    return list(labels)


def _label_of(generator: Generator, item: Label) -> int:
    """The number of one class, which may be named."""
    if isinstance(item, str):
        return generator.classes.label_of(item)
    return whole_number(item, "label", "the number or the name of a class")


def _numbers(labels: Tensor | np.ndarray) -> Tensor:
    """A tensor or array of labels as int64 (B,), where it is; a single number has B = 1."""
    numbers = whole_numbers(labels, "labels").to(torch.int64)
    numbers = numbers[None] if numbers.ndim == 0 else numbers
    if numbers.ndim != 1:
        raise UserError(f"labels have shape {tuple(numbers.shape)}; accepted: (B,)")
    return numbers


def _require_known(generator: Generator, labels: Tensor) -> None:
    """Raises UserError unless all labels are classes, or the null class."""
    if labels.numel() == 0:
        raise UserError("there are no labels: the list is empty")
    if has_values(labels):
        low, high = (int(value) for value in labels.aminmax())
        _require_in_range(generator, low, high)


def _require_in_range(generator: Generator, low: int, high: int) -> None:
    """Raises UserError unless all numbers from `low` to `high` are labels of the generator."""
    if low < 0 or high > generator.null_class:
        wrong = low if low < 0 else high
        raise UserError(
            f"label {wrong} is not known: the generator has the classes 0..{generator.num_classes - 1} "
            f"(and {generator.null_class}, which stands for any class)"
        )
