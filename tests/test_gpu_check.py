"""scripts/gpu_check.sh: pieces into one folder, with a GPU that is not there."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import gpu_check
import pytest
import torch
from gpu_check import PIECES, Piece

from evaluations.benchmarks.topics import TOPICS

ROOT = Path(__file__).parents[1]
HOST_TOPICS = ("data", "startup", "threads", "journey")  # of the benchmark, which no GPU makes faster
TEST = """
import pytest
@pytest.mark.gpu
def test_good(): assert {good}
@pytest.mark.gpu
def test_left_out(): pytest.skip("why")
def test_of_a_cpu(): assert False
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """`check(*arguments)` on pieces of this test: (exit code, what was printed, the folder)."""
    (tmp_path / "test_good.py").write_text(TEST.format(good=True))
    (tmp_path / "test_bad.py").write_text(TEST.format(good=False))
    pieces = {
        "good": Piece((str(tmp_path / "test_good.py"),)),
        "bad": Piece((str(tmp_path / "test_bad.py"),), environment={"PARITY_DEVICE": "cuda"}),
        "module": Piece(module=("platform", "--{output}")),
        "slow": Piece(module=("timeit", "-n1", "-r1", "import time; time.sleep(60)")),
    }
    monkeypatch.setattr(gpu_check, "PIECES", pieces)
    monkeypatch.setattr(gpu_check, "device_problem", lambda name: None)
    monkeypatch.setattr(gpu_check, "device_facts", lambda device: {"name": "pretended"})

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["gpu_check", "--output", str(tmp_path / "out"), *arguments])
        with pytest.raises(SystemExit) as stop:
            gpu_check.main()
        return int(stop.value.code), capsys.readouterr().out, tmp_path / "out"

    return run


def summary_of(folder: Path) -> dict[str, dict]:
    return {row["piece"]: row for row in json.loads((folder / "summary.json").read_text())}


def test_pieces_are_run_and_summed_up(check):
    """One that passes, then one that does not: the folder holds both, and the exit code is of the call."""
    code, printed, folder = check("--pieces", "good", "module")
    assert code == 0 and "passed   good" in printed
    assert summary_of(folder)["good"]["tests"] == {"passed": 1, "failed": 0, "skipped": 1}
    assert f"--{folder}" in (folder / "module.log").read_text()

    code, printed, folder = check("--pieces", "bad")
    assert code == 1 and "failed   bad" in printed
    rows = summary_of(folder)
    outcomes = {name: row["outcome"] for name, row in rows.items()}
    assert outcomes == {"good": "passed", "module": "passed", "bad": "failed"}
    assert rows["bad"]["tests"]["failed"] == 1 and "assert False" in (folder / "bad.log").read_text()
    assert "| bad | failed |" in (folder / "summary.md").read_text()
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["device"] == {"name": "pretended"} and facts["versions"]["torch"] == version("torch")


def test_a_piece_that_takes_too_long_is_stopped(check, monkeypatch):
    monkeypatch.setattr(gpu_check, "LIMIT", 0.5)
    code, _, folder = check("--pieces", "slow")
    assert code == 1 and summary_of(folder)["slow"]["outcome"] == "stopped"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    """Exit code 2, and nothing is written."""
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: no GPU can be used"), done.stderr
    assert not (tmp_path / "out").exists()


def test_every_test_of_a_gpu_belongs_to_a_piece():
    """And every file of a piece exists; pieces of benchmarks name topics."""
    assert {*gpu_check.GPU_TOPICS, *HOST_TOPICS} == TOPICS.keys()
    chosen = [ROOT / name for piece in PIECES.values() for name in piece.tests]
    assert all(path.exists() for path in chosen)
    for path in (ROOT / "tests").rglob("test_*.py"):
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8") and path.name != Path(__file__).name:
            assert any(path == piece or piece in path.parents for piece in chosen), f"{path} belongs to no piece"
