"""The table of signals: two real processes under scripts/launch.sh, and what each signal leaves behind.

A line per row of the table is printed (`pytest -m slow -s tests/engine/test_signals.py`).
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

import tokenizer.train
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.run_log import read_metrics

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
START = 240  # seconds until the first steps are trained; torch is imported three times, on a machine that may be busy
GRACE = 30  # seconds after the end of the launcher in which every process of the run must be gone


class Launched:
    """A training of two processes without end, started as a user starts it."""

    def __init__(self, folder: Path, images: Path, *overrides: str) -> None:
        self.run_dir = folder / "run"
        (folder / "tiny.yaml").write_text(tiny.TOKENIZER)
        options = [*tiny.folder_data(images), f"loop.run_dir={self.run_dir}", "data.num_workers=1", *overrides]
        options = ["loop.steps=1000000", "loop.save_every=1000000", *options]
        command = ["bash", str(ROOT / "scripts/launch.sh"), "-m", "tokenizer.train", "--config", folder / "tiny.yaml"]
        environment = {"PATH": os.environ["PATH"], "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
        environment |= {name: value for name, value in os.environ.items() if name == "HANG_TIMEOUT"}
        environment["TORCH_RUN_PATH"] = str(Path(sys.executable).with_name("torchrun"))
        self.output = folder / "output.txt"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, *options],
                stdout=file,
                stderr=file,
                env=environment,
                process_group=0,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def pids(self) -> list[int]:
        """All processes of the run: launcher, ranks and loaders. The launcher is the first."""
        pids = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if f"run_dir={self.run_dir}".encode() in command:
                pids.append(int(entry.name))
        return sorted(pids)

    def ranks(self) -> list[int]:
        """The two trainers: the children of the launcher."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if int(pid) in self.pids()]

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for_steps(self, count: int) -> None:
        end = time.monotonic() + START
        while len(read_metrics(self.run_dir)) < count:
            assert self.process.poll() is None and time.monotonic() < end, self.text()
            time.sleep(0.1)

    def wait(self, seconds: float) -> int:
        """The exit code of the launcher."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the launcher lives {seconds} s later; {self.text()}")

    def survivors(self) -> list[int]:
        """The processes that are still there GRACE seconds later."""
        end = time.monotonic() + GRACE
        while self.pids() and time.monotonic() < end:
            time.sleep(0.1)
        return self.pids()

    def saved(self) -> list[int]:
        return [read_manifest(folder)["step"] for folder in checkpoint_folders(self.run_dir)]

    def clean(self) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


@pytest.fixture
def launched(tmp_path, image_folder):
    """`launched(*overrides)` starts a run; whatever is left of it at the end is killed."""
    runs = []

    def start(*overrides: str) -> Launched:
        runs.append(Launched(tmp_path, image_folder, *overrides))
        return runs[-1]

    yield start
    for run in runs:
        run.clean()


def say(*cells: object) -> None:
    """Prints a row of the table."""
    print("\n| " + " | ".join(map(str, cells)) + " |")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP], ids=lambda s: s.name)
def test_a_signal_to_the_launcher_saves_that_step(number, launched, tmp_path, image_folder, world):
    """The step that was under way is saved, the launcher ends with 1, nothing is left, and the run goes on."""
    run = launched()
    run.wait_for_steps(3)
    begin = time.monotonic()
    os.killpg(run.process.pid, number)  # as a terminal or SLURM does: to the group
    code = run.wait(60)
    seconds = time.monotonic() - begin
    left = run.survivors()
    (step,) = run.saved()
    say(number.name, f"saved step {step}", f"launcher {code} after {seconds:.1f} s", f"left {left}")

    assert code == 1 and not left
    assert f"stopped by {number.name} after step {step}; the same command continues" in run.text()
    assert "stopped; the same command continues" in run.text() or "launcher: stopped by" in run.text()
    assert "Traceback" not in run.text()
    assert step >= read_metrics(run.run_dir)[-1]["step"]
    tokenizer.train.train(tiny.tokenizer_config(run.run_dir, image_folder, f"loop.steps={step + 1}"), world)
    assert f"resumed from step {step} of {step + 1}" in (run.run_dir / "log.txt").read_text()


LONG_STEP = """
import time
from tokenizer.training.task import TokenizerTask

real = TokenizerTask.train_step


def train_step(self, micro_batches, step):
    if step == 3:
        time.sleep(60)
    return real(self, micro_batches, step)


