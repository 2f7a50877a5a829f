"""Any quantizer in any tokenizer, and their codes under either head of the GPT: from images to samples, tiny."""

import itertools

import pytest
import tiny
import torch

import autoregressive.train
import tokenizer.train
from autoregressive import load_gpt
from autoregressive.codes import CodeStore
from autoregressive.extract_codes import extract_split
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.loading import require_pair
from autoregressive.sampling import seeded_draw
from engine.data.images import to_float
from engine.data.samples import center_batch
from engine.data.sources import open_source
from engine.messages import ConfigError
from engine.run_log import read_metrics
from tokenizer import load_tokenizer
from tokenizer.training.checks import validate

QUANTIZERS = {  # overrides; each but FSQ has an entropy loss
    "vq": ["model.quantizer={name: vq, vq: {codebook_size: 16, codebook_dim: 4}}", "loss.entropy_weight=0.05"],
    "gq": ["model.quantizer={name: gq, gq: {num_groups: 2, group_dim: 2}}", "loss.entropy_weight=0.05"],
    "gq under one index": [
        "model.quantizer={name: gq, gq: {num_groups: 2, group_dim: 2, index_bits: [4]}}",
        "loss.entropy_weight=0.05",
    ],
    "lfq": ["model.quantizer={name: gq, gq: {num_groups: 1, group_dim: 5}}", "loss.entropy_weight=0.05"],
    "lfq under two indices": [
        "model.quantizer={name: gq, gq: {num_groups: 1, group_dim: 5, index_bits: [2, 3]}}",
        "loss.entropy_weight=0.05",
    ],
    "bsq": ["model.quantizer={name: gq, gq: {num_groups: 4, group_dim: 1, l2_norm: true}}", "loss.entropy_weight=0.05"],
    "fsq": ["model.quantizer={name: fsq, fsq: {levels: [4, 3, 3]}}", "loss.entropy_weight=0"],
    "ibq": ["model.quantizer={name: ibq, ibq: {codebook_size: 16, codebook_dim: 4}}", "loss.entropy_weight=0.05"],
    "rvq": [
        "model.quantizer={name: rvq, rvq: {levels: 3, codebook_size: 8, codebook_dim: 4, level_dropout: 0.5}}",
        "loss.entropy_weight=0.05",
    ],
    "mcq": [
        "model.quantizer={name: mcq, mcq: {groups: 2, codebook_size: 8, codebook_dim: 2}}",
        "loss.entropy_weight=0.05",
    ],
    "simvq": ["model.quantizer={name: simvq, simvq: {codebook_size: 16, codebook_dim: 4}}", "loss.entropy_weight=0.05"],
}
FORMS = {  # further forms of a quantizer, each with a tokenizer
    "fsq under two indices": (
        "hybrid 2d",
        ["model.quantizer={name: fsq, fsq: {levels: [4, 3, 2], even: symmetric, index_levels: [2, 1]}}"],
    ),
    "vq by averages": (
        "cnn",
        ["model.quantizer={name: vq, vq: {codebook_size: 16, codebook_dim: 4, update: ema, restart: nearest}}"],
    ),
}
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
}
TRAINING = """\
loss: {perceptual_weight: 0.0}
optim: {lr: 1e-3, max_grad_norm: 1.0}
ema_decay: 0.5
data: {image_size: 8, global_batch_size: 4, num_workers: 0}
validation: {num_images: 4, batch_size: 2}
loop: {device: cpu, steps: 3, log_every: 1, eval_every: 0, save_every: 100}
"""


def config_of(run, images, network: str, quantizer: str, *more: str):
    own = FORMS[quantizer][1] if quantizer in FORMS else QUANTIZERS[quantizer]
    return tiny.tokenizer_config(run, images, TOKENIZERS[network], *own, *more, base=TRAINING)


@pytest.mark.parametrize(
    ("network", "quantizer"),
    [*itertools.product(TOKENIZERS, QUANTIZERS), *((network, name) for name, (network, _) in FORMS.items())],
)
def test_every_quantizer_in_every_tokenizer_under_its_head(network, quantizer, tmp_path, image_folder, world):
    """Trains three steps; codes of the stored images decode to the tokenizer's own reconstruction; a GPT on the store
    trains three steps and its samples decode.
    """
    config = config_of(tmp_path / "tokenizer", image_folder, network, quantizer)
    validate(config)
    tokenizer.train.train(config, world)
    losses = [r["loss"] for r in read_metrics(tmp_path / "tokenizer") if "loss" in r]
    assert len(losses) == 3 and all(torch.isfinite(torch.tensor(losses)))

    model = load_tokenizer(tmp_path / "tokenizer")
    sizes = list(model.quantizer.group_sizes)
    for split in ("train", "val"):
        extract_split(
            model, open_source(config.data, split), config.data, split, "center", tmp_path / "codes", 4, world
        )
    store = CodeStore(tmp_path / "codes", "train")
    assert store.codes.shape[2:] == ((model.num_tokens, len(sizes)) if len(sizes) > 1 else (model.num_tokens,))
    with torch.inference_mode():
        images = center_batch(open_source(config.data, "train"), 8, range(3), skip_broken=False)
        out = model(to_float(images))
        stored = torch.stack([store.tokens(i, 0) for i in range(3)])
        assert torch.equal(stored, out.quantized.indices)
        torch.testing.assert_close(model.decode_indices(stored), out.reconstructions, atol=1e-4, rtol=1e-4)

    overrides = [f"model.gpt={{codebook_sizes: {sizes}, num_tokens: {model.num_tokens}}}", "loop.steps=3"]
    gpt_config = tiny.gpt_config(tmp_path / "gpt", tmp_path / "codes", tmp_path / "tokenizer", *overrides)
    autoregressive.train.train(gpt_config, world)
    gpt = load_gpt(tmp_path / "gpt")
    require_pair(gpt, model)
    draw = seeded_draw(0, torch.arange(2), gpt.num_draws)
    tokens = generate(gpt, torch.tensor([0, 1]), draw=draw, guidance=Guidance(scale=1.5))
    assert tokens.shape == (2, *gpt.token_shape)
    made = model.decode_indices(tokens)
    assert made.shape == (2, 3, 8, 8) and torch.isfinite(made).all()


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
