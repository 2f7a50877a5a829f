"""The command `vt`: looks whether our packages are the ones that Python would import, then runs `evaluations.console`.

    vt --help                        after `pip install .` or `pip install -e .`
    python -m visual_tokenizers      the same in a checkout that is not installed

`engine`, `tokenizer`, `autoregressive` and `evaluations` are names that other projects use too. This module has a name
of its own, so that it is found even where one of them is not ours.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("engine", "tokenizer", "autoregressive", "evaluations")
HERE = Path(__file__).resolve().parent


def collision() -> str | None:
    """The message about a package of another project that hides one of ours; None where there is none."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        found = [Path(place).resolve() for place in places if place]
        ours = HERE / name
        if not found:
            return f"our package {name!r} is missing: it should be {ours}; install visual-tokenizers again"
        if ours not in (found[0], found[0].parent):
            return (
                f"another package called {name!r} hides ours: {found[0]} is found before {ours}. Take its folder "
                "out of PYTHONPATH, uninstall it, or install visual-tokenizers into an environment of its own"
            )
    return None


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
