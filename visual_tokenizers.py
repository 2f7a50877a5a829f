"""The command `vt`: looks whether our packages are the ones that Python would import, then runs `evaluations.console`.

    vt --help                        after `pip install .` or `pip install -e .`
    python -m visual_tokenizers      the same in a checkout that is not installed

`engine`, `tokenizer`, `autoregressive` and `evaluations` are names that other projects use too. This module has a name
of its own, so that it is found even where one of them is not ours.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path

PACKAGES = ("engine", "tokenizer", "autoregressive", "evaluations")
HERE = Path(__file__).resolve().parent
REMEDY = "install visual-tokenizers into an environment of its own"


def collision() -> str | None:
    """The message about a package of another project in the place of one of ours; None where there is none."""
    for name in PACKAGES:
        problem = _hidden(name) or _overwritten(name)
        if problem is not None:
            return problem
    return None


def _hidden(name: str) -> str | None:
    """Whether Python finds another package of this name first."""
    spec = importlib.util.find_spec(name)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    found = [Path(place).resolve() for place in places if place]
    ours = HERE / name
    if not found:
        return f"our package {name!r} is missing: it should be {ours}; install visual-tokenizers again"
    if ours in (found[0], found[0].parent):
        return None
    return (
        f"another package called {name!r} hides ours: {found[0]} is found before {ours}. Take its folder out of "
        f"PYTHONPATH, uninstall it, or {REMEDY}"
    )


def _overwritten(name: str) -> str | None:
    """Whether another package has written its own files over ours, which installers do without a word."""
    file = f"{name}/__init__.py"
    for record in HERE.glob("visual_tokenizers-*.dist-info/RECORD"):
        noted = _files_of(record).get(file)
        digest = base64.urlsafe_b64encode(hashlib.sha256((HERE / file).read_bytes()).digest()).decode().rstrip("=")
        if noted not in (None, f"sha256={digest}"):
            others = [other.parent.name for other in HERE.glob("*.dist-info/RECORD") if file in _files_of(other)]
            culprits = ", ".join(other.removesuffix(".dist-info") for other in others if other != record.parent.name)
            return (
                f"{HERE / file} is not ours any more: {culprits or 'something'} has written over it. Uninstall that "
                f"and install visual-tokenizers again, or {REMEDY}"
            )
    return None


@lru_cache  # ours is asked for once per package
def _files_of(record: Path) -> dict[str, str]:
    """{file: hash} of what an installer noted of a package."""
    with record.open(encoding="utf-8", newline="") as lines:
        return {row[0]: row[1] for row in csv.reader(lines) if len(row) > 1}


def main() -> None:
    """Runs `vt` with the arguments of the command line."""
    problem = collision()
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2)

    from evaluations.console import main as run

    run()


if __name__ == "__main__":
    main()
