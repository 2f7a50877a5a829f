"""Every network, loss, training step, evaluation and sampler keeps to one device, on a GPU that is not there.

`fake_gpu` says what such a test can find: tensors that are left on the CPU. What kernels compute is the business of
`pytest -m gpu`.
"""

import re
from dataclasses import replace
from types import SimpleNamespace

import mini
import numpy as np
import pytest
import small_networks
import torch
from fake_gpu import CUDA, GPU_WORLD, fake_gpu, require_on
from ranks import aside
from small_networks import SIZE, STAND_INS, tokenizer_config
from torch.utils.data import default_collate

from autoregressive.codes import choices_at
from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings, sample_images
from autoregressive.passes import Passes
from autoregressive.tokenized import RememberedTokens, Tokenization
from autoregressive.training.task import GeneratorTask
from engine.config import load_config
from engine.trained_model import TrainedModel
from evaluations.digits.model import Classifier, ClassifierConfig
from evaluations.digits.training import ClassifierTask, ClassifierTrainConfig
from evaluations.jobs.val_loss import held_out_losses
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.probes.config import LinearProbeConfig
from evaluations.probes.features import SOURCES, NetworkConfig
from evaluations.probes.task import ProbeTask
from evaluations.protocols.accumulators import measure
from evaluations.protocols.generation_accumulators import (
    ClassAgreement,
    CodeSequences,
    GeneratedBatch,
    GenerationDistances,
    NoiseDistance,
)
from evaluations.protocols.reconstruction import Reconstructor
from evaluations.protocols.reconstruction_accumulators import (
    CodebookUsage,
    Compression,
    PairScores,
    ReconstructionDistances,
)
from evaluations.protocols.reference import Reference
from evaluations.protocols.registry import PROTOCOLS
from tokenizer.discriminators.registry import DISCRIMINATORS, build_discriminator
from tokenizer.frozen.lpips import lpips_network
from tokenizer.losses.perceptual import PERCEPTUAL
from tokenizer.losses.semantic import TEACHERS, build_teacher
from tokenizer.models.base import Tokenizer
from tokenizer.models.registry import MODELS, QUANTIZERS, build_tokenizer
from tokenizer.training.build import build_task
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.task import Validation


def small_tokenizer(model: str, quantizer: str) -> Tokenizer:
    """Built on the CPU."""
    return build_tokenizer(tokenizer_config(model, quantizer).model, SIZE)


def images_u8(count: int = 4, size: int = SIZE) -> torch.Tensor:
    return torch.zeros(count, 3, size, size, dtype=torch.uint8, device=CUDA)


def batch_of_images() -> dict[str, torch.Tensor]:
    zeros, numbers = torch.zeros(4, dtype=torch.long, device=CUDA), torch.arange(4, device=CUDA)
    return {"images_u8": images_u8(), "index": numbers, "skipped_images": zeros, "random_bits": numbers * 2**29}


GAN = [
    "loss.discriminator={name: patchgan, start_step: 1, weight: 0.1, lecam_weight: 0.1}",
    "loss.discriminator.patchgan={base_channels: 4, num_layers: 1, norm: batch}",
]
LITE0 = ["loss.perceptual=efficientnet_lite0", "loss.perceptual_weight=1"]
TEACHER = "semantic={teacher: efficientnet_lite0, weight: 0.5}"
VARIANTS = {  # what else there is of tokenizers and their losses: (model, quantizer, overrides)
    "every term": ("hybrid", "vq", [*GAN, *LITE0, "loss.shortcut.end_step=3", TEACHER, "ema_decay=0.9"]),
    "non-saturating": ("wetok", "gq", [*GAN, "loss.discriminator.generator_loss=non_saturating"]),
    "warm-up and k-means": ("hybrid", "vq", ["model.quantizer.vq.warmup_steps=1", "model.quantizer.vq.init=kmeans"]),
    "k-means of levels": ("hybrid", "rvq", ["model.quantizer.rvq={warmup_steps: 1, init: kmeans}"]),
    "plain distance": ("llamagen", "vq", ["model.quantizer.vq.entropy_distance=plain"]),
    "straight-through": ("llamagen", "vq", ["model.quantizer.vq={rotation_trick: false, l2_norm: false}"]),
    "sphere": ("wetok", "gq", ["model.quantizer.gq.l2_norm=true"]),
    "naive entropy": ("wetok", "gq", ["model.quantizer.gq.entropy_form=naive"]),
    "entropy per group": ("wetok", "gq", ["model.quantizer.gq.codebook_entropy=per_group"]),
    "other indices": ("wetok", "gq", ["model.quantizer.gq.index_bits=[2, 4]"]),
    "generative decoder": ("wetok", "gq", ["model.wetok.generative_decoder=true", "loss.entropy_weight=0"]),
    "checkpointed": ("hybrid", "vq", ["loop.activation_checkpointing=true"]),
}


