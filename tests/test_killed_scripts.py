"""The published scripts as a user starts them, from end to end at --scale tiny, with a kill in every stage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_stages import files_below
from script_modules import ROOT

from engine.pipeline import StageLog

SCRIPTS = {  # script -> its stages at --scale tiny
    "train_vq_and_eval": "tokenizer reconstruction codes gpt search val_loss report",
    "train_vq_and_eval_fsdp": "tokenizer reconstruction codes gpt search val_loss report",
    "train_c2i_and_eval": "tokenizer codes gpt search val_loss report",
    "train_c2i_and_eval_fsdp": "tokenizer codes gpt search val_loss report",
    "eval_c2i": "tokenizer codes gpt generation val_loss report",
    "train_lm_lin_probe_and_eval": "tokenizer codes gpt linear_probe_gpt report",
    "train_tok_lin_probe_and_eval": "tokenizer linear_probe_tokenizer report",
    "train_all_lin_probe_and_eval": "tokenizer codes gpt linear_probe_gpt linear_probe_tokenizer report",
}
LIMIT = 1200  # seconds for a start of a script
WITHOUT_FILES = 3.0  # seconds after which a stage is killed that writes nothing before its end


def start(script: str, run: Path) -> subprocess.Popen:
    """The script, as a process group of its own."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(run.parent), "VIRTUAL_ENV": sys.prefix}
    environment |= {"OMP_NUM_THREADS": "1", "PRETRAINED_DIR": str(run.parent)}
    command = ["bash", str(ROOT / "scripts" / f"{script}.sh"), "--scale", "tiny", "--run-dir", str(run)]
    output = (run.parent / f"{run.name}.log").open("a")
    return subprocess.Popen(command, env=environment, stdout=output, stderr=output, process_group=0)


def end_of(process: subprocess.Popen) -> int:
    return process.wait(timeout=LIMIT)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started, without theirs."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_in(stage: str, process: subprocess.Popen, run: Path, *, with_pipeline: bool) -> None:
    """SIGKILL to the processes of a stage that has begun to write; before, to the pipeline if `with_pipeline`."""
    begun = before = None
    while True:
        assert process.poll() is None, f"the script ended before a kill in {stage}"
        log = StageLog(run)
        if stage in log.stages and not log.done(stage):
            begun = begun or time.monotonic()
            before = files_below(run) if before is None else before
            if files_below(run) - before or time.monotonic() - begun > WITHOUT_FILES:
                break
        time.sleep(0.05)

    stages = children_of(process.pid)
    if with_pipeline:
        process.kill()
    for pid in stages:
        os.killpg(pid, signal.SIGKILL)
    end_of(process)


def results_of(run: Path) -> dict:
    results = json.loads((run / "results.json").read_text())
    assert (run / "report.html").is_file() and results.pop("seconds")
    return results


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_kill_in_every_stage_changes_no_number(script, tmp_path):
    """The same command after each kill; at the end, results and report are those of a run that nobody killed."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert end_of(start(script, unbroken)) == 0, (tmp_path / "unbroken.log").read_text()[-3000:]
    for number, stage in enumerate(SCRIPTS[script].split()):
        kill_in(stage, start(script, broken), broken, with_pipeline=number % 2 == 0)
    assert end_of(start(script, broken)) == 0, (tmp_path / "broken.log").read_text()[-3000:]
    assert list(StageLog(broken).stages) == SCRIPTS[script].split()
    assert results_of(broken) == results_of(unbroken)
