"""Runs parity tests as the goldens were made, leaves out absent parts, and reports the closest calls at the end."""

from pathlib import Path

import goldens
import pytest
import torch

HERE = Path(__file__).parent


def _without_cases(item: pytest.Item) -> bool:
    """Whether `item` stands for a parametrized test that found no case in the golden folder."""
    if item.path.parent != HERE:
        return False
    return any("empty parameter set" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skip"))


def pytest_collection_modifyitems(config, items):
    """A part that the golden folder does not hold is deselected, not skipped."""
    empty = [item for item in items if _without_cases(item)]
    if empty:
        config.hook.pytest_deselected(items=empty)
        items[:] = [item for item in items if item not in empty]


@pytest.fixture(autouse=True)
def one_thread():
    """The goldens were made with one thread. On a busy machine, tiny models with more are also several times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter):
    """How many numbers were compared, and the differences that came nearest to their limit."""
    if not goldens.COMPARISONS:
        return
    nearest = sorted(goldens.COMPARISONS, key=lambda c: c[0] / c[1], reverse=True)[:8]
    terminalreporter.write_sep("-", f"parity: {len(goldens.COMPARISONS)} comparisons with {goldens.ROOT}")
    for difference, limit, what in nearest:
        terminalreporter.write_line(f"{difference:.1e} of {limit:.1e} allowed: {what}")
