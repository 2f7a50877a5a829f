"""The terms of the tokenizer loss: which are active in which update, with which weight, and how they are summed."""

import pytest
import torch

from engine.config import load_config
from engine.messages import ConfigError
from tokenizer.discriminators.gan_losses import LeCam, discriminator_hinge, generator_hinge
from tokenizer.losses.terms import (
    SHORTCUT_TERMS,
    LossConfig,
    Term,
    loss_terms,
    outputs_needed,
    terms_table,
    weighted_sum,
)
from tokenizer.training.checks import network_on_meta, terms_of
from tokenizer.training.config import TokenizerTrainConfig

NAMES = [
    *("reconstruction_l2", "reconstruction_l1", "perceptual", "codebook", "commitment", "entropy", "semantic"),
    *("adversarial", "shortcut_l2", "shortcut_l1", "shortcut_perceptual", "shortcut_feature"),
]


def recipe(*overrides: str) -> list[Term]:
    """The terms of the published recipe of S-S."""
    overrides = ["data.root=x", "data.val_root=x", *overrides]
    config = load_config(TokenizerTrainConfig, ["configs/vq/VQ_SS256.yaml"], overrides)
    return terms_of(config, network_on_meta(config))


def released_weights(s: int) -> dict[str, float]:
    """The released loss of S-S in update `s`, counted from 1: every weight as the published code applies it."""
    weights = {"reconstruction_l2": 1.0, "perceptual": 1.0, "codebook": 1.0, "commitment": 0.25, "semantic": 0.5}
    if s >= 20_000:
        weights["adversarial"] = 0.5
    if s < 15_000:
        weights |= {"shortcut_l2": 1.0, "shortcut_perceptual": 1.0, "shortcut_feature": 1.0}
    return weights


@pytest.mark.parametrize("s", [1, 2, 14_999, 15_000, 19_999, 20_000, 20_001, 1_000_000])
def test_the_sum_is_the_released_formula_at_the_steps_where_it_switches(s):
    """Weights meet values in one sum; a term that is off needs no value and adds nothing."""
    values = {name: torch.tensor(float(i + 1) ** 1.7) for i, name in enumerate(NAMES)}
    expected = sum(w * values[name] for name, w in released_weights(s).items())
    torch.testing.assert_close(weighted_sum(recipe(), values, s - 1), expected)
    active = {t.name: t.weight for t in recipe() if t.is_active(s - 1)}
    assert active == released_weights(s)
    torch.testing.assert_close(weighted_sum(recipe(), {name: values[name] for name in active}, s - 1), expected)


def test_gradient_of_the_sum_is_the_weight():
    terms = [Term("a", 0.25), Term("b", 3.0, first=4), Term("c", 2.0, last=3)]
    values = {name: torch.zeros((), requires_grad=True) for name in "abc"}
    weighted_sum(terms, values, 4).backward()
    assert [values[name].grad for name in "abc"] == [0.25, 3.0, None]


def test_only_pictures_of_the_shortcut_need_its_reconstruction():
    """The regression of features compares what every forward pass computes."""
    needed = {name: outputs_needed({name})["shortcut"] for name in SHORTCUT_TERMS}
    assert needed == {
        "shortcut_l2": True,
        "shortcut_l1": True,
        "shortcut_perceptual": True,
        "shortcut_feature": False,
    }


def test_warm_up_of_the_quantizer_delays_its_terms():
    """With 400 continuous updates the first with codebook, commitment and entropy is 401."""
    terms = recipe("model.quantizer.vq.warmup_steps=400", "loss.entropy_weight=0.02")
    late = {t.name for t in terms if not t.is_active(399) and t.is_active(400)}
    assert late == {"codebook", "commitment", "entropy"}


@pytest.mark.parametrize(
    ("override", "gone"),
    [
        ("loss.l2_weight=0", {"reconstruction_l2", "shortcut_l2"}),
        ("loss.perceptual_weight=0", {"perceptual", "shortcut_perceptual"}),
        ("loss.codebook_weight=0", {"codebook"}),
        ("loss.commitment_weight=0", {"commitment"}),
        ("semantic.weight=0", {"semantic"}),
        ("semantic.teacher=''", {"semantic"}),
        ("loss.discriminator.name=none", {"adversarial"}),
        ("loss.discriminator.weight=0", {"adversarial"}),
        ("loss.shortcut.end_step=0", {"shortcut_l2", "shortcut_perceptual", "shortcut_feature"}),
        ("loss.shortcut.end_step=1", {"shortcut_l2", "shortcut_perceptual", "shortcut_feature"}),
        ("loss.shortcut.reconstruction_weight=0", {"shortcut_l2", "shortcut_perceptual"}),
        ("loss.shortcut.feature_weight=0", {"shortcut_feature"}),
    ],
)
def test_a_weight_of_zero_removes_its_terms(override, gone):
    assert {t.name for t in recipe()} - {t.name for t in recipe(override)} == gone


