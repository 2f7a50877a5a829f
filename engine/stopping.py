"""How a run is asked to stop: the signals, and what each kind of process does with them.

A training notes a signal, finishes its step, saves and exits with `EXIT_STOPPED` (`stop_requests`). A loader process
leaves the decision to its trainer (`leave_signals_to_parent`). A process that a launcher or a pipeline started stops
when its parent dies (`stop_with_parent`). A signal that is ignored at the start, as under `nohup`, stays ignored.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

EXIT_STOPPED = 75  # exit code after a stop signal: the state is saved, the same command continues
EXIT_HUNG = 76  # exit code of a process that made no progress: the last finished checkpoint continues
EXIT_INTERRUPTED = 130  # exit code after Ctrl-C where nothing is saved

# TERM: a scheduler; USR1: SLURM's --signal; INT: Ctrl-C; HUP: the terminal is gone.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>

Handler = Callable[[int, FrameType | None], None]


def names_of(numbers: Sequence[int]) -> str:
    """The names of signals, such as `SIGTERM, SIGINT`."""
    return ", ".join(signal.Signals(number).name for number in numbers)


@contextmanager
def handled(handler: Handler, signals: Sequence[signal.Signals] = STOP_SIGNALS) -> Iterator[None]:
    """Calls `handler` for each of `signals` that is not ignored; puts the handlers back at the end.

    Outside of the main thread, where Python knows no handlers, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    handlers_before = {number: signal.getsignal(number) for number in signals}
    taken = [number for number, before in handlers_before.items() if before is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, handlers_before[number])


@contextmanager
def stop_requests(note: str = "") -> Iterator[list[int]]:
    """Collects stop signals in a list instead of dying from them.

    `note` is printed at the first one. A second Ctrl-C raises KeyboardInterrupt: the user does not want to wait.
    """
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        if note and not received:
            os.write(2, f"\n{signal.Signals(number).name}: {note}\n".encode())  # unlike print, safe in a handler
        received.append(number)

    with handled(collect):
        yield received


def leave_signals_to_parent() -> None:
    """For a loader process: only its own parent can stop it.

    A signal to a whole process group or job (Ctrl-C, torchrun, SLURM) must reach the trainer alone. A trainer whose
    loaders are gone could not finish its step.
    """
    # torch's handler of SIGTERM dies from any sender. Blocked, the signal waits for a thread that asks for the sender.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal would never wait
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def obey_parent() -> None:
        while True:
            info = signal.sigwaitinfo([signal.SIGTERM])
            if info.si_pid == parent:
                os._exit(0)

    threading.Thread(target=obey_parent, daemon=True).start()


def stop_with_parent() -> None:
    """On Linux: the kernel sends SIGTERM to this process when its parent dies, so that no orphan writes on.

    Of a parent that died before, the kernel tells nothing: then this process sends itself the signal.
    """
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
