"""How many updates were skipped because a gradient was not finite, counted on the device.

The host does not wait for the device in every step. It learns of too many skipped updates in a row when it looks
(`require_progress`): where a record is written, before a checkpoint, and every few steps (`engine.loop`). The error
names the step at which the limit was reached, and the loss term that was not finite there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.messages import UserError

NEVER = -1
NUMBERS_PER_STEP = 2**20  # a failure is one int64: step * this + number of the term


class NonFiniteError(UserError):
    """Too many steps in a row had a non-finite loss or gradient."""


class SkippedUpdates:
    """The counts of one network, and where `limit` skipped updates in a row were first reached."""

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self.total = torch.zeros((), dtype=torch.long, device=device)  # since the start of the run
        self.in_a_row = torch.zeros((), dtype=torch.long, device=device)  # since the last good update
        self._failure = torch.full((), NEVER, device=device)
        self._names: list[str] = []  # of all terms so far; the empty name stands for none
        self._numbers: dict[tuple[str, ...], Tensor] = {}  # names of a step -> their places in `_names`

    @torch.no_grad()
    def note(self, is_bad: Tensor, step: int, terms: Mapping[str, Tensor]) -> None:
        """Counts one update, skipped where the scalar `is_bad` is true. `terms` are its loss terms, scalars."""
        # The first term that is not finite. The last place, which is for none, always counts as such.
        numbers = self._numbers_of(tuple(terms), is_bad.device)
        values = [value.detach().float().reshape(()) for value in terms.values()]
        is_finite = torch.stack([*values, torch.full_like(is_bad, torch.nan, dtype=torch.float32)]).isfinite()
        first_bad = torch.where(is_finite, NUMBERS_PER_STEP, numbers).amin()

        # The counts.
        bad = is_bad.long()
        self.total = self.total + bad
        self.in_a_row = (self.in_a_row + bad) * bad
        is_failure = (self.in_a_row >= self.limit) & (self._failure == NEVER)
        self._failure = torch.where(is_failure, first_bad + step * NUMBERS_PER_STEP, self._failure)

    def _numbers_of(self, names: tuple[str, ...], device: torch.device) -> Tensor:
        """The places of these names, and one for none; a step with other terms than those before adds to `_names`."""
        if names not in self._numbers:
            first = len(self._names)
            self._names += [*names, ""]
            self._numbers[names] = torch.arange(first, len(self._names), device=device)
        return self._numbers[names]

    def require_progress(self) -> None:
        """Waits for the device. Raises NonFiniteError if there were too many skipped updates in a row."""
        failure = int(self._failure)
        if failure == NEVER:
            return
        step, number = divmod(failure, NUMBERS_PER_STEP)
        term = self._names[number] or "none, the gradient itself overflows"
        raise NonFiniteError(
            f"step {step}: {self.limit} updates in a row had a non-finite gradient (optim.max_bad_steps); "
            f"first non-finite loss term: {term}. Lower optim.lr, or resume from an older checkpoint"
        )

    def state(self) -> Tensor:
        """(2,) int64: skipped since the start of the run, and in a row."""
        return torch.stack([self.total, self.in_a_row])

    def load(self, counts: Tensor | Sequence[int]) -> None:
        """Continues from what `state` returned."""
        self.total, self.in_a_row = torch.as_tensor(counts).to(self.total.device).long().clone().unbind()
        self._failure.fill_(NEVER)
