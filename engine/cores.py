"""The cores that this process may use: its affinity, and the quota of its control group (containers, SLURM).

`usable_cores` in scripts/common.sh tells the same, before there is a Python. `thread_settings` gives a process threads
that fit them. `busy_cores` says how many of them others use at the moment.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from engine.arithmetic import ceil_div

CONTROL_GROUPS = Path("/sys/fs/cgroup")
STATISTICS = Path("/proc/stat")  # Linux alone
BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)  # of a line `cpu<n>`: user, nice, system, interrupts (two), other virtual machines
LOOK_SECONDS = 0.3


def usable_cores() -> int:
    """How many cores, 1 or more; a part of a core counts as one."""
    num_cores = len(os.sched_getaffinity(0))
    quota, period = _quota()
    return max(1, min(num_cores, ceil_div(quota, period))) if quota > 0 and period > 0 else num_cores


def thread_settings() -> dict[str, str]:
    """Variables for the threads of a single process, as `share_cores` of scripts/common.sh sets them.

    They count if they are set before torch is imported. Values of the user win.
    """
    settings = {}
    num_cores = usable_cores()
    if num_cores < len(os.sched_getaffinity(0)):
        settings["OMP_NUM_THREADS"] = str(num_cores)
    if not os.environ.get("OMP_WAIT_POLICY"):
        settings |= {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "0"}
    return {name: value for name, value in settings.items() if not os.environ.get(name)}


def busy_cores(seconds: float = LOOK_SECONDS) -> float | None:
    """How many cores other processes keep busy, of those that this one may run on; None where nobody tells.

    It watches them for `seconds`, in which this process does nothing.
    """
    before = _busy_seconds()
    if before is None:
        return None
    start = time.monotonic()
    time.sleep(seconds)
    after = _busy_seconds()
    return max(0.0, after - before) / (time.monotonic() - start) if after is not None else None


def _busy_seconds() -> float | None:
    """The seconds that the cores of this process have worked since the start of the machine, all together."""
    allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in STATISTICS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    ticks = [int(line[1 + column]) for line in lines if line and line[0] in allowed for column in BUSY_COLUMNS]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def _quota() -> tuple[int, int]:
    """(microseconds of all cores, in each period of so many microseconds); (0, 0) without a limit."""
    words = _words(_control_group() / "cpu.max")
    if not words:  # version 1 of control groups
        words = [
            *_words(CONTROL_GROUPS / "cpu" / "cpu.cfs_quota_us"),
            *_words(CONTROL_GROUPS / "cpu" / "cpu.cfs_period_us"),
        ]
    if len(words) != 2 or not all(word.isdecimal() for word in words):  # `max` or -1: no limit
        return 0, 0
    return int(words[0]), int(words[1])


def _control_group() -> Path:
    """The folder of this process's control group; the variable CONTROL_GROUP names another one."""
    if os.environ.get("CONTROL_GROUP"):
        return Path(os.environ["CONTROL_GROUP"])
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    return Path(f"{CONTROL_GROUPS}{names[0]}") if names else CONTROL_GROUPS


def _words(path: Path) -> list[str]:
    """The words of a file; none where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []
