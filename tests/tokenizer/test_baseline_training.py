"""The recipes of the baselines and of single quantizers train like any other, at the sizes of --scale tiny."""

import math

import mini
import pytest
import torch
from recipes import CONFIGS, recipes

from engine.config import load_config, read_yaml
from engine.run_log import read_metrics
from engine.world import distributed_world
from tokenizer import load_tokenizer
from tokenizer.train import train
from tokenizer.training.config import TokenizerTrainConfig

# One of each network and quantizer; further files of a family differ in sizes.
RECIPES = [
    "open_magvit2/imagenet_256_L", "ibq/imagenet256_16384", "maskgit/maskgit_vqgan_imagenet_f16_256",
    "var/vae_ch160v4096z32", "f16/bsq", "f16/fsq", "f16/ibq", "f16/simvq", "f16/rvq",
    "f16/mcq",
]  # fmt: skip
FEWER_CODES = {"ibq/imagenet256_16384": ["model.quantizer.ibq.codebook_size=512"]}  # the rest of it is small already
TWO_STEPS = [
    "loss.perceptual_weight=0", "loss.discriminator.start_step=1", "loss.discriminator.patchgan.base_channels=8",
    "validation={num_images: 8, batch_size: 8}", "loop={steps: 2, log_every: 1, eval_every: 2, device: cpu}",
]  # fmt: skip


@pytest.fixture(autouse=True)
def imagenet(monkeypatch):
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")


def kind_of(name: str) -> tuple[str, str]:
    """The network and the quantizer of a recipe."""
    model = read_yaml(CONFIGS / f"{name}.yaml")["model"]
    return model["name"], model["quantizer"]["name"]


def tiny_config(name: str, *overrides: str) -> TokenizerTrainConfig:
    """A recipe with the overlays of --scale tiny for its network."""
    recipe = CONFIGS / f"{name}.yaml"
    network, _ = kind_of(name)
    overlays = [CONFIGS / "tiny" / f"{overlay}.yaml" for overlay in (network, "tokenizer")]
    return load_config(TokenizerTrainConfig, [recipe, *overlays], overrides)


# The later ones have the network of the first, and quantizers that other tests train.
@pytest.mark.parametrize("name", [*RECIPES[:4], *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES[4:])])
def test_two_steps_and_codes_of_the_trained_network(name, tmp_path):
    """Every loss that the quantizer names is finite, the weights move, and the run gives codes of its images."""
    config = tiny_config(name, *TWO_STEPS, *FEWER_CODES.get(name, []), f"loop.run_dir={tmp_path / 'run'}")
    with distributed_world("cpu") as world:
        train(config, world)
    trained = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert len(trained) == 2
    for loss in mini.tokenizer_of(config).quantizer.loss_names & trained[0].keys():
        assert all(math.isfinite(record[loss]) for record in trained)
    assert all(record["skipped_steps"] == 0 and record["grad_norm"] > 0 for record in trained)

    tokenizer = load_tokenizer(tmp_path / "run")
    before = mini.tokenizer_of(config, seed=config.loop.seed).state_dict()
    moved = [key for key, value in tokenizer.named_parameters() if not torch.equal(value, before[key])]
    assert any(key.startswith("encoder") for key in moved) and any(key.startswith("decoder") for key in moved)
    codes = tokenizer.tokenize(mini.random_images(2, size=32))
    assert codes.shape[:2] == (2, tokenizer.num_tokens)
    assert tokenizer.detokenize(codes).shape == (2, 3, 32, 32)


def test_every_network_and_quantizer_of_these_folders_is_trained():
    """No recipe brings another one along unnoticed."""

    folders = {name.partition("/")[0] for name in RECIPES}
    all_names = [f"{folder}/{path.stem}" for folder in folders for path in recipes(folder)]
    tokenizers = [name for name in all_names if "quantizer" in read_yaml(CONFIGS / f"{name}.yaml")["model"]]
    assert set(map(kind_of, tokenizers)) == set(map(kind_of, RECIPES))
