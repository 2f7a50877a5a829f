"""A training step does not wait for the device: no value is read by the host unless a record is written.

Here the operations that read are counted on the CPU. On a GPU the same steps run in torch's own debug mode.
"""

import mini
import pytest
import torch
from host_reads import HostReads, no_waiting
from small_networks import OF_GRIDS, QUANTIZERS, SIZE, generator_config_for, tokenizer_config
from torch import nn
from torch.utils.data import default_collate

from autoregressive.codes import choices_at
from autoregressive.models.registry import build_generator
from autoregressive.tokenized import Tokenization
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.task import GeneratorTask
from engine.config import load_config
from engine.optim import OptimConfig
from engine.trained_model import TrainedModel
from engine.world import World
from evaluations.digits.model import Classifier, ClassifierConfig
from evaluations.digits.training import ClassifierTask
from evaluations.probes.config import LinearProbeConfig
from evaluations.probes.task import ProbeTask
from tokenizer.models.registry import build_tokenizer
from tokenizer.training.build import build_task

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ALL_TERMS = [
    "loss.perceptual=efficientnet_lite0",
    "loss.perceptual_weight=0.3",
    "semantic={teacher: efficientnet_lite0, weight: 0.4}",
    "model.hybrid.semantic_dim=112",
    "loss.discriminator={name: patchgan, start_step: 1, weight: 0.2, lecam_weight: 0.1}",
    "loss.discriminator.patchgan={base_channels: 4, num_layers: 2, norm: batch}",
    "loss.shortcut={end_step: 99}",
    "ema_decay=0.9",
    "assets.random_stand_in=true",
]


def world_on(device: str) -> World:
    return World(0, 1, 0, torch.device(device))


def steps_without_waiting(task, batches: list[dict[str, torch.Tensor]], device: str) -> None:
    """A first step, which may prepare things, then two that must not wait."""
    batches = [{name: value.to(device) for name, value in batch.items()} for batch in batches]
    task.train_step(batches, 0)
    with no_waiting(torch.device(device)):
        for step in (1, 2):
            task.train_step(batches, step)
    assert all(value.isfinite().all() for value in task.train_step(batches, 3).values())
    task.inspect()


def test_the_counter_sees_what_waits():
    """Each of the usual ways in which a value reaches the host."""
    x = torch.arange(4)
    ways = [x.sum().item, lambda: bool(x.sum()), x.nonzero, lambda: x[x > 1], lambda: x.bincount(minlength=4)]
    ways += [lambda: float(x[0]), lambda: x.unique(), lambda: x.masked_select(x > 1), lambda: torch.where(x > 1)]
    for number, way in enumerate(ways):
        with HostReads() as reads:
            way()
        assert reads.seen, f"way {number}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantizer", [name for name in QUANTIZERS if name not in OF_GRIDS])
def test_a_step_of_a_tokenizer_does_not_wait(quantizer, device):
    """With every term, the discriminator, LeCam, averaged weights, micro-batches and cached teacher features."""
    unused = [] if quantizer == "vq" else ["model.quantizer.vq=null"]
    section = f"model.quantizer={{name: {quantizer}, {quantizer}: {QUANTIZERS[quantizer]}}}"
    entropy = [] if quantizer == "fsq" else ["loss.entropy_weight=0.02"]
    config = mini.tokenizer_config(*unused, section, *entropy, *ALL_TERMS, f"loop.device={device}")
    task = step_on_images(config, device)
    assert task.frozen.teacher_cache is not None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("update", ["gradient", "ema"])
@pytest.mark.parametrize("restart", ["random", "nearest"])
def test_codes_that_start_anew_do_not_wait(update, restart, device):
    section = f"model.quantizer.vq={{update: {update}, restart: {restart}, decay: 0.5}}"
    task = step_on_images(mini.tokenizer_config(section, "ema_decay=0.9", f"loop.device={device}"), device)
    assert task.inspect()["restarted_codes"] > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("model", "quantizer"), [("maskgit_vq", "vq"), *(("var_vae", name) for name in OF_GRIDS)])
def test_a_step_of_a_network_without_transformer_does_not_wait(model, quantizer, device):
    terms = [term for term in ALL_TERMS if not term.startswith(("semantic", "model.hybrid", "loss.shortcut"))]
    step_on_images(tokenizer_config(model, quantizer, *terms, f"loop.device={device}"), device)


