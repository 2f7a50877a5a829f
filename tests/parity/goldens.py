"""Reads golden folders and compares with them: tests/goldens, or the folder of that layout that PARITY_GOLDENS names.

Names, sizes, seeds and cases come from the files; nothing is bound to one set. Code inside another folder is never run.
"""

import functools
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenizer.released import Rule, from_published, published_name, to_published

OWN = Path(__file__).parents[1] / "goldens"
ROOT = Path(os.environ.get("PARITY_GOLDENS") or OWN)
if not any((ROOT / system.name).is_dir() for system in OWN.iterdir()):
    raise FileNotFoundError(f"PARITY_GOLDENS={ROOT} holds none of: {', '.join(sorted(s.name for s in OWN.iterdir()))}")

# Tolerances of the gigatok and llamagen sets; codes and token ids are exact.
FLOAT, IMAGE, LOSS = 2e-4, 1e-3, 2e-4
GRADIENT_RELATIVE, GRADIENT_ABSOLUTE = 5e-3, 2e-5
LOSS_ROUNDING = 1e-6  # a mean of cosines may cancel to almost 0, where fp32 has no relative accuracy

COMPARISONS: list[tuple[float, float, str]] = []  # (difference, limit, what) of this session, for the summary


def cases(folder: str, prefix: str) -> list[str]:
    """Names of the cases under `folder` (such as gigatok/tiny) that begin with `prefix`."""
    return sorted(p.stem for p in (ROOT / folder).glob(f"{prefix}*.json"))


@functools.cache
def meta(folder: str, case: str) -> dict:
    return json.loads((ROOT / folder / f"{case}.json").read_text(encoding="utf-8"))


def tensors(folder: str, case: str, kind: str = "io") -> dict[str, Tensor]:
    """Tensors of a case; float8 weights become the float32 values they stand for."""
    loaded = load_file(ROOT / folder / f"{case}.{kind}.safetensors")
    return {k: v.float() if v.dtype == torch.float8_e4m3fn else v for k, v in loaded.items()}


def names(folder: str, case: str) -> list[str]:
    """Names of the tensors in the io file of a case."""
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


def _within(difference: float, limit: float, what: str) -> float:
    """Prints and records one comparison; a NaN is never within the limit."""
    print(f"{what}: max |difference| {difference:.2e} (limit {limit:.2e})")
    COMPARISONS.append((difference, limit, what))
    assert difference <= limit, f"{what}: |difference| {difference:.3e} > {limit:.3e}"
    return difference


def _difference(actual: Tensor, expected: Tensor, what: str) -> float:
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    return (actual.detach().double() - expected.double()).abs().max().item()


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = FLOAT) -> float:
    """|actual - expected| <= tolerance * max(1, max |expected|); returns and prints the largest difference."""
    limit = tolerance * max(1.0, expected.abs().max().item())
    return _within(_difference(actual, expected, what), limit, what)


def assert_image(actual: Tensor, expected: Tensor, what: str) -> float:
    """|actual - expected| <= 1e-3, about an eighth of a grey level."""
    return _within(_difference(actual, expected, what), IMAGE, what)


def assert_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    """Integers, equal one by one."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    wrong = (actual != expected).nonzero()
    print(f"{what}: {len(wrong)} of {expected.numel()} differ")
    assert not len(wrong), f"{what}: {len(wrong)} of {expected.numel()} differ, the first at {wrong[0].tolist()}"


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
