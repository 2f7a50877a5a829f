"""Checks that values are finite. Flags gather on the device, and the host reads them once per batch.

NaN and infinity must be refused before they become something that looks right: an index (argmin of NaN is 0), a pixel
(NaN becomes a black one), a number in a result. Each of these borders is a stage with one check:

    images      `engine.data.image_input`        latents     `Tokenizer.encode`
    pixels      `Tokenizer.decode_indices`, `engine.data.images.to_uint8`
    logits      `autoregressive.generate`        features    the statistics of evaluations

A stage knows rows of its batch; who knows the numbers of samples or images names them with `numbered`. Training skips
an update that is not finite instead (`engine.trained_model`), and defers checks of frozen networks (`deferred_checks`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from engine.messages import UserError

SHOWN_ROWS = 3  # rows that a message names
COMPUTED = "are the weights the right ones, and does the precision hold their values?"  # of what a network computed


class NonFiniteValuesError(UserError):
    """Values that are NaN or infinite: the `stage` that computed them, and the `rows` of its batch, from 0.

    `advice` says what to look at; by default, that the values come out of a network.
    """

    def __init__(self, stage: str, rows: Sequence[int], noun: str = "row", advice: str = COMPUTED) -> None:
        self.stage = stage
        self.rows = list(rows)
        self.advice = advice
        shown = ", ".join(str(row) for row in self.rows[:SHOWN_ROWS])
        more = f" and {len(self.rows) - SHOWN_ROWS} more" if len(self.rows) > SHOWN_ROWS else ""
        super().__init__(f"{stage} are not finite (NaN or infinity) for {noun} {shown}{more}; {advice}")


class FiniteCheck:
    """The check of one stage over one batch: `note` gathers flags on the device, `require` reads them."""

    def __init__(self, stage: str) -> None:
        """`stage` names the values in messages, in the plural, such as "logits of the generator"."""
        self.stage = stage
        self._is_bad: Tensor | None = None  # (B,) bool on the device; None before the first values

    def note(self, values: Tensor) -> None:
        """Adds values (B, ...) without waiting for the device; B is the same in every call."""
        is_bad = ~finite_rows(values)
        self._is_bad = is_bad if self._is_bad is None else self._is_bad | is_bad

    def any(self) -> Tensor:
        """Whether any row was not finite: a bool scalar, on the device."""
        return torch.tensor(False) if self._is_bad is None else self._is_bad.any()

    def require(self) -> None:
        """Raises NonFiniteValuesError with the rows that were not finite. The host waits for the device, once."""
        if self._is_bad is None or not has_values(self._is_bad):
            return
        rows = self._is_bad.nonzero().flatten().tolist()
        if rows:
            raise NonFiniteValuesError(self.stage, rows)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has values: one on the meta device, or of torch's fake mode, has a shape only."""
    return not (tensor.is_meta or hasattr(tensor, "fake_mode"))


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor has a type of whole numbers, such as codes and labels have. Truth values are none."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def finite_rows(values: Tensor) -> Tensor:
    """Which rows of `values` (B, ...) are finite throughout: (B,) bool, on the device."""
    return torch.isfinite(values).reshape(values.shape[0], -1).all(1)


# ------------------------------------------------------------------------------------------------ one tensor at once
_deferred: ContextVar[list[FiniteCheck] | None] = ContextVar("deferred_checks", default=None)


def require_finite(values: Tensor, stage: str) -> None:
    """Raises NonFiniteValuesError where a row of `values` (B, ...) is not finite; inside `deferred_checks` later."""
    check = FiniteCheck(stage)
    check.note(values)
    deferred = _deferred.get()
    if deferred is None:
        check.require()
    else:
        deferred.append(check)


@contextmanager
def deferred_checks() -> Iterator[list[FiniteCheck]]:
    """Inside, `require_finite` only adds to the list that this yields: for training, which must not wait each step."""
    checks: list[FiniteCheck] = []
    token = _deferred.set(checks)
    try:
        yield checks
    finally:
        _deferred.reset(token)


@contextmanager
def numbered(noun: str, numbers: Tensor | Sequence[int]) -> Iterator[None]:
    """Errors from inside name rows by their `numbers` (B,): `numbered("sample", ids)` turns row 0 into sample ids[0].

    A number that stands for several rows is named once.
    """
    try:
        yield
    except NonFiniteValuesError as error:
        named = dict.fromkeys(int(numbers[row]) for row in error.rows)
        raise NonFiniteValuesError(error.stage, list(named), noun, error.advice) from None


def spread_nan(values: Tensor) -> Tensor:
    """Rows (..., n) with a value that is not finite become NaN as a whole; all others keep their bits."""
    return values.masked_fill(~torch.isfinite(values).all(-1, keepdim=True), math.nan)
