"""engine/pipeline.py: a pipeline of commands that may be stopped anywhere."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from engine import pipeline as stages
from engine.pipeline import Stage, StageError, StageLog, run_stages

SLOW = (
    'trap "echo stopped >> {folder}/trace; exit 75" TERM; echo begun >> {folder}/trace; '
    "for i in $(seq 3000); do sleep 0.02; done"  # a minute
)


@pytest.fixture(autouse=True)
def quick_heartbeat(monkeypatch):
    monkeypatch.setattr(stages, "HEARTBEAT", 0.05)


def shell(name: str, script: str) -> Stage:
    return Stage(name, ["sh", "-c", script])


def append(folder, name: str, code: int = 0) -> Stage:
    """A stage that leaves a line in a trace."""
    return shell(name, f"echo {name} >> {folder}/trace; exit {code}")


def trace(folder) -> list[str]:
    return (folder / "trace").read_text().split()


def wait_for(folder, line: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not ((folder / "trace").exists() and line in trace(folder)):
        assert time.monotonic() < end, f"{line!r} did not come"
        time.sleep(0.01)


def test_stages_run_once_and_in_order(tmp_path):
    """Finished stages are skipped by the next call, whatever their command has become."""
    log = run_stages(tmp_path / "run", [append(tmp_path, "one"), append(tmp_path, "two")])
    assert trace(tmp_path) == ["one", "two"] and log.done("one") and log.done("two") and not log.done("three")
    run_stages(tmp_path / "run", [append(tmp_path, "one", 9), append(tmp_path, "two"), append(tmp_path, "three")])
    assert trace(tmp_path) == ["one", "two", "three"]
    assert json.loads((tmp_path / "run" / "stages.json").read_text()).keys() == {"one", "two", "three"}


def test_what_shows_the_others_is_made_each_time(tmp_path):
    """A report of a run that was finished shows the stages that came later; its seconds are those of one time."""
    for names in (["one"], ["one", "two"]):
        run_stages(tmp_path / "run", [append(tmp_path, name) for name in names])
        log = run_stages(tmp_path / "run", [Stage("report", ["sh", "-c", f"echo report >> {tmp_path}/trace"], True)])
    assert trace(tmp_path) == ["one", "report", "two", "report"]
    log.note("report", 100.0, 1.0, done=True)
    again = run_stages(tmp_path / "run", [Stage("report", ["true"], True)])
    assert again.seconds()["report"] < 50


def test_a_failed_stage_stops_the_rest_and_is_run_again(tmp_path):
    """The message names the stage and its exit code; the same call goes on with that stage."""
    with pytest.raises(StageError, match="stage 'two' ended with exit code 3; the same command continues it"):
        run_stages(tmp_path, [append(tmp_path, "one"), append(tmp_path, "two", 3), append(tmp_path, "three")])
    assert trace(tmp_path) == ["one", "two"]
    run_stages(tmp_path, [append(tmp_path, "one"), append(tmp_path, "two"), append(tmp_path, "three")])
    assert trace(tmp_path) == ["one", "two", "two", "three"]


def test_seconds_are_summed_over_interruptions(tmp_path):
    """A stage that fails after 0.3 s and then takes 0.3 s took 0.6 s; a skipped stage costs nothing."""
    wait = shell("wait", f"sleep 0.3; test -e {tmp_path}/ready")
    with pytest.raises(StageError):
        run_stages(tmp_path, [append(tmp_path, "one"), wait])
    first = StageLog(tmp_path).seconds()
    assert 0.3 <= StageLog(tmp_path).stages["wait"]["seconds"] < 3 and not StageLog(tmp_path).done("wait")
    (tmp_path / "ready").write_text("")
    log = run_stages(tmp_path, [append(tmp_path, "one"), wait])
    assert log.seconds().keys() == {"one", "wait"} and log.seconds()["one"] == first["one"]
    assert log.stages["wait"]["seconds"] >= 0.6 and log.seconds() == StageLog(tmp_path).seconds()


def test_processor_time_is_noted_beside_that_of_the_clock(tmp_path):
    """A stage that sleeps takes next to none of it; one that counts takes some, also through a child of its own."""
    count = "(i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done)"
    log = run_stages(tmp_path, [shell("sleep", "sleep 0.5"), shell("count", count)])
    assert log.stages["sleep"]["cpu_seconds"] < 0.3 < log.stages["sleep"]["seconds"]
    assert log.stages["count"]["cpu_seconds"] > log.stages["sleep"]["cpu_seconds"]
    assert log.cpu_seconds() == StageLog(tmp_path).cpu_seconds() and log.cpu_seconds().keys() == {"sleep", "count"}


def stop_when_begun(folder, *numbers) -> threading.Thread:
    """Sends signals to this process alone, 0.2 s apart, once the stage has begun."""

    def stop():
        wait_for(folder, "begun")
        for number in numbers:
            time.sleep(0.2)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_stop_of_the_parent_stops_the_stage(number, tmp_path, caplog):
    """The signal is handed on, the stage may save, its time is kept, and the handler of the process is put back."""
    before = signal.getsignal(number)
    slow = shell("slow", SLOW.format(folder=tmp_path).replace("TERM", number.name.removeprefix("SIG")))
    thread = stop_when_begun(tmp_path, number)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as stop:
        run_stages(tmp_path, [slow, append(tmp_path, "next")])
    thread.join()
    assert stop.value.code == 75
    assert f"stopped by {number.name}; stage 'slow' ended with exit code 75; the same command continues" in caplog.text
    assert trace(tmp_path) == ["begun", "stopped"] and signal.getsignal(number) == before
    assert StageLog(tmp_path).stages["slow"]["seconds"] >= 0.2 and not StageLog(tmp_path).done("slow")


def test_no_stage_begins_after_a_signal(tmp_path):
    """Even if the stage that ran at that time ignored it, and ended well."""
    deaf = shell("deaf", f'trap "" INT; echo begun >> {tmp_path}/trace; sleep 0.6')
    thread = stop_when_begun(tmp_path, signal.SIGINT)
    with pytest.raises(SystemExit):
        run_stages(tmp_path, [deaf, append(tmp_path, "next")])
    thread.join()
    assert trace(tmp_path) == ["begun"] and StageLog(tmp_path).done("deaf")


def test_a_killed_parent_leaves_no_orphan_and_loses_no_time(tmp_path):
    """Even SIGKILL: the stage is told to stop, and the time up to the last heartbeat is on disk."""
    child = multiprocessing.get_context("fork").Process(
        target=run_stages, args=(tmp_path, [shell("slow", SLOW.format(folder=tmp_path))])
    )
    child.start()
    wait_for(tmp_path, "begun")
    end = time.monotonic() + 20
    while StageLog(tmp_path).stages.get("slow", {}).get("seconds", 0) < 0.2:  # notes of the heartbeat
        assert time.monotonic() < end
        time.sleep(0.02)
    child.kill()
    child.join()
    wait_for(tmp_path, "stopped")
    log = StageLog(tmp_path)
    assert not log.done("slow") and log.stages["slow"]["seconds"] >= 0.2


def test_a_command_that_does_not_exist_is_not_done(tmp_path):
    with pytest.raises((StageError, OSError)):
        run_stages(tmp_path, [Stage("odd", [str(tmp_path / "no_such_program")])])
    assert not StageLog(tmp_path).done("odd")


def test_commands_can_be_started_from_any_folder(tmp_path, monkeypatch):
    """The launcher is that of the program, and it takes the Python that runs the pipeline."""
    monkeypatch.chdir(tmp_path)
    launch = stages.module_stage("x", "some.module", *stages.config_flags(["mine.yaml", "gpt/ar_probe"]))
    assert Path(launch.command[1]).is_file()
    assert launch.command[2:] == ["-m", "some.module", "--config", "mine.yaml", "--config", "gpt/ar_probe"]
    run_stages(tmp_path / "run", [Stage("x", ["sh", "-c", f"echo $VT_PYTHON > {tmp_path}/python"])])
    assert (tmp_path / "python").read_text() == f"{sys.executable}\n"