def test_direct_terms_have_the_weight_of_their_term_times_the_shortcut_weight():
    terms = recipe(
        "loss.l1_weight=0.5", "loss.l2_weight=2", "loss.perceptual_weight=3", "loss.shortcut.reconstruction_weight=0.1"
    )
    weights = {t.name: t.weight for t in terms}
    direct = (weights["shortcut_l1"], weights["shortcut_l2"], weights["shortcut_perceptual"])
    assert direct == pytest.approx((0.05, 0.2, 0.3))
    assert weights["shortcut_feature"] == 1.0


def test_the_table_lists_exactly_the_terms_with_their_updates():
    """Name, weight, first and last update; `end` where a term lasts to the end of the run."""
    rows = {line.split()[0]: line.split()[1:] for line in terms_table(recipe(), 1_000_000).splitlines()[1:]}
    assert rows == {
        "reconstruction_l2": ["1", "1", "end"],
        "perceptual": ["1", "1", "end"],
        "codebook": ["1", "1", "end"],
        "commitment": ["0.25", "1", "end"],
        "semantic": ["0.5", "1", "end"],
        "adversarial": ["0.5", "20000", "end"],
        "shortcut_l2": ["1", "1", "14999"],
        "shortcut_perceptual": ["1", "1", "14999"],
        "shortcut_feature": ["1", "1", "14999"],
    }
    short = terms_table(recipe(), 10_000)
    assert "14999" not in short, "the run ends before"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.perceptual=lpipz", r"loss\.perceptual='lpipz' must be one of: efficientnet_lite0, lpips"),
        ("loss.discriminator.name=gan", r"loss\.discriminator\.name='gan' must be one of:.*patchgan"),
        ("loss.discriminator.patchgan.num_layers=0", r"loss\.discriminator\.patchgan\.num_layers=0 must be 1 or more"),
        ("loss.commitment_weight=-1", r"loss\.commitment_weight=-1\.0 must be 0 or more"),
        ("semantic.teacher=dino", r"semantic\.teacher='dino' must be one of:.*dinov2_b"),
    ],
)
def test_wrong_settings_name_their_key(override, message):
    with pytest.raises(ConfigError, match=message):
        recipe(override)


def test_hinge_losses_against_loops():
    """Generator: -mean. Discriminator: half the sum of the two mean margins; beyond the margin there is no gradient."""
    real, fake = torch.randn(2, 1, 3, 3) * 2, torch.randn(2, 1, 3, 3) * 2
    real.requires_grad_()
    margins = [max(0.0, 1 - v) for v in real.flatten().tolist()], [max(0.0, 1 + v) for v in fake.flatten().tolist()]
    expected = (sum(margins[0]) / 18 + sum(margins[1]) / 18) / 2
    loss = discriminator_hinge(real, fake)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert generator_hinge(fake).item() == pytest.approx(-sum(fake.flatten().tolist()) / 18, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(real.grad, torch.where(real > 1, 0.0, -1 / 36))


def test_logits_that_are_not_finite_do_not_spoil_lecam():
    """Regression: its averages became NaN with one bad batch, and so did every discriminator loss after it."""
    lecam, logits = LeCam(0.9, torch.device("cpu")), torch.ones(2, 1, 2, 2)
    lecam(logits, -logits)
    before = lecam.averages
    assert not torch.isfinite(lecam(logits * torch.nan, logits / 0)), "the update of the batch itself is skipped"
    assert torch.equal(lecam.averages, before) and before.abs().min() > 0
    assert torch.isfinite(lecam(logits, -logits))


def test_default_config_has_the_weights_of_the_published_recipe():
    """Without a YAML file: what every released config has, and nothing that one of them leaves out."""
    weights = {t.name: t.weight for t in loss_terms(LossConfig(), semantic_weight=0.5, warmup_steps=0)}
    assert weights == released_weights(15_000)