TokenizerTask.train_step = train_step
"""


def test_a_second_ctrl_c_ends_at_once(launched, tmp_path):
    """In the middle of a step of a minute; without a save, and without orphans."""
    (tmp_path / "long_step.py").write_text(LONG_STEP)
    run = launched("--plugin", str(tmp_path / "long_step.py"))
    run.wait_for_steps(3)
    os.killpg(run.process.pid, signal.SIGINT)
    time.sleep(3)
    assert run.process.poll() is None and "Ctrl-C a second time ends it at once" in run.text()
    begin = time.monotonic()
    os.killpg(run.process.pid, signal.SIGINT)
    code = run.wait(30)
    left = run.survivors()
    say("SIGINT twice", f"saved {run.saved()}", f"launcher {code} after {time.monotonic() - begin:.1f} s", left)
    assert code == 1 and not left and run.saved() == []
    assert run.text().count("interrupted\n") == 2 and "Traceback" not in run.text()


LONG_SAVE = """
import time
from engine.checkpoint.store import CheckpointStore

real = CheckpointStore._finish


def _finish(self, *arguments):
    time.sleep(35)
    return real(self, *arguments)


CheckpointStore._finish = _finish
"""


def test_a_save_may_take_longer_than_torchrun_waits(launched, tmp_path):
    """35 seconds, as tens of GB take; torchrun kills after 30."""
    (tmp_path / "long_save.py").write_text(LONG_SAVE)
    run = launched("--plugin", str(tmp_path / "long_save.py"))
    run.wait_for_steps(3)
    begin = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    code = run.wait(90)
    say("SIGTERM, long save", f"saved {run.saved()}", f"launcher {code} after {time.monotonic() - begin:.1f} s")
    assert code == 1 and len(run.saved()) == 1 and not run.survivors()


HANGING_RANK = """
import os
import time
from tokenizer.training.task import TokenizerTask

real = TokenizerTask.train_step


def train_step(self, *arguments):
    if arguments[-1] == 4 and os.environ["RANK"] == "1":
        time.sleep(600)
    return real(self, *arguments)


TokenizerTask.train_step = train_step
"""


def test_a_hung_rank_is_shown(launched, tmp_path, monkeypatch, image_folder, world):
    """Every process ends by itself, log.txt has the stack that hangs, and the last finished checkpoint resumes."""
    monkeypatch.setenv("HANG_TIMEOUT", "20")
    (tmp_path / "hanging_rank.py").write_text(HANGING_RANK)
    run = launched("--plugin", str(tmp_path / "hanging_rank.py"), "loop.save_every=3")
    run.wait_for_steps(4)
    begin = time.monotonic()
    code = run.wait(90)
    left = run.survivors()
    say(
        "rank 1 hangs",
        f"saved {run.saved()}",
        f"launcher {code} after {time.monotonic() - begin:.1f} s",
        f"left {left}",
    )
    assert code == 1 and not left and run.saved() == [3]
    log = (run.run_dir / "log.txt").read_text()
    assert "process 0: the training hangs: no progress for 20 s" in log, log
    assert "process 0 in 'training step' of step 5 for " in log, log
    assert re.search(r'process 1: the training hangs(.|\n)*hanging_rank.py", line \d+ in train_step', log), log
    assert "launcher: hung (process 0: exit code 76, process 1: exit code 76)" in run.text()
    tokenizer.train.train(tiny.tokenizer_config(run.run_dir, image_folder, "loop.steps=4"), world)
    assert run.saved() == [3, 4]


def test_kill_9_of_a_rank_ends_the_others(launched, image_folder, world):
    """Within 60 s, and the last finished checkpoint resumes."""
    run = launched("loop.save_every=3")
    run.wait_for_steps(4)
    begin = time.monotonic()
    os.kill(run.ranks()[1], signal.SIGKILL)
    code = run.wait(60)
    left = run.survivors()
    say("SIGKILL of rank 1", f"saved {run.saved()}", f"launcher {code} after {time.monotonic() - begin:.1f} s", left)
    assert code == 1 and not left and "process 1: SIGKILL" in run.text()
    step = run.saved()[-1]
    tokenizer.train.train(tiny.tokenizer_config(run.run_dir, image_folder, f"loop.steps={step + 1}"), world)
    assert run.saved()[-1] == step + 1


def test_kill_9_of_the_launcher_leaves_no_orphans(launched):
    """The kernel tells the ranks, which save."""
    run = launched()
    run.wait_for_steps(3)
    run.process.kill()
    run.wait(10)
    left = run.survivors()
    say("SIGKILL of the launcher", f"saved {run.saved()}", f"left {left}")
    assert not left and len(run.saved()) == 1
