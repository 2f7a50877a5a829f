"""Codes as people hold them -> int64 tensors with the axes and the range of a tokenizer: the input of `detokenize`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.arguments import whole_number, whole_numbers, wrong_argument
from engine.finite import has_values
from engine.messages import UserError

Codes = Tensor | np.ndarray | Sequence
GRID = "(rows, columns), two whole numbers from 1 up"


def as_codes(tokens: Codes, group_sizes: Sequence[int], device: torch.device, lowest: int = 0) -> Tensor:
    """Codes int64 (B,N), or (B,N,G) where a token has G indices; those of one image may come without the batch axis.

    Tensors, arrays and nested lists of whole numbers are accepted. `lowest` is the lowest code that there is. Raises
    UserError for other numbers, for other axes, for a code that the codebook of `group_sizes` does not have, and where
    there are no codes at all.
    """
    codes = whole_numbers(tokens, "tokens", " (are these images?)" if isinstance(tokens, Tensor) else "")
    shape = tuple(codes.shape)
    num_groups = len(group_sizes)
    axes = 2 if num_groups == 1 else 3
    if codes.ndim == axes - 1:
        codes = codes[None]
    if codes.ndim != axes or (num_groups > 1 and codes.shape[-1] != num_groups):
        accepted = "(B, N), or (N,) for one image" if num_groups == 1 else f"(B, N, {num_groups}), or (N, {num_groups})"
        raise UserError(f"tokens have shape {shape}; accepted: {accepted}")

    codes = codes.to(device=device, dtype=torch.int64)
    _require_known(codes, group_sizes, lowest)
    return codes


def as_token(replacement: Any, group_sizes: Sequence[int], name: str) -> tuple[int, ...]:
    """The codes of one token, one per entry of `group_sizes`, from a code or, where a token has several, from so many.

    Raises UserError for anything else; `name` stands for the replacement.
    """
    # A code, or several.
    several = len(group_sizes) > 1
    one_code = f"one code in 0..{group_sizes[0] - 1}"
    accepted = f"{len(group_sizes)} codes, one per index of a token" if several else one_code
    codes = replacement.tolist() if isinstance(replacement, Tensor | np.ndarray) else replacement
    if not several:
        codes = [codes]
    if not isinstance(codes, list | tuple) or len(codes) != len(group_sizes):
        raise wrong_argument(name, replacement, accepted)

    # Each in the codebook.
    numbers = tuple(whole_number(code, name, accepted) for code in codes)
    for index, (number, size) in enumerate(zip(numbers, group_sizes, strict=True)):
        if not 0 <= number < size:
            of_group = f", index {index}" if several else ""
            raise UserError(f"the code {number} ({name}{of_group}) is not in 0..{size - 1}")
    return numbers


def as_grid(grid: Any) -> tuple[int, int]:
    """(rows, columns) of the tokens of an image. Raises UserError for anything else."""
    if not isinstance(grid, tuple | list) or len(grid) != 2:
        raise wrong_argument("grid", grid, GRID)
    rows, columns = (whole_number(side, "grid", GRID) for side in grid)
    if rows < 1 or columns < 1:
        raise wrong_argument("grid", grid, GRID)
    return rows, columns


def _require_known(codes: Tensor, group_sizes: Sequence[int], lowest: int) -> None:
    """Raises UserError that names the first code which the codebook does not have, and where there are no codes."""
    if not has_values(codes):
        return
    if codes.numel() == 0:
        raise UserError(f"there are no tokens: they have shape {tuple(codes.shape)}")
    sizes = torch.tensor(group_sizes if len(group_sizes) > 1 else group_sizes[0], device=codes.device)
    bad = ((codes < lowest) | (codes >= sizes)).nonzero()
    if len(bad) == 0:
        return

    image, token, *group = bad[0].tolist()
    size = group_sizes[group[0]] if group else group_sizes[0]
    of_group = f", index {group[0]}" if group else ""
    raise UserError(
        f"the code {codes[tuple(bad[0])].item()} (image {image}, token {token}{of_group}) is not in "
        f"{lowest}..{size - 1}"
    )
