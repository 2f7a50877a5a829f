"""One update of the tokenizer and of its discriminator, and validation, against plain re-statements."""

import copy

import mini
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.images import to_float, to_uint8
from engine.image_anchors import ANCHORS, anchor_psnrs
from engine.image_metrics import psnr
from engine.messages import ConfigError
from tokenizer.losses.perceptual import Lite0Loss, LPIPSLoss
from tokenizer.losses.semantic import Lite0Teacher
from tokenizer.quantizers.entropy_assignment import LOG_EPS
from tokenizer.training.build import build_task
from tokenizer.training.checks import network_on_meta, terms_of, validate
from tokenizer.training.frozen_networks import TEACHER_BATCH, build_frozen_networks, cached_features
from tokenizer.training.task import TokenizerTask, Validation

ALL_TERMS = [
    "loss.l2_weight=1.5",
    "loss.l1_weight=0.5",
    "loss.perceptual=efficientnet_lite0",
    "loss.perceptual_weight=0.3",
    "loss.codebook_weight=0.9",
    "loss.commitment_weight=0.25",
    "loss.entropy_weight=0.02",
    "semantic={teacher: efficientnet_lite0, weight: 0.4}",
    "model.hybrid.semantic_dim=112",
    "loss.discriminator={name: patchgan, start_step: 2, weight: 0.2}",
    "loss.discriminator.patchgan={base_channels: 4, num_layers: 2, norm: none}",
    "loss.shortcut={end_step: 3, reconstruction_weight: 0.7, feature_weight: 0.6}",
    "ema_decay=0.9",
    "assets.random_stand_in=true",
    "optim.lr=1e-3",
]
SOURCE = mini.image_source(40)
HELD_OUT = mini.random_images(11, seed=9)


def task_of(world, *overrides: str, source=SOURCE, batch_size: int = 4, validation=True) -> TokenizerTask:
    config = mini.tokenizer_config(*overrides)
    return build_task(config, world, mini.SILENT, source, Validation(HELD_OUT, batch_size) if validation else None)


@pytest.fixture
def task(world):
    return task_of(world, *ALL_TERMS)


def batch(seed: int = 0, count: int = 4) -> dict[str, Tensor]:
    index = torch.randperm(len(SOURCE), generator=torch.Generator().manual_seed(seed))[:count]
    pixels = torch.from_numpy(SOURCE.images)[index].permute(0, 3, 1, 2).contiguous()
    return {"images_u8": pixels, "index": index, "skipped_images": torch.zeros(count)}


def watch_gradients(updater) -> dict[str, Tensor | None]:
    """The gradients with which the next `updater.step` is called, by parameter name."""
    seen, step = {}, updater.step

    def watched(*args):
        seen.update({n: None if p.grad is None else p.grad.clone() for n, p in updater.module.named_parameters()})
        return step(*args)

    updater.step = watched
    return seen


def copies(task: TokenizerTask) -> tuple:
    """The networks as they are now, in training mode."""
    return copy.deepcopy(task.tokenizer.module).train(), copy.deepcopy(task.discriminator.module).train()


