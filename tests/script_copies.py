"""A copy of the shell scripts whose installer only says what it was asked, and stand-ins for programs."""

import shutil
from pathlib import Path

from script_modules import ROOT


def program(path: Path, text: str) -> Path:
    """Writes an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


def copy_scripts(root: Path) -> Path:
    """Fills a folder that is not there yet with what scripts need of the repository; returns it."""
    shutil.copytree(ROOT / "scripts", root / "scripts")
    for name in ("set_env_vars.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    program(root / "env_install.sh", 'echo "installs $*"')
    return root
