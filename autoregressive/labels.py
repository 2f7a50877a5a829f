"""Classes as people name them -> labels: numbers, names, or a mixture, alone or in a list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autoregressive.models.base import Generator
from engine.finite import has_values, is_whole
from engine.messages import UserError

Label = int | str
Labels = Label | Sequence[Label] | np.ndarray | Tensor


def as_labels(generator: Generator, labels: Labels) -> Tensor:
    """Labels int64 (B,) on the generator's device, from a number, a name, a list of these, an array or a tensor.

    Names are those of the folders that the generator was trained on (`Generator.classes`). The number after the last
    class is the null class, which stands for "any class". Raises UserError for a class that is not known.
    """
    if isinstance(labels, Tensor | np.ndarray):
        numbers = _numbers(torch.as_tensor(labels))
    else:
        items = [labels] if isinstance(labels, int | str | np.integer) else _items(labels)
        numbers = torch.tensor([_label_of(generator, item) for item in items], dtype=torch.int64)

    numbers = numbers.to(device=generator.device, dtype=torch.int64)
    _require_known(generator, numbers)
    return numbers


def _items(labels: Sequence[Label]) -> list[Label]:
    """The entries of a list, tuple or range."""
    if not isinstance(labels, Sequence):
        raise UserError(f"labels={labels!r} must be numbers or names of classes, one or several")
    return list(labels)


def _label_of(generator: Generator, item: Label) -> int:
    """The number of one class, which may be named."""
    if isinstance(item, str):
        return generator.classes.label_of(item)
    is_scalar = isinstance(item, Tensor | np.ndarray) and item.ndim == 0
    number = item.item() if is_scalar else item
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise UserError(f"label {item!r} must be the number or the name of a class")
    return int(number)


def _numbers(labels: Tensor) -> Tensor:
    """A tensor of labels as (B,); a single number has B = 1."""
    labels = labels[None] if labels.ndim == 0 else labels
    if labels.ndim != 1 or not is_whole(labels):
        dtype = str(labels.dtype).removeprefix("torch.")
        raise UserError(f"labels have shape {tuple(labels.shape)} and type {dtype}; accepted: (B,) of whole numbers")
    return labels


def _require_known(generator: Generator, labels: Tensor) -> None:
    """Raises UserError unless all labels are classes, or the null class."""
    if labels.numel() == 0:
        raise UserError("there are no labels: the list is empty")
    if not has_values(labels):
        return
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high > generator.null_class:
        wrong = low if low < 0 else high
        raise UserError(
            f"label {wrong} is not known: the generator has the classes 0..{generator.num_classes - 1} "
            f"(and {generator.null_class}, which stands for any class)"
        )
