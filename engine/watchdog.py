"""Ends a training of several processes in which one does not come on, and says which one and where.

A process that hangs in a read, or has died without a trace, leaves all others waiting in a collective. Each process
therefore has a thread that watches the stages of the training loop and shares them through torchrun's store:

    with Watchdog(world, report) as watchdog:
        watchdog.enter("training step", step)
        watchdog.enter("saving", step, patience=SAVE_PATIENCE)

A stage without a sign of life for HANG_TIMEOUT seconds (half an hour), times its patience, ends the process with
`EXIT_HUNG`. A stage of many batches gives a sign after each (`sign_of_life`). Nothing is saved: in the middle of a step
there is no state that a run could continue from. The last finished checkpoint resumes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

import torch.distributed as dist

from engine.json_text import to_json
from engine.messages import logger
from engine.stopping import EXIT_HUNG
from engine.time_limits import hang_timeout
from engine.world import World

LOOKS_PER_TIMEOUT = 10  # how often the thread looks; at least every MAX_INTERVAL seconds
MAX_INTERVAL = 10.0
CONNECT_TIMEOUT = timedelta(seconds=30)


@dataclass(frozen=True)
class Stage:
    """Where a process is in the training loop."""

    count: int  # stages entered so far: the same number is the same place on every process
    name: str
    step: int
    since: float  # Unix time of its begin, or of the last sign of life in it
    host: str
    pid: int

    def text(self, now: float) -> str:
        """Where, for how long, and which process of which machine."""
        return f"in {self.name!r} of step {self.step} for {now - self.since:.0f} s (pid {self.pid} on {self.host})"


def describe_hang(stages: Mapping[int, Stage | None], now: float) -> str:
    """Says which processes are behind. `stages` are those of all ranks; None where nothing is known of one."""
    known = {rank: stage for rank, stage in stages.items() if stage is not None}
    lines = [f"process {rank}: no sign of life since the training began" for rank in stages if rank not in known]
    counts = [stage.count for stage in known.values()]
    slowest, fastest = min(counts), max(counts)
    behind = {rank: stage for rank, stage in known.items() if stage.count == slowest and slowest < fastest}
    lines += [f"process {rank} is behind: {stage.text(now)}" for rank, stage in behind.items()]

    others = [rank for rank in known if rank not in behind]
    if not lines:
        return f"all processes are in the same place, which their stacks show; process 0 {known[others[0]].text(now)}"
    lines += [f"process {rank} waits for it {known[rank].text(now)}" for rank in others[:1]]
    if len(others) > 1:
        lines.append(f"and {len(others) - 1} more")
    return "\n  ".join(lines)


class Watchdog:
    """Watches this process, where it is one of several. `report` gets the text of a hang before the process ends."""

    def __init__(self, world: World, report: Callable[[str], None]) -> None:
        self.world = world
        self.report = report
        self.timeout = hang_timeout()
        self.limit = self.timeout  # of the stage under way, seconds
        self.stage = Stage(0, "start", 0, time.time(), socket.gethostname(), os.getpid())
        self._since = time.monotonic()
        self._interval = min(MAX_INTERVAL, self.timeout / LOOKS_PER_TIMEOUT)
        self._ended = threading.Event()
        self._store: dist.Store | None = None

    def __enter__(self) -> Watchdog:
        _watching.append(self)
        if self.world.size > 1 and self.timeout > 0:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        _watching.remove(self)

    def enter(self, name: str, step: int, patience: int = 1) -> None:
        """The loop comes to a stage of step number `step`, which may take `patience` times HANG_TIMEOUT."""
        before = self.stage
        self.stage = Stage(before.count + 1, name, step, time.time(), before.host, before.pid)
        self._since = time.monotonic()  # first: the old stage must not be judged by a shorter limit
        self.limit = patience * self.timeout

    def renew(self) -> None:
        """The stage under way goes on: its time begins anew."""
        self.stage = replace(self.stage, since=time.time())
        self._since = time.monotonic()

    def is_over(self) -> bool:
        """Whether the stage under way has had more time than it may take."""
        return time.monotonic() - self._since > self.limit

    # -------------------------------------------------------------------------------------------- the thread
    def _watch(self) -> None:
        """Shares the stage again and again, and ends the process if that does not change."""
        self._store = _connect()
        while not self._ended.wait(self._interval):
            self._share()
            if self.is_over():
                self._end()

    def _share(self) -> None:
        """Tells the other processes where this one is."""
        if self._store is None:
            return
        try:
            self._store.set(_key(self.world.rank), to_json(asdict(self.stage)))
        except RuntimeError as error:  # the launcher that keeps the store is gone
            logger.warning("the watchdog cannot reach the other processes any more: %s", error)
            self._store = None

    def _stages(self) -> dict[int, Stage | None]:
        """Where all processes are, as far as they have told."""
        stages: dict[int, Stage | None] = {self.world.rank: self.stage}
        if self._store is not None:
            for rank in range(self.world.size):
                told = self._store.check([_key(rank)])
                stages[rank] = Stage(**json.loads(self._store.get(_key(rank)))) if told else None
        return dict(sorted(stages.items()))

    def _end(self) -> None:
        """Reports, with the stack of this process where it is the first or one that is behind, and ends it."""
        try:
            stages = self._stages()
        except RuntimeError as error:
            logger.warning("the other processes cannot be asked: %s", error)
            stages = {self.world.rank: self.stage}
        is_behind = self.stage.count == min(stage.count for stage in stages.values() if stage is not None)
        if self.world.is_main or is_behind:
            self.report(
                f"the training hangs: no progress for {self.limit} s (HANG_TIMEOUT={self.timeout})\n"
                f"  {describe_hang(stages, time.time())}\n"
                f"Nothing is saved; the same command continues from the last checkpoint.\n{_stacks()}"
            )
        # The end of the first process ends all others, which have stacks to show too.
        time.sleep(2 * self._interval)
        os._exit(EXIT_HUNG)


_watching: list[Watchdog] = []  # of this process, while its loops run


def sign_of_life() -> None:
    """Tells the watchdog, where there is one, that the stage under way has finished a part, such as a batch."""
    for watchdog in _watching:
        watchdog.renew()


def _key(rank: int) -> str:
    """Where a rank tells its stage."""
    return f"watchdog/{rank}"


def _connect() -> dist.Store | None:
    """A connection of its own to the store of torchrun: the group's one is blocked while a collective waits for it."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port:
        return None
    try:
        return dist.TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=CONNECT_TIMEOUT)
    except RuntimeError as error:
        logger.warning("the watchdog cannot ask other processes: %s", error)
        return None


def _stacks() -> str:
    """The stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()
