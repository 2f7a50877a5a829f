"""engine/watchdog.py: what is said of a hang; test_signals.py lets a real one happen."""

import pytest

from engine.messages import UserError
from engine.watchdog import Stage, describe_hang
from engine.world import MIN_TIMEOUT, collective_timeout, hang_timeout


def at(count: int, name: str, since: float) -> Stage:
    return Stage(count, name, 12, since, f"node{count}", 100 + count)


def test_the_process_that_is_behind_is_named():
    """The others wait for it; of those one is shown."""
    stages = {0: at(8, "training step", 70.0), 1: at(7, "reading a batch", 60.0), 2: at(8, "training step", 71.0)}
    assert describe_hang(stages, 100.0).splitlines() == [
        "process 1 is behind: in 'reading a batch' of step 12 for 40 s (pid 107 on node7)",
        "  process 0 waits for it in 'training step' of step 12 for 30 s (pid 108 on node8)",
        "  and 1 more",
    ]


def test_processes_in_the_same_place_hang_together():
    stages = {0: at(3, "validation", 10.0), 1: at(3, "validation", 10.0)}
    text = describe_hang(stages, 20.0)
    assert text.startswith("all processes are in the same place") and "process 0 in 'validation' of step 12" in text


def test_a_process_that_was_never_heard_of_is_named():
    assert describe_hang({0: at(1, "start", 0.0), 1: None}, 5.0).startswith("process 1: no sign of life")


def test_collectives_outlast_the_watchdog(monkeypatch):
    """So that it, which knows more, speaks first."""
    assert hang_timeout() == 1800 and collective_timeout() == MIN_TIMEOUT
    monkeypatch.setenv("HANG_TIMEOUT", "7200")
    assert collective_timeout().total_seconds() == 14400
    monkeypatch.setenv("HANG_TIMEOUT", "1h")
    with pytest.raises(UserError, match="HANG_TIMEOUT='1h' is not a whole number of seconds"):
        hang_timeout()
