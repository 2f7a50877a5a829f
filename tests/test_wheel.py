"""A wheel works without the checkout, from any folder; and `vt` says where another project's package is in the way."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from engine.installation import REQUESTED_PROCESSES

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "tokenizer", "autoregressive", "evaluations")
SCRIPTS = ("launch.sh", "common.sh")  # what a wheel has of scripts/
BUILT_FROM = (
    *PACKAGES,
    "configs",
    "scripts",
    "pyproject.toml",
    "setup.py",
    "visual_tokenizers.py",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "copy")
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "./copy"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel; all other packages are those of the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python")]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True, capture_output=True)
    return folder


@pytest.fixture
def run(environment, tmp_path):
    """`run(program, *arguments, **variables)` of the environment, in an empty folder; the finished process."""
    of_others = ("PYTHON", "VIRTUAL_ENV", "TORCH", *REQUESTED_PROCESSES)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(of_others)}

    def call(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        command = [str(environment / "bin" / program), *arguments]
        environment_of_call = {**kept, **variables}
        return subprocess.run(
            command, cwd=tmp_path, env=environment_of_call, capture_output=True, text=True, check=False
        )

    return call


# A training that a process has done in a second.
SHORT = ("loop.steps=1", "loop.eval_every=0", "model.quantizer.vq.warmup_steps=0", "model.quantizer.vq.init=random")


# ------------------------------------------------------------------------------------------------ the wheel
def files_below(folder: Path) -> set[str]:
    """All files of a folder but those that Python writes, relative to the folder around it."""
    files = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return {str(path.relative_to(folder.parent)) for path in files}


def test_a_wheel_has_every_file_of_the_packages(wheel):
    """Data beside the code too, the recipes, the launcher; and nothing else, no top-level `configs` either."""
    expected = set().union(*(files_below(ROOT / name) for name in PACKAGES))
    expected |= {f"engine/{name}" for name in files_below(ROOT / "configs")}
    expected |= {f"engine/scripts/{name}" for name in SCRIPTS} | {"visual_tokenizers.py"}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


def test_vt_starts_without_torch(run):
    """The overview, and where a report of trouble should begin."""
    done = run("vt", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "\n  sample " in done.stdout, done.stderr
    assert "evaluations.console" in done.stderr and " torch\n" not in done.stderr
    version = run("vt", "--version").stdout
    assert version.startswith("visual-tokenizers 0.") and "site-packages)" in version


def test_a_training_from_another_folder(run, tmp_path):
    """By the name of a recipe. The record tells the command and the version, and no commit of a foreign repository."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    overrides = [*SHORT, "loop.run_dir=mine"]
    done = run("vt", "train", "quickstart/tokenizer", *overrides)
    assert done.returncode == 0, done.stderr
    assert "quickstart/tokenizer trains a tokenizer" in done.stderr
    (start,) = map(json.loads, (tmp_path / "mine/starts.jsonl").read_text().splitlines())
    assert start["command"] == ["vt train", "--config", "quickstart/tokenizer", *overrides]
    assert start["program"].startswith("0.") and start["git"] == {"sha": "unknown", "dirty": "unknown"}


def test_the_quick_start_knows_its_recipes_in_any_folder(run):
    """It looks for all that it needs, and would start its stages with this environment."""
    done = run("python", "-m", "evaluations.quickstart", "--check")
    assert (done.returncode, done.stdout[:6]) == (0, "ready:"), done.stderr


def test_missing_packages_are_asked_for_by_name(run):
    """There is no env_install.sh beside a wheel, and no index need have this project."""
    done = run("python", "-c", "from engine.installation import install_hint; print(install_hint('parquet', 'shards'))")
    assert done.stdout == "pip install 'webdataset<2,>=1.0' 'pyarrow>=17'\n", done.stderr


def test_several_processes_start_from_a_wheel(run, environment):
    """With the Python of the environment, although it has no torchrun."""
    (launcher,) = environment.glob("lib/python*/site-packages/engine/scripts/launch.sh")
    python = str(environment / "bin/python")
    done = run("python", "-c", f"import os; os.execvp('bash', ['bash', '{launcher}', '-m', 'this'])",
               GPUS="2", VT_PYTHON=python)  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("Beautiful is better than ugly.") == 2, done.stderr


@pytest.mark.slow
def test_the_quick_start_runs_from_a_wheel(run, tmp_path):
    done = run("python", "-m", "evaluations.quickstart", "--short")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/quickstart-short/report.html").is_file()


@pytest.mark.slow
def test_vt_trains_on_two_processes_from_a_wheel(run, tmp_path):
    done = run("vt", "train", "quickstart/tokenizer", *SHORT, "loop.run_dir=mine", GPUS="2")
    assert done.returncode == 0, done.stderr
    (start,) = map(json.loads, (tmp_path / "mine/starts.jsonl").read_text().splitlines())
    assert start["processes"] == 2


# ------------------------------------------------------------------------------------------------ other packages
def packages_in(folder: Path, names: tuple[str, ...] = PACKAGES) -> Path:
    """A folder with empty packages."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text('"""Ours."""\n')
    return folder


def started(folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """`vt` of a folder, whose packages need not do anything."""
    shutil.copy(ROOT / "visual_tokenizers.py", folder)
    command = [
        sys.executable,
        "-I",
        "-c",
        "import sys; sys.path[:0] = sys.argv[1:]; import visual_tokenizers as vt; vt.main()",
    ]
    places = [*variables.values(), str(folder)]
    return subprocess.run([*command, *places], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_hides_ours_is_named(name, tmp_path):
    """Of any of our names, also that of the package which has the command; with or without an __init__.py."""
    other = packages_in(tmp_path / "other", (name,))
    done = started(packages_in(tmp_path / "site"), first=str(other))
    assert done.returncode == 2 and f"another package called '{name}' hides ours: {other / name}" in done.stderr
    (other / name / "__init__.py").unlink()
    assert "hides ours" not in started(tmp_path / "site", first=str(other)).stderr, "ours wins over a bare folder"


def test_a_missing_package_is_named(tmp_path):
    done = started(packages_in(tmp_path, PACKAGES[1:]))
    assert done.returncode == 2 and "our package 'engine' is missing" in done.stderr


def test_a_package_that_was_written_over_ours_is_named(tmp_path):
    """Two packages with a folder of the same name in one environment: the second installer replaces files."""
    site = packages_in(tmp_path)
    for name in ("visual_tokenizers-0.1.0", "game_engine-1.0"):
        (site / f"{name}.dist-info").mkdir()
        (site / f"{name}.dist-info/RECORD").write_text("engine/__init__.py,sha256=abc,12\n")
    done = started(site)
    assert done.returncode == 2 and "game_engine-1.0 has written over it" in done.stderr
