"""Codes as people hold them -> int64 tensors with the axes and the range of a tokenizer: the input of `detokenize`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.finite import has_values, is_whole
from engine.messages import UserError

Codes = Tensor | np.ndarray | Sequence


def as_codes(tokens: Codes, group_sizes: Sequence[int], device: torch.device) -> Tensor:
    """Codes int64 (B,N), or (B,N,G) where a token has G indices; those of one image may come without the batch axis.

    Tensors, arrays and nested lists of whole numbers are accepted. Raises UserError for other numbers, for other axes,
    for a code that the codebook of `group_sizes` does not have, and where there are no codes at all.
    """
    codes = _whole_numbers(tokens)
    num_groups = len(group_sizes)
    axes = 2 if num_groups == 1 else 3
    if codes.ndim == axes - 1:
        codes = codes[None]
    if codes.ndim != axes or (num_groups > 1 and codes.shape[-1] != num_groups):
        accepted = "(B, N), or (N,) for one image" if num_groups == 1 else f"(B, N, {num_groups}), or (N, {num_groups})"
        raise UserError(f"tokens have shape {tuple(codes.shape)}; accepted: {accepted}")

    codes = codes.to(device=device, dtype=torch.int64)
    _require_known(codes, group_sizes)
    return codes


def _whole_numbers(tokens: Codes) -> Tensor:
    """Tokens as a tensor of whole numbers, on the device where they are."""
    if not isinstance(tokens, Tensor):
        try:
            array = np.asarray(tokens)
        except ValueError as error:
            raise UserError(f"tokens are no table of numbers: {error}") from error
        if not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"tokens are of type {array.dtype}; whole numbers are accepted")
        return torch.from_numpy(array.astype(np.int64))
    if not is_whole(tokens):
        dtype = str(tokens.dtype).removeprefix("torch.")
        raise UserError(f"tokens are of type {dtype}; whole numbers are accepted (are these images?)")
    return tokens


def _require_known(codes: Tensor, group_sizes: Sequence[int]) -> None:
    """Raises UserError that names the first code which the codebook does not have, and where there are no codes."""
    if not has_values(codes):
        return
    if codes.numel() == 0:
        raise UserError(f"there are no tokens: they have shape {tuple(codes.shape)}")
    sizes = torch.tensor(group_sizes if len(group_sizes) > 1 else group_sizes[0], device=codes.device)
    bad = ((codes < 0) | (codes >= sizes)).nonzero()
    if len(bad) == 0:
        return

    image, token, *group = bad[0].tolist()
    size = group_sizes[group[0]] if group else group_sizes[0]
    of_group = f", index {group[0]}" if group else ""
    raise UserError(
        f"the code {codes[tuple(bad[0])].item()} (image {image}, token {token}{of_group}) is not in 0..{size - 1}"
    )