def train_and_use(model: str, quantizer: str, *overrides: str, steps: int = 1) -> None:
    """Updates, validation, and images to codes and back."""
    losses = ["loss.entropy_weight=0.1", "loss.l1_weight=0.1"]
    config = tokenizer_config(model, quantizer, *losses, *overrides)
    source = mini.image_source(8)
    with fake_gpu():
        validation = Validation(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), 2)
        task = build_task(config, GPU_WORLD, mini.SILENT, source, validation)
        for step in range(steps):
            require_on(CUDA, task.train_step([batch_of_images()], step)["loss"])
        task.evaluate(steps)
        tokenizer = task.tokenizer.module.eval()
        codes = tokenizer.encode(torch.zeros(2, 3, SIZE, SIZE, device=CUDA))
        require_on(CUDA, codes, tokenizer.decode_indices(codes.indices))


# The CNN of maskgit_vq is of the same parts as the others.
@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=[pytest.mark.slow] if name == "maskgit_vq" else []) for name in MODELS]
)
@aside
def test_training_of_a_tokenizer(model):
    """With every quantizer."""
    for quantizer in QUANTIZERS:
        if (model, quantizer) in small_networks.PAIRS:
            train_and_use(model, quantizer)


@aside
def test_training_of_variants():
    for model, quantizer, overrides in VARIANTS.values():
        train_and_use(model, quantizer, *overrides, steps=2 if any("warmup" in o for o in overrides) else 1)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@aside
def test_a_discriminator(name):
    """Logits of the generator's and of its own loss, at a size that is cropped and at one that is not."""
    config = load_config(TokenizerTrainConfig, overrides=[f"loss.discriminator.name={name}"])
    with fake_gpu():
        network = build_discriminator(config.loss.discriminator, STAND_INS).to(CUDA).train()
        for size in (64, 256):
            images = torch.zeros(4, 3, size, size, device=CUDA)
            require_on(CUDA, network(images, images), network.logits(images))


@pytest.mark.parametrize("name", PERCEPTUAL)
@aside
def test_a_perceptual_loss(name):
    with fake_gpu():
        network, _ = PERCEPTUAL[name](STAND_INS, True)
        images = torch.zeros(2, 3, 64, 64, device=CUDA)
        require_on(CUDA, network.to(CUDA)(images, images))


# The larger networks of a kind are more of the same blocks.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if re.search("_[blg]$|_[blg]_reg$", n) else ()) for n in TEACHERS]
)
@aside
def test_a_teacher(name):
    config = load_config(TokenizerTrainConfig, overrides=[f"semantic={{teacher: {name}, weight: 0.5}}"]).semantic
    with fake_gpu():
        teacher = build_teacher(config, 4, STAND_INS).to(CUDA)
        require_on(CUDA, teacher(torch.zeros(2, 3, 64, 64, device=CUDA)))


# ------------------------------------------------------------------------------------------------ generators
SAMPLERS = {  # (kind of generator, settings of its sampler)
    "filtered": ("plain", {"guidance": Guidance(scale=1.5), "top_k": 4, "top_p": 0.9, "seed": 1}),
    "unguided": ("plain", {"guidance": Guidance()}),
    "greedy": ("norm of queries and keys", {"guidance": Guidance(scale=2.0), "greedy": True}),
    "rotary": ("rotary", {"guidance": Guidance(scale=1.5, schedule="step", last_guided=5)}),
    "factorized": ("factorized", {"guidance": Guidance(scale=(1.5, 2.0)), "temperature": (1.0, 0.9)}),
    "factorized, rotary": ("factorized, rotary", {"guidance": Guidance(scale=1.5)}),
    "masked bits": ("masked bits", {"guidance": Guidance(scale=1.5, schedule="rising")}),
    "modulated": ("modulated", {"guidance": Guidance(scale=1.5, last_guided=1)}),
    "any order": ("any order", {"guidance": Guidance(scale=4.0, schedule="power_cosine", power=2.0)}),
    "masked": ("masked", {"guidance": Guidance(scale=1.5), "passes": Passes(count=3)}),
}
TOKENIZER_OF = {1: ("llamagen", "vq"), 2: ("wetok", "gq")}  # indices per token -> a tokenizer with so many


