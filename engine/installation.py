"""Where this installation has its files, and which version of the code it is: a checkout, or a wheel.

A checkout is the repository, run where it lies or installed with `pip install -e`. A wheel keeps the recipes and the
shell scripts inside the package `engine`, because top-level folders called `configs` and `scripts` would be anybody's.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

DISTRIBUTION = "visual-tokenizers"
PACKAGE = Path(__file__).parent
IS_CHECKOUT = not (PACKAGE / "configs").is_dir()
CODE = PACKAGE.parent  # the folder in which the packages lie
ROOT = CODE if IS_CHECKOUT else PACKAGE  # the folder of configs/ and scripts/
CONFIGS = ROOT / "configs"
SCRIPTS = ROOT / "scripts"
PYTHON_VARIABLE = "VT_PYTHON"  # of the environment: the Python that scripts/launch.sh takes
# Environment variables that ask scripts/launch.sh for processes per machine; the first that is set counts.
REQUESTED_PROCESSES = ("NPROC_PER_NODE", "gpus", "GPUS")
UNKNOWN = "unknown"


def launch_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module on the processes that the environment asks for; see `launch_environment`."""
    return ["bash", str(SCRIPTS / "launch.sh"), "-m", module, *arguments]


def launch_environment() -> dict[str, str]:
    """This process's environment, with which `launch_command` stays with the Python of this process."""
    return {**os.environ, PYTHON_VARIABLE: sys.executable}


def install_hint(*extras: str) -> str:
    """The command that installs optional groups of packages: the checkout's, or pip's with the packages by name."""
    if IS_CHECKOUT:
        return f"bash env_install.sh --extras {','.join(extras)}"
    try:
        groups = [line.split(";") for line in requires(DISTRIBUTION) or () if ";" in line]
    except PackageNotFoundError:  # a wheel that was unpacked by hand
        return f"pip install the packages of the extras {', '.join(extras)} in pyproject.toml"
    names = [name.strip() for name, marker in groups if any(f'extra == "{extra}"' in marker for extra in extras)]
    return shlex.join(["pip", "install", *dict.fromkeys(names)])


def torch_hint() -> str:
    """The command that installs a build of torch for the GPUs of this machine."""
    return "bash env_install.sh" if IS_CHECKOUT else "pip install --force-reinstall torch torchvision"


def variable_hint() -> str:
    """What sets an environment variable that a recipe needs. Only a checkout has a file with defaults."""
    return "source set_env_vars.sh or export it" if IS_CHECKOUT else "export it"


def commit() -> str:
    """The commit of the code that runs: that of the checkout, or the one that pip notes when it installs from git.

    `unknown` where nobody tells, as for a wheel from a file.
    """
    if IS_CHECKOUT:
        return _git("rev-parse", "HEAD")
    return _installed_from().get("vcs_info", {}).get("commit_id", UNKNOWN)


def is_changed() -> bool | str:
    """Whether files of the checkout differ from its commit; `unknown` where there is no checkout."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return changed if changed == UNKNOWN else bool(changed)


def _git(*arguments: str) -> str:
    """Runs git in the checkout and returns its output; `unknown` where the code is not in a repository of its own."""
    if not (CODE / ".git").exists():  # an environment inside a repository of the user's has nothing to do with it
        return UNKNOWN
    try:
        command = ["git", "-C", str(CODE), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    return result.stdout.strip() if result.returncode == 0 else UNKNOWN


@lru_cache
def _installed_from() -> dict:
    """What pip has noted of the place that this wheel came from; empty where it noted nothing."""
    try:
        noted = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:  # unpacked by hand
        noted = None
    return json.loads(noted) if noted else {}
