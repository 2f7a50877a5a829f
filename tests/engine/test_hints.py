"""What an error tells to run is there: a wheel has neither env_install.sh nor the files of a checkout."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mains import PACKAGES, ROOT

from engine import installation
from engine.devices import gpu_failure
from engine.installation import install_hint, torch_hint, variable_hint

OF_A_CHECKOUT = ("env_install.sh", "set_env_vars.sh", "bash scripts/")
DECIDES = "engine/installation.py"  # knows whether this is a checkout
WRITES_DOCS = "evaluations/benchmarks/page.py"  # a page of the docs, which only a checkout has
BEFORE_IMPORTS = "visual_tokenizers.py"


def texts_of(file: Path) -> Iterator[str]:
    """The texts of a module that a user may see while it runs: all but docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.value


def test_only_one_module_names_files_of_a_checkout():
    """All others ask it."""
    files = [ROOT / BEFORE_IMPORTS, *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    naming = {
        str(file.relative_to(ROOT))
        for file in files
        if any(name in text for text in texts_of(file) for name in OF_A_CHECKOUT)
    }
    assert naming == {DECIDES, WRITES_DOCS}


@pytest.mark.parametrize("is_checkout", [True, False])
def test_every_hint_fits_the_installation(is_checkout, monkeypatch):
    monkeypatch.setattr(installation, "IS_CHECKOUT", is_checkout)
    monkeypatch.setattr(installation, "requires", lambda name: ['a>=1; extra == "x"', 'b; extra == "y"', "c"])
    hints = [install_hint("x"), torch_hint(), variable_hint()]
    if is_checkout:
        assert hints == ["bash env_install.sh --extras x", "bash env_install.sh", "source set_env_vars.sh or export it"]
    else:
        assert hints == ["pip install 'a>=1'", "pip install --force-reinstall torch torchvision", "export it"]

    # Where a torch for CPUs finds no GPU.
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, None)
    assert gpu_failure().endswith(f"is a build for CPUs; install one for GPUs ({hints[1]})")
