"""scripts/check_versions.sh, with a python that only says what it was asked: what runs, is said, and is deleted."""

import subprocess

import pytest
from script_copies import copy_scripts, program

# Makes environments whose python is a copy of itself, and fails as a test runner where FAILING is in its environment.
PYTHON = """
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *platform*) echo 3.99.0 ;;
    "-m pytest "*) echo "$*"; [ -z "${FAILING:-}" ] ;;
    "-m "*) echo "processes ${NPROC_PER_NODE:-1}: $*" ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    """`check(*arguments)` in a copy of the scripts, with environments under `tmp_path/places`."""
    copy = copy_scripts(tmp_path / "copy")
    python = program(tmp_path / "python", PYTHON)

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        options = ["--python", str(python), "--folder", str(tmp_path / "places"), *arguments]
        command = ["bash", str(copy / "scripts" / "check_versions.sh"), *options]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return call


def test_every_step_runs_in_the_new_environment_which_is_then_deleted(check, tmp_path):
    """The versions that belong together are installed; the quick start runs on one process and on two; logs stay."""
    done = check("2.10.0")
    assert done.returncode == 0, done.stdout + done.stderr
    line = "torch 2.10.0, Python 3.99.0: install ok, quick start ok, on two processes ok, tests ok"
    assert done.stdout.splitlines() == [line]
    place = tmp_path / "places" / "torch-2.10.0"
    assert (place / "constraints.txt").read_text() == "torch==2.10.0\ntorchvision==0.25.0\n"
    assert "--env active --extras quickstart,dev --constraints" in (place / "install.log").read_text()
    assert "processes 1: -m evaluations.quickstart --short" in (place / "quickstart_1.log").read_text()
    assert "processes 2: -m evaluations.quickstart --short" in (place / "quickstart_2.log").read_text()
    assert (
        "tests/engine" in (place / "tests.log").read_text() and "tests/tokenizer" in (place / "tests.log").read_text()
    )
    assert not (place / "env").exists()


def test_a_failure_is_said_and_ends_with_1(check):
    done = check("2.7.0", "2.8.0", FAILING="1")
    assert done.returncode == 1
    assert [line.count("FAILED") for line in done.stdout.splitlines()] == [1, 1]
    assert "tests FAILED(" in done.stdout and "tests.log)" in done.stdout


def test_what_is_not_of_the_script_stays(check, tmp_path):
    """An unknown version is refused before anything is made, a folder of somebody else before it is touched."""
    done = check("2.6.0")
    assert done.returncode == 1 and "choose from: 2.7.0" in done.stderr and not (tmp_path / "places").exists()
    other = tmp_path / "places" / "torch-2.7.0" / "env" / "thesis.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    done = check("2.7.0")
    assert done.returncode == 1 and "is there and not of this script" in done.stderr and other.read_text() == "mine"
