"""Any quantizer in any tokenizer under any generator: from images to samples and numbers, tiny.

A run is a triple of these. The quick runs hold every pair of components that go together, the slow ones every triple of
their forms; what does not go together is refused with its reason.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import tiny
import torch
from torch import nn

import autoregressive.train
import tokenizer.train
from autoregressive import load_gpt
from autoregressive.codes import CodeStore
from autoregressive.extract_codes import extract_split
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.loading import require_pair
from autoregressive.models.heads import HEADS
from autoregressive.models.registry import GENERATORS as GENERATOR_REGISTRY
from autoregressive.sampling import seeded_draw
from engine.data.images import to_float
from engine.data.samples import center_batch
from engine.data.sources import open_source
from engine.messages import ConfigError
from engine.run_log import read_metrics
from evaluations.protocols.accumulators import measure
from evaluations.protocols.reconstruction import Reconstructor
from evaluations.protocols.reconstruction_accumulators import CodebookUsage, Compression, PairScores
from evaluations.protocols.registry import PROTOCOLS
from tokenizer import load_tokenizer
from tokenizer.models.registry import MODELS
from tokenizer.models.registry import QUANTIZERS as QUANTIZER_REGISTRY
from tokenizer.training.checks import validate

# Forms of quantizers, by their sections.
QUANTIZERS = {
    "vq": "vq: {codebook_size: 16, codebook_dim: 4}",
    "vq of averages": "vq: {codebook_size: 16, codebook_dim: 4, update: ema, restart: random}",
    "gq": "gq: {num_groups: 2, group_dim: 2}",
    "gq under one index": "gq: {num_groups: 2, group_dim: 2, index_bits: [4]}",
    "lfq": "gq: {num_groups: 1, group_dim: 5}",
    "lfq under two indices": "gq: {num_groups: 1, group_dim: 5, index_bits: [2, 3]}",
    "bsq": "gq: {num_groups: 4, group_dim: 1, l2_norm: true}",
    "fsq": "fsq: {levels: [4, 8]}",
    "fsq under two indices": "fsq: {levels: [4, 3, 3], index_levels: [1, 2]}",
    "ibq": "ibq: {codebook_size: 16, codebook_dim: 4}",
    "simvq": "simvq: {codebook_size: 16, codebook_dim: 4}",
    "rvq": "rvq: {levels: 3, codebook_size: 8, codebook_dim: 4, level_dropout: 0.5}",
    "mcq": "mcq: {groups: 2, codebook_size: 8, codebook_dim: 2}",
    "multi_scale": "multi_scale: {scales: [1, 2, 4], codebook_size: 16, codebook_dim: 4}",
}
WITHOUT_ENTROPY = {"fsq", "multi_scale"}  # quantizers without an entropy loss
BLOCKS = "encoder_res_blocks: 1, decoder_res_blocks: 1, mid_blocks: 0"
CNN = f"{{base_channels: 4, channel_multipliers: [1, 2], norm_groups: 2, {BLOCKS}}}"
WIDTHS = "{width: 16, layers: 1, heads: 2}"
SMALL = "z_channels: 8, semantic_layer: null, position_std: 1.0, init: torch"
HYBRID = f"encoder: {WIDTHS}, decoder: {WIDTHS}, {SMALL}, cnn: {CNN}"
TOKENIZERS = {
    "cnn": f"model={{name: wetok, wetok: {{cnn: {CNN}}}}}",
    "cnn with projections": f"model={{name: llamagen, llamagen: {{z_channels: 8, cnn: {CNN}}}}}",
    "hybrid 1d": f"model={{name: hybrid, hybrid: {{layout: 1d, num_tokens: 4, {HYBRID}}}}}",
    "hybrid 2d": f"model={{name: hybrid, hybrid: {{layout: 2d, block: vit, num_tokens: 16, {HYBRID}}}}}",
    "resizing cnn": f"model={{name: maskgit_vq, maskgit_vq: {{cnn: {CNN}}}}}",
    "cnn with attention": f"model={{name: var_vae, var_vae: {{z_channels: 8, cnn: {CNN}}}}}",
}
# Forms of generators: name of the generator, and settings of its section.
GENERATORS = {
    "plain head": ("gpt", "head: plain, codebook_sizes: {sizes}"),
    "factorized head": ("gpt", "head: factorized, codebook_sizes: {sizes}"),
    "masked bits": ("gpt", "head: masked_bits, codebook_sizes: {sizes}"),
    "modulated": ("adaln_gpt", "head: plain, positions: learned, codebook_sizes: {sizes}"),
    "modulated, factorized": ("adaln_gpt", "head: factorized, positions: learned, codebook_sizes: {sizes}"),
    "any order": ("rar", "mlp_width: 32, order: {random_start: 1.0, random_end: 1.0}"),
    "masked": ("maskgit", "mask_schedule: arccos"),
    "next scale": ("next_scale", "scales: [1, 2, 4], code_dim: 4"),
}
OF_FIXED_LENGTH = {"next_scale"}  # generators whose other settings say how many tokens an image has
# Forms of quantizers whose tokens have several indices.
OF_SEVERAL_INDICES = {"gq", "lfq under two indices", "bsq", "fsq under two indices", "rvq", "mcq"}
REFUSED = {  # what does not go together, and what its refusal says
    ("multi_scale", "hybrid 1d"): "use it in a convolutional tokenizer",
    ("multi_scale", "hybrid 2d"): "use it in a convolutional tokenizer",
    **{
        (quantizer, generator): reason
        for reason, generators in {
            "for tokens of several indices": ["plain head", "modulated"],
            "is for one index per token": ["any order", "next scale"],
        }.items()
        for quantizer, generator in itertools.product(OF_SEVERAL_INDICES, generators)
    },
    ("fsq under two indices", "masked bits"): "powers of two",
    **{
        (quantizer, "next scale"): "is for a tokenizer of scales"
        for quantizer in QUANTIZERS.keys() - OF_SEVERAL_INDICES - {"multi_scale"}
    },
    **{
        (quantizer, generator): "is for tokens of shape"
        for generator in ("factorized head", "modulated, factorized")
        for quantizer in QUANTIZERS.keys() - OF_SEVERAL_INDICES
    },
}
TRAINING = """\
loss: {perceptual_weight: 0.0}
optim: {lr: 1e-3, max_grad_norm: 1.0}
ema_decay: 0.5
data: {image_size: 8, global_batch_size: 4, num_workers: 0}
validation: {num_images: 4, batch_size: 2}
loop: {device: cpu, steps: 2, log_every: 1, eval_every: 0, save_every: 100}
"""


def name_of(quantizer: str) -> str:
    """The name in the registry of a form of it."""
    return QUANTIZERS[quantizer].partition(":")[0]


@dataclass(frozen=True)
class Triple:
    """The components of a run, by their names in the tables above."""

    quantizer: str
    tokenizer: str
    generator: str

    @property
    def pairs(self) -> set[tuple[str, str]]:
        return set(itertools.combinations((self.quantizer, self.tokenizer, self.generator), 2))

    @property
    def quick_pairs(self) -> set[tuple[str, str]]:
        """The pairs that quick runs are chosen for: in a tokenizer, one form of a quantizer speaks for all."""
        return self.pairs - {(self.quantizer, self.tokenizer)} | {(name_of(self.quantizer), self.tokenizer)}

    def __str__(self) -> str:
        return ", ".join((self.quantizer, self.tokenizer, self.generator))


TRIPLES = [
    triple
    for triple in itertools.starmap(Triple, itertools.product(QUANTIZERS, TOKENIZERS, GENERATORS))
    if not triple.pairs & REFUSED.keys()
]


def chosen_triples() -> list[Triple]:
    """Few triples that hold all pairs: always the next one that holds most of those that are missing."""
    missing = set().union(*(triple.quick_pairs for triple in TRIPLES))
    chosen = []
    while missing:
        chosen.append(max(TRIPLES, key=lambda triple: len(triple.quick_pairs & missing)))
        missing -= chosen[-1].quick_pairs
    return chosen


QUICK = chosen_triples()
RUNS = [pytest.param(triple, id=str(triple), marks=[] if triple in QUICK else [pytest.mark.slow]) for triple in TRIPLES]


def config_of(run, images, network: str, quantizer: str, *more: str):
    name = name_of(quantizer)
    overrides = [f"model.quantizer={{name: {name}, {QUANTIZERS[quantizer]}}}"]
    overrides.append(f"loss.entropy_weight={0 if name in WITHOUT_ENTROPY else 0.05}")
    return tiny.tokenizer_config(run, images, TOKENIZERS[network], *overrides, *more, base=TRAINING)


def generator_config_of(folder, generator: str, model):
    """A training on the codes of a tokenizer, `model`, all below `folder`."""
    name, settings = GENERATORS[generator]
    settings = settings.replace("{sizes}", str(list(model.quantizer.group_sizes)))
    if name not in OF_FIXED_LENGTH:
        settings += f", num_tokens: {model.num_tokens}"
    section = f"width: 16, layers: 2, heads: 2, {settings}"
    overrides = [f"model={{name: {name}, {name}: {{{section}}}}}", "loop.steps=2"]
    folders = (folder / "gpt", folder / "codes", folder / "tokenizer")
    return tiny.gpt_config(*folders, *overrides, base=tiny.GPT_TRAINING)


def extract(model, data, folder, world) -> CodeStore:
    """The codes of all images, those of training opened."""
    for split in ("train", "val"):
        extract_split(model, open_source(data, split), data, split, "center", folder, 4, world)
    return CodeStore(folder, "train")


def losses_of(run) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def test_every_component_is_in_the_tables():
    """A component that is entered in a registry is crossed with all others."""
    assert {name_of(quantizer) for quantizer in QUANTIZERS} == QUANTIZER_REGISTRY.keys()
    assert {re.search(r"name: (\w+)", section)[1] for section in TOKENIZERS.values()} == MODELS.keys()
    assert {name for name, _ in GENERATORS.values()} == GENERATOR_REGISTRY.keys()
    heads = {re.search(r"head: (\w+)", settings) for _, settings in GENERATORS.values()}
    assert {head[1] for head in heads if head} == HEADS.keys()


def test_every_pair_of_components_is_in_a_quick_run_or_refused():
    """But a generator of scales has no tokenizer of a sequence: its only quantizer is refused there."""
    quick = set().union(*(triple.quick_pairs for triple in QUICK)) | REFUSED.keys()
    networks = itertools.product(TOKENIZERS, GENERATORS)
    absent = {(network, generator) for network, generator in networks if (network, generator) not in quick}
    assert absent == {("hybrid 1d", "next scale"), ("hybrid 2d", "next scale")}
    for quantizer in QUANTIZERS:
        assert all((name_of(quantizer), network) in quick for network in TOKENIZERS), quantizer
        assert all((quantizer, generator) in quick for generator in GENERATORS), quantizer


@pytest.mark.parametrize("triple", RUNS)
def test_from_images_to_samples_and_numbers(triple, tmp_path, image_folder, world):
    """Trains two steps; codes of the stored images decode to the tokenizer's own reconstruction, which is measured; a
    generator on the store trains two steps, and its samples decode.
    """
    config = config_of(tmp_path / "tokenizer", image_folder, triple.tokenizer, triple.quantizer)
    validate(config)
    tokenizer.train.train(config, world)
    losses = losses_of(tmp_path / "tokenizer")
    assert len(losses) == 2 and all(torch.isfinite(torch.tensor(losses)))

    # The loaded tokenizer and its codes.
    model = load_tokenizer(tmp_path / "tokenizer")
    store = extract(model, config.data, tmp_path / "codes", world)
    num_indices = model.quantizer.num_groups
    assert store.codes.shape[2:] == ((model.num_tokens, num_indices) if num_indices > 1 else (model.num_tokens,))
    source = open_source(config.data, "train")
    with torch.inference_mode():
        out = model(to_float(center_batch(source, 8, range(3), skip_broken=False)))
        stored = torch.stack([store.tokens(i, 0) for i in range(3)])
        assert torch.equal(stored, out.quantized.indices)
        torch.testing.assert_close(model.decode_indices(stored), out.reconstructions, atol=1e-4, rtol=1e-4)

    # Numbers.
    protocol = PROTOCOLS["adm"]()
    reconstructor = Reconstructor(model, protocol, 8, whole=False)
    images = reconstructor.originals(source, 4, False, world)
    accumulators = [
        PairScores({"psnr": protocol.scores({})["psnr"]}, len(source)),
        CodebookUsage(model.quantizer),
        Compression(model.quantizer, len(source)),
    ]
    with torch.inference_mode():
        metrics = measure((reconstructor.reconstruct(*batch) for batch in images), accumulators, world).metrics
    bits = sum(torch.tensor(model.quantizer.group_sizes).log2().tolist()) * model.num_tokens
    assert metrics["psnr"] > 0 and 0 < metrics["codebook_usage"] <= 1
    assert metrics["bits_per_image"] == pytest.approx(bits)

    # The generator and its samples.
    autoregressive.train.train(generator_config_of(tmp_path, triple.generator, model), world)
    assert len(losses_of(tmp_path / "gpt")) == 2
    gpt = load_gpt(tmp_path / "gpt")
    require_pair(gpt, model)
    draw = seeded_draw(0, torch.arange(2), gpt.num_draws)
    with calls_of(gpt.layers[-1]) as calls:
        tokens = generate(gpt, torch.tensor([0, 1]), draw=draw, guidance=Guidance(scale=1.5))
    assert max(calls.values()) == gpt.passes_per_image
    assert tokens.shape == (2, *gpt.token_shape)
    pictures = model.decode_indices(tokens)
    assert pictures.shape == (2, 3, 8, 8) and torch.isfinite(pictures).all()


@contextmanager
def calls_of(layer: nn.Module) -> Iterator[Counter[str]]:
    """How often each linear part of a layer is called."""
    calls: Counter[str] = Counter()
    handles = [
        part.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, part in layer.named_modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def refused_pairs() -> list:
    """Those of `REFUSED`; of the quantizers that a tokenizer or a generator refuses for a reason, the quick tests have
    the first.
    """
    pairs, told = [], set()
    for quantizer, other in sorted(REFUSED):
        refusal = (other, REFUSED[quantizer, other])
        marks = [pytest.mark.slow] if refusal in told else []
        pairs.append(pytest.param(quantizer, other, id=f"{quantizer}, {other}", marks=marks))
        told.add(refusal)
    return pairs


@pytest.mark.parametrize(("quantizer", "other"), refused_pairs())
def test_what_does_not_go_together_says_why(quantizer, other, tmp_path, image_folder, world):
    reason = REFUSED[quantizer, other]
    if other in TOKENIZERS:
        with pytest.raises(ConfigError, match=reason):
            validate(config_of(tmp_path, image_folder, other, quantizer))
        return

    # A generator refuses codes, of any tokenizer.
    network = "cnn" if quantizer != "multi_scale" else "cnn with attention"
    config = config_of(tmp_path / "tokenizer", image_folder, network, quantizer, "loop.steps=1")
    tokenizer.train.train(config, world)
    model = load_tokenizer(tmp_path / "tokenizer")
    extract(model, config.data, tmp_path / "codes", world)
    with pytest.raises(ConfigError, match=reason):
        autoregressive.train.train(generator_config_of(tmp_path, other, model), world)


def test_semantic_regularization_goes_with_groups(tmp_path, image_folder, world):
    """GigaTok's regularization of the decoder beside WeTok's quantizer."""
    semantic = [
        "model.hybrid.semantic_layer=1",
        "model.hybrid.semantic_dim=112",
        "semantic={teacher: efficientnet_lite0, weight: 0.1}",
        "assets.random_stand_in=true",
        "data.image_size=32",
        "model.hybrid.num_tokens=64",
        "model.hybrid.cnn.channel_multipliers=[1,2,2]",
    ]
    config = config_of(tmp_path / "run", image_folder, "hybrid 2d", "gq", *semantic)
    validate(config)
    tokenizer.train.train(config, world)
    first = read_metrics(tmp_path / "run")[0]
    assert {"semantic", "entropy", "commitment", "codebook_usage_group_1"} <= first.keys()


@pytest.mark.parametrize(
    ("network", "quantizer", "overrides", "reason"),
    [
        ("hybrid 1d", "fsq", ["loss.entropy_weight=0.1"], "fsq has no entropy loss"),
        ("cnn", "gq", ["model.quantizer.gq.index_bits=[3,2]"], "all together num_groups"),
        ("cnn", "vq", ["semantic.teacher=efficientnet_lite0"], "no semantic head"),
        ("cnn", "gq", ["loss.shortcut.end_step=5"], "has no shortcut"),
    ],
)
def test_combinations_that_cannot_work_say_why(network, quantizer, overrides, reason, tmp_path, image_folder):
    with pytest.raises(ConfigError, match=reason):
        validate(config_of(tmp_path, image_folder, network, quantizer, *overrides))
