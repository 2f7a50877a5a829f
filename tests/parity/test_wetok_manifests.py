"""WeTok's recipes build the published networks: every name, shape and type of their checkpoints, raw and averaged.

`wetok_counts.json` has the encoder's and decoder's size for every width and depth of the paper's ablation.
"""

import json
import re

import goldens
import pytest
import recipes
import torch
from test_manifests import manifests
from torch import nn

from engine.config import load_config
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.registry import ModelConfig, QuantizerConfig, build_tokenizer
from tokenizer.models.wetok import WeTokConfig
from tokenizer.published.layout import export_state
from tokenizer.published.registry import layout_rules
from tokenizer.published.wetok import ema_key
from tokenizer.quantizers.gq import GQConfig

BASE = recipes.CONFIGS / "wetok/base.yaml"
OF_FILE = {  # manifest -> recipe, and whether its decoder is generative
    "GeneralDomain_compratio768": ("WeTok_768", True),
    "GeneralDomain_compratio192": ("WeTok_192", False),
    "GeneralDomain_compratio48": ("WeTok_48", False),
    "GeneralDomain_compratio24": ("WeTok_24", False),
    "ImageNet_downsample16": ("WeTok_f16_imagenet", False),
    "ImageNet_downsample8": ("WeTok_f8_imagenet", False),
    "f32_stage1": ("ablation/generative_decoder", False),
    "f32_stage2_training_ckpt": ("ablation/generative_decoder", True),
    "f8_d32_gd": ("WeTok_48", True),
    "f8_d64_gd": ("WeTok_24", True),
    "f16_d32_gd": ("WeTok_f16_imagenet", True),
}
COUNTS = json.loads((goldens.OWN / "manifests/wetok_counts.json").read_text())


@pytest.fixture(autouse=True)
def image_root(monkeypatch):
    monkeypatch.setenv("IMGNET_ROOT", "/imagenet")


def on_meta(model: ModelConfig) -> nn.Module:
    with torch.device("meta"):
        return build_tokenizer(model, 256)


@pytest.mark.parametrize("name", sorted(OF_FILE))
def test_a_recipe_builds_the_published_network(name):
    """Raw and averaged tensors by name, shape and type; a training checkpoint of stage 2 has no averaged encoder."""
    recipe, generative = OF_FILE[name]
    _, schema, _ = recipes.ENTRIES["tokenizer"]
    model = load_config(schema, [BASE, recipes.CONFIGS / f"wetok/{recipe}.yaml"]).model
    model.wetok.generative_decoder = generative
    network, manifest = on_meta(model), manifests("wetok")[f"tokenizer_{name}"]
    exported = export_state(network.state_dict(), layout_rules(model))
    ours = {key: [list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in exported.items()}
    published = manifest["state_dict"]
    assert ours == {k: v for k, v in published.items() if k.startswith(("encoder.", "decoder."))}
    averaged = {k: v for k, v in published.items() if k.startswith("model_ema.") and "loss" not in k}
    wanted = {ema_key(k): v for k, v in ours.items() if "training" not in name or k.startswith("decoder.")}
    assert wanted == {k: v for k, v in averaged.items() if k not in ("model_ema.decay", "model_ema.num_updates")}
    counts = manifest["counts"]
    assert goldens.parameter_count(network.encoder) == counts["encoder_params"]
    assert goldens.parameter_count(network.decoder) == counts["decoder_params"]


def test_every_published_tokenizer_has_a_recipe():
    assert {f"tokenizer_{name}" for name in OF_FILE} == {k for k in manifests("wetok") if k.startswith("tokenizer_")}


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_sizes_of_all_widths_and_depths(name):
    """f<factor>_ch<channels>_b<blocks>_z<latent channels>[_gd]."""
    factor, channels, blocks, latent, generative = re.fullmatch(r"f(\d+)_ch(\d+)_b(\d+)_z(\d+)(_gd)?", name).groups()
    b, widths = int(blocks), {"8": [1, 2, 2, 4], "16": [1, 1, 2, 2, 4], "32": [1, 1, 2, 2, 4, 8]}[factor]
    cnn = CNNConfig(
        base_channels=int(channels),
        channel_multipliers=widths,
        encoder_res_blocks=b,
        decoder_res_blocks=b,
        mid_blocks=b,
    )
    quantizer = QuantizerConfig(name="gq", gq=GQConfig(num_groups=int(latent) // 8, group_dim=8))
    wetok = WeTokConfig(cnn=cnn, generative_decoder=bool(generative))
    network = on_meta(ModelConfig(name="wetok", wetok=wetok, quantizer=quantizer))
    counts = {part: goldens.parameter_count(getattr(network, part)) for part in ("encoder", "decoder")}
    assert counts == COUNTS[name]


def test_compression_ratios_are_those_of_the_names():
    """24 bits a pixel over the bits of the codes, at 256 px."""
    for ratio in (24, 48, 192, 768):
        _, schema, _ = recipes.ENTRIES["tokenizer"]
        network = on_meta(load_config(schema, [BASE, recipes.CONFIGS / f"wetok/WeTok_{ratio}.yaml"]).model)
        assert ratio * network.num_tokens * network.quantizer.codebook_dim == 256 * 256 * 24