def plain_terms(model, discriminator, task: TokenizerTask, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Every term as the published formula says it, from the parts of the networks alone; and the images made."""
    features = model.encoder(images)
    z = F.normalize(model.quant_proj(model.query_encoder(features)), dim=-1)
    codes = F.normalize(model.quantizer.codebook, dim=-1)
    squared = (z[:, :, None] - codes).square().sum(-1)  # (B,N,K)
    q = codes[squared.argmin(-1)]
    u, v = z.detach(), q.detach()
    r = F.normalize(u + v, dim=-1)
    unit = z / z.norm(dim=-1, keepdim=True)
    turned = unit - 2 * (unit * r).sum(-1, keepdim=True) * r + 2 * (unit * u).sum(-1, keepdim=True) * v
    decoded, semantic = model.query_decoder(model.post_quant_proj(turned), True)
    made, direct = model.decoder(decoded), model.decoder(features)
    p = (-squared.flatten(0, 1) / 0.01).softmax(-1)
    mean_p = p.mean(0)
    sample = -(p * p.clamp_min(1e-30).log()).sum(-1).mean()
    codebook_entropy = -(mean_p * (mean_p + LOG_EPS).log()).sum()
    perceptual, teacher = task.frozen.perceptual, task.frozen.teacher
    return {
        "reconstruction_l2": ((made - images) ** 2).mean(),
        "reconstruction_l1": (made - images).abs().mean(),
        "perceptual": perceptual(made, images),
        "codebook": ((q - z.detach()) ** 2).mean(),
        "commitment": ((q.detach() - z) ** 2).mean(),
        "entropy": sample - codebook_entropy,
        "semantic": -F.cosine_similarity(semantic, teacher(images), dim=-1).mean(),
        "adversarial": -discriminator.layers(made).mean(),
        "shortcut_l2": ((direct - images) ** 2).mean(),
        "shortcut_l1": (direct - images).abs().mean(),
        "shortcut_perceptual": perceptual(direct, images),
        "shortcut_feature": ((features.detach() - decoded) ** 2).mean(),
    }, made


ALWAYS = {
    "reconstruction_l2": 1.5,
    "reconstruction_l1": 0.5,
    "perceptual": 0.3,
    "codebook": 0.9,
    "commitment": 0.25,
    "entropy": 0.02,
    "semantic": 0.4,
}
SHORTCUT = {
    "shortcut_l2": 0.7 * 1.5,
    "shortcut_l1": 0.7 * 0.5,
    "shortcut_perceptual": 0.7 * 0.3,
    "shortcut_feature": 0.6,
}
WEIGHTS = {1: ALWAYS | SHORTCUT, 2: ALWAYS | SHORTCUT | {"adversarial": 0.2}, 3: ALWAYS | {"adversarial": 0.2}}


# ---------------------------------------------------------------------------------------------- one update
@pytest.mark.parametrize("number", WEIGHTS)
def test_loss_and_gradients_are_those_of_the_plain_formula(task, number):
    """Total, every term and the gradient of every parameter, in updates where terms switch on and off."""
    given = batch()
    model, discriminator = copies(task)
    values, _ = plain_terms(model, discriminator, task, to_float(given["images_u8"]))
    total = sum(weight * values[name] for name, weight in WEIGHTS[number].items())
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(total, parameters, allow_unused=True), strict=True))
    seen = watch_gradients(task.tokenizer)
    metrics = task.train_step([given], number - 1)
    torch.testing.assert_close(metrics["loss"], total.detach(), rtol=1e-4, atol=1e-5)
    terms = WEIGHTS[1].keys() | WEIGHTS[3].keys()
    assert terms & metrics.keys() == WEIGHTS[number].keys(), "terms that are off are not computed"
    for name in WEIGHTS[number]:
        torch.testing.assert_close(metrics[name], values[name].detach(), rtol=1e-3, atol=1e-5, msg=name)
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            seen[name], gradient, rtol=2e-3, atol=2e-3 * scale + 1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_discriminator_learns_from_the_images_of_the_same_step(task):
    """Its loss and gradients are 0.2 times the hinge loss on the image that the tokenizer made before its update."""
    given = batch()
    images = to_float(given["images_u8"])
    model, discriminator = copies(task)
    made = plain_terms(model, discriminator, task, images)[1].detach()
    hinge = (F.relu(1 - discriminator.layers(images)).mean() + F.relu(1 + discriminator.layers(made)).mean()) / 2
    expected = torch.autograd.grad(0.2 * hinge, list(discriminator.parameters()))
    seen = watch_gradients(task.discriminator)
    metrics = task.train_step([given], 1)
    torch.testing.assert_close(metrics["discriminator"], hinge.detach(), rtol=1e-4, atol=1e-5)
    for actual, gradient in zip(seen.values(), expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-3, atol=1e-5)


def state(module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_each_update_changes_its_own_network_only(task):
    """The tokenizer's update leaves the discriminator without change and without gradients, and the reverse."""
    before = state(task.tokenizer.module), state(task.discriminator.module)
    _, pairs = task.update_tokenizer([batch()], 1)
    between = state(task.tokenizer.module)
    assert not same(before[0], between)
    assert same(before[1], state(task.discriminator.module))
    assert all(p.grad is None for p in task.discriminator.module.parameters())
    task.update_discriminator(pairs, 1)
    assert same(between, state(task.tokenizer.module))
    assert not same(before[1], state(task.discriminator.module))
    assert all(p.grad is None for p in task.tokenizer.module.parameters())


def test_discriminator_waits_for_its_first_update(task):
    """start_step 2: update 1 neither trains nor uses it, update 2 does both."""
    before = state(task.discriminator.module)
    first = task.train_step([batch()], 0)
    assert same(before, state(task.discriminator.module))
    assert not {"discriminator", "adversarial", "logits_real"} & first.keys()
    second = task.train_step([batch(1)], 1)
    assert not same(before, state(task.discriminator.module))
    assert {"discriminator", "adversarial", "logits_real", "logits_generated"} <= second.keys()


def test_pixels_reach_the_encoder_through_the_quantizer_and_the_codebook_through_its_own_losses(world):
    """With the pixel loss alone every encoder weight gets a gradient, the codebook none; its own loss gives it one."""
    encoders = ("encoder.", "query_encoder.", "quant_proj.")
    only_pixels = ["loss.codebook_weight=0", "loss.commitment_weight=0", "model.hybrid.semantic_layer=null"]
    for overrides, reached in ((only_pixels, False), (only_pixels[1:], True)):
        task = task_of(world, *overrides)
        seen = watch_gradients(task.tokenizer)
        task.train_step([batch()], 0)
        silent = [n for n, g in seen.items() if n.startswith(encoders) and (g is None or not g.any())]
        assert not silent
        codebook = seen["quantizer.codebook"]
        assert (codebook is not None and bool(codebook.any())) == reached


def test_averaged_weights_follow_the_formula(task):
    """ema <- 0.9 ema + 0.1 weights after each update; buffers are those of the network."""
    expected = {name: p.detach().clone() for name, p in task.tokenizer.module.named_parameters()}
    for step in range(3):
        task.train_step([batch(step)], step)
        for name, p in task.tokenizer.module.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * p.detach()
    for name, p in task.tokenizer.ema.named_parameters():
        torch.testing.assert_close(p, expected[name], msg=name)
    assert torch.equal(task.tokenizer.ema.quantizer.recent_indices, task.tokenizer.module.quantizer.recent_indices)
    assert not task.tokenizer.ema.training


def test_codebook_from_the_warm_up_also_reaches_the_averaged_weights(world, monkeypatch):
    """Two continuous updates, then k-means before the third: from then on both networks have its codebook."""
    warm = "model.quantizer.vq={codebook_size: 32, codebook_dim: 4, warmup_steps: 2, init: kmeans}"
    task = task_of(world, *ALL_TERMS, warm)
    quantizer, averaged = task.tokenizer.module.quantizer, task.tokenizer.ema.quantizer
    start = quantizer.codebook.detach().clone()
    for step in range(2):
        metrics = task.train_step([batch(step)], step)
        assert not {"codebook", "commitment", "entropy", "sample_entropy"} & metrics.keys()
    torch.testing.assert_close(quantizer.codebook.detach(), start, rtol=0, atol=1e-5)  # weight decay alone
    expected = copy.deepcopy(quantizer)
    expected.init_from_latents()
    seen = []
    update = task.update_tokenizer

    def watched(*args):
        seen.append((quantizer.codebook.detach().clone(), averaged.codebook.clone()))
        return update(*args)

    monkeypatch.setattr(task, "update_tokenizer", watched)
    metrics = task.train_step([batch(2)], 2)
    assert {"codebook", "commitment", "entropy"} <= metrics.keys()
    assert torch.equal(seen[0][0], expected.codebook) and torch.equal(seen[0][1], expected.codebook)
    task.train_step([batch(3)], 3)
    assert not torch.equal(seen[1][0], expected.codebook), "k-means runs once"
    averaged_by_formula = 0.9 * expected.codebook + 0.1 * seen[1][0]
    torch.testing.assert_close(seen[1][1], averaged_by_formula, rtol=1e-4, atol=1e-6)


def test_bf16_training_stays_near_fp32(world):
    """Losses agree within a few percent, weights stay fp32; entropies and codebook losses are fp32 islands."""
    values = []
    for precision in ("fp32", "bf16"):
        task = task_of(world, *ALL_TERMS, f"loop.precision={precision}")
        values.append(task.train_step([batch()], 1))
        assert {p.dtype for p in task.tokenizer.module.parameters()} == {torch.float32}
    for name in ("loss", "reconstruction_l2", "semantic", "shortcut_l2"):
        assert values[1][name].item() == pytest.approx(values[0][name].item(), rel=0.05, abs=0.02), name
    assert values[1]["loss"] != values[0]["loss"]


# ---------------------------------------------------------------------------------------------- validation
def test_validation_covers_every_term_for_both_sets_of_weights(task):
    """Equal to the plain formula on all held-out images; PSNR of the rounded images; usage over the whole set."""
    for step in range(3):
        task.train_step([batch(step)], step)
    metrics = task.evaluate(3)
    images = to_float(HELD_OUT)
    for prefix, network in (("val", task.tokenizer.module), ("val_ema", task.tokenizer.ema)):
        with torch.no_grad():
            values, made = plain_terms(network, task.discriminator.module, task, images)
            codes = network.encode(images).indices
        names = {name for name in metrics if name.startswith(f"{prefix}/")}
        extra = {"psnr", "codebook_usage", "sample_entropy", "codebook_entropy", "clipped_share"}
        anchors = set(ANCHORS) if prefix == "val" else set()
        assert {n.removeprefix(f"{prefix}/") for n in names} == WEIGHTS[3].keys() | extra | anchors
        for name in WEIGHTS[3].keys() - {"entropy"}:
            assert metrics[f"{prefix}/{name}"] == pytest.approx(values[name].item(), rel=1e-3, abs=1e-5), name
        assert metrics[f"{prefix}/psnr"] == pytest.approx(psnr(to_uint8(made), HELD_OUT).mean().item(), abs=0.02)
        assert metrics[f"{prefix}/codebook_usage"] == len(codes.unique()) / 32
        clipped = (made.abs() > 1.05).double().mean().item()
        assert metrics[f"{prefix}/clipped_share"] == pytest.approx(clipped, abs=1e-4)
    assert metrics["val/reconstruction_l2"] != metrics["val_ema/reconstruction_l2"]
    for name, psnrs in anchor_psnrs(HELD_OUT, 8).items():
        assert metrics[f"val/{name}"] == pytest.approx(psnrs.mean().item())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_validation_depends_neither_on_its_batch_size_nor_on_ranks_and_changes_nothing(world, norm):
    """Only the entropy of the codebook is one of a batch. Buffers of the batch norm stay as they were, too."""
    task = task_of(world, *ALL_TERMS, f"loss.discriminator.patchgan.norm={norm}")
    for step in range(3):
        task.train_step([batch(step)], step)
    before = state(task.tokenizer.module), state(task.tokenizer.ema), state(task.discriminator.module)
    results = []
    for size in (1, 4, 100):
        task.validation.batch_size = size
        results.append(task.evaluate(3))
    task.validation.batch_size = 3

    def on_rank(rank_world):
        own = copy.copy(task)
        own.world = rank_world
        own.tokenizer, own.discriminator = copy.copy(task.tokenizer), copy.copy(task.discriminator)
        own.tokenizer.module, own.tokenizer.ema = (copy.deepcopy(m) for m in (own.tokenizer.module, own.tokenizer.ema))
        return own.evaluate(3)

    results += mini.on_ranks(2, on_rank)
    for name, value in results[0].items():
        if not name.endswith(("/entropy", "/codebook_entropy")):
            assert [r[name] for r in results] == pytest.approx([value] * 5, rel=1e-4, abs=1e-5), name
    after = state(task.tokenizer.module), state(task.tokenizer.ema), state(task.discriminator.module)
    assert all(same(a, b) for a, b in zip(before, after, strict=True))


def test_training_goes_on_after_a_validation_as_without_one(world):
    """Modes of all networks are set again; the same updates follow."""
    results = []
    for look in (False, True):
        task = task_of(world, *ALL_TERMS, "loss.discriminator.patchgan.norm=batch")
        for step in range(3):
            metrics = task.train_step([batch(step)], step)
            if look:
                task.evaluate(step + 1)
        results.append((metrics["loss"], state(task.tokenizer.module), state(task.discriminator.module)))
    assert torch.equal(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1]) and same(results[0][2], results[1][2])


