"""Where this installation has its files, and under which version: a checkout, or a wheel.

A checkout is the repository, run where it lies or installed with `pip install -e`. A wheel keeps the recipes and the
shell scripts inside the package `engine`, because top-level folders called `configs` and `scripts` would be anybody's.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
IS_CHECKOUT = not (PACKAGE / "configs").is_dir()
CODE = PACKAGE.parent  # the folder in which the packages lie
ROOT = CODE if IS_CHECKOUT else PACKAGE  # the folder of configs/ and scripts/
CONFIGS = ROOT / "configs"
SCRIPTS = ROOT / "scripts"
