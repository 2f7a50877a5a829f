"""What a pickle stands for: tensors as descriptions, plain containers, and inert objects for everything else.

`call` answers every call that a pickle makes. It knows the few functions of `REBUILDERS`, which are functions of this
file; anything else becomes a `Foreign`, which only remembers the name and what was stored in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.checkpoint.foreign.tensors import MAX_NUMBER, Storage, StoredTensor


class PickleError(Exception):
    """A pickle that is damaged, or beyond the bounds."""


class Reference:
    """A class or function that a pickle names. It is never imported."""

    def __init__(self, name: str) -> None:
        self.name = name


class Foreign:
    """An object of a class that is not read: its class by name, and what the pickle stored in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: dict[Any, Any] = {}  # of a subclass of dict
        self.state: Any = None  # attributes, usually a dict


# ------------------------------------------------------------------------------------------------ keys and items
SCALARS = (str, int, float, bool, bytes, type(None))


def checked_key(value: Any) -> Any:
    """`value` as a key. Only flat keys are hashed: a deep one would overflow the stack."""
    is_flat_tuple = type(value) is tuple and all(isinstance(part, SCALARS) for part in value)
    if not isinstance(value, (*SCALARS, Foreign, Reference)) and not is_flat_tuple:
        raise PickleError("a key that is a container")
    return value


def set_item(container: Any, key: Any, value: Any) -> None:
    if isinstance(container, Foreign):
        container.items[checked_key(key)] = value
    elif type(container) is dict:
        container[checked_key(key)] = value
    else:
        raise PickleError("an item of something that is no dict")


# ------------------------------------------------------------------------------------------------ tensors
NUMBER_TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
STORAGES = {f"torch.{device}{name}Storage": dtype for name, dtype in NUMBER_TYPES.items() for device in ("", "cuda.")}
STORAGES |= {f"torch.{name}": torch.uint8 for name in ("UntypedStorage", "storage.UntypedStorage")}
DTYPES = {str(dtype): dtype for dtype in (*NUMBER_TYPES.values(), torch.float8_e4m3fn, torch.float8_e5m2)}


def described_storage(persistent_id: Any) -> Storage:
    """The storage that a persistent id describes: ("storage", its class, key, device, number of elements)."""
    if type(persistent_id) is not tuple or len(persistent_id) < 5 or persistent_id[0] != "storage":
        raise PickleError("a persistent id that is no storage")
    _, storage_class, key, _, num_elements = persistent_id[:5]
    if any(part is not None for part in persistent_id[5:]):
        raise PickleError("a storage that is a view of another one (PyTorch before 0.4)")
    if not isinstance(storage_class, Reference) or storage_class.name not in STORAGES or type(key) is not str:
        raise PickleError("a storage of an unknown kind")
    if type(num_elements) is not int or not 0 <= num_elements < MAX_NUMBER:
        raise PickleError("a storage of an impossible size")
    dtype = STORAGES[storage_class.name]
    return Storage(key, dtype, num_elements * dtype.itemsize)


def _checked(tensor: StoredTensor) -> StoredTensor:
    problem = tensor.problem()
    if problem is not None:
        raise PickleError(f"a tensor with {problem}")
    return tensor


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_unused: Any) -> StoredTensor | Foreign:
    """What `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2` would make."""
    if isinstance(storage, Foreign):
        return Foreign("a tensor of pickle.dump (use torch.save)")
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(stride) is not tuple:
        raise PickleError("a tensor without storage or shape")
    return _checked(StoredTensor(storage, storage.dtype, offset, shape, stride))


def _typed_tensor(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_unused):
    """What `torch._utils._rebuild_tensor_v3` would make: its dtype is beside an untyped storage."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(stride) is not tuple:
        raise PickleError("a tensor without storage or shape")
    if not isinstance(dtype, Reference) or dtype.name not in DTYPES:
        raise PickleError("a tensor of an unknown type of numbers")
    return _checked(StoredTensor(storage, DTYPES[dtype.name], offset, shape, stride))


def _parameter(data: Any, *_unused: Any) -> Any:
    return data


def _subclass_tensor(function: Any, _class: Any, arguments: Any, *_unused: Any) -> Any:
    """A tensor with Python attributes, or of a subclass: the tensor alone."""
    is_tensor = isinstance(function, Reference) and function.name.startswith("torch._utils._rebuild_")
    return call(function, arguments) if is_tensor else Foreign("torch._tensor._rebuild_from_type_v2")


# ------------------------------------------------------------------------------------------------ plain containers
def _dict(pairs: Any = (), *_unused: Any) -> dict:
    if type(pairs) is dict:
        return dict(pairs)
    result: dict = {}
    for pair in _sequence(pairs):
        key, value = _sequence(pair)
        set_item(result, key, value)
    return result


def _default_dict(*_unused: Any) -> dict:
    return {}


def _set(items: Any = ()) -> set:
    return {checked_key(item) for item in _sequence(items)}


def _size(items: Any = ()) -> tuple:
    return tuple(_sequence(items))


def _sequence(value: Any) -> list | tuple:
    if type(value) not in (list, tuple):
        raise PickleError("a list is expected, and is none")
    return value


REBUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass_tensor,
    "torch.Size": _size,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _default_dict,
    **dict.fromkeys(("builtins.dict", "__builtin__.dict"), _dict),
    **dict.fromkeys(("builtins.set", "__builtin__.set"), _set),
    **dict.fromkeys(("builtins.frozenset", "__builtin__.frozenset"), _set),
}
RECONSTRUCTORS = frozenset({"copyreg._reconstructor", "copy_reg._reconstructor"})


def call(function: Any, arguments: Any) -> Any:
    """What a call in the pickle stands for: one of `REBUILDERS`, or an inert object."""
    if type(arguments) is not tuple:
        raise PickleError("a call without arguments")
    if not isinstance(function, Reference):
        return Foreign(function.name if isinstance(function, Foreign) else "an unknown callable")
    if function.name in RECONSTRUCTORS and arguments and isinstance(arguments[0], Reference):
        return Foreign(arguments[0].name)
    if function.name not in REBUILDERS:
        return Foreign(function.name)
    try:
        return REBUILDERS[function.name](*arguments)
    except (TypeError, ValueError) as error:
        raise PickleError(f"{function.name} with arguments that do not fit") from error
