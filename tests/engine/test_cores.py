"""engine/cores.py: the affinity and the quota of the control group; the scripts count the same."""

import os
import subprocess
from pathlib import Path

import pytest

from engine import cores

COMMON = Path(__file__).parents[2] / "scripts" / "common.sh"


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("max 100000", 8), ("300000 100000", 3), ("150000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)],
)
def test_the_quota_of_the_control_group_counts(cpu_max, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(f"{cpu_max}\n")
    monkeypatch.setenv("CONTROL_GROUP", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert cores.usable_cores() == expected


def test_the_quota_of_version_1(tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setenv("CONTROL_GROUP", str(tmp_path))
    monkeypatch.setattr(cores, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for quota, expected in (("-1", 8), ("250000", 3)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert cores.usable_cores() == expected


def test_scripts_count_the_same(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    for group in ("", str(tmp_path)):
        monkeypatch.setenv("CONTROL_GROUP", group)
        told = subprocess.run(["bash", "-c", f'. "{COMMON}"; usable_cores'], capture_output=True, text=True, check=True)
        assert int(told.stdout) == cores.usable_cores()


def write_statistics(path: Path, *busy_ticks: int) -> None:
    """A /proc/stat of cores that have been busy for so many ticks, of which others were idle."""
    lines = ["cpu  9 9 9 9 9 9 9 9 9 9"]
    lines += [f"cpu{core} {ticks} 0 0 500 70 0 0 0 0 0" for core, ticks in enumerate(busy_ticks)]
    path.write_text("\n".join([*lines, "intr 1 2 3"]) + "\n")


def test_busy_cores_are_those_that_this_process_may_use(tmp_path, monkeypatch):
    """Of four cores it may use three; in two seconds one of these works all the time and one for a half."""
    path, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    now = [50.0]

    def sleep(seconds):
        now[0] += seconds
        write_statistics(path, 100 + 2 * ticks, 7, 30 + ticks, 900 + 2 * ticks)

    monkeypatch.setattr(cores, "STATISTICS", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(cores.time, "sleep", sleep)
    monkeypatch.setattr(cores.time, "monotonic", lambda: now[0])
    write_statistics(path, 100, 7, 30, 900)
    assert cores.busy_cores(2.0) == 1.5
    path.unlink()
    assert cores.busy_cores(2.0) is None
