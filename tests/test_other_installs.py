"""Dockerfile and conda recipe agree with the project. Neither is built here; hadolint is run where it is found."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from lock_file import name_of, project
from packaging.requirements import Requirement

import engine

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.findall(
    r"^([A-Z]+) (.*(?:\\\n.*)*)$", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE), re.MULTILINE
)
CONDA = (ROOT / "conda" / "meta.yaml").read_text(encoding="utf-8")
CONDA_NAMES = {
    "torch": "pytorch",
    "huggingface_hub": "huggingface_hub",
}  # where conda-forge calls a package by another name


# ------------------------------------------------------------------------------------------------ Docker
def copied() -> list[str]:
    """What the Dockerfile copies from the checkout."""
    return [source for name, words in INSTRUCTIONS if name == "COPY" for source in words.split()[:-1]]


def test_the_image_gets_all_that_an_installation_needs():
    """What setup.py builds from and what env_install.sh reads; each is there, and .dockerignore lets it through."""
    needed = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "visual_tokenizers.py", "configs", "scripts"}
    needed |= {"engine", "tokenizer", "autoregressive", "evaluations", "env_install.sh", "requirements.lock"}
    assert needed <= set(copied()) and all((ROOT / source).exists() for source in copied())
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored and {Path(source).parts[0] for source in copied()} == let_through


def test_the_image_runs_vt_and_no_root():
    assert INSTRUCTIONS[0][0] == "FROM" and {name for name, _ in INSTRUCTIONS} <= {
        "FROM", "ARG", "ENV", "WORKDIR", "COPY", "SHELL", "RUN", "USER", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    last = dict(INSTRUCTIONS)
    assert last["ENTRYPOINT"] == '["vt"]' and int(last["USER"]) > 0
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)
    assert set(extras.split(",")) <= set(project()["optional-dependencies"])


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="there is no hadolint")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------------------------------ conda
def test_the_conda_recipe_has_the_requirements_of_pyproject():
    """Names, ranges, lowest Python, version, and the command."""
    recipe = yaml.safe_load(re.sub(r"\{\{ *(\w+) *\}\}", r"\1", CONDA))
    assert recipe["package"] == {"name": project()["name"], "version": engine.__version__}
    expected = [f"python {project()['requires-python']}"]
    for line in project()["dependencies"]:
        requirement = Requirement(line)
        ranges = line.removeprefix(requirement.name)
        expected.append(f"{CONDA_NAMES.get(requirement.name, name_of(requirement.name))} {ranges}")
    assert recipe["requirements"]["run"] == expected
    (command,) = recipe["build"]["entry_points"]
    assert command == "vt = visual_tokenizers:main"
    assert all(words.split()[0] == "vt" for words in recipe["test"]["commands"])
