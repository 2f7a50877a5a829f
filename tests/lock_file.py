"""Updates requirements.lock: `python tests/lock_file.py`. It needs uv and access to a package index.

uv resolves pyproject.toml with all of its extras, for all platforms and all versions of Python that it allows. The lock
has a version and hashes of each package, but for torch and torchvision: their build depends on the driver of a machine,
so they stay the ranges of pyproject.toml, and what only they need is left out. No index is named: the reader's counts.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
RANGES = ("torch", "torchvision")  # packages that are not pinned
ARGUMENTS = (
    "pip", "compile", "--universal", "--no-emit-index-url", "--generate-hashes", "--all-extras", "--no-header",
    "--annotation-style", "split", "--quiet", "pyproject.toml",
)  # fmt: skip
HEADER = """\
# The versions and hashes of all packages that this project and its extras use, on all platforms.
# Made by: python tests/lock_file.py (uv {command})
# Use: bash env_install.sh --locked, with or without --uv; see docs/install.md.
# torch and torchvision stay ranges, and what only they need is left out: their build has to fit the driver.
"""


def project() -> dict:
    """The section `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement: str) -> str:
    """The name of a package as indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def blocks_of(text: str) -> dict[str, tuple[list[str], set[str]]]:
    """{package: (the lines of all its versions, the packages that need it)} of what uv prints."""
    blocks: dict[str, tuple[list[str], set[str]]] = {}
    for block in re.split(r"\n(?=[\w])", text.strip()):
        lines, users = blocks.setdefault(name_of(block), ([], set()))
        lines += [line for line in block.splitlines() if not line.lstrip().startswith("#")]
        comments = [line.strip(" #") for line in block.splitlines() if line.lstrip().startswith("#")]
        users |= {name_of(comment.removeprefix("via ")) for comment in comments if comment != "via"}
    return blocks


def needed(blocks: dict[str, tuple[list[str], set[str]]]) -> set[str]:
    """The packages that the project needs by another way than through torch and torchvision."""
    names = {project()["name"]}
    while True:
        more = {name for name, (_, users) in blocks.items() if users & names} - {*RANGES} - names
        if not more:
            return names - {project()["name"]}
        names |= more


def lock_of(text: str) -> str:
    """The lock file for what uv prints."""
    blocks = blocks_of(text)
    kept = needed(blocks)
    ranges = [line for line in project()["dependencies"] if name_of(line) in RANGES]
    pinned = [line for name in sorted(blocks) if name in kept for line in blocks[name][0]]
    return HEADER.format(command=" ".join(ARGUMENTS)) + "\n".join([*ranges, *pinned]) + "\n"


if __name__ == "__main__":
    uv = shutil.which("uv") or sys.exit("error: uv is needed; install it with: python -m pip install uv")
    lowest = project()["requires-python"].removeprefix(">=")
    done = subprocess.run(
        [uv, *ARGUMENTS, "--python-version", lowest], cwd=ROOT, check=True, capture_output=True, text=True
    )
    LOCK.write_text(lock_of(done.stdout), encoding="utf-8")
