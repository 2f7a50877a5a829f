"""env_install.sh takes a build of PyTorch that the driver of the machine can run, or says why there is none."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [line.split("\t") for line in (ROOT / "scripts" / "torch_builds.tsv").read_text().splitlines()]
BUILDS = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]

# A python of an environment in which torch is missing until pip has run; pip only says what it was asked for.
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m pip") shift 2; echo "pip $*"
        for file in "$@"; do case "$file" in */build.txt | */locked.txt) cat "$file" ;; esac; done
        touch "{marker}" ;;
    "-m venv") exit 1 ;;
    "- ") cat >/dev/null ;;
    "- "*/pyproject.toml) exec {real} "$@" ;;
    "- "*) cat >/dev/null; [ -e "{marker}" ] || echo "torch>=2.7" ;;
    *) exec {real} "$@" ;;
esac
"""


# The same of uv, which shows all files of versions that it is given.
UV = """#!/bin/sh
echo "uv $*"; for file in "$@"; do case "$file" in */build.txt | */locked.txt) cat "$file" ;; esac; done
touch "{marker}"
"""
NO_DRIVER = pytest.mark.skipif(
    shutil.which("nvidia-smi", path="/usr/bin:/bin") is not None, reason="the machine has a real driver"
)


@pytest.fixture
def install(tmp_path):
    """`install(driver, *arguments)` in a copy whose environment and nvidia-smi are fakes; what it prints."""
    (tmp_path / "scripts").mkdir()
    for name in (
        "env_install.sh",
        "pyproject.toml",
        "requirements.lock",
        "scripts/common.sh",
        "scripts/torch_builds.tsv",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    programs = tmp_path / "env" / "bin"
    programs.mkdir(parents=True)

    def call(driver: str | None, *arguments: str, uv: bool = False, **variables: str) -> str:
        marker = tmp_path / "installed"
        marker.unlink(missing_ok=True)
        (tmp_path / "env" / ".visual-tokenizers-checked").unlink(missing_ok=True)
        scripts = {"python": PYTHON.format(marker=marker, real=sys.executable)}
        if driver is not None:
            scripts["nvidia-smi"] = f"#!/bin/sh\necho {driver}\necho {driver}\n"
        if uv:
            scripts["uv"] = UV.format(marker=marker)
        for name, text in scripts.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "VIRTUAL_ENV": str(tmp_path / "env"), "HOME": str(tmp_path)}
        environment |= variables
        command = ["bash", "env_install.sh", "--env", "active", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


@NO_DRIVER
def test_without_a_driver_nothing_is_chosen(install):
    assert "build.txt" not in install(None)


def test_a_new_driver_takes_what_pip_takes(install):
    for driver in ("580.65.06", "590.10"):
        printed = install(driver)
        assert "build.txt" not in printed and "cannot run" not in printed


@pytest.mark.parametrize("driver", ["525.60.13", "525.125.06", "535.104.05", "570.86.10"])
def test_an_older_driver_gets_the_newest_build_that_it_can_run(install, driver):
    """The clusters that have CUDA 12 drivers: the newest default wheel needs CUDA 13."""
    printed = install(driver)
    assert f"The driver {driver} of the GPUs here cannot run the newest PyTorch" in printed
    assert "torch==2.10.0\ntorchvision==0.25.0\n" in printed and "built for CUDA 12.8" in printed


def test_a_driver_that_is_too_old_for_all_is_told(install):
    printed = install("470.82.01")
    assert "too old for every build" in printed and "--torch-index" in printed and "build.txt" not in printed


def test_a_choice_of_the_user_stands(install, tmp_path):
    assert "build.txt" not in install("535.104.05", "--torch-index", "https://example.org/cpu")
    (tmp_path / "mine.txt").write_text("torch==2.8.0\n")
    assert "build.txt" not in install("535.104.05", "--constraints", str(tmp_path / "mine.txt"))


def test_the_builds_are_in_order_and_in_the_documents():
    """The lowest version of pyproject.toml, that of CI, and the newest; docs/versions.md has a row for each."""
    versions = [tuple(map(int, build["torch"].split("."))) for build in BUILDS]
    assert versions == sorted(versions)
    lowest = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert BUILDS[0]["torch"].startswith(lowest)
    assert f"torch=={BUILDS[-2]['torch']}" in (ROOT / "constraints-ci.txt").read_text()
    page = (ROOT / "docs" / "versions.md").read_text()
    for build in BUILDS:
        assert re.search(
            rf"^\| {build['torch']} \| {build['torchvision']} \| {build['cuda']} \| {build['driver']} \|", page, re.M
        )


# ------------------------------------------------------------------------------------------------ uv, lock, CPUs
def test_uv_installs_only_where_it_is_asked_for(install):
    """Into the same environment, with the same lists of packages."""
    assert "uv " not in install("590.10", uv=True)
    printed = install("535.104.05", "--uv", uv=True)
    assert "uv pip install --python" in printed and "pip --disable" not in printed
    assert "torch==2.10.0\ntorchvision==0.25.0\n" in printed, "the driver decides here too"


def test_a_lock_leaves_torch_to_the_driver(install):
    """Regression: torch-fidelity in a file of versions was taken for a choice of torch."""
    assert "torch==2.10.0\ntorchvision==0.25.0\n" in install("535.104.05", "--locked")


def test_a_lock_holds_all_packages_but_torch(install):
    """pip gets versions; uv gets the hashes too."""
    printed = install("590.10", "--locked")
    assert re.search(r"^numpy==[\d.]+ ;", printed, re.MULTILINE) and "--hash" not in printed
    assert not re.search("^torch(vision)?[<=>]", printed.partition("pip install")[2], re.MULTILINE)
    printed = install("590.10", "--uv", "--locked", uv=True)
    assert re.search(r"^numpy==[\d.]+ ; .* \\\n +--hash=sha256:\w+", printed, re.MULTILINE)
    assert "setuptools" not in printed
    hashes = re.findall(r"(.*)\n +--hash", printed)
    assert len(hashes) > 100 and all(line.endswith("\\") for line in hashes), "each belongs to the line before it"


@NO_DRIVER
def test_without_a_gpu_a_smaller_build_is_pointed_to(install):
    """Not where a build was chosen."""
    assert "saves about 4 GB" in install(None) and "UV_TORCH_BACKEND=cpu" in install(None, "--uv", uv=True)
    assert "saves about" not in install(None, "--torch-index", "https://example.org/cpu")
    assert "saves about" not in install(None, "--uv", uv=True, UV_TORCH_BACKEND="cpu")
    assert "saves about" not in install("590.10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--uv"], "there is no program uv"),
        (
            ["--locked", "--constraints", "pyproject.toml"],
            "--locked and --constraints (or CONSTRAINTS) both name versions",
        ),
    ],
)
def test_options_that_cannot_be_followed_are_refused(arguments, message, tmp_path):
    """Before anything is installed."""
    command = ["bash", str(ROOT / "env_install.sh"), "--env", "active", *arguments]
    variables = {"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and message in done.stderr and done.stdout == ""
