"""The recipes of the baselines build the published tokenizers: every name, shape and type of tests/goldens/manifests.

`baselines.json.gz` maps the name of a published file to `{name: [shape, type]}`, as the authors' code builds it.
"""

import functools
import gzip
import json

import goldens
import pytest
import recipes
from stages import ModelSection

from engine.config import load_sections
from engine.without_storage import without_storage
from tokenizer.models.registry import build_tokenizer
from tokenizer.published.layout import export_state
from tokenizer.published.registry import layout_of, layout_rules
from tokenizer.published.var_vae import HITS

CUT = "_6_12"  # end of the name of a recipe whose codes are cut into indices; its network is that of the file
PREFIXES = {"open_magvit2": "magvit2_", "ibq": "ibq_", "maskgit": "", "var": ""}  # folder -> of its manifests' names
RECIPES = [path for folder in PREFIXES for path in recipes.recipes(folder) if recipes.kind_of(path) == "tokenizer"]
PARAMETERS = {  # as published with the files, or counted in the authors' network
    "imagenet_256_L": 115_127_829, "imagenet_128_L": 112_021_653, "pretrain256_16384": 115_094_033,
    "imagenet256_1024": 107_049_859, "imagenet256_262144": 173_896_579,
    "maskgit_vqgan_imagenet_f16_256": 54_515_587, "vae_ch160v4096z32": 108_948_355,
}  # fmt: skip


@functools.cache
def manifests() -> dict[str, dict]:
    return json.loads(gzip.decompress((goldens.OWN / "manifests" / "baselines.json.gz").read_bytes()))


def manifest_name(path) -> str:
    return PREFIXES[path.parent.name] + path.stem.removesuffix(CUT)


@pytest.mark.parametrize("path", RECIPES, ids=recipes.name_of)
def test_a_recipe_builds_the_published_network(path):
    """Every name with its shape and type, none missing and none more; but for a count that only training reads."""
    model = load_sections(ModelSection, path).model
    with without_storage():
        network = build_tokenizer(model, 256)
    state = export_state(network.state_dict(), layout_rules(model))
    ours = {name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for name, tensor in state.items()}
    assert ours == {name: fact for name, fact in manifests()[manifest_name(path)].items() if name != HITS}
    assert goldens.parameter_count(network) == PARAMETERS.get(path.stem, goldens.parameter_count(network))
    assert layout_of(model).file_key in ("state_dict", "")


def test_every_published_tokenizer_has_a_recipe():
    assert {manifest_name(path) for path in RECIPES} == manifests().keys()
