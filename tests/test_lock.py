"""requirements.lock covers pyproject.toml with all extras, and names neither an index nor a path."""

import ast
import re
import sys

import lock_file
from lock_file import LOCK, RANGES, ROOT, blocks_of, name_of, needed, project
from packaging.requirements import Requirement

TEXT = LOCK.read_text(encoding="utf-8")
LINES = [line for line in TEXT.splitlines() if not line.startswith(("#", " "))]
PINNED = [line.removesuffix(" \\") for line in LINES if name_of(line) not in RANGES]
REQUIREMENTS = [
    *project()["dependencies"],
    *(line for extra in project()["optional-dependencies"].values() for line in extra),
]
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}  # packages that are imported by another name
CALL = "run: python tests/lock_file.py"
PRINTED_BY_UV = """\
mpmath==1
    # via sympy
numpy==2 ; python_version < '3.12' \\
    --hash=sha256:aa
    # via
    #   ours (pyproject.toml)
    #   torch
numpy==3 ; python_version >= '3.12' \\
    --hash=sha256:bb
    # via torch
pyyaml==6
    # via timm
sympy==1
    # via torch
timm==1
    # via ours (pyproject.toml)
torch==9
    # via
    #   ours (pyproject.toml)
    #   timm
"""


def test_nothing_of_the_machine_is_in_it():
    """No index, no address, no absolute path, no option."""
    assert "://" not in TEXT and not re.search(r"(^|[\s=@])/\w", TEXT, re.MULTILINE)
    assert not re.search(r"^\s*-(?!-hash=sha256:[0-9a-f]{64})", TEXT, re.MULTILINE)


def test_every_dependency_and_extra_is_in_it():
    """In a version that pyproject.toml allows, for every Python and platform."""
    versions: dict[str, list[str]] = {}
    for line in PINNED:
        versions.setdefault(name_of(line), []).append(re.search(r"==([^ ;]+)", line)[1])
    for requirement in map(Requirement, REQUIREMENTS):
        if requirement.name not in RANGES:
            assert versions.get(name_of(requirement.name)), f"{requirement} is missing; {CALL}"
            for version in versions[name_of(requirement.name)]:
                assert requirement.specifier.contains(version), f"{requirement}, but {version}; {CALL}"


def imported() -> set[str]:
    """The names of all packages that the code imports, but for its own and Python's."""
    packages = {"engine", "tokenizer", "autoregressive", "evaluations"}
    names = set()
    for file in [
        ROOT / "visual_tokenizers.py",
        *(path for package in packages for path in (ROOT / package).rglob("*.py")),
    ]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.partition(".")[0])
    return names - packages - {"visual_tokenizers"} - sys.stdlib_module_names


def test_every_package_that_is_imported_is_listed():
    """By itself, and not because another package happens to need it."""
    listed = {name_of(line) for line in REQUIREMENTS}
    missing = {name for name in imported() if name_of(DISTRIBUTIONS.get(name, name)) not in listed}
    assert "huggingface_hub" in imported() and not missing


def test_torch_stays_a_range():
    """That of pyproject.toml. What torch alone needs, such as the libraries of CUDA, comes with its build."""
    ranges = [line for line in LINES if name_of(line) in RANGES]
    assert ranges == [line for line in project()["dependencies"] if name_of(line) in RANGES]
    assert not [line for line in LINES if line.startswith(("nvidia-", "triton"))]


def test_every_version_has_its_hashes():
    blocks = re.split(r"\n(?=\w)", TEXT.partition("\ntorchvision")[2])[1:]
    assert len(blocks) == len(PINNED) > 40 and all("--hash=sha256:" in block for block in blocks)


def test_the_generator_leaves_out_what_only_torch_needs(monkeypatch):
    """Also at second hand; what something else needs too stays."""
    monkeypatch.setattr(lock_file, "project", lambda: {"name": "ours"})
    blocks = blocks_of(PRINTED_BY_UV)
    assert needed(blocks) == {"numpy", "timm", "pyyaml"}
    assert [line for line in blocks["numpy"][0] if "==" in line] == [
        "numpy==2 ; python_version < '3.12' \\", "numpy==3 ; python_version >= '3.12' \\",
    ]  # fmt: skip
