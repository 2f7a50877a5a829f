"""Reports the closest calls at the end of a parity run."""

import goldens


def pytest_terminal_summary(terminalreporter):
    """How many numbers were compared, and the differences that came nearest to their limit."""
    if not goldens.COMPARISONS:
        return
    nearest = sorted(goldens.COMPARISONS, key=lambda c: c[0] / c[1], reverse=True)[:8]
    terminalreporter.write_sep("-", f"parity: {len(goldens.COMPARISONS)} comparisons with {goldens.ROOT}")
    for difference, limit, what in nearest:
        terminalreporter.write_line(f"{difference:.1e} of {limit:.1e} allowed: {what}")
