"""Reads a pickle as inert data: the one place of the project that unpickles, and it runs nothing.

A pickle is a program for a small stack machine. This one knows its instructions, but imports nothing and calls nothing
that the pickle names: a name becomes a `Reference`, and a call what `inert.call` says.

The number of instructions, the nesting and the length of a text are bounded. Tensors are descriptions
(`tensors.StoredTensor`), so a claim of 10 GB costs nothing here.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from engine.checkpoint.foreign.inert import (
    Foreign,
    PickleError,
    Reference,
    call,
    checked_key,
    described_storage,
    set_item,
)
from engine.checkpoint.foreign.tensors import Storage

MAX_INSTRUCTIONS = 2_000_000  # about 60 per tensor; each may take some 100 bytes
MAX_MARKS = 256  # containers that are open at a time
MAX_TEXT = 2**26  # bytes of one text or byte string


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
        self.push(frozenset(checked_key(value) for value in self.to_mark()))

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
        self.stack[-1].update(checked_key(value) for value in values)

    def put_item(self, argument: Any) -> None:
        value = self.pop()
        key = self.pop()
        set_item(self.stack[-1], key, value)

    def set_marked(self, argument: Any) -> None:
        self._fill(self.to_mark())

    def _fill(self, values: list[Any]) -> None:
        for key, value in zip(values[::2], values[1::2], strict=True):
            set_item(self.stack[-1], key, value)

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
        named_class = values[0] if argument is None else Reference(argument.replace(" ", "."))
        self.push(call(named_class, ()))

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
        storage = described_storage(self.pop())
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
    "SETITEM": Machine.put_item,
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