@pytest.mark.parametrize("name", SAMPLERS)
@aside
def test_training_and_sampling(name):
    """Two updates, codes from the sampler, and images."""
    kind, settings = SAMPLERS[name]
    sampler = SamplerSettings(**settings)
    config, generator = small_networks.generator(kind)
    tokenizer = small_tokenizer(*TOKENIZER_OF[len(generator.codebook_sizes)])
    with fake_gpu():
        trained = TrainedModel(generator, config.optim, total_steps=4, world=GPU_WORLD, ema_decay=0.9)
        task = GeneratorTask(
            trained, name="gpt", world=GPU_WORLD, precision="fp32", validation=None, num_validation=0, batch_size=2
        )
        tokens = torch.zeros(4, *generator.token_shape, dtype=torch.long, device=CUDA)
        labels = torch.zeros(4, dtype=torch.long, device=CUDA)
        batch = {"labels": labels, "tokens": tokens, "drop": torch.zeros(4, dtype=torch.bool, device=CUDA)}
        choices = default_collate([choices_at(0, position, generator.training_choices()) for position in range(4)])
        batch |= {name: values.to(CUDA) for name, values in choices.items()}
        for step in range(2):
            require_on(CUDA, task.train_step([batch, batch], step)["loss"])

        generator, tokenizer = trained.module.eval(), tokenizer.to(CUDA).eval()
        require_on(CUDA, held_out_losses(generator, labels, tokens))
        ids = torch.arange(3)
        for codes, images in sample_images(generator, tokenizer, torch.zeros(3).long(), ids, sampler, batch_size=2):
            require_on(torch.device("cpu"), codes, images)


@pytest.mark.parametrize("name", ["plain", "factorized"])
@aside
def test_training_on_images(name):
    """Images become tokens in the step, with the time that it takes; held-out ones once."""
    config, generator = small_networks.generator(name)
    tokenizer = small_tokenizer(*TOKENIZER_OF[len(generator.codebook_sizes)])
    source = mini.image_source(3)
    with fake_gpu():
        tokenizer = tokenizer.to(CUDA).eval().requires_grad_(False)
        generator = type(generator)(replace(generator.config, num_tokens=tokenizer.num_tokens))
        trained = TrainedModel(generator, config.optim, total_steps=4, world=GPU_WORLD)
        tokenization = Tokenization(tokenizer, CUDA)
        held_out = RememberedTokens(source, tokenizer, CUDA, skip_broken=False)
        options = {"precision": "bf16", "validation": held_out, "num_validation": 3, "batch_size": 2}
        task = GeneratorTask(trained, name="gpt", world=GPU_WORLD, tokenization=tokenization, **options)
        labels, drop = torch.zeros(4, dtype=torch.long, device=CUDA), torch.zeros(4, dtype=torch.bool, device=CUDA)
        batch = batch_of_images() | {"labels": labels, "drop": drop}
        for step in range(2):
            require_on(CUDA, task.train_step([batch, batch], step)["loss"])
        assert task.clocks["tokenize_share"].seconds() >= 0
        task.evaluate(2)


# ------------------------------------------------------------------------------------------------ evaluations
@pytest.mark.parametrize(
    ("protocol", "extractor"),
    [pytest.param("adm", "inception", marks=pytest.mark.slow), ("wetok", "inception"), ("adm", "lite0")],
)
@aside
def test_a_reconstruction(protocol, extractor):
    """Every metric of reconstructions, against their originals: scores of pairs, distances, codes."""
    extractor_class = next(kind for name, kind in EXTRACTORS.items() if extractor in name)
    tokenizer, rules = small_tokenizer("wetok", "gq"), PROTOCOLS[protocol]()
    with fake_gpu():
        lpips = {
            name: lpips_network(STAND_INS, backbone)[0].to(CUDA) for name, backbone in rules.lpips_backbones.items()
        }
        extractor = extractor_class(STAND_INS).to(CUDA)
        reconstructor = Reconstructor(tokenizer.to(CUDA).eval(), rules, 64, False)
        accumulators = [
            PairScores(rules.scores(lpips), 4),
            CodebookUsage(tokenizer.quantizer),
            Compression(tokenizer.quantizer, 4),
            ReconstructionDistances(rules, extractor, {"kind": "val"}, None, 4, True, protocol == "adm"),
        ]
        with torch.inference_mode():
            batch = reconstructor.reconstruct(torch.arange(4), images_u8())
            require_on(CUDA, batch.reconstructions, batch.indices)
            measured = measure([batch], accumulators, GPU_WORLD)
        assert {"psnr", "ssim", "precision", "codebook_usage", "bits_per_image"} <= measured.metrics.keys()


