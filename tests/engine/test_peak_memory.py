"""The meter of memory without gradients, against sums by hand."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.peak_memory import PeakMemory

MEGABYTE = 2**20


def measured(computation, count: int) -> float:
    """Megabytes at the peak of `computation(x)` for a tensor x of `count` megabytes."""
    with FakeTensorMode(), torch.no_grad():
        x = torch.zeros(count, MEGABYTE // 4)
        with PeakMemory() as peak:
            computation(x)
    return peak.bytes / MEGABYTE


def test_what_lives_at_a_time_counts():
    """A result while its input is held; views and results in place are no new memory; what died is free again."""

    def chain(x):
        y = x + 1  # 1
        y = y * 2  # 2: the old one and the new one
        y.mul_(3)
        return y.view(-1).relu()  # 2

    assert measured(chain, 3) == 6
    assert measured(lambda x: x.view(-1)[:5], 3) == 0
    assert measured(lambda x: [x + 1 for _ in range(4)], 2) == 8
    assert measured(lambda x: sum(x + 1 for _ in range(4)), 2) == 6
