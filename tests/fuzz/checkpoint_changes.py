"""What happens to a checkpoint before it is read: changes of its content, of its bytes, and of its instructions."""

from __future__ import annotations

import argparse
import io
import pathlib
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fuzz.checkpoint_layouts import Layout, State

Random = np.random.Generator
Content = dict[str, Any]


def copied(layout: Layout) -> Content:
    """The content of a layout, whose chosen state dict may be changed."""
    return layout.content | {layout.key: dict(layout.chosen(layout.content))}


def _pick(random: Random, values: Any) -> Any:
    values = list(values)
    return values[random.integers(len(values))]


# ---------------------------------------------------------------------------------------------- content
def swapped(layout: Layout, random: Random) -> Content:
    """Two tensors trade places."""
    content = copied(layout)
    state = layout.chosen(content)
    first, second = _pick(random, state), _pick(random, state)
    state[first], state[second] = state[second], state[first]
    return content


def renamed(layout: Layout, random: Random) -> Content:
    """A tensor gets another name."""
    content = copied(layout)
    state = layout.chosen(content)
    name = _pick(random, state)
    place = int(random.integers(len(name) + 1))
    state[f"{name[:place]}{_pick(random, ['x', '.', '_', 'module', 'ü', ' '])}{name[place:]}"] = state.pop(name)
    return content


def removed(layout: Layout, random: Random) -> Content:
    content = copied(layout)
    state = layout.chosen(content)
    del state[_pick(random, state)]
    return content


def added(layout: Layout, random: Random) -> Content:
    """A tensor that no network has."""
    content = copied(layout)
    layout.chosen(content)[_pick(random, ["encoder.more.weight", "layers.9.x", "extra", ""])] = torch.ones(2)
    return content


def reshaped(layout: Layout, random: Random) -> Content:
    content = copied(layout)
    state = layout.chosen(content)
    name = _pick(random, state)
    tensor = state[name]
    ways = [tensor.flatten(), tensor[None], tensor[:0] if tensor.ndim else tensor.expand(2)]
    if tensor.ndim >= 1:
        ways += [tensor[:-1], torch.cat([tensor, tensor[:1]])]
    if tensor.ndim >= 2:
        ways.append(tensor.transpose(0, 1))
    state[name] = _pick(random, ways)
    return content


FLOATS = (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
OTHERS = (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64)


def other_numbers(layout: Layout, random: Random) -> Content:
    """A tensor of another dtype."""
    content = copied(layout)
    state = layout.chosen(content)
    name = _pick(random, state)
    state[name] = state[name].to(_pick(random, FLOATS + OTHERS))
    return content


def other_precision(layout: Layout, random: Random) -> Content:
    """All tensors in another precision."""
    dtype = _pick(random, FLOATS[:3])
    state = layout.chosen(layout.content)
    return layout.content | {layout.key: {name: tensor.to(dtype) for name, tensor in state.items()}}


def not_finite(layout: Layout, random: Random) -> Content:
    content = copied(layout)
    state = layout.chosen(content)
    name = _pick(random, state)
    tensor = state[name].clone()
    tensor.view(-1)[int(random.integers(tensor.numel()))] = _pick(random, [float("nan"), float("inf"), -float("inf")])
    state[name] = tensor
    return content


WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")


def wrapped(layout: Layout, random: Random) -> Content:
    """Names as wrappers leave them: one to three in front, and one inside of some names."""
    front = "".join(_pick(random, WRAPPERS) for _ in range(random.integers(1, 4)))
    inner = _pick(random, WRAPPERS)
    state = {}
    for name, tensor in layout.chosen(layout.content).items():
        before, dot, after = name.partition(".")
        is_inside = dot and not name.startswith("model_ema.") and bool(random.integers(2))
        state[f"{front}{before}.{inner}{after}" if is_inside else front + name] = tensor
    return layout.content | {layout.key: state}


def given_twice(layout: Layout, random: Random) -> Content:
    """A tensor under its name and under a wrapper's."""
    content = copied(layout)
    state = layout.chosen(content)
    name = _pick(random, state)
    state[_pick(random, WRAPPERS) + name] = torch.zeros_like(state[name])
    return content


def with_objects(layout: Layout, random: Random) -> Content:
    """Objects of other classes beside the weights."""
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3.5), "path": pathlib.PurePosixPath("a/b")}
    return layout.content | {name: beside[name] for name in beside if random.integers(2)}


CONTENT_CHANGES: dict[str, Callable[[Layout, Random], Content]] = {
    "swapped tensors": swapped,
    "renamed key": renamed,
    "removed key": removed,
    "added key": added,
    "other shape": reshaped,
    "other numbers": other_numbers,
    "other precision": other_precision,
    "NaN or infinite": not_finite,
    "wrappers": wrapped,
    "given twice": given_twice,
    "foreign objects": with_objects,
}


# ---------------------------------------------------------------------------------------------- bytes
def changed_bytes(content: bytes, random: Random) -> tuple[str, bytes]:
    """(what was done, the bytes): flipped bits, cut, longer, zeros, blocks that trade places, more or fewer bytes."""
    data = bytearray(content)
    place = int(random.integers(len(data)))
    size = int(random.integers(1, 65))
    kind = _pick(random, ["bit flips"] * 5 + ["truncation", "longer", "zeros", "swapped blocks", "inserted", "deleted"])
    if kind == "bit flips":
        for _ in range(random.integers(1, 4)):
            data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    elif kind == "truncation":
        del data[place:]
    elif kind == "longer":
        data += random.bytes(size)
    elif kind == "zeros":
        data[place : place + size] = bytes(len(data[place : place + size]))
    elif kind == "swapped blocks":
        other = int(random.integers(len(data)))
        size = min(size, abs(place - other), len(data) - max(place, other))
        first, second = data[place : place + size], data[other : other + size]
        data[place : place + size], data[other : other + size] = second, first
    elif kind == "inserted":
        data[place:place] = random.bytes(size)
    else:
        del data[place : place + size]
    return kind, bytes(data)


INSTRUCTIONS = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


def other_instructions(pickled: bytes, random: Random) -> bytes:
    """A pickle with up to three other, more or fewer instructions."""
    data = bytearray(pickled)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(data)))
        data[place : place + int(random.integers(0, 4))] = _pick(random, INSTRUCTIONS)
    return bytes(data)


def changed_instructions(content: bytes, random: Random) -> bytes:
    """A file of torch.save with other instructions in its pickle, and right checksums."""
    if not content.startswith(b"PK"):
        start = len(content) - content[::-1].find(b"storage"[::-1])  # the pickle ends behind its last storage
        return other_instructions(content[:start], random) + content[start:]
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as changed:
        for name in archive.namelist():
            record = archive.read(name)
            changed.writestr(name, other_instructions(record, random) if name.endswith("data.pkl") else record)
    return buffer.getvalue()


def expected_state(chosen: State, healthy: State) -> State | None:
    """What the network must be after reading `chosen`, under the names of `healthy`; None where it must be refused.

    In a state dict with both sets, a tensor without an average keeps its raw weights.
    """
    expected = {}
    for name, tensor in healthy.items():
        raw_name = next((raw for raw in chosen if f"model_ema.{raw.replace('.', '')}" == name), None)
        found = chosen.get(name, chosen.get(raw_name) if raw_name else None)
        if found is None or found.shape != tensor.shape or not found.is_floating_point():
            return None
        expected[name] = found.float()
        if not expected[name].isfinite().all():
            return None
    return expected