@aside
def test_a_generation():
    """Metrics of generated images, which come on the CPU, against a reference; a classifier's opinion of them."""
    with fake_gpu():
        extractor = next(iter(EXTRACTORS.values()))(STAND_INS).to(CUDA)
        reference = Reference({"kind": "train"}, (np.zeros(extractor.dim), np.eye(extractor.dim)))
        classifier = Classifier(ClassifierConfig(width=4, num_classes=4)).to(CUDA)
        accumulators = [
            GenerationDistances(extractor, reference, 4, False, CUDA),
            NoiseDistance(extractor, reference, 4, CUDA),
            ClassAgreement(classifier, 4),
            CodeSequences(4, (4,), None),
        ]
        ids, tokens = torch.arange(4), torch.zeros(4, 4, dtype=torch.long)
        batch = GeneratedBatch(ids, ids, tokens, torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8))
        assert "label_agreement" in measure([batch], accumulators, GPU_WORLD).metrics


# ------------------------------------------------------------------------------------------------ probes
@pytest.mark.parametrize("name", SOURCES)
@aside
def test_a_probe(name):
    """Features of each source, and an update of the heads on them."""
    _, generator = small_networks.generator("plain")
    tokenizer = small_tokenizer("hybrid", "vq")
    config = NetworkConfig(source=name, tokenizer="tokenizer", gpt="gpt")
    probe_config = load_config(LinearProbeConfig, overrides=["probe.epochs=2", "probe.warmup_epochs=1"])
    with fake_gpu():
        networks = tokenizer.to(CUDA).eval(), generator.to(CUDA).eval() if SOURCES[name].needs_generator else None
        read_tokens = SOURCES[name](config, *networks)
        features = read_tokens(torch.zeros(4, 3, SIZE, SIZE, device=CUDA), True).float().mean(1)
        require_on(CUDA, features)

        network = SimpleNamespace(dim=features.shape[1])
        task = ProbeTask(network, lambda: np.zeros(0), 4, probe_config, GPU_WORLD)
        batch = {"features": features.detach(), "labels": torch.zeros(4, dtype=torch.long, device=CUDA)}
        require_on(CUDA, [value for key, value in task.train_step([batch], 1).items() if key.startswith("loss")])


@aside
def test_a_classifier():
    config = load_config(ClassifierTrainConfig, overrides=["model={width: 4, num_classes: 4}"])
    images, labels = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    with fake_gpu():
        network = TrainedModel(Classifier(config.model), config.optim, total_steps=4, world=GPU_WORLD)
        task = ClassifierTask(network, images, labels, 2, GPU_WORLD)
        batch = {"images_u8": images.to(CUDA), "labels": labels.to(CUDA)}
        require_on(CUDA, task.train_step([batch], 0)["loss"])
        task.evaluate(1)


# ------------------------------------------------------------------------------------------------ the test itself
@aside
def test_a_tensor_that_is_left_on_the_cpu_is_found():
    """In a network, in a mask, and in a table that is indexed; the same on one device is none."""
    with fake_gpu() as reads:
        images, table = torch.zeros(2, 4, device=CUDA), torch.zeros(4, 4)
        for mistake in (lambda: images @ table, lambda: table[images.long()], lambda: torch.cat([images, table])):
            with pytest.raises(Exception, match="device"):
                mistake()
        assert (images @ table.to(CUDA)).device == CUDA
        assert reads.count == 0 and images.sum().item() == 1.0 and reads.count == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has threads for backward passes; ranks are not forked")
def test_a_pretended_gpu_does_not_keep_later_tests_from_forking():
    """Regression: the first backward pass after it started threads, and backward passes failed in forked ranks."""
    number = torch.ones((), requires_grad=True)
    with fake_gpu():
        pass
    (2 * number).backward()
    aside((3 * number).backward)()
