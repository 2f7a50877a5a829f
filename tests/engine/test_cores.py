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
