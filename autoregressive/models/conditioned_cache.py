"""Keys and values of a decoding beside what its layers need of the class: tensors made once, at the first position."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from autoregressive.models.kv_cache import KVCache


class ConditionedCache(KVCache):
    """A cache with `conditions` (...,B,W): one row for each image of the batch.

    The tensors stay where they are, so that recorded steps find them.
    """

    def __init__(self, keys: Tensor, values: Tensor, conditions: Sequence[Tensor]) -> None:
        super().__init__(keys, values)
        self.conditions = list(conditions)

    def remember(self, conditions: Sequence[Tensor]) -> None:
        """Stores what the first position has made of the classes."""
        for stored, condition in zip(self.conditions, conditions, strict=True):
            stored.copy_(condition)

    def keep_rows(self, count: int) -> None:
        super().keep_rows(count)
        self.conditions = [condition[..., :count, :] for condition in self.conditions]

    def take_rows(self, other: ConditionedCache) -> None:
        super().take_rows(other)
        for stored, condition in zip(self.conditions, other.conditions, strict=True):
            stored.copy_(condition[..., : stored.shape[-2], :])

    def clear(self) -> None:
        super().clear()
        for condition in self.conditions:
            condition.zero_()
