"""engine/watchdog.py: what is said of a hang; test_signals.py lets a real one happen."""

import pytest

from engine.messages import UserError
from engine.time_limits import SAVE_PATIENCE, collective_timeout, hang_timeout, save_timeout
from engine.watchdog import Stage, Watchdog, describe_hang, sign_of_life


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


def test_collectives_and_the_launcher_outlast_the_watchdog(monkeypatch):
    """So that it, which knows more, speaks first; also of a save, which may take four times as long."""
    for name in ("HANG_TIMEOUT", "SAVE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    assert hang_timeout() == 1800 and SAVE_PATIENCE == 4
    assert save_timeout() == 7200 and collective_timeout().total_seconds() == 14400
    monkeypatch.setenv("HANG_TIMEOUT", "7200")
    assert save_timeout() == 28800 and collective_timeout().total_seconds() == 57600
    monkeypatch.setenv("HANG_TIMEOUT", "20")
    assert save_timeout() == 7200 and collective_timeout().total_seconds() == 3600
    monkeypatch.setenv("HANG_TIMEOUT", "0")  # never
    assert save_timeout() == 7200 and collective_timeout().days == 365
    monkeypatch.setenv("SAVE_TIMEOUT", "60")
    assert save_timeout() == 60
    monkeypatch.setenv("HANG_TIMEOUT", "1h")
    with pytest.raises(UserError, match="HANG_TIMEOUT='1h' is not a whole number of seconds"):
        hang_timeout()


def test_a_save_and_a_validation_may_take_longer(monkeypatch, world):
    """A save has four times the limit; each batch of a validation has the whole one."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setenv("HANG_TIMEOUT", "100")
    watchdog = Watchdog(world, print)

    with watchdog:
        watchdog.enter("saving", 3, patience=SAVE_PATIENCE)
        now[0] += 400
        assert not watchdog.is_over()
        now[0] += 1
        assert watchdog.is_over()
        watchdog.enter("validation", 3)
        for _ in range(5):
            now[0] += 99
            assert not watchdog.is_over()
            sign_of_life()
        assert watchdog.stage.count == 2  # the same place for the other processes
        now[0] += 101
        assert watchdog.is_over()
    sign_of_life()  # without a watchdog, nothing
