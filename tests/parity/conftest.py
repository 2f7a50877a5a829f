"""Runs parity tests as the goldens were made, and reports the closest calls at the end."""

import goldens
import pytest
import torch


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
