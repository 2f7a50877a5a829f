"""Training steps, loss variants, schedules and averages of WeTok are the released ones; LPIPS is a stub there and here.

The released loop does one generator step and one discriminator step on the images made before it, then averages.
"""

import goldens
import pytest
import torch
import wetok_tokenizers as builders
from test_wetok_tokenizer import close
from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.optim import OptimConfig
from engine.schedules import learning_rate
from engine.trained_model import TrainedModel
from engine.world import World
from tokenizer.discriminators.patchgan import PatchGANConfig
from tokenizer.discriminators.registry import DiscriminatorConfig, build_discriminator
from tokenizer.frozen.base import Frozen
from tokenizer.losses.perceptual import PerceptualLoss
from tokenizer.losses.terms import LossConfig, loss_terms
from tokenizer.models.generative_decoder import widened
from tokenizer.models.wetok import WeTokTokenizer
from tokenizer.published.layout import published_name
from tokenizer.published.registry import layout_rules
from tokenizer.training import task as task_module
from tokenizer.training.frozen_networks import FrozenNetworks
from tokenizer.training.task import TokenizerTask

TINY, TOKENIZERS, MISC = builders.TINY, builders.tiny_cases(), goldens.cases(builders.TINY, "misc")
OPTIM = OptimConfig(lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0, max_grad_norm=0.0, schedule="constant")
GRADIENT, LOSS_FIRST, LOSS_LATER, WEIGHT = 2e-3, 1e-4, 1e-3, 5e-5
# The mean logits of the discriminator are no losses and have no stated tolerance after the first step. Adam's first
# steps are signs, which amplify rounding: with weights changed by 3e-7 of their size, as much as another CPU may round,
# 16 seeds moved the logits of the third step by up to 3e-3.
LOGITS, LOGITS_LATER = ("logits_real", "logits_generated"), 1e-2
TRAINED = [c for c in TOKENIZERS if "train_steps" in goldens.meta(TINY, c)]
SECOND_STAGE = [c for c in TOKENIZERS if "stage2_step" in goldens.meta(TINY, c)]


class StubLPIPS(PerceptualLoss):
    """Mean squared error, in the place of LPIPS."""

    def __init__(self) -> None:
        super().__init__(Frozen(nn.Identity()))

    def _features(self, images: Tensor) -> Tensor:
        return images

    def _distance(self, features: Tensor, references: Tensor) -> Tensor:
        return (features - references).square().mean()


def training_task(case: str, tokenizer: WeTokTokenizer, own_losses: frozenset[str]) -> TokenizerTask:
    """The released recipe, with the discriminator of the case."""
    published = goldens.tensors(TINY, case, "weights")
    weights = {k.removeprefix("loss.discriminator.main."): v for k, v in published.items() if k.startswith("loss.")}
    game = DiscriminatorConfig(
        name="patchgan",
        start_step=1,
        weight=0.1,
        patchgan=PatchGANConfig(base_channels=len(weights["0.weight"])),
        generator_loss="non_saturating",
        lecam_weight=0.05,
        weigh_own_loss=False,
    )
    loss = LossConfig(l2_weight=0.0, l1_weight=1.0, entropy_weight=0.1, discriminator=game)
    discriminator = build_discriminator(game, AssetsConfig())
    discriminator.layers.load_state_dict(weights)
    world = World(0, 1, 0, torch.device("cpu"))
    shared = {"total_steps": 100, "world": world, "ema_decay": 0.999}
    return TokenizerTask(
        TrainedModel(tokenizer, OPTIM, **shared),
        TrainedModel(discriminator, OPTIM, **shared),
        FrozenNetworks(perceptual=StubLPIPS()),
        loss_terms(loss, semantic_weight=0.0, warmup_steps=0, quantizer_losses=own_losses),
        world=world,
        precision="fp32",
        validation=None,
        discriminator_config=game,
    )


def watch_gradients(updater: TrainedModel, rules=()) -> dict[str, float]:
    """Gradient norms by published name at the next step."""
    seen, step = {}, updater.step

    def watched(*args):
        for name, p in updater.module.named_parameters():
            if p.grad is not None:
                theirs = published_name(name, rules)[0] if rules else name.replace("layers", "main")
                seen.setdefault(theirs, p.grad.norm().item())
        return step(*args)

    updater.step = watched
    return seen


def assert_norms(actual: dict[str, float], expected: dict[str, float], what: str) -> None:
    assert actual.keys() == expected.keys()
    for name, norm in expected.items():
        close(actual[name], norm, f"{what} gradient norm of {name}", GRADIENT * norm + 1e-6)


@pytest.fixture
def float_images(monkeypatch):
    """The goldens feed images that are no bytes."""
    monkeypatch.setattr(task_module, "to_float", lambda images: images)