def test_validation_follows_the_warm_up_and_needs_images(world):
    """During the warm-up the held-out latents pass through, too; without images there is nothing to report."""
    task = task_of(world, "model.quantizer.vq.warmup_steps=2")
    assert {"val/codebook", "val/commitment"} & task.evaluate(2).keys() == set()
    assert {"val/codebook", "val/commitment"} <= task.evaluate(3).keys()
    assert task_of(world, validation=False).evaluate(3) == {}


def test_an_image_grid_shows_originals_above_reconstructions(world):
    task, grids = task_of(world, "ema_decay=0.5"), {}
    task.save_grid = lambda name, *grid, **named: grids.update({name: (*grid, *named.values())})
    task.evaluate(7)
    assert grids.keys() == {"val_00000007", "val_ema_00000007"}
    images, columns, row_names, caption = grids["val_00000007"]
    assert "reconstructions at step 7 (val)" in caption
    assert columns == 8 and len(images) == 16 and list(row_names) == ["original", "reconstruction"]
    assert torch.equal(to_uint8(images[:8]), HELD_OUT[:8])
    with torch.no_grad():
        made = task.tokenizer.module.eval()(images[:8]).reconstructions
    torch.testing.assert_close(images[8:], made)


# ---------------------------------------------------------------------------------------------- teacher cache
def test_cached_teacher_features_are_those_computed_on_the_fly(world):
    """For every training image, and for the loss; augmented or user-given images are not cached."""
    task = task_of(world, *ALL_TERMS)
    cache = task.frozen.teacher_cache
    images = torch.from_numpy(SOURCE.images).permute(0, 3, 1, 2).contiguous()
    torch.testing.assert_close(cache, task.frozen.teacher(to_float(images)), rtol=1e-4, atol=1e-5)
    cached = task.train_step([batch()], 0)["semantic"]
    for augmentation in ("data.flip_prob=0.5", "data.random_crop=true"):
        fresh = task_of(world, *ALL_TERMS, augmentation)
        assert fresh.frozen.teacher_cache is None
    torch.testing.assert_close(fresh.train_step([batch()], 0)["semantic"], cached, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_work_of_the_cache(world, ranks):
    """They fill one table; of four ranks one has none of the three batches (which once ended in a StopIteration)."""
    source = mini.image_source(2 * TEACHER_BATCH + 5)
    teacher = Lite0Teacher(4, mini.tokenizer_config(*ALL_TERMS).assets)
    alone = cached_features(teacher, source, 16, world)
    tables = mini.on_ranks(ranks, lambda rank: cached_features(teacher, source, 16, rank))
    assert all(torch.equal(table, alone) for table in tables)


def test_only_the_networks_that_active_terms_need_are_built(world):
    """And each says which weights it has."""
    config = mini.tokenizer_config()
    none = build_frozen_networks(config, network_on_meta(config), world)
    assert (none.perceptual, none.teacher, none.stamps) == (None, None, {})
    config = mini.tokenizer_config(*ALL_TERMS)
    both = build_frozen_networks(config, network_on_meta(config), world)
    assert isinstance(both.perceptual, Lite0Loss) and isinstance(both.teacher, Lite0Teacher)
    assert both.teacher.size == 64
    assert both.stamps == {"efficientnet_lite0": "random"}
    assert not isinstance(both.perceptual, LPIPSLoss)


# ---------------------------------------------------------------------------------------------- checks of the config
def test_all_problems_of_a_config_are_told_at_once():
    """Head, warm-up and image size in one message, each with its key."""
    config = mini.tokenizer_config(
        "semantic.teacher=dinov2_b", "model.quantizer.vq.warmup_steps=10", "loop.steps=10", "data.image_size=18"
    )
    with pytest.raises(ConfigError) as caught:
        validate(config)
    for part in ("model.hybrid.semantic_dim=12", "768", "warmup_steps=10", "loop.steps=10", "data.image_size=18"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["semantic.teacher=dinov2_b", "model.hybrid.semantic_layer=null"],
            r"semantic\.teacher=dinov2_b.*no semantic head",
        ),
        (["loss={l2_weight: 0, codebook_weight: 0, commitment_weight: 0}"], "every loss weight is 0"),
        (
            ["loss.discriminator={name: patchgan, patchgan: {num_layers: 3}}"],
            r"image_size=16 is too small for the discriminator",
        ),
        (["validation.batch_size=0"], r"validation\.batch_size=0 must be 1 or more"),
    ],
)
def test_sections_that_do_not_fit_each_other_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        validate(mini.tokenizer_config(*overrides))


def test_a_config_that_fits_gives_its_model_without_memory():
    config = mini.tokenizer_config(*ALL_TERMS)
    model = validate(config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {t.name for t in terms_of(config, model)} == WEIGHTS[2].keys()
