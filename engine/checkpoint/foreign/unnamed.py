"""Averages that were saved as a plain list: `shadow_params` of torch_ema and of diffusers' EMAModel.

Such a list holds the averages of the parameters, in the order of the network, without names. A set of raw weights in
the same file has the names in the same order, but also buffers, which have no average. The list gets the names where
there is only one way to lay it along the raw weights, and every weight and bias has an average then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from engine.checkpoint.foreign.tensors import StoredTensor

AnyTensor = Tensor | StoredTensor
LIST_KEY = "shadow_params"  # of a list of averages inside of a dict
ALWAYS_PARAMETERS = frozenset({"weight", "bias"})  # last parts of names that no buffer has


def list_of_tensors(value: Any) -> list[AnyTensor]:
    """The list of tensors that is `value`, or lies in it under `LIST_KEY`; empty if there is none."""
    lists = [value, value.get(LIST_KEY)] if isinstance(value, Mapping) else [value]
    for tensors in lists:
        is_list = isinstance(tensors, (list, tuple)) and len(tensors) > 0
        if is_list and all(isinstance(tensor, (Tensor, StoredTensor)) for tensor in tensors):
            return list(tensors)
    return []


def named_like(averages: Sequence[AnyTensor], raw: Mapping[str, AnyTensor]) -> dict[str, AnyTensor] | None:
    """`averages` under the names of `raw`, and what has no average from `raw` itself.

    None where their shapes fit in no way, or in several.
    """
    if not averages:
        return None
    names = list(raw)
    first_way = _matched(names, averages, raw)
    last_way = _matched(names[::-1], averages[::-1], raw)
    if first_way is None or last_way is None or first_way != last_way[::-1]:
        return None
    without_average = raw.keys() - set(first_way)
    if any(name.rpartition(".")[2] in ALWAYS_PARAMETERS for name in without_average):
        return None
    return dict(raw) | dict(zip(first_way, averages, strict=True))


def _matched(names: Sequence[str], averages: Sequence[AnyTensor], raw: Mapping[str, AnyTensor]) -> list[str] | None:
    """The name of each average, the earliest of `names` that fits; None if there are too few.

    Where the earliest names equal the latest ones, no other way exists.
    """
    matched = []
    remaining = iter(names)
    for average in averages:
        name = next((name for name in remaining if _is_alike(raw[name], average)), None)
        if name is None:
            return None
        matched.append(name)
    return matched


def _is_alike(raw: AnyTensor, average: AnyTensor) -> bool:
    return tuple(raw.shape) == tuple(average.shape) and raw.dtype.is_floating_point
