"""Which sets of weights a file holds: raw ones, and averages (EMA), under the names that trainers give them.

{"model": ..., "ema": ...}                      GigaTok, LlamaGen, and many others; also state_dict, module, ...
{"x": tensor, ...}                              a bare state dict
{"weights": ...}                                a set under any other name, if it is the only one
{"ema": {"state_dict": ...}}                    a set inside of another dict
{"ema": {"shadow_params": [tensor, ...]}}       averages without names, see `unnamed`
{"n_averaged": ..., "module.x": ...}            torch's AveragedModel: averages
{"model.x": ..., "ema.x": ...}                  both sets in one state dict
{"state_dict": ..., "current_model_state": ...} Lightning's weight averaging: `state_dict` holds the averages
a whole pickled network                         its parameters and buffers; the class is not needed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from engine.checkpoint.foreign.inert import Foreign
from engine.checkpoint.foreign.tensors import StoredTensor
from engine.checkpoint.foreign.unnamed import list_of_tensors, named_like
from engine.checkpoint.foreign.wrappers import ema_heads_of, unwrapped
from engine.checkpoint.manifest import CheckpointError

AnyTensor = Tensor | StoredTensor

RAW_KEYS = ("model", "module", "state_dict", "model_state_dict", "current_model_state", "network", "net", "params")
EMA_KEYS = (
    *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict"),
    *("ema_model_state_dict", "ema_state", "params_ema", "ema_params", "averaged_model", "average_model"),
    *("swa_model", "shadow"),
)
AVERAGE_COUNT = "n_averaged"  # of AveragedModel
COUNTERS = frozenset({AVERAGE_COUNT, "decay", "num_updates", "initted", "step"})  # beside averages
SHARD_MARK = "_flat_param"  # of parameters that FSDP has flattened and cut into pieces
MAX_DEPTH = 3  # dicts around a state dict
MAX_MODULES = 20_000  # of a network that was pickled whole
MAX_NAME = 1000  # letters of the name of such a module
BARE = "bare state dict"


@dataclass
class WeightSet:
    """One set of weights of a file."""

    kind: str  # "model" (raw) or "ema"
    key: str  # where it was, for messages
    tensors: dict[str, AnyTensor] = field(default_factory=dict)  # under clean names
    file_names: dict[str, str] = field(default_factory=dict)  # clean name -> the file's own


def find_sets(tree: Mapping[Any, Any], source: str) -> list[WeightSet]:
    """All sets of weights of a file; empty ones, and dicts without any tensor, are none.

    Raises CheckpointError for a name that is given twice, and for pieces of parameters.
    """
    sets: list[WeightSet] = []
    is_averaged = "current_model_state" in tree
    for key in (*RAW_KEYS, *EMA_KEYS):
        if key in tree:
            is_ema = key in EMA_KEYS or (is_averaged and key == "state_dict")
            sets += _sets_of(tree[key], "ema" if is_ema else "model", key, source, {id(tree)})
    if not sets:
        sets = _split(_tensors(tree), "model", BARE, source)
    if not sets:
        for key in tree.keys() - {*RAW_KEYS, *EMA_KEYS}:
            if isinstance(key, str):
                sets += _sets_of(tree[key], "model", key, source, {id(tree)})
    return sets + _named_lists(tree, sets)


def _named_lists(tree: Mapping[Any, Any], sets: Sequence[WeightSet]) -> list[WeightSet]:
    """The averages that are lists and get their names from the only raw set. Lists that do not fit it are none."""
    raw_sets = [found for found in sets if found.kind == "model"]
    if len(raw_sets) != 1:
        return []
    raw = raw_sets[0]
    named = {key: named_like(list_of_tensors(tree.get(key)), raw.tensors) for key in EMA_KEYS}
    return [WeightSet("ema", key, tensors, raw.file_names) for key, tensors in named.items() if tensors]


def _sets_of(value: Any, kind: str, key: str, source: str, seen: set[int]) -> list[WeightSet]:
    """The sets in the value of a key: those of one state dict, or of dicts inside. `seen` are the dicts around."""
    mapping = as_mapping(value)
    tensors = _tensors(mapping)
    has_names = any(name not in COUNTERS for name in tensors)
    if has_names:
        return _split(tensors, kind, key, source)
    if id(value) in seen or key.count(".") >= MAX_DEPTH:
        return []
    seen.add(id(value))

    inside: list[WeightSet] = []
    for name in (*RAW_KEYS, *EMA_KEYS):
        if name in mapping:
            inner_kind = "ema" if name in EMA_KEYS else "model"
            inside += _sets_of(mapping[name], inner_kind, f"{key}.{name}", source, seen)
    return _as_kind(inside, kind)


def _as_kind(sets: list[WeightSet], kind: str) -> list[WeightSet]:
    """The sets that are found where a set of `kind` should be: of averages, the averages among them, or else all."""
    if kind == "model":
        return sets
    averages = [found for found in sets if found.kind == "ema"] or sets
    for found in averages:
        found.kind = "ema"
    return averages


def _split(tensors: Mapping[str, AnyTensor], kind: str, key: str, source: str) -> list[WeightSet]:
    """The one or two sets of a state dict: without wrappers, raw weights and averages apart."""
    if not tensors:
        return []
    shard = next((name for name in tensors if name.endswith(SHARD_MARK)), None)
    if shard is not None:
        raise CheckpointError(f"{source} holds flattened pieces of FSDP ({shard}); save a full state dict instead")

    # Raw weights and averages of one state dict.
    raw = WeightSet("model", key)
    averages = WeightSet("ema", key)
    ema_heads = ema_heads_of(tensors)
    for file_name, tensor in tensors.items():
        name, is_average = unwrapped(file_name, ema_heads)
        chosen = averages if is_average else raw
        if name in chosen.tensors:
            twice = f"{chosen.file_names[name]!r} and {file_name!r}"
            raise CheckpointError(f"{source} gives a tensor twice, as {twice}: which one counts is not known")
        chosen.tensors[name] = tensor
        chosen.file_names[name] = file_name

    # Counters beside averages are no weights, and what has no name in common with averages is no network of its own.
    for name in COUNTERS & averages.tensors.keys():
        del averages.tensors[name]
    is_of_averages = kind == "ema" or AVERAGE_COUNT in raw.tensors
    if is_of_averages:
        for name in COUNTERS & raw.tensors.keys():
            del raw.tensors[name]
    if not averages.tensors:
        raw.kind = "ema" if is_of_averages else "model"
        return [raw]
    is_network = not averages.tensors.keys().isdisjoint(raw.tensors)
    return _as_kind([raw, averages] if is_network else [averages], kind)


# ------------------------------------------------------------------------------------------------ what holds tensors
def as_mapping(value: Any) -> Mapping[Any, Any]:
    """A dict, an inert subclass of one, or the parameters of a pickled network; empty for anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Foreign):
        return value.items or module_tensors(value)
    return {}


def module_tensors(network: Foreign) -> dict[str, AnyTensor]:
    """Parameters and buffers of a network that was pickled whole, by their names.

    Raises CheckpointError for a network that holds itself, or has too many modules.
    """
    tensors: dict[str, AnyTensor] = {}
    modules: list[tuple[str, Any]] = [("", network)]

    # From module to module, with a bound: a hostile file may hold a circle.
    for _ in range(MAX_MODULES):
        if not modules:
            return tensors
        prefix, module = modules.pop()
        if len(prefix) > MAX_NAME:
            break

        # Its own tensors, then its parts.
        state = module.state if isinstance(module, Foreign) and isinstance(module.state, dict) else {}
        for kind in ("_parameters", "_buffers"):
            owned = state.get(kind)
            if isinstance(owned, dict):
                tensors |= {f"{prefix}{name}": tensor for name, tensor in _tensors(owned).items()}
        children = state.get("_modules")
        if isinstance(children, dict):
            modules += [(f"{prefix}{name}.", child) for name, child in children.items() if isinstance(name, str)]
    raise CheckpointError(f"a pickled network ({network.name[:80]}) has too many modules, or holds itself")


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, AnyTensor]:
    return {
        name: value
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, (Tensor, StoredTensor))
    }
