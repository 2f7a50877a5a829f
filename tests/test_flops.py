"""The operations that networks count of themselves are those that torch counts, at published sizes without storage."""

import functools
from contextlib import nullcontext

import pytest
import torch
from recipes import CONFIGS, kind_of, load, name_of
from torch.utils.flop_counter import FlopCounterMode

from engine.assets import AssetsConfig
from engine.flops import ImageWork
from tokenizer.discriminators.gan_losses import DISCRIMINATOR_LOSSES
from tokenizer.discriminators.registry import build_discriminator
from tokenizer.losses.perceptual import PERCEPTUAL
from tokenizer.losses.semantic import build_teacher
from tokenizer.losses.terms import active_terms, weighted_sum
from tokenizer.training.checks import network_on_meta, terms_of
from tokenizer.training.frozen_networks import FrozenNetworks
from tokenizer.training.phases import phases_of
from tokenizer.training.task import TokenizerTask

TOKENIZERS = [  # recipe, step: each kind of network, discriminator and teacher, with and without the shortcut
    ("vq/VQ_SS256.yaml", 0),
    ("vq/VQ_SS256.yaml", 900_000),
    ("vq/VQ_SB256_2d.yaml", 900_000),
    ("vq/VQ_SS256_2d.yaml", 900_000),
    ("vq/VQ_BL256_dino_disc.yaml", 900_000),
    pytest.param("vq/VQ_XLXXL256.yaml", 900_000, marks=pytest.mark.slow),
    ("llamagen/VQ_16.yaml", 900_000),
    ("wetok/WeTok_f8_imagenet.yaml", 900_000),
    ("wetok/WeTok_768.yaml", 900_000),
    ("quickstart/full.yaml", 100),
]
GPTS = ["gpt/GPT_B256.yaml", "gpt/GPT_XXL256.yaml", "gpt/GPT_wetok_B.yaml", "llamagen/GPT_3B_384.yaml"]
RANDOM = AssetsConfig(random_stand_in=True)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The path in the recipes; and no autocast, which tensors without storage do not know."""
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def counted(run) -> int:
    """What torch counts of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class Networks:
    """What `TokenizerTask` asks of a trained network, without an optimizer."""

    def __init__(self, module) -> None:
        self.module = self.wrapped = module
        self.ema = None


@functools.cache
def perceptual_network(name: str):
    """A perceptual network without storage; to build one takes a second."""
    return PERCEPTUAL[name](RANDOM, False)[0].to("meta")


def tokenizer_task(path, step) -> tuple[TokenizerTask, int]:
    """The task of the last phase of a recipe, without storage, and the size of its images."""
    config, _ = load(path)
    config = phases_of(config)[-1]
    network = network_on_meta(config).train()
    terms = terms_of(config, network)
    frozen = FrozenNetworks()
    with torch.device("meta"):
        discriminator = build_discriminator(config.loss.discriminator, RANDOM)
        if config.semantic.enabled:
            frozen.teacher = build_teacher(config.semantic, network.semantic_grid, RANDOM)
    if config.loss.perceptual_weight > 0:
        frozen.perceptual = perceptual_network(config.loss.perceptual)
    world = type("World", (), {"device": torch.device("meta")})()
    task = TokenizerTask(
        Networks(network),
        Networks(discriminator.to("meta")),
        frozen,
        terms,
        world=world,
        precision="fp32",
        validation=None,
        discriminator_config=config.loss.discriminator,
    )
    return task, config.data.image_size


def one_step(task: TokenizerTask, image_size: int, step: int, batch: int) -> None:
    """Forward and backward of both updates, as `TokenizerTask` does them."""
    discriminator = task.discriminator.module.train().requires_grad_(False)
    images = torch.zeros(batch, 3, image_size, image_size, device="meta")
    output = task.tokenizer.wrapped(images, **task.requested_outputs(step))
    weighted_sum(task.terms, task.term_values(output, images, step), step).backward()
    if "adversarial" in active_terms(task.terms, step):
        discriminator.requires_grad_(True)
        logits = discriminator(images, output.reconstructions.detach())
        DISCRIMINATOR_LOSSES[task.discriminator_config.discriminator_loss](*logits).backward()


@pytest.mark.parametrize(("name", "step"), TOKENIZERS, ids=lambda value: str(value))
def test_the_step_of_a_tokenizer_counts_what_torch_counts(name, step):
    """Within 1 %, with all networks of the loss."""
    task, image_size = tokenizer_task(CONFIGS / name, step)
    batch = 2
    ours = batch * task.work(step).flops
    assert ours == pytest.approx(counted(lambda: one_step(task, image_size, step, batch)), rel=0.01)


@pytest.mark.parametrize("name", ["vq/VQ_SS256.yaml", "llamagen/VQ_16.yaml", "wetok/WeTok_768.yaml"])
def test_encoding_counts_what_torch_counts(name):
    """Exactly: as in the training of a GPT on images, where no gradient is taken."""
    config, _ = load(CONFIGS / name)
    network = network_on_meta(phases_of(config)[0]).eval()
    images = torch.zeros(2, 3, network.image_size, network.image_size, device="meta")
    ours = ImageWork(network.num_tokens, network.encoding_flops()).flops
    with torch.no_grad():
        assert 2 * ours == counted(lambda: network.encode(images))


@pytest.mark.parametrize("name", GPTS)
def test_the_step_of_a_gpt_counts_what_torch_counts(name):
    """Exactly: there is no first layer whose input has no gradient."""
    _, network = load(CONFIGS / name)
    labels = torch.zeros(2, dtype=torch.long, device="meta")
    tokens = torch.zeros(2, *network.token_shape, dtype=torch.long, device="meta")
    ours = ImageWork(network.num_tokens, network.training_flops()).flops
    assert 2 * ours == counted(lambda: network.loss(network(labels, tokens), tokens).backward())
    assert kind_of(CONFIGS / name) == "gpt", name_of(CONFIGS / name)
