"""The command in the header of a recipe fits into its GPUs by the project's own `--plan`, and says what it costs."""

import functools
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from ranks import aside
from recipe_plans import command_of, cost_of, plan_of, planned_recipes
from recipes import CONFIGS, load, name_of
from recipes_table import header_of

from engine.memory_plan import BUDGET
from tokenizer.training.config import TokenizerTrainConfig

PATHS = planned_recipes()
NAMED = pytest.mark.parametrize("path", PATHS, ids=name_of)
# A plan takes seconds, so the suite has one of each way to fit; `-m slow` has all.
QUICK = ["gpt/GPT_XXL256.yaml", "gpt/GPT_wetok_B.yaml", "wetok/WeTok_f16_imagenet.yaml"]
load = functools.cache(load)


@pytest.fixture(autouse=True)
def imagenet(monkeypatch):
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")


@functools.cache
def distinct_recipes() -> list[Path]:
    """One recipe for each network that is trained in its own way: those that differ in data and steps count once."""
    by_network: dict[str, Path] = {}
    for path in PATHS:
        config, _ = load(path)
        sections = asdict(config)
        loop = {
            key: sections["loop"][key] for key in ("strategy", "activation_checkpointing", "grad_accum", "precision")
        }
        decoders = [phase["generative_decoder"] for phase in sections.get("phases", [])]
        parts = [sections["model"], sections.get("loss"), sections["data"]["global_batch_size"], loop, decoders]
        by_network.setdefault(json.dumps([command_of(path)[0], *parts], sort_keys=True), path)
    return list(by_network.values())


@pytest.fixture
def distinct_recipe(path):
    """Leaves a recipe out that is not among them; which are is not known before there are fixtures."""
    if path not in distinct_recipes():
        pytest.skip("another recipe trains the same network in the same way")


@NAMED
def test_a_header_says_what_its_command_costs(path):
    """For as many GPUs as the command has; a tenth of the 80 GB stays free. The config is that of the file itself."""
    gpus, (config, *_) = command_of(path)
    gigabytes, planned_gpus = cost_of(path)
    assert gpus == planned_gpus and 1e9 * gigabytes <= BUDGET
    assert CONFIGS.parent / config == path


def test_every_command_on_gpus_has_a_cost():
    """No header escapes by another spelling of its command; probes, which have no plan, say that nothing is known."""
    for path in CONFIGS.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^# .*GPUS=\d", text, re.MULTILINE):
            assert path in PATHS or "# Cost: not measured." in text, name_of(path)


@NAMED
def test_micro_batches_are_those_of_the_paper(path):
    """Entropy and batch norm are taken per micro-batch: it has as many images as a GPU of the paper, where that is
    known, and only there a step of a tokenizer is cut into micro-batches. The header says how."""
    config, _ = load(path)
    gpus, _ = command_of(path)
    micro_batch, rest = divmod(config.data.global_batch_size, gpus * config.loop.grad_accum)
    assert rest == 0
    of_paper = re.search(r"with (\d+) images each", header_of(path))
    if of_paper:
        assert micro_batch == int(of_paper[1])
    elif isinstance(config, TokenizerTrainConfig):
        assert config.loop.grad_accum == 1
    stated = re.findall(r"a step is (\d+) micro-batches of (\d+) images per GPU", header_of(path))
    assert stated == ([(str(config.loop.grad_accum), str(micro_batch))] if config.loop.grad_accum > 1 else [])


def check_plan(path: Path) -> None:
    plan = plan_of(path)
    assert plan.fits, plan.report
    assert plan.gigabytes == pytest.approx(cost_of(path)[0], rel=0.02), "run: python tests/recipe_plans.py"


@pytest.mark.parametrize("path", [CONFIGS / name for name in QUICK], ids=name_of)
@aside
def test_a_recipe_fits_by_its_own_plan(path):
    check_plan(path)


@pytest.mark.slow
@pytest.mark.usefixtures("distinct_recipe")
@NAMED
@aside
def test_every_recipe_fits_by_its_own_plan(path):
    """And its header says the number."""
    check_plan(path)
