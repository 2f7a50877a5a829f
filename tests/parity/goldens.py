"""Reads golden folders and compares with them: tests/goldens, or the folder of that layout that PARITY_GOLDENS names.

Names, sizes, seeds and cases come from the files; nothing is bound to one set. Code inside another folder is never run.
"""

import functools
import importlib.util
import json
import re
from collections.abc import Mapping
from types import ModuleType

import numpy as np
import torch
from compared import COMPARISONS, DEVICE
from compared import GOLDENS as ROOT
from compared import OWN_GOLDENS as OWN
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.data.images import to_uint8
from tokenizer.published.layout import Rule, from_published, published_name, to_published

BASELINES = ("ibq", "open_magvit2", "rar", "var")  # parts with the tokenizers of baselines
SYSTEMS = ("adm", "gigatok", "llamagen", "wetok", *BASELINES)  # parts that a folder may hold
if not any((ROOT / system).is_dir() for system in SYSTEMS):
    raise FileNotFoundError(f"PARITY_GOLDENS={ROOT} holds none of: {', '.join(SYSTEMS)}")

# Tolerances of the gigatok and llamagen sets; codes and token ids are exact.
FLOAT, IMAGE, LOSS = 2e-4, 1e-3, 2e-4
GRADIENT_RELATIVE, GRADIENT_ABSOLUTE = 5e-3, 2e-5
LOSS_ROUNDING = 1e-6  # a mean of cosines may cancel to almost 0, where fp32 has no relative accuracy
PICTURES = r"(\w+_)?rec_(from_decode_code|crop|row_mean)|.*(eval|256)"  # names that begin so hold pixels


def cases(folder: str, prefix: str) -> list[str]:
    """Names of the cases under `folder` (such as gigatok/tiny) that begin with `prefix`."""
    return sorted(p.stem for p in (ROOT / folder).glob(f"{prefix}*.json"))


@functools.cache
def meta(folder: str, case: str) -> dict:
    return json.loads((ROOT / folder / f"{case}.json").read_text(encoding="utf-8"))


def tensors(folder: str, case: str, kind: str = "io") -> dict[str, Tensor]:
    """Tensors of a case, on `DEVICE`; float8 and float16 weights become the float32 values they stand for."""
    path = ROOT / folder / f"{case}.{kind}.safetensors"
    if not path.is_file():  # WeTok's: <case>.npz and <case>.weights.npz, integers as int32
        with np.load(ROOT / folder / (f"{case}.npz" if kind == "io" else f"{case}.{kind}.npz")) as arrays:
            loaded = {k: torch.from_numpy(arrays[k]) for k in arrays.files}
        single = {k: v.float() if v.is_floating_point() and v.dtype != torch.float64 else v for k, v in loaded.items()}
    else:
        single = {k: v.float() if v.dtype == torch.float8_e4m3fn else v for k, v in load_file(path).items()}
    return {k: v.to(DEVICE) for k, v in single.items()}


def names(folder: str, case: str) -> list[str]:
    """Names of the tensors in the io file of a case."""
    path = ROOT / folder / f"{case}.npz"
    if path.is_file():
        with np.load(path) as arrays:
            return sorted(arrays.files)
    with safe_open(ROOT / folder / f"{case}.io.safetensors", "pt") as file:
        return sorted(file.keys())