@pytest.mark.parametrize("case", TRAINED)
def test_three_training_steps(case, float_images):
    """Every term of both losses, gradient norms, LeCam's averages; then weights, averaged weights, batch statistics."""
    meta, io = goldens.meta(TINY, case), goldens.tensors(TINY, case)
    task = training_task(case, builders.tiny_tokenizer(case), frozenset({"commitment", "entropy"}))
    rules = layout_rules(builders.tiny_config(case))
    norms, critic_norms = watch_gradients(task.tokenizer, rules), watch_gradients(task.discriminator)
    for step, expected in enumerate(meta["train_steps"]):
        batch = {"images_u8": io["train/x"], "skipped_images": torch.zeros(len(io["train/x"]))}
        ours, made, judged = task.train_step([batch], step), expected["log_generator"], expected["log_discriminator"]
        pairs = {
            "loss": expected["aeloss"],
            "sample_entropy": made["per_sample_entropy"],
            "codebook_entropy": made["codebook_entropy"],
            "entropy": made["entropy_loss"],
            "commitment": made["commit_loss"],
            "reconstruction_l1": made["reconstruct_loss"],
            "perceptual": made["perceptual_loss"],
            "discriminator": expected["discloss"],
            "logits_real": judged["logits_real"],
            "logits_generated": judged["logits_fake"],
            "lecam": judged["lecam_loss"],
        }
        tolerance = LOSS_FIRST if step == 0 else LOSS_LATER
        for name, value in pairs.items():
            limit = LOGITS_LATER if step > 0 and name in LOGITS else tolerance
            close(ours[name].item(), value, f"{case} step {step} {name}", limit)
        close(0.1 * ours["adversarial"].item(), made["g_loss"], f"{case} step {step} adversarial", tolerance)
        averages = torch.tensor([expected["lecam_real_ema"], expected["lecam_fake_ema"]])
        # Each step adds a small part of its logits to the averages.
        averages_limit = 1e-6 + step * LOGITS_LATER * (1 - task.discriminator_config.lecam_decay)
        close(task.lecam.averages, averages, f"{case} step {step} LeCam averages", averages_limit)
        if step == 0:
            assert_norms(norms, expected["grad_norms"], case)
            assert_norms(critic_norms, expected["disc_grad_norms"], f"{case} discriminator")
    for key in (k for k in io if k.startswith("train/after")):
        state, name = key.removeprefix("train/").split("/", 1)
        updater = task.discriminator if name.startswith("loss.") else task.tokenizer
        network = updater.module if state == "after" else updater.ema
        if updater is task.discriminator:
            actual = network.state_dict()[name.replace("loss.discriminator.main", "layers")]
        else:
            actual = {published_name(k, rules)[0]: v for k, v in network.state_dict().items()}[name]
        outside = ((actual.double() - io[key].double()).abs() > WEIGHT).double().mean().item()
        goldens._within(outside, 0.01, f"{case} {key}: share of entries off by more than {WEIGHT}")


@pytest.mark.parametrize("case", SECOND_STAGE)
def test_first_step_of_the_generative_decoder(case, float_images, monkeypatch):
    """Stage 2 on the released noise: loss without terms of the quantizer, gradients in the decoder alone."""
    expected, io = goldens.meta(TINY, case)["stage2_step"], goldens.tensors(TINY, case)
    wide, plain = builders.tiny_tokenizer(case, True), builders.tiny_tokenizer(case)
    wide.load_state_dict(widened(plain.state_dict(), wide.state_dict()))
    task = training_task(case, wide, frozenset())
    norms = watch_gradients(task.tokenizer, layout_rules(builders.tiny_config(case)))
    monkeypatch.setattr(torch, "randn_like", lambda x: io["stage2/noise"])
    halves, step = {}, task.tokenizer.step
    task.tokenizer.step = lambda *a: (
        halves.setdefault("noise", wide.decoder.conv_in.weight.grad.chunk(2, 1)[1].norm().item()),
        step(*a),
    )[1]
    batch = {"images_u8": io["train/x"], "skipped_images": torch.zeros(len(io["train/x"]))}
    ours = task.train_step([batch], 0)
    close(ours["loss"].item(), expected["total"], f"{case} stage 2 loss", LOSS_FIRST)
    close(0.1 * ours["adversarial"].item(), expected["log"]["g_loss"], f"{case} stage 2 adversarial", LOSS_FIRST)
    assert_norms(norms, expected["grad_norms"], f"{case} stage 2")
    reference = expected["grad_norm_conv_in_noise_half"]
    close(halves["noise"], reference, f"{case} stage 2 noise half", GRADIENT * reference)
    assert not expected["any_encoder_grad"] and not any(name.startswith("encoder") for name in norms)


SCHEDULES = {
    "ar_schedule": {"schedule": "linear", "hold_fraction": 0.05},
    "tokenizer_schedule_cos": {"schedule": "cosine"},
    "tokenizer_schedule_lin0": {"schedule": "linear", "hold_fraction": 0.05},
}


@pytest.mark.parametrize(
    ("file", "name", "options"),
    [(f, name, SCHEDULES[name]) for f in MISC for name in SCHEDULES if name in goldens.meta(TINY, f)],
)
def test_schedules(file, name, options):
    """Rates at the released iterations."""
    meta = goldens.meta(TINY, file)[name]
    peak = meta["peak_lr"]
    config = OptimConfig(
        lr=peak,
        end_lr=meta["wpe"] * peak,
        warmup_steps=meta["warmup_it"],
        warmup_start=meta["wp0"],
        end_at_last=True,
        **options,
    )
    for step, rate, *_ in meta["points"]:
        close(learning_rate(step, meta["max_it"], config), rate, f"{name} at {step}", 1e-6 * peak)


@pytest.mark.parametrize("file", [f for f in MISC if "ema" in goldens.meta(TINY, f)])
def test_averaged_weights(file):
    """Three updates by 0.5, 1.0 and 1.5, an average after each."""
    io, decay = goldens.tensors(TINY, file), goldens.meta(TINY, file)["ema"]["decay"]
    module = nn.Linear(io["ema/start"].shape[1], io["ema/start"].shape[0], bias=False)
    module.weight.data = io["ema/start"].clone()
    updater = TrainedModel(module, OPTIM, total_steps=9, world=World(0, 1, 0, torch.device("cpu")), ema_decay=decay)
    for step in range(3):
        module.weight.data += 0.5 * (step + 1)
        updater._update_ema(torch.tensor(False))
    close(updater.ema.weight, io["ema/after3"], f"{file} ema", 1e-6)
