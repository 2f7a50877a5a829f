"""Updates what docs/costs.md shows of the estimator: `python tests/estimates.py`."""
# ruff: noqa: E402

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # for the call as a script

from evaluations import estimate

PAGE = ROOT / "docs" / "costs.md"
SHOWN = re.compile(r"(```bash\npython -m evaluations\.estimate (.*?)\n```\n\n```\n)(.*?)(```)", re.DOTALL)


def commands(text: str) -> list[tuple[list[str], str]]:
    """(arguments, what the page shows) of every command with its output."""
    return [(arguments_of(shown[2]), shown[3]) for shown in SHOWN.finditer(text)]


def arguments_of(command: str) -> list[str]:
    return shlex.split(command.replace("\\\n", " "))


def output_of(arguments: list[str]) -> str:
    """What the estimator prints, called from the root of the project."""
    before, sys.argv = sys.argv, ["estimate", *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.chdir(ROOT):
            estimate.main()
    finally:
        sys.argv = before
    return output.getvalue()


def updated(text: str) -> str:
    """The page as it should be."""
    return SHOWN.sub(lambda shown: f"{shown[1]}{output_of(arguments_of(shown[2]))}{shown[4]}", text)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
