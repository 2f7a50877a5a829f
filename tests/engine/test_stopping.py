"""engine/stopping.py: who stops at which signal, in real processes."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from engine.stopping import STOP_SIGNALS, handled, leave_signals_to_parent, stop_requests, stop_with_parent


def test_signals_are_collected_and_a_second_ctrl_c_does_not_wait(capfd):
    """Any number of them; the note is printed once, and the handlers are those of before."""
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    numbers = [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt), stop_requests("saves") as received:
        for number in numbers:
            os.kill(os.getpid(), number)
        assert received == numbers
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "\nSIGUSR1: saves\n"
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_what_the_caller_ignores_stays_ignored():
    """`nohup` ignores SIGHUP: a closed terminal must not stop the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received == [] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_takes_no_signals():
    """As when a training is called from a thread of a notebook, where Python refuses handlers."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with handled(lambda number, frame: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_loader_obeys_its_parent_alone():
    """Signals of a whole group pass it by; SIGTERM of its parent ends it with code 0."""
    ready, tell = os.pipe()
    loader = os.fork()
    if loader == 0:
        leave_signals_to_parent()
        os.write(tell, b"!")
        time.sleep(60)
        os._exit(7)
    os.read(ready, 1)

    stranger = os.fork()
    if stranger == 0:
        for number in STOP_SIGNALS:
            os.kill(loader, number)
        os._exit(0)
    os.waitpid(stranger, 0)
    time.sleep(0.3)
    assert os.waitpid(loader, os.WNOHANG) == (0, 0), "a stranger ended it"

    os.kill(loader, signal.SIGTERM)
    _, status = os.waitpid(loader, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize(("parents", "sent"), [((7, 7), []), ((7, 1), [signal.SIGTERM])])
def test_a_parent_that_dies_before_the_kernel_is_asked(parents, sent, monkeypatch):
    """The kernel tells nothing of it: the process stops itself."""
    told, signals = iter(parents), []
    monkeypatch.setattr("engine.stopping.ctypes.CDLL", lambda name: SimpleNamespace(prctl=lambda *words: 0))
    monkeypatch.setattr("engine.stopping.os.getppid", lambda: next(told))
    monkeypatch.setattr("engine.stopping.os.kill", lambda pid, number: signals.append(number))
    stop_with_parent()
    assert signals == sent