def step_on_images(config, device: str):
    """Steps of a tokenizer's training on random images; returns its task."""
    source = mini.image_source(8)
    task = build_task(config, world_on(device), mini.SILENT, source, None)
    pixels = torch.from_numpy(source.images).permute(0, 3, 1, 2).contiguous()
    others = {"skipped_images": torch.zeros(4), "random_bits": torch.arange(4) * 2**29}
    batches = [
        {"images_u8": pixels[rows], "index": torch.tensor(rows), **others} for rows in ([0, 1, 2, 3], [4, 5, 6, 7])
    ]
    steps_without_waiting(task, batches, device)
    return task


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "sizes", ["gpt={vocab_size: 32}", "gpt={codebook_sizes: [32], head: masked_bits}", "maskgit={codebook_sizes: [32]}"]
)
def test_a_step_of_a_generator_does_not_wait(sizes, device):
    name = sizes.partition("=")[0]
    more = f"model.{name}={{width: 16, layers: 2, heads: 2, num_tokens: 8, num_classes: 4}}"
    config = load_config(GPTTrainConfig, overrides=[f"model.name={name}", f"model.{sizes}", more])
    network = build_generator(config.model)
    world = world_on(device)
    trained = TrainedModel(network, OptimConfig(), total_steps=9, world=world, ema_decay=0.9)
    options = {"validation": None, "num_validation": 0, "batch_size": 4}
    task = GeneratorTask(trained, name="gpt", world=world, precision="fp32", **options)
    labels, drop = torch.arange(4), torch.tensor([False, True, False, False])
    batch = {"tokens": torch.randint(0, 32, (4, 8)), "labels": labels, "drop": drop}
    batch |= default_collate([choices_at(0, position, network.training_choices()) for position in range(4)])
    steps_without_waiting(task, [batch, batch], device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_step_that_makes_its_tokens_does_not_wait(quantizer, device):
    """Images become tokens of a frozen tokenizer: whether its latents are finite is decided on the device."""
    tokenizer = build_tokenizer(tokenizer_config("llamagen", quantizer).model, SIZE).to(device).eval()
    tokenizer.requires_grad_(False)
    network = build_generator(generator_config_for(tokenizer, 4).model)
    world = world_on(device)
    options = {"validation": None, "num_validation": 0, "batch_size": 4}
    task = GeneratorTask(
        TrainedModel(network, OptimConfig(), total_steps=9, world=world),
        name="gpt",
        world=world,
        precision="fp32",
        tokenization=Tokenization(tokenizer, world.device),
        **options,
    )
    batch = {
        "images_u8": mini.random_images(4, size=SIZE),
        "labels": torch.arange(4),
        "drop": torch.tensor([False, True, False, False]),
        "skipped_images": torch.zeros(4),
    }
    steps_without_waiting(task, [batch, batch], device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_a_probe_does_not_wait(device):
    """Of cached features: those of images wait for the flags of the frozen network's checks as little."""
    config = load_config(LinearProbeConfig, overrides=["probe={epochs: 3, warmup_epochs: 1, base_lrs: [0.1, 1.0]}"])
    config.loop.steps = 6
    network = type("Network", (), {"dim": 5})()
    task = ProbeTask(network, lambda: None, 3, config, world_on(device))
    batch = {"features": torch.randn(8, 5), "labels": torch.arange(8) % 3}
    steps_without_waiting(task, [batch, batch], device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_the_classifier_does_not_wait(device):
    world = world_on(device)
    network = TrainedModel(Classifier(ClassifierConfig(width=4)), OptimConfig(), total_steps=9, world=world)
    task = ClassifierTask(network, torch.zeros(0), torch.zeros(0), 2, world)
    batch = {"images_u8": mini.random_images(4, size=32), "labels": torch.arange(4)}
    steps_without_waiting(task, [batch], device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_skipped_update_does_not_wait(device):
    """The guard decides on the device, also where it puts buffers back."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    trained = TrainedModel(network, OptimConfig(), total_steps=9, world=world_on(device), ema_decay=0.9)
    images = torch.randn(6, 3, device=device)

    def update(step: int, scale: float) -> None:
        for x in trained.micro_batches([images]):
            loss = trained.wrapped(x).square().mean() * scale
            loss.backward()
        trained.step(step, {"loss": loss.detach()})

    update(0, 1.0)
    with no_waiting(torch.device(device)):
        update(1, float("nan"))
        update(2, 1.0)
    assert trained.skipped.total == 1
