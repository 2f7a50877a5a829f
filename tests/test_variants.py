"""Variants stay in their rooms: who trains, loads, converts and measures does not know a component's name.

Names come from the registries. Syntax trees are searched for a string equal to a name, an attribute of that name (such
as `config.model.wetok`), and `isinstance` of a component's class, outside of the component's own file, the published
layout of its family, and the registries.
"""

import ast
from pathlib import Path

import pytest

from autoregressive.models.heads import HEADS
from autoregressive.models.registry import GENERATORS
from engine.data.sources import SOURCES
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.protocols.registry import PROTOCOLS
from tokenizer.discriminators.registry import DISCRIMINATORS
from tokenizer.losses.perceptual import PERCEPTUAL
from tokenizer.losses.semantic import TEACHERS
from tokenizer.models.registry import MODELS, QUANTIZERS

ROOT = Path(__file__).parents[1]
SEARCHED = ("tokenizer/train.py", "tokenizer/training", "tokenizer/loading.py", "tokenizer/convert.py", "evaluations",
            "autoregressive")  # fmt: skip

# Components whose name is also a section of a config: nobody else reads that section.
WITH_SECTIONS = (MODELS, QUANTIZERS, DISCRIMINATORS, TEACHERS, GENERATORS, HEADS)
# Image sources, networks of metrics and protocols have none; `folder` is also the noun for a directory.
OTHERS = (PERCEPTUAL, SOURCES, EXTRACTORS, PROTOCOLS)
SECTIONS = {name for registry in WITH_SECTIONS for name in registry}
NAMES = SECTIONS | {name for registry in OTHERS for name in registry}
CLASSES = {
    component.__name__
    for registry in (*WITH_SECTIONS, *OTHERS)
    for component in registry.values()
    if isinstance(component, type)
}

REGISTRIES = {
    "autoregressive/models/registry.py",
    "autoregressive/models/heads.py",
    "evaluations/metrics/extractors.py",
    "evaluations/protocols/registry.py",
    "evaluations/protocols/presets.py",  # whole protocols by name: each names the extractor of published numbers
}
# A component's own file, or that of the published files of its family.
ROOMS = {
    "autoregressive/published.py": {"gpt", "adaln_gpt", "next_scale", "rar", "factorized"},
    "evaluations/metrics/clip.py": {"clip_l336"},
    "evaluations/metrics/dinov2.py": {"dinov2_l"},
    "evaluations/metrics/inception.py": {"inception"},
    "evaluations/protocols/adm.py": {"adm", "lpips"},
    "evaluations/protocols/ibq.py": {"ibq"},
    "evaluations/protocols/var.py": {"var"},
    "evaluations/protocols/wetok.py": {"wetok"},
}
# What else is allowed, and why.
ALLOWED = {
    ("evaluations/run_layout.py", "gpt"): "name of a folder of the quick start",
    ("evaluations/pipelines/quickstart.py", "mnist5k"): "value of the published flag --data, and a folder's name",
    ("evaluations/pipelines/quickstart.py", "twemoji"): "value of the published flag --data, and a folder's name",
    ("evaluations/pipelines/quickstart.py", "text"): "value of the published flag --data, and a folder's name",
    ("evaluations/pipelines/quickstart.py", "fsq"): "value of the published flag --system, and a folder's name",
    ("evaluations/pipelines/quickstart.py", "rvq"): "value of the published flag --system, and a folder's name",
    ("evaluations/pipelines/quickstart.py", "rar"): "value of the published flag --system, and a folder's name",
    ("evaluations/pipelines/quickstart.py", "maskgit"): "value of the published flag --system, and a folder's name",
    ("evaluations/pipelines/quickstart.py", "var"): "value of the published flag --system, and a folder's name",
    ("evaluations/pipelines/quickstart.py", "mcq"): "value of the published flag --system, and a folder's name",
    ("evaluations/pipelines/quickstart.py", "wetok"): "value of the published flag --system, and a folder's name",
    ("autoregressive/models/weight_layouts.py", "plain"): "name of a layout of weights, not the head",
    ("evaluations/sample_stream.py", "gpt"): "key of result files: the network that generated",
    ("evaluations/jobs/val_loss.py", "gpt"): "key of result files: the network that is measured",
    ("evaluations/results.py", "gpt"): "key of result files: networks may differ between results",
    ("evaluations/probes/features.py", "gpt"): "value of network.source and key network.gpt of published configs",
    ("evaluations/metrics/registry.py", "lpips"): "name of a metric",
    ("evaluations/image_sets.py", "folder"): "kind of a path in the facts of a result, not an image source",
}  # fmt: skip


def findings(source: str) -> list[tuple[int, str, str]]:
    """(line, what, name) of every mention of a component in a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in NAMES:
            found.append((node.lineno, "string", node.value))
        elif isinstance(node, ast.Attribute) and node.attr in SECTIONS:
            found.append((node.lineno, "attribute", node.attr))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            asked = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            found += [(node.lineno, "isinstance", name) for name in sorted(asked & CLASSES)]
    return found


def searched_files() -> list[Path]:
    paths = [ROOT / name for name in SEARCHED]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def test_no_component_is_known_outside_of_its_room():
    problems = []
    used = set()
    for path in searched_files():
        name = str(path.relative_to(ROOT))
        if name in REGISTRIES:
            continue
        for line, what, component in findings(path.read_text(encoding="utf-8")):
            if component in ROOMS.get(name, ()):
                continue
            used.add((name, component))
            if (name, component) not in ALLOWED:
                problems.append(f"{name}:{line}: {what} {component!r}")
    assert not problems, "\n".join(problems)
    assert used == ALLOWED.keys(), "an exception that nobody needs any more"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('if config.model.name == "wetok": pass', ("string", "wetok")),
        ("x = config.model.hybrid.grid", ("attribute", "hybrid")),
        ("isinstance(network, (GPT, int))", ("isinstance", "GPT")),
        ("isinstance(tokenizer, WeTokTokenizer)", ("isinstance", "WeTokTokenizer")),
    ],
)
def test_a_mention_is_found(source, expected):
    """The search above can fail."""
    assert expected in [(what, name) for _, what, name in findings(source)]


def test_ordinary_code_is_not_found():
    assert findings('folder = run.folder\nlabel = f"wetok {x}"\nisinstance(x, int)') == []
