"""Every module with a `main`, found in the packages themselves, and what a call of one says that refuses."""

import importlib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "tokenizer", "autoregressive", "evaluations")
LAUNCHER = "engine.launcher"  # starts the command behind its `-m` in several processes; it has no work of its own


def entry_modules() -> set[str]:
    """The names for `python -m`."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    return names - {LAUNCHER}


def main_of(name: str) -> Callable[[], None]:
    """The `main` of an entry."""
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):  # `python -m` of a package runs its __main__
        module = importlib.import_module(f"{name}.__main__")
    return module.main


def refused(result: tuple[int, str, str]) -> str:
    """The error of a call that ended as it should for bad input; `result` is what the fixture `entry` returns."""
    code, out, err = result
    assert code == 2 and "Traceback" not in err and "Traceback" not in out, (code, err)
    return err
