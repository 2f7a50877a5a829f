"""Reads a pickle as inert data: the one place of the project that unpickles, and it runs nothing.

A pickle is a program for a small stack machine. This one knows its instructions, but imports nothing and calls nothing
that the pickle names: a name becomes a `Reference`, and what a call of it would have made becomes a `Foreign`, which
only remembers the name and what was stored in it. The exceptions are the few functions of `REBUILDERS`, which describe
tensors and plain containers; they are functions of this file.

The number of instructions, the nesting and the length of a text are bounded. Tensors are descriptions
(`tensors.StoredTensor`), so a claim of 10 GB costs nothing here.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from engine.checkpoint.foreign.tensors import MAX_NUMBER, Storage, StoredTensor

MAX_INSTRUCTIONS = 2_000_000  # about 60 per tensor; each may take some 100 bytes
MAX_MARKS = 256  # containers that are open at a time
MAX_TEXT = 2**26  # bytes of one text or byte string


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


class LimitedFile:
    """A file that refuses to read more than `MAX_TEXT` bytes at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_TEXT:
            raise PickleError(f"a text of {size:,} bytes")
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(MAX_TEXT)
        if len(line) == MAX_TEXT:
            raise PickleError(f"a line of {MAX_TEXT:,} bytes")
        return line


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


def _storage(persistent_id: Any) -> Storage:
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
        _set_item(result, key, value)
    return result


def _default_dict(*_unused: Any) -> dict:
    return {}


def _set(items: Any = ()) -> set:
    return {_key(item) for item in _sequence(items)}


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


# ------------------------------------------------------------------------------------------------ the stack machine
SCALARS = (str, int, float, bool, bytes, type(None))


def _key(value: Any) -> Any:
    """`value` as a key. Only flat keys are hashed: a deep one would overflow the stack."""
    is_flat_tuple = type(value) is tuple and all(isinstance(part, SCALARS) for part in value)
    if not isinstance(value, (*SCALARS, Foreign, Reference)) and not is_flat_tuple:
        raise PickleError("a key that is a container")
    return value


def _set_item(container: Any, key: Any, value: Any) -> None:
    if isinstance(container, Foreign):
        container.items[_key(key)] = value
    elif type(container) is dict:
        container[_key(key)] = value
    else:
        raise PickleError("an item of something that is no dict")


