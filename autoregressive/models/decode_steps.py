"""The network's part of decoding one token at a time: hidden states and logits of a batch of sequences.

    DecodeSteps      a CPU: attention over what is filled
    StaticSteps      a GPU: static shapes, the position is on the device
    RecordedSteps    a GPU: the same, recorded as CUDA graphs and replayed

None of them waits for the device. The first token has the class as its input and nobody before it: it is always
decoded without static shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from autoregressive.models.kv_cache import KVCache, Position
from engine.devices import RecordedFunction


@dataclass(frozen=True)
class StepFunctions:
    """What a network is asked for: the two functions of a step and empty caches for them."""

    hidden: Callable[[Tensor, Position, KVCache], Tensor]  # (class labels or the tokens before, position) -> (B,C)
    logits: Callable[[Tensor, Tensor | None, int, KVCache], Tensor]  # (hidden, index before, number of index) -> (B,V)
    new_cache: Callable[[int], KVCache]
    new_head_cache: Callable[[int], KVCache]


class Steps(Protocol):
    """Decodes a batch; positions are asked for in order."""

    def hidden(self, inputs: Tensor, position: int) -> Tensor:
        """Hidden state (B,C) at `position`. `inputs`: class labels (B,) at position 0, then the tokens before."""

    def logits(self, hidden: Tensor, previous_index: Tensor | None, number: int) -> Tensor:
        """Logits (B,V) of index `number` of a token; `previous_index` (B,) is the one before, None for the first."""

    def keep_rows(self, count: int) -> Steps:
        """What goes on with the first `count` rows of the batch alone."""


class DecodeSteps:
    """See the module docstring."""

    def __init__(self, functions: StepFunctions, rows: int) -> None:
        self.functions = functions
        self.cache = functions.new_cache(rows)
        self.head_cache = functions.new_head_cache(rows)

    def hidden(self, inputs: Tensor, position: int) -> Tensor:
        return self.functions.hidden(inputs, position, self.cache)

    def logits(self, hidden: Tensor, previous_index: Tensor | None, number: int) -> Tensor:
        return self.functions.logits(hidden, previous_index, number, self.head_cache)

    def keep_rows(self, count: int) -> DecodeSteps:
        self.cache.keep_rows(count)
        self.head_cache.keep_rows(count)
        return self


class StaticSteps(DecodeSteps):
    """See the module docstring."""

    def hidden(self, inputs: Tensor, position: int) -> Tensor:
        return super().hidden(inputs, position if position == 0 else self._on_device(position))

    def _on_device(self, position: int) -> Tensor:
        """The position as a tensor (1,): it is filled by a kernel, and nothing is copied from the host."""
        return torch.full((1,), position, dtype=torch.int64, device=self.cache.keys.device)


class RecordedSteps(StaticSteps):
    """See the module docstring. It serves one batch after the other: `restart` before each."""

    def __init__(self, functions: StepFunctions, rows: int, others: RecordedStepsByRows) -> None:
        super().__init__(functions, rows)
        self.others = others
        self._hidden: RecordedFunction | None = None
        self._logits: dict[int, RecordedFunction] = {}  # by number of the index

    def restart(self) -> RecordedSteps:
        """Forgets the batch before."""
        self.cache.clear()
        self.head_cache.clear()
        return self

    def hidden(self, inputs: Tensor, position: int) -> Tensor:
        if position == 0:
            return super().hidden(inputs, position)
        values = (inputs, self._on_device(position))
        if self._hidden is None:
            # Recording runs the step, which writes the cache at this position: with the same values as the replay.
            self._hidden = RecordedFunction(lambda *values: self.functions.hidden(*values, self.cache), values)
        return self._hidden(*values)

    def logits(self, hidden: Tensor, previous_index: Tensor | None, number: int) -> Tensor:
        values = (hidden,) if previous_index is None else (hidden, previous_index)
        if number not in self._logits:
            self._logits[number] = RecordedFunction(lambda *values: self._eager_logits(number, *values), values)
        return self._logits[number](*values)

    def _eager_logits(self, number: int, hidden: Tensor, previous_index: Tensor | None = None) -> Tensor:
        return self.functions.logits(hidden, previous_index, number, self.head_cache)

    def keep_rows(self, count: int) -> RecordedSteps:
        fewer = self.others.of(count)
        fewer.cache.take_rows(self.cache)
        fewer.head_cache.take_rows(self.head_cache)
        return fewer


class RecordedStepsByRows:
    """The recorded steps of a network, by the number of rows that they are for: to record takes as long as an image.

    Graphs and caches hold memory, and refer to the memory of the weights: these must stay where they are.
    """

    HELD = 2  # a guided batch, and the same without its unconditional rows

    def __init__(self, functions: StepFunctions) -> None:
        self.functions = functions
        self._by_rows: dict[int, RecordedSteps] = {}

    def of(self, rows: int) -> RecordedSteps:
        """Steps for a new batch of `rows` rows."""
        steps = self._by_rows.pop(rows, None)
        if steps is None:
            steps = RecordedSteps(self.functions, rows, self)
        self._by_rows[rows] = steps  # the last one is the one in use
        while len(self._by_rows) > self.HELD:
            del self._by_rows[next(iter(self._by_rows))]
        return steps.restart()
