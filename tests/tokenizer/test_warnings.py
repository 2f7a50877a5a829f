"""What a valid training is told before it starts, and what is refused because it can never work."""

import warnings

import mini
import pytest
import ranks
import tiny
import torch

from engine.averages import average_warnings, initial_share
from engine.messages import ConfigError
from tokenizer import load_tokenizer, train
from tokenizer.training.checks import network_on_meta, terms_of, validate, warnings_of
from tokenizer.training.unmoved import unmoved_parameters

QUANTIZERS = {
    "vq": ["model.quantizer.name=vq"],
    "simvq": ["model.quantizer={vq: null, name: simvq, simvq: {codebook_size: 16, codebook_dim: 4}}"],
    "ibq": ["model.quantizer={vq: null, name: ibq, ibq: {codebook_size: 16, codebook_dim: 4}}"],
    "rvq": ["model.quantizer={vq: null, name: rvq, rvq: {levels: 2, codebook_size: 16, codebook_dim: 4}}"],
    "gq": ["model.quantizer={vq: null, name: gq, gq: {num_groups: 2, group_dim: 2}}"],
}
PROJECTION = ["projection.weight", "projection.bias"]


def unmoved(*overrides: str) -> list[str]:
    config = mini.tokenizer_config(*overrides)
    network = network_on_meta(config)
    return unmoved_parameters(config, network, terms_of(config, network))


# ---------------------------------------------------------------------------------------------- a weight of 0
@pytest.mark.parametrize(
    ("quantizer", "weights", "expected"),
    [
        ("vq", [], []),
        ("vq", ["loss.codebook_weight=0"], ["codebook"]),
        ("vq", ["loss.codebook_weight=0", "loss.entropy_weight=0.1"], []),
        ("vq", ["loss.commitment_weight=0"], []),
        ("simvq", [], []),
        ("simvq", ["loss.codebook_weight=0"], PROJECTION),
        ("ibq", ["loss.codebook_weight=0"], []),  # the decoder's gradient reaches its codes
        ("ibq", ["loss.codebook_weight=0", "loss.l2_weight=0"], ["codebook"]),
        ("rvq", [], []),
        ("rvq", ["loss.codebook_weight=0"], ["books.0.codebook", "books.1.codebook"]),
        ("gq", ["loss.commitment_weight=0"], []),  # it has no parameters
    ],
)
def test_parameters_that_no_term_moves_are_known_before_training(quantizer, weights, expected):
    assert unmoved(*QUANTIZERS[quantizer], *weights) == expected


def test_a_codebook_that_nothing_moves_is_told_with_the_weights():
    (warning,) = warnings_of(mini.tokenizer_config("loss.codebook_weight=0"))
    assert "no loss term moves quantizer.codebook: the codebook keeps its initial values" in warning
    assert warning.endswith("weights that are 0: loss.codebook_weight, loss.entropy_weight")
    assert warnings_of(mini.tokenizer_config()) == []


def _train(world, config):
    """What torch will change is an error here: nobody is to see such warnings in the log of every process."""
    warnings.simplefilter("error", FutureWarning)
    train.train(config, world)


@pytest.mark.parametrize(
    "overrides", [[*QUANTIZERS["vq"], "loss.codebook_weight=0"], [*QUANTIZERS["simvq"], "loss.codebook_weight=0"]]
)
def test_it_trains_alike_on_any_number_of_processes(world, image_folder, tmp_path, overrides):
    """Regression: data parallelism died of parameters without a gradient, which one process had left alone."""
    codebooks = []
    for size in (1, 2):
        config = tiny.tokenizer_config(tmp_path / str(size), image_folder, *overrides, "loop.steps=3")
        if size == 1:
            train.train(config, world)
        else:
            ranks.on_ranks(2, tmp_path / "ranks", _train, config)
        assert "warning: no loss term moves" in (tmp_path / str(size) / "log.txt").read_text()
        codebooks.append(load_tokenizer(tmp_path / str(size)).quantizer.codes())
    assert torch.equal(codebooks[0], codebooks[1])


# ---------------------------------------------------------------------------------------------- what cannot work
def test_a_k_means_without_latents_is_refused():
    """8 tokens and 4 images: one step of warm-up gives 32 latents."""
    kmeans = "model.quantizer.vq={{codebook_size: {}, codebook_dim: 4, warmup_steps: 1, init: kmeans}}"
    validate(mini.tokenizer_config(kmeans.format(32)))
    with pytest.raises(ConfigError, match=r"model\.quantizer\.vq: k-means for 33 codes has 32 latents; raise"):
        validate(mini.tokenizer_config(kmeans.format(33)))
    alone = "loss.discriminator={name: patchgan, start_step: 1, warmup_steps: 1}"
    with pytest.raises(ConfigError, match=r"k-means for 32 codes has 0 latents; raise"):
        validate(mini.tokenizer_config(kmeans.format(32), alone))


def test_a_discriminator_that_never_starts_is_refused():
    gan = "loss.discriminator={{name: patchgan, start_step: {}, patchgan: {{base_channels: 4, num_layers: 2}}}}"
    validate(mini.tokenizer_config(gan.format(10), "loop.steps=10"))
    with pytest.raises(ConfigError, match=r"start_step=11, but the training ends after 10 steps: .* never starts"):
        validate(mini.tokenizer_config(gan.format(11), "loop.steps=10"))
    two_phases = "phases=[{steps: 6, lr: 1e-3}, {steps: 5, lr: 1e-3}]"
    validate(mini.tokenizer_config(gan.format(11), two_phases))


# ---------------------------------------------------------------------------------------------- averages of short runs
def test_the_share_of_the_initial_weights_is_that_of_the_recursion():
    average = 1.0  # initial weights 1, all others 0
    for _ in range(50):
        average = 0.9 * average
    assert initial_share(0.9, 50) == pytest.approx(average) and initial_share(0.0, 0) == 0
    assert list(average_warnings(0.9, 50)) == [] and list(average_warnings(0.9999, 250_000)) == []
    (text,) = average_warnings(0.999, 1000)
    assert "a horizon of 1,000 updates) hold 37% of the initial, untrained weights after 1,000 updates" in text


def test_who_loads_averages_of_a_short_run_is_told(world, image_folder, tmp_path, caplog):
    caplog.set_level("INFO", "tokenizers")
    train.train(tiny.tokenizer_config(tmp_path, image_folder, "ema_decay=0.9", "loop.steps=3"), world)
    assert "warning: averaged weights (ema_decay=0.9" in (tmp_path / "log.txt").read_text()
    caplog.clear()
    load_tokenizer(tmp_path)
    assert "the averaged (EMA) weights after 3 updates" in caplog.text
    assert "hold 73% of the initial, untrained weights after 3 updates; --weights model takes the raw" in caplog.text
    caplog.clear()
    load_tokenizer(tmp_path, weights="model")
    assert "the raw weights after 3 updates" in caplog.text and "warning" not in caplog.text