@functools.cache
def seeded_weights(system: str) -> ModuleType:
    """The weight generator beside our own goldens of `system`, also where PARITY_GOLDENS names another folder."""
    spec = importlib.util.spec_from_file_location(f"{system}_seeded_weights", OWN / system / "seeded_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def fill_seeded(module: nn.Module, rules: tuple[Rule, ...], system: str, seed: int) -> None:
    """Fills every tensor of a module in place with the seeded values of its published name and shape."""
    seeded_tensor, state = seeded_weights(system).seeded_tensor, module.state_dict()
    assert {name for name, _ in module.named_buffers()} <= state.keys(), "a buffer would stay without values"
    for name, tensor in state.items():
        theirs, layout = published_name(name, rules)
        tensor.copy_(from_published(seeded_tensor(theirs, to_published(tensor, layout).shape, seed), layout))


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def window(text: str) -> tuple[slice, slice]:
    """`rows 96:160, columns 64:128` -> slices."""
    top, bottom, left, right = map(int, re.search(r"rows (\d+):(\d+), columns (\d+):(\d+)", text).groups())
    return slice(top, bottom), slice(left, right)


def strides(text: str) -> list[int]:
    """`positions ::16, vocabulary ::128` -> [16, 128]."""
    return [int(n) for n in re.findall(r"::(\d+)", text)]


def strided(tensor: Tensor, like: Tensor, note: str = "") -> Tensor:
    """Every n-th element along each axis, so that the shape is that of `like`: n from `note`, else the smallest."""
    assert tensor.ndim == like.ndim, f"{tuple(tensor.shape)} cannot be strided to {tuple(like.shape)}"
    noted = [int(n) for n in re.findall(r"\d+", note) if int(n) > 0]
    for axis, (size, kept) in enumerate(zip(tensor.shape, like.shape, strict=True)):
        fitting = [n for n in (1, *noted, *range(2, size + 1)) if -(-size // n) == kept]
        assert fitting, f"no stride takes {size} to {kept}"
        tensor = tensor.index_select(axis, torch.arange(0, size, fitting[0], device=tensor.device))
    return tensor


def _within(difference: float, limit: float, what: str) -> float:
    """Prints and records one comparison; a NaN is never within the limit."""
    print(f"{what}: max |difference| {difference:.2e} (limit {limit:.2e})")
    COMPARISONS.append((difference, limit, what))
    assert difference <= limit, f"{what}: |difference| {difference:.3e} > {limit:.3e}"
    return difference


def _difference(actual: Tensor, expected: Tensor, what: str) -> float:
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    return (actual.detach().double().cpu() - expected.double().cpu()).abs().max().item()


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = FLOAT) -> float:
    """|actual - expected| <= tolerance * max(1, max |expected|); returns and prints the largest difference."""
    limit = tolerance * max(1.0, expected.abs().max().item())
    return _within(_difference(actual, expected, what), limit, what)


def assert_image(actual: Tensor, expected: Tensor, what: str, limit: float = IMAGE) -> float:
    """|actual - expected| <= limit; 1e-3 is about an eighth of a grey level."""
    return _within(_difference(actual, expected, what), limit, what)


def assert_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    """Integers, equal one by one."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    wrong = (actual.cpu() != expected.cpu()).nonzero()
    print(f"{what}: {len(wrong)} of {expected.numel()} differ")
    assert not len(wrong), f"{what}: {len(wrong)} of {expected.numel()} differ, the first at {wrong[0].tolist()}"


def assert_tensor(actual: Tensor, expected: Tensor, name: str, what: str) -> None:
    """Integers exactly, pictures and other numbers within their tolerance."""
    if not expected.is_floating_point():
        assert_equal(actual, expected, what)
    elif re.match(PICTURES, name):
        assert_image(actual, expected, what)
    else:
        assert_close(actual, expected, what)


def assert_pixels(image: Tensor, expected: Tensor, what: str, exact: Tensor | None = None) -> None:
    """8-bit pixels, channels first or last, of our float image (B,3,H,W) within its tolerance; of the released float
    image `exact` they are equal.
    """
    if expected.shape[-1] == 3:
        expected = expected.permute(0, 3, 1, 2)
    low, high, expected = to_uint8(image - IMAGE).cpu(), to_uint8(image + IMAGE).cpu(), expected.cpu()
    assert ((low <= expected) & (expected <= high)).all(), f"{what}: a pixel differs by more than that of images"
    if exact is not None:
        assert_equal(to_uint8(exact), expected, f"{what} of the released float image")


def assert_same_state(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, types, shapes and values."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name].cpu(), tensor.cpu()), name


def assert_facts(actual: Mapping[str, float], expected: Mapping[str, float], what: str) -> None:
    """Those numbers that `expected` names: counts exactly, statistics within the tolerance of losses."""
    for name, value in actual.items():
        if name in expected and isinstance(value, int):
            assert value == expected[name], f"{what}: {name} {value} instead of {expected[name]}"
        elif name in expected:
            assert_loss(value, expected[name], f"{what}: {name}")


def assert_loss(actual: Tensor | float, expected: float, what: str) -> float:
    """A scalar within 2e-4 of its size."""
    return _within(abs(torch.as_tensor(actual).item() - expected), LOSS * abs(expected) + LOSS_ROUNDING, what)


def assert_gradient_norms(
    module: nn.Module, rules: tuple[Rule, ...], expected: Mapping[str, float | None], what: str
) -> None:
    """The gradient norm of every parameter under its published name; None in the file = no gradient at all."""
    norms = {
        published_name(name, rules)[0]: None if p.grad is None else p.grad.double().norm().item()
        for name, p in module.named_parameters()
    }
    assert norms.keys() == expected.keys(), f"{what}: {sorted(norms.keys() ^ expected.keys())[:6]} are on one side only"
    for name, reference in expected.items():
        if reference is None:
            assert not norms[name], f"{what}: {name} has a gradient and should have none"
            continue
        assert norms[name] is not None, f"{what}: {name} has no gradient"
        limit = GRADIENT_RELATIVE * abs(reference) + GRADIENT_ABSOLUTE
        _within(abs(norms[name] - reference), limit, f"{what}: gradient norm of {name}")
