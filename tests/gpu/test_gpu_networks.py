"""Every network gives on a GPU the numbers of the CPU: outputs, losses and gradients, in float32; near them in bf16."""

import pytest
import small_networks as small
import torch
from torch import Tensor, nn

from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.sampling import greedy, seeded_draw
from engine.config import load_config
from engine.devices import autocast
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.metrics.precision_recall import precision_recall
from tokenizer.discriminators.registry import DISCRIMINATORS, DiscriminatorConfig, build_discriminator
from tokenizer.losses.perceptual import PERCEPTUAL
from tokenizer.losses.semantic import TEACHERS, build_teacher
from tokenizer.models.registry import MODELS, build_tokenizer
from tokenizer.training.config import TokenizerTrainConfig

pytestmark = pytest.mark.gpu

FLOAT = 2e-4  # of the largest value: the tolerance of the goldens
GRADIENT = 5e-3
BF16 = 5e-2


def near(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """|actual - expected| <= tolerance * max |expected|."""
    difference = (actual.detach().double().cpu() - expected.detach().double().cpu()).abs().max().item()
    limit = tolerance * max(expected.detach().abs().max().item(), 1e-6)
    print(f"{what}: {difference:.2e} of {limit:.2e} allowed")
    assert difference <= limit, what


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.cpu() for name, p in network.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------------------ tokenizers
def trained_once(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a training pass with the entropy, where there is one, and the gradients."""
    network.train().zero_grad()
    output = network(images, entropy="entropy" in network.quantizer.loss_names)
    loss = (output.reconstructions - images).square().mean() + sum(output.quantized.losses.values())
    loss.backward()
    return loss, gradients(network)


@pytest.mark.parametrize(("model", "quantizer"), small.PAIRS)
def test_a_tokenizer(model, quantizer, gpu):
    """Codes, images, loss and gradients. A code may differ where two are almost equally near: 1 in 100 is allowed."""
    torch.manual_seed(0)
    config = small.tokenizer_config(model, quantizer)
    network = build_tokenizer(config.model, small.SIZE).eval()
    images = torch.rand(8, 3, small.SIZE, small.SIZE) * 2 - 1
    with torch.no_grad():
        codes = network.encode(images).indices
        decoded = network.decode_indices(codes)
    loss, expected = trained_once(network, images)

    network.to(gpu).eval()
    with torch.no_grad():
        gpu_codes = network.encode(images.to(gpu)).indices
        near(network.decode_indices(codes.to(gpu)), decoded, FLOAT, "images")
    assert (gpu_codes.cpu() != codes).float().mean() <= 0.01
    gpu_loss, actual = trained_once(network, images.to(gpu))
    if torch.equal(gpu_codes.cpu(), codes):
        near(gpu_loss, loss, FLOAT, "loss")
        assert actual.keys() == expected.keys()
        largest = max(gradient.norm() for gradient in expected.values())
        for name, gradient in expected.items():
            assert (actual[name] - gradient).norm() <= GRADIENT * max(gradient.norm(), 1e-3 * largest), name


@pytest.mark.parametrize("model", MODELS)
def test_a_tokenizer_in_bf16(model, gpu):
    """Under autocast, images stay near those of float32, and the quantizer computes in float32."""
    torch.manual_seed(0)
    config = small.tokenizer_config(model, "gq")
    network = build_tokenizer(config.model, small.SIZE).to(gpu).eval()
    images = (torch.rand(8, 3, small.SIZE, small.SIZE) * 2 - 1).to(gpu)
    with torch.no_grad():
        codes = network.encode(images).indices
        full = network.decode_indices(codes)
        with autocast(gpu, "bf16"):
            half = network.decode_indices(codes)
            quantized = network.encode(images)
    assert quantized.z_q.dtype == torch.float32
    near(half, full, BF16, "images")


# ------------------------------------------------------------------------------------------------ generators
@pytest.mark.parametrize("kind", small.GENERATORS)
def test_a_generator(kind, gpu):
    """Losses, gradients and tokens, greedy and drawn, with and without guidance."""
    torch.manual_seed(0)
    _, generator = small.generator(kind)
    generator.eval()
    for output in small.output_layers(generator):
        nn.init.normal_(output.weight, std=0.5)
    labels = torch.arange(4)
    sizes = torch.tensor(generator.codebook_sizes)
    tokens = (torch.rand(4, *generator.token_shape) * sizes).long()
    draw = seeded_draw(0, torch.arange(4), generator.num_draws)
    guidance = Guidance(scale=1.5)

    def run(device: torch.device) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        network = generator.to(device)
        network.zero_grad()
        loss = network.loss(network(labels.to(device), tokens.to(device)), tokens.to(device))
        loss.backward()
        drawn = [generate(network, labels.to(device), draw=how, guidance=guidance) for how in (greedy, draw)]
        return loss, gradients(network), drawn

    loss, expected, drawn = run(torch.device("cpu"))
    gpu_loss, actual, gpu_drawn = run(gpu)
    near(gpu_loss, loss, FLOAT, "loss")
    for name, gradient in expected.items():
        near(actual[name], gradient, GRADIENT, name)
    for ours, theirs in zip(gpu_drawn, drawn, strict=True):
        assert torch.equal(ours.cpu(), theirs)


# ------------------------------------------------------------------------------------------------ frozen networks
def both_ways(network: nn.Module, images: Tensor, gpu: torch.device, tolerance: float = FLOAT) -> None:
    """The outputs of a network on both devices."""
    with torch.no_grad():
        expected = network(images)
        actual = network.to(gpu)(images.to(gpu))
    pairs = ((actual[k], v) for k, v in expected.items()) if isinstance(expected, dict) else [(actual, expected)]
    for ours, theirs in pairs:
        near(ours, theirs, tolerance, type(network).__name__)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_an_extractor(name, gpu):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    both_ways(EXTRACTORS[name](small.STAND_INS).eval(), images, gpu, tolerance=1e-3)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher(name, gpu):
    config = load_config(TokenizerTrainConfig, overrides=[f"semantic={{teacher: {name}, weight: 0.5}}"]).semantic
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    both_ways(build_teacher(config, 4, small.STAND_INS).eval(), images, gpu, tolerance=1e-3)


@pytest.mark.parametrize("name", PERCEPTUAL)
def test_a_perceptual_loss(name, gpu):
    """Its value, and its gradient with respect to the images."""
    network, _ = PERCEPTUAL[name](small.STAND_INS, False)
    generator = torch.Generator().manual_seed(0)
    images, references = (torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    results = []
    for device in (torch.device("cpu"), gpu):
        leaf = images.to(device).requires_grad_()
        loss = network.to(device)(leaf, references.to(device))
        results.append((loss, *torch.autograd.grad(loss, [leaf])))
    near(results[1][0], results[0][0], FLOAT, "loss")
    near(results[1][1], results[0][1], GRADIENT, "gradient")


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator(name, gpu, monkeypatch):
    """Without its augmentation, whose random numbers are those of the device."""
    monkeypatch.setattr("tokenizer.discriminators.dino.diff_augment", lambda images: images)
    torch.manual_seed(0)
    network = build_discriminator(DiscriminatorConfig(name=name), small.STAND_INS).eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = network.logits(images)
        near(network.to(gpu).logits(images.to(gpu)), expected, 1e-3, name)


def test_precision_and_recall(gpu):
    generator = torch.Generator().manual_seed(0)
    reference, samples = torch.randn(300, 32, generator=generator), torch.randn(400, 32, generator=generator) * 0.9
    for emulate_fp16 in (True, False):
        expected = precision_recall(reference, samples.clone(), emulate_fp16)
        actual = precision_recall(reference.to(gpu), samples.to(gpu), emulate_fp16)
        assert actual == pytest.approx(expected, abs=0.005)
