"""Starts the processes of a run with torchrun, and lets them save before they end.

    bash scripts/launch.sh -m tokenizer.train --config ...      (with GPUS=8, this runs the line below)
    python -m engine.launcher --nproc-per-node 8 -m tokenizer.train --config ...

The arguments are those of torchrun. It behaves like torchrun but for this:

- SIGUSR1, which SLURM sends, is passed on like SIGTERM. (Only newer versions of torchrun have a flag for that; without
  it, the launcher dies and its workers train on as orphans.)
- After a stop signal, workers have two hours to save (4 x HANG_TIMEOUT if that is longer), not 30 seconds; the variable
  SAVE_TIMEOUT sets other seconds.
  When a worker crashes, the others still get 30 seconds: a worker that waits for a dead one never saves.
- A further signal reaches the workers at once: a second Ctrl-C ends them without saving. The fourth kills them.
- Signals that the caller ignores (`nohup`) stay ignored.
- The end is one line, without torchrun's traceback. The exit code is 1 unless all workers end with 0.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from engine.messages import UserError
from engine.stopping import EXIT_HUNG, EXIT_STOPPED, STOP_SIGNALS, names_of
from engine.time_limits import save_timeout

FORWARDED = (*STOP_SIGNALS, signal.SIGQUIT)
CRASH_TIMEOUT = 15  # seconds that the others get to save after the crash of a worker; torchrun adds its own 30
MAX_SIGNALS = 4  # the signal with this number kills
POLL_INTERVAL = 0.1  # seconds


class Stopper:
    """The stop signals of the launcher, and the workers that they are passed on to."""

    def __init__(self, save_timeout: int) -> None:
        self.save_timeout = save_timeout
        self.received: list[int] = []
        self.workers: PContext | None = None
        self._ignored = {number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN}

    def install(self) -> None:
        """Takes the signals over, from torchrun too, which sets its own handlers when it starts workers."""
        for number in FORWARDED:
            signal.signal(number, signal.SIG_IGN if number in self._ignored else self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The first signal ends torchrun's wait, which then passes it on; later ones go to the workers directly."""
        self.received.append(number)
        if len(self.received) == 1:
            raise SignalException(f"launcher {os.getpid()} got signal {number}", sigval=signal.Signals(number))
        self._send(signal.SIGKILL if len(self.received) >= MAX_SIGNALS else number)

    def wait_for_saves(self, number: int) -> None:
        """Passes a stop signal on and waits until the workers have ended, or until waiting longer makes no sense."""
        self._send(number)
        end = time.monotonic() + self.save_timeout
        waiting = set(self.workers.pids().values()) if self.workers is not None else set()
        while waiting and time.monotonic() < end:
            codes = {pid: _exit_code(pid) for pid in waiting}
            waiting = {pid for pid, code in codes.items() if code is None}
            if any(code not in (None, 0, EXIT_STOPPED) for code in codes.values()):
                end = min(end, time.monotonic() + CRASH_TIMEOUT)
            time.sleep(POLL_INTERVAL)

    def _send(self, number: int) -> None:
        """Sends a signal to the process group of each worker that is alive."""
        for pid in self.workers.pids().values() if self.workers is not None else ():
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                continue


def _exit_code(pid: int) -> int | None:
    """How a child ended (minus the signal, if one killed it); None while it runs. Torchrun still reaps it."""
    try:
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # torchrun has reaped it
        return 0
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def patch_torchrun(stopper: Stopper) -> None:
    """Puts `stopper` between torchrun and its workers: the two methods through which every start and every end goes."""
    start: Callable[[PContext], None] = PContext.start
    close: Callable[..., None] = PContext.close

    def start_with_signals(self: PContext) -> None:
        stopper.workers = self
        start(self)
        stopper.install()

    def close_with_time(self: PContext, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        if stopper.received and death_sig is not None:  # without a signal, it is called after a crash
            stopper.wait_for_saves(death_sig)
        close(self, death_sig, timeout)

    PContext.start = start_with_signals
    PContext.close = close_with_time


def describe(error: ChildFailedError) -> str:
    """How the workers ended, in one line."""
    ends = []
    for rank, failure in sorted(error.failures.items()):
        how = f"exit code {failure.exitcode}" if failure.exitcode >= 0 else names_of([-failure.exitcode])
        ends.append(f"process {rank}: {how}")
    stopped = all(failure.exitcode == EXIT_STOPPED for failure in error.failures.values())
    hung = any(failure.exitcode == EXIT_HUNG for failure in error.failures.values())
    advice = "stopped" if stopped else "hung" if hung else "failed; see the messages above"
    return f"launcher: {advice} ({', '.join(ends)})"


def launch(arguments: Sequence[str] | None = None) -> int:
    """Runs torchrun with `arguments` (default: those of the command line); returns the exit code."""
    stopper = Stopper(save_timeout())
    stopper.install()
    patch_torchrun(stopper)
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except SignalException:
        print(f"launcher: stopped by {names_of(stopper.received)}; all processes have ended", file=sys.stderr)
        return 1
    except ChildFailedError as error:
        print(describe(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(launch())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
