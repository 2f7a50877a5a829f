"""The recipes build the published networks: names, shapes, types and parameter counts equal tests/goldens/manifests.

A manifest is the state dict of a published configuration without its values; `<system>.json.gz` maps a name to
`{counts, state_dict: {key: [shape, type]}}`. Networks are built on the meta device, so size does not matter.
"""

import functools
import gzip
import json
import re
from pathlib import Path

import goldens
import pytest
import recipes
import torch
from omegaconf import OmegaConf
from torch import nn

from autoregressive.models.gpt import GPT, SIZES, GPTConfig
from autoregressive.published import GPT_NAMES
from engine.aliases import current_tree
from engine.config import differences, flatten, load_config
from engine.yaml_files import read_own_layer
from tokenizer.published.layout import Rule, export_state
from tokenizer.published.registry import layout_rules

FOLDERS = ("vq", "gpt", "llamagen", "wetok")
RECIPES = [p for folder in FOLDERS for p in recipes.recipes(folder)]
OF_OTHERS = {"GPT_bits_L", "MaskGIT_B256"}  # without published weights
PUBLISHED = [
    p for p in RECIPES if "wetok" not in recipes.name_of(p) and p.parent.name != "ablation" and p.stem not in OF_OTHERS
]
OVERLAYS = [p for p in RECIPES if recipes.base_of(p)]  # networks of WeTok: test_wetok_manifests, test_wetok_gpt
GPTS_OF_GIGATOK = [(size, layout) for size in ("B", "L", "XL", "XXL", "3B") for layout in ("1d", "2d")]
named = pytest.mark.parametrize("path", PUBLISHED, ids=recipes.name_of)


@functools.cache
def manifests(system: str) -> dict[str, dict]:
    return json.loads(gzip.decompress((goldens.OWN / "manifests" / f"{system}.json.gz").read_bytes()))


@pytest.fixture(autouse=True)
def image_root(monkeypatch):
    monkeypatch.setenv("IMGNET_ROOT", "/imagenet")


def manifest_name(path: Path) -> tuple[str, str]:
    """(system, name) of the manifest that a recipe must equal."""
    if path.parent.name == "llamagen":
        return "llamagen", path.stem.replace("_", "-", 1)
    if path.stem in ("ar_probe", "online"):
        return "gigatok", "GPT-B_1d"
    return "gigatok", re.sub(r"GPT_(\w+?)256", r"GPT-\1_1d", path.stem)


def assert_equals_manifest(network: nn.Module, rules: tuple[Rule, ...], system: str, name: str) -> None:
    """Every published name with its shape and type, none missing and none more, and the number of parameters."""
    manifest, state = manifests(system)[name], network.state_dict()
    assert all(tensor.is_meta for tensor in state.values())
    published = export_state(state, rules).items()
    ours = {key: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in published}
    assert ours == manifest["state_dict"]
    assert goldens.parameter_count(network) == manifest["counts"]["num_params_total"]


@named
def test_a_recipe_builds_the_published_network(path):
    """Of every recipe of configs/vq, configs/gpt and configs/llamagen."""
    config, network = recipes.load(path)
    rules = GPT_NAMES if isinstance(network, GPT) else layout_rules(config.model)
    assert_equals_manifest(network, rules, *manifest_name(path))


@pytest.mark.parametrize("path", [p for p in PUBLISHED if p.parent.name == "vq"], ids=recipes.name_of)
def test_the_vanilla_overlay_leaves_the_network_without_its_semantic_head(path):
    """Over every tokenizer of GigaTok: the published count without the training-only head, which the paper includes."""
    _, schema, validate = recipes.ENTRIES["tokenizer"]
    network = validate(load_config(schema, [path, recipes.CONFIGS / "vq/ablation/vanilla.yaml"]))
    counts = manifests("gigatok")[path.stem]["counts"]
    assert goldens.parameter_count(network) == counts["num_params_without_distill_mlp"]


def test_every_published_configuration_has_a_recipe():
    """All of LlamaGen's, and all tokenizers of GigaTok."""
    covered = {manifest_name(path) for path in PUBLISHED}
    wanted = {("llamagen", name) for name in manifests("llamagen")}
    wanted |= {("gigatok", name) for name in manifests("gigatok") if name.startswith("VQ_")}
    assert wanted <= covered


@pytest.mark.parametrize(("size", "layout"), GPTS_OF_GIGATOK)
def test_every_size_of_gpt_is_the_published_one(size, layout):
    """With learned positions (1d) and with 2D rotary ones, which are no part of the state."""
    assert {size.lower() for size, _ in GPTS_OF_GIGATOK} == SIZES.keys()
    with torch.device("meta"):
        gpt = GPT(GPTConfig(size=size.lower(), positions="learned" if layout == "1d" else "rope2d"))
    assert_equals_manifest(gpt, GPT_NAMES, "gigatok", f"GPT-{size}_{layout}")


@pytest.mark.parametrize("path", OVERLAYS, ids=recipes.name_of)
def test_an_overlay_changes_exactly_what_it_names(path, entry):
    """Over its base each of its keys differs and nothing else does, and a dry run accepts it alone."""
    module, schema, _ = recipes.ENTRIES[recipes.kind_of(path)]
    base, config = load_config(schema, [recipes.base_of(path)]), load_config(schema, [path])
    own = flatten(current_tree(schema, read_own_layer(path)[1]))
    assert differences(OmegaConf.structured(base), config).keys() == own.keys()
    code, out, err = entry(module.main, "--config", path, "--dry-run")
    assert code == 0 and "the config is valid" in out, err


@pytest.mark.parametrize("path", RECIPES, ids=recipes.name_of)
def test_the_header_of_a_recipe_holds_its_command(path):
    """The comment on top names the file itself, and the script that trains it."""
    header = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))[0]
    command = header[header.index("# GPUS=8 bash scripts/") :]
    script = "train_c2i.sh" if recipes.kind_of(path) == "gpt" else "train_vq.sh"
    assert script in command
    assert re.findall(r"configs/(\S+\.yaml)", command) == [recipes.name_of(path)]