class Machine:
    """Runs one pickle; `run` returns its value, `storages` are those that it names."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # stacks below the open containers
        self.memo: dict[int, Any] = {}
        self.num_copied = 0  # elements of arguments, which a rebuilder may copy

    def run(self, file: LimitedFile) -> Any:
        """Reads from the file's position to the end of the pickle. Raises PickleError."""
        try:
            for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
                if count > MAX_INSTRUCTIONS:
                    raise PickleError(f"more than {MAX_INSTRUCTIONS:,} instructions")
                self._step(instruction.name, argument)
            return self.stack.pop()
        except (ValueError, IndexError, KeyError, TypeError, UnicodeError, OverflowError) as error:
            raise PickleError("bytes that are no pickle") from error

    def _step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in LITERALS:
            self.stack.append(argument)
        elif name in INSTRUCTIONS:
            INSTRUCTIONS[name](self, argument)
        elif name not in NO_EFFECT:
            raise PickleError(f"the instruction {name}")

    def to_mark(self) -> list[Any]:
        """The values since the last mark."""
        values = self.stack
        self.stack = self.marks.pop()
        return values

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Takes a value from the stack."""
        return self.stack.pop()

    # Each method below is an instruction; `argument` is what follows it in the pickle.
    def mark(self, argument: Any) -> None:
        if len(self.marks) >= MAX_MARKS:
            raise PickleError(f"more than {MAX_MARKS} nested containers")
        self.marks.append(self.stack)
        self.stack = []

    def discard(self, argument: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def discard_to_mark(self, argument: Any) -> None:
        self.to_mark()

    def duplicate(self, argument: Any) -> None:
        self.push(self.stack[-1])

    def remember(self, argument: Any) -> None:
        self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]

    def recall(self, argument: Any) -> None:
        self.push(self.memo[argument])

    def new_list(self, argument: Any) -> None:
        self.push([])

    def new_dict(self, argument: Any) -> None:
        self.push({})

    def new_set(self, argument: Any) -> None:
        self.push(set())

    def list_of_marked(self, argument: Any) -> None:
        self.push(self.to_mark())

    def tuple_of_marked(self, argument: Any) -> None:
        self.push(tuple(self.to_mark()))

    def set_of_marked(self, argument: Any) -> None:
        self.push(frozenset(_key(value) for value in self.to_mark()))

    def dict_of_marked(self, argument: Any) -> None:
        values = self.to_mark()
        self.push({})
        self._fill(values)

    def append(self, argument: Any) -> None:
        value = self.pop()
        self._extend([value])

    def append_marked(self, argument: Any) -> None:
        self._extend(self.to_mark())

    def _extend(self, values: list[Any]) -> None:
        container = self.stack[-1]
        if type(container) is list:
            container.extend(values)
        elif not isinstance(container, Foreign):
            raise PickleError("an element of something that is no list")

    def add_marked(self, argument: Any) -> None:
        values = self.to_mark()
        if type(self.stack[-1]) is not set:
            raise PickleError("an element of something that is no set")
        self.stack[-1].update(_key(value) for value in values)

    def set_item(self, argument: Any) -> None:
        value = self.pop()
        key = self.pop()
        _set_item(self.stack[-1], key, value)

    def set_marked(self, argument: Any) -> None:
        self._fill(self.to_mark())

    def _fill(self, values: list[Any]) -> None:
        for key, value in zip(values[::2], values[1::2], strict=True):
            _set_item(self.stack[-1], key, value)

    def name(self, argument: str) -> None:
        self.push(Reference(argument.replace(" ", ".")))

    def name_of_stack(self, argument: Any) -> None:
        attribute = self.pop()
        module = self.pop()
        if type(attribute) is not str or type(module) is not str:
            raise PickleError("a name that is no text")
        self.push(Reference(f"{module}.{attribute}"))

    def object_of_marked(self, argument: str | None) -> None:
        values = self.to_mark()
        class_name = values[0].name if argument is None else argument.replace(" ", ".")
        self.push(call(Reference(class_name), ()))

    def reduce(self, argument: Any) -> None:
        arguments = self.pop()
        function = self.pop()
        if type(arguments) is tuple:
            self.num_copied += sum(len(part) for part in arguments if type(part) in (list, tuple, dict))
        if self.num_copied > MAX_INSTRUCTIONS:
            raise PickleError(f"more than {MAX_INSTRUCTIONS:,} copied elements")
        self.push(call(function, arguments))

    def new_object_with_keywords(self, argument: Any) -> None:
        self.pop()
        self.reduce(argument)

    def build(self, argument: Any) -> None:
        """Attributes: kept by inert objects, dropped by tensors and plain containers."""
        state = self.pop()
        if isinstance(self.stack[-1], Foreign):
            self.stack[-1].state = state

    def persistent(self, argument: Any) -> None:
        storage = _storage(self.pop())
        self.storages[storage.key] = storage
        self.push(storage)


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
NO_EFFECT = frozenset({"PROTO", "FRAME", "STOP"})
LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)


def _tuple_of(length: int) -> Callable[[Machine, Any], None]:
    """The instruction that makes a tuple of the last `length` values."""

    def instruction(machine: Machine, argument: Any) -> None:
        values = [machine.pop() for _ in range(length)]
        machine.push(tuple(reversed(values)))

    return instruction


INSTRUCTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine.mark,
    "POP": Machine.discard,
    "POP_MARK": Machine.discard_to_mark,
    "DUP": Machine.duplicate,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.recall),
    "EMPTY_LIST": Machine.new_list,
    "EMPTY_DICT": Machine.new_dict,
    "EMPTY_SET": Machine.new_set,
    "LIST": Machine.list_of_marked,
    "TUPLE": Machine.tuple_of_marked,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "FROZENSET": Machine.set_of_marked,
    "DICT": Machine.dict_of_marked,
    "APPEND": Machine.append,
    "APPENDS": Machine.append_marked,
    "ADDITEMS": Machine.add_marked,
    "SETITEM": Machine.set_item,
    "SETITEMS": Machine.set_marked,
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": Machine.name_of_stack,
    "INST": Machine.object_of_marked,
    "OBJ": Machine.object_of_marked,
    "REDUCE": Machine.reduce,
    "NEWOBJ": Machine.reduce,
    "NEWOBJ_EX": Machine.new_object_with_keywords,
    "BUILD": Machine.build,
    "BINPERSID": Machine.persistent,
}


def read_pickle(file: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """(value, storages by key) of the pickle at the position of `file`, which then is behind it. Raises PickleError."""
    machine = Machine()
    return machine.run(LimitedFile(file)), machine.storages
