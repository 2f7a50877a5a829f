"""Arguments of functions that people call from Python: one error that names the argument and what is accepted.

A command reads texts, and its parser knows their types. From a notebook anything may come: a text in the place of a
number, a list in the place of a mapping, another network. It is refused here, before the work, and not by what it meets
inside of it.
"""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.finite import is_whole
from engine.messages import UserError

PLAIN = (str, int, float, complex, type(None), list, tuple, dict, set, range, bytes, os.PathLike)
MAX_SHOWN = 60  # characters of a value in a message; a longer one is described
WHOLE_NUMBERS = "whole numbers are accepted"
KINDS = {"U": "texts", "S": "texts", "O": "no numbers, or of more than 64 bits"}  # of arrays, by NumPy's letters


# ------------------------------------------------------------------------------------------------ messages
def wrong_argument(name: str, value: Any, accepted: str) -> UserError:
    """The error for an argument: a short plain value is shown, any other one described by its type and shape."""
    text = repr(value) if isinstance(value, PLAIN) else ""
    if text and len(text) <= MAX_SHOWN and "\n" not in text:
        return UserError(f"{name}={text} must be {accepted}")
    return UserError(f"{name} must be {accepted}, not {described(value)}")


def described(value: Any) -> str:
    """A value by its type, such as "a Tensor of shape (2, 8) and type int64"; None as it is."""
    if value is None:
        return "None"
    kind = type(value).__name__
    text = f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{text} of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    return text


# ------------------------------------------------------------------------------------------------ single values
def whole_number(value: Any, name: str, accepted: str) -> int:
    """A whole number, also as a NumPy number or a tensor of no axes. Raises UserError for anything else."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise wrong_argument(name, value, accepted)
    return int(value)


def path_text(value: Any, name: str, accepted: str) -> str:
    """A path, or another text that names a place. Raises UserError for what is none, and for an empty one."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise wrong_argument(name, value, accepted)
    return text


def require_callable(value: Any, name: str, accepted: str) -> None:
    """Raises UserError for what cannot be called."""
    if not callable(value):
        raise wrong_argument(name, value, accepted)


# ------------------------------------------------------------------------------------------------ tables of numbers
def whole_numbers(values: Any, name: str, hint: str = "") -> Tensor:
    """A tensor, an array or nested lists of whole numbers as a tensor, on the device where they are.

    Raises UserError that names the kind of the numbers where they are others, or no table; `hint` stands behind it.
    """
    # Tensors, alone or in a list.
    if isinstance(values, list | tuple) and values and all(isinstance(item, Tensor) for item in values):
        if len({item.shape for item in values}) > 1:
            raise UserError(f"{name} are no table of numbers: the tensors in the list have different shapes")
        values = torch.stack([item.to(values[0].device) for item in values])
    if isinstance(values, Tensor):
        if not is_whole(values):
            raise UserError(f"{name} are of type {str(values.dtype).removeprefix('torch.')}; {WHOLE_NUMBERS}{hint}")
        return values

    # Everything that NumPy understands.
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of different lengths, tensors among numbers
        raise UserError(f"{name} are no table of numbers: {error}") from error
    if not array.size and not isinstance(values, np.ndarray):
        array = array.astype(np.int64)  # an empty list is one of whole numbers too
    if not np.issubdtype(array.dtype, np.integer):
        kind = described(values) if array.ndim == 0 else KINDS.get(array.dtype.kind, f"of type {array.dtype}")
        raise UserError(f"{name} are {kind}; {WHOLE_NUMBERS}{hint}")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise UserError(f"{name} hold {array.max()}, which has more than 64 bits")
    return torch.from_numpy(array.astype(np.int64))


# ------------------------------------------------------------------------------------------------ networks
def require_network(network: Any, kind: type[nn.Module], name: str, accepted: str) -> None:
    """Raises UserError unless `network` is one of a kind, compiled or not; `accepted` says how to get one."""
    if not isinstance(getattr(network, "_orig_mod", network), kind):  # what torch.compile wraps
        raise wrong_argument(name, network, accepted)
