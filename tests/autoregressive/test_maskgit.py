"""The masked generator: closed forms of its schedules and losses, equalities of its sampler, exact training."""

import argparse
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generator_runs import ALONE, Runs, codes_below
from torch import Tensor

from autoregressive import load_gpt
from autoregressive.cli import add_sampler_flags, settings_of
from autoregressive.codes import CHOICES_KEY, CodeStore, code_batch
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings
from autoregressive.models import maskgit
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.maskgit import MaskGIT, MaskGITConfig
from autoregressive.models.random_masks import HELD_OUT_PASSES, draw_mask, expected_share, held_out_masks
from autoregressive.passes import MASK_SCHEDULES, Passes
from autoregressive.sampling import SeededDraw, greedy, gumbel, seeded_draw
from autoregressive.training.config import GPTTrainConfig
from engine.config import load_config
from engine.data.samples import fixed_choice
from engine.messages import ConfigError, UserError
from engine.run_log import read_metrics
from engine.seeds import counter_rng
from evaluations.jobs.val_loss import held_out_losses

SIZES = {"width": 16, "layers": 2, "heads": 2, "num_classes": 3}
CODES = {"one index": [5], "two indices": [3, 4]}
codes_of = pytest.mark.parametrize("sizes", CODES.values(), ids=CODES.keys())
scheduled = pytest.mark.parametrize("name", MASK_SCHEDULES)


def network(sizes: list[int], num_tokens: int = 4, **options) -> MaskGIT:
    """A small generator in evaluation mode, all of whose parameters matter."""
    torch.manual_seed(0)
    generator = MaskGIT(MaskGITConfig(**SIZES, codebook_sizes=sizes, num_tokens=num_tokens, **options))
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return generator.requires_grad_(False).eval()


def tokens_of(generator: MaskGIT, batch: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(1)
    shape = (batch, generator.num_tokens)
    columns = [torch.randint(size, shape, generator=random) for size in generator.codebook_sizes]
    return torch.stack(columns, dim=-1).reshape(batch, *generator.token_shape)


def mask_of(generator: MaskGIT, batch: int = 3) -> Tensor:
    return torch.rand(batch, *generator.token_shape, generator=torch.Generator().manual_seed(2)) < 0.5


# ------------------------------------------------------------------------------------------------ schedules
@scheduled
def test_shares_fall_from_one_to_zero_and_inverses_invert(name):
    schedule = MASK_SCHEDULES[name]
    assert schedule.share(0) == 1 and schedule.share(1) == pytest.approx(0, abs=1e-12)
    for x in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert schedule.inverse(schedule.share(x)) == pytest.approx(x, abs=1e-7)
    expected = {"cosine": 0.5**0.5, "arccos": 2 / 3, "linear": 0.5}
    assert schedule.share(0.5) == pytest.approx(expected[name])


@scheduled
def test_every_pass_reveals_and_all_is_revealed_once(name):
    """For all numbers of slots and passes; as many passes as slots reveal one by one."""
    for slots in range(1, 65):
        for count in range(1, slots + 1):
            left = [slots, *Passes(count=count).completed(slots, name).masked_after(slots)]
            revealed = [before - after for before, after in itertools.pairwise(left)]
            assert len(revealed) == count and min(revealed) >= 1 and sum(revealed) == slots
            assert count < slots or set(revealed) == {1}


@pytest.mark.parametrize(
    ("name", "slots", "expected"),
    [
        ("cosine", 16, [1, 1, 1, 2, 3, 2, 3, 3]),
        ("arccos", 16, [2, 1, 1, 2, 1, 2, 2, 5]),
        ("cosine", 256, [5, 15, 24, 31, 39, 45, 48, 49]),
        ("arccos", 256, [21, 21, 21, 23, 25, 28, 35, 82]),
    ],
)
def test_eight_passes_reveal_as_published(name, slots, expected):
    left = [slots, *Passes().completed(slots, name).masked_after(slots)]
    assert [before - after for before, after in itertools.pairwise(left)] == expected


def test_passes_are_completed_and_their_noise_ends():
    passes = Passes(choice_temperature=3.0).completed(4, "arccos")
    assert passes == Passes(count=4, choice_temperature=3.0, schedule="arccos")
    assert [passes.noise_scale(number) for number in range(4)] == pytest.approx([2.25, 1.5, 0.75, 0.0])
    with pytest.raises(ConfigError, match="9 passes: an image has 8 indices"):
        Passes(count=9).completed(8, "cosine")
    for wrong, message in (
        ({"count": 0}, "count=0 must be 1"),
        ({"count": 1.5}, "a whole number"),
        ({"choice_temperature": float("nan")}, "0 or more and finite"),
        ({"schedule": "sine"}, "one of: arccos, cosine, linear"),
    ):
        with pytest.raises(ConfigError, match=message):
            Passes(**wrong)


# ------------------------------------------------------------------------------------------------ masks
@scheduled
def test_masks_of_training_follow_the_schedule(name):
    """The count of each, from the first number of the sample; their mean; and each slot as often as any other."""
    masks = []
    for number in range(2000):
        (mask,) = draw_mask((3, 2), name, counter_rng(0, 1, number)).values()
        share = MASK_SCHEDULES[name].share(counter_rng(0, 1, number).random())
        assert mask.shape == (3, 2) and mask.sum() == max(1, round(6 * share))
        masks.append(mask)
    stacked = torch.stack(masks).double()
    assert stacked.mean().item() == pytest.approx(expected_share(6, name), abs=0.02)
    assert (stacked.mean(0) - stacked.mean()).abs().max() < 0.04


def test_masks_of_held_out_images_depend_on_the_image_alone():
    tokens = torch.randint(8, (3, 16, 2), generator=torch.Generator().manual_seed(0))
    masks = held_out_masks(tokens)
    alone = held_out_masks(tokens[2:])
    assert len(masks) == HELD_OUT_PASSES
    for part, (of_all, of_one) in enumerate(zip(masks, alone, strict=True)):
        assert torch.equal(of_all[2:], of_one)
        counts = of_all.sum((1, 2))
        assert ((counts > part * 8) & (counts <= (part + 1) * 8)).all()  # 32 slots in four equal parts


def test_the_loss_of_held_out_images_averages_to_that_of_all_orders():
    """Over all counts and masks of three slots, it is the mean of -log p over the six orders of drawing them."""
    generator = network([5], num_tokens=3).double()
    tokens, labels = tokens_of(generator, 1), torch.tensor([1])

    def loss_of(masked: tuple[int, ...]) -> Tensor:
        mask = torch.zeros(1, 3, dtype=torch.bool)
        mask[:, list(masked)] = True
        return generator.image_losses(generator(labels, tokens, mask=mask), tokens)[0].double()

    by_count = [
        torch.stack([loss_of(masked) for masked in itertools.combinations(range(3), count)]).mean()
        for count in (1, 2, 3)
    ]
    by_order = [-log_p_in_order(generator, labels, tokens, order)[0] for order in itertools.permutations(range(3))]
    expected = torch.stack(by_order).mean() / 3
    torch.testing.assert_close(torch.stack(by_count).mean(), expected, atol=1e-6, rtol=0)


def log_p_in_order(generator: MaskGIT, labels: Tensor, tokens: Tensor, order: tuple[int, ...]) -> Tensor:
    """log p (B,) of tokens of one index that are drawn one after the other."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for cell in order:
        log_p = generator(labels, tokens, mask=mask).logits[:, cell, 0].double().log_softmax(-1)
        total += log_p.gather(-1, tokens[:, cell : cell + 1])[:, 0]
        mask[:, cell] = False
    return total


# ------------------------------------------------------------------------------------------------ the network
def test_probabilities_of_all_images_sum_to_one_in_any_order():
    """Three codes on three cells are 27 images."""
    generator = network([3], num_tokens=3).double()
    images = torch.tensor(list(itertools.product(range(3), repeat=3)))
    labels = torch.ones(27, dtype=torch.int64)
    for order in ((0, 1, 2), (2, 0, 1)):
        total = log_p_in_order(generator, labels, images, order).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-6)


@codes_of
def test_masked_indices_are_hidden_and_known_ones_are_seen_by_all(sizes):
    generator = network(sizes)
    tokens, labels, mask = tokens_of(generator), torch.arange(3), mask_of(generator)
    logits = generator(labels, tokens, mask=mask).logits
    other = torch.where(mask, (tokens + 1) % min(sizes), tokens)
    assert torch.equal(generator(labels, other, mask=mask).logits, logits)

    # The last cell is seen by the first.
    known = mask.clone()
    known[:, -1] = False
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % min(sizes)
    first = [generator(labels, values, mask=known).logits[:, 0] for values in (tokens, changed)]
    assert not torch.equal(*first)
    assert torch.equal(generator(labels, tokens).logits, generator(labels, other).logits)  # all are hidden


@codes_of
def test_the_names_of_cells_do_not_matter(sizes):
    """Cells that are renamed in tokens, masks and positions alike have the same logits."""
    generator = network(sizes)
    tokens, labels, mask = tokens_of(generator), torch.arange(3), mask_of(generator)
    before = generator(labels, tokens, mask=mask).logits
    names = torch.tensor([2, 0, 3, 1])
    generator.positions[1:] = generator.positions[1:][names]
    after = generator(labels, tokens[:, names], mask=mask[:, names]).logits
    torch.testing.assert_close(after, before[:, names], atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["learned", "rope2d"])
def test_features_are_those_of_all_tokens(positions):
    generator = network([5], positions=positions)
    tokens = tokens_of(generator)
    hidden = generator.features(torch.arange(3), tokens, 1)
    assert hidden.shape == (3, 4, 16)
    assert not torch.equal(hidden[0, 0], generator.features(torch.arange(3), tokens.flip(0), 1)[0, 0])


@codes_of
def test_the_loss_of_training_is_that_of_torch(sizes):
    """Smoothed targets, weights of visible indices, and the expected sum of weights."""
    generator = network(sizes, label_smoothing=0.2, visible_weight=0.1)
    tokens, mask = tokens_of(generator), mask_of(generator)
    outputs = generator(torch.arange(3), tokens, mask=mask)
    generator.train()
    indices, by_slot = tokens.view(3, 4, -1), mask.view(3, 4, -1)
    total = 0.0
    for number, size in enumerate(sizes):
        logits = outputs.logits[:, :, number, :size].flatten(0, 1)
        losses = F.cross_entropy(logits, indices[..., number].flatten(), label_smoothing=0.2, reduction="none")
        total += (losses * torch.where(by_slot[..., number].flatten(), 1.0, 0.1)).sum()
    share = expected_share(4 * len(sizes), "cosine")
    torch.testing.assert_close(generator.loss(outputs, tokens), total / 12 / (share + 0.1 * (1 - share)))


def test_the_first_loss_is_that_of_equal_probabilities_and_gradients_reach_all_weights():
    torch.manual_seed(0)
    generator = MaskGIT(MaskGITConfig(**SIZES, codebook_sizes=[3, 4], num_tokens=4, label_smoothing=0.0))
    tokens = tokens_of(generator)
    everything = torch.ones(3, 4, 2, dtype=torch.bool)
    first = generator.eval().image_losses(generator(torch.arange(3), tokens, mask=everything), tokens)
    torch.testing.assert_close(first, torch.full((3,), 12.0).log())  # log 3 + log 4
    for output in generator.outputs:
        torch.nn.init.normal_(output.weight)
    generator.train()
    drop = torch.tensor([True, False, False])
    generator.loss(generator(torch.arange(3), tokens, drop, mask_of(generator)), tokens).backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


# ------------------------------------------------------------------------------------------------ sampling
class Watch:
    """What a generator was given in each pass: tokens and masks (B,N,k)."""

    def __init__(self, generator: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []
        inner = generator._guided_logits

        def watched(rows, tokens, is_masked, settings):
            self.seen.append((tokens.clone(), is_masked.clone()))
            return inner(rows, tokens, is_masked, settings)

        monkeypatch.setattr(generator, "_guided_logits", watched)


@codes_of
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_known_tokens_never_change_and_passes_follow_the_schedule(sizes, scale, monkeypatch):
    generator = network(sizes, num_tokens=9)
    watch = Watch(generator, monkeypatch)
    tokens = generate(generator, [0, 1, 2], passes=5, seed=4, guidance_scale=scale).view(3, 9, -1)
    left = [9 * len(sizes), *Passes(count=5).completed(9 * len(sizes), "cosine").masked_after(9 * len(sizes))]
    assert len(watch.seen) == 5
    for (before, is_masked), count in zip(watch.seen, left, strict=False):
        assert (is_masked.sum((1, 2)) == count).all()
        assert torch.equal(before[~is_masked], tokens[~is_masked])
    for (_, earlier), (_, later) in itertools.pairwise(watch.seen):
        assert (earlier | ~later).all()  # what is known stays known


@codes_of
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=2.0)])
def test_one_by_one_in_the_order_of_cells_is_drawing_in_an_order(sizes, guidance, monkeypatch):
    """As many passes as slots, with the place in the order instead of the trust, from the same numbers by slot."""
    generator = network(sizes)
    indices, slots = len(sizes), 4 * len(sizes)
    numbers = torch.rand(2, slots, generator=torch.Generator().manual_seed(5)).double()
    order = torch.tensor([2, 0, 3, 1])
    place = order.argsort().repeat_interleave(indices) * indices + torch.arange(indices).repeat(4)

    def by_slot(slot_of):
        seeded = SeededDraw(numbers)
        return lambda p, position: seeded(p, slot_of(position))

    of_order = by_slot(lambda position: int(order[position // indices]) * indices + position % indices)
    expected = generate(generator, [0, 2], draw=of_order, order=order, guidance=guidance)
    inner = maskgit.least

    def by_place(trust, count):
        assert trust.isinf().any() or count == slots - 1
        return inner((-place).double().expand(2, -1).reshape_as(trust), count)

    monkeypatch.setattr(maskgit, "least", by_place)
    drawn = generate(generator, [0, 2], draw=by_slot(lambda p: p % (2 * slots)), passes=slots, guidance=guidance)
    assert torch.equal(drawn, expected)


def test_the_least_trusted_are_masked_and_ties_go_to_the_first():
    trust = torch.tensor([[3.0, 1.0, 1.0, torch.inf], [0.0, 5.0, -torch.inf, 2.0]])
    assert maskgit.least(trust, 1).tolist() == [[False, True, False, False], [False, False, True, False]]
    assert maskgit.least(trust, 2).tolist() == [[False, True, True, False], [True, False, True, False]]
    assert not maskgit.least(trust, 0).any()


def test_noise_of_the_choice_is_gumbel_and_comes_from_the_sample():
    """Of numbers at the quantiles; the other numbers of a sample are as without noise."""
    uniform = (torch.arange(100_000).double() + 0.5) / 100_000
    noise = gumbel(uniform)
    assert noise.mean().item() == pytest.approx(0.5772, abs=1e-3)
    assert noise.var().item() == pytest.approx(1.645, abs=0.01)

    generator = network([5], num_tokens=9)
    still, noisy = (
        generate(generator, [0] * 20, passes=Passes(count=3, choice_temperature=tau), seed=1) for tau in (0.0, 50.0)
    )
    one = generate(generator, [0], passes=Passes(count=1), seed=1)
    assert not torch.equal(still, noisy)
    assert torch.equal(one, generate(generator, [0], passes=Passes(count=1, choice_temperature=50.0), seed=1))
    draw = seeded_draw(1, torch.arange(20), generator.num_draws_in(Passes(count=3)))
    without = generate(generator, [0] * 20, passes=Passes(count=3), draw=lambda p, position: draw(p, position))
    assert torch.equal(without, still)  # a draw without numbers of its own leaves the noise out


def test_frequencies_of_two_passes_are_those_of_the_formula():
    """Two cells of two codes. The one whose log p and noise are larger stays: softmax(log p / scale of the noise)."""
    generator = network([2], num_tokens=2)
    passes = Passes(count=2, choice_temperature=3.0)
    scale = passes.completed(2, "cosine").noise_scale(0)
    labels, hidden = torch.tensor([1]), torch.ones(1, 2, dtype=torch.bool)
    logits = generator(labels, torch.zeros(1, 2, dtype=torch.int64), mask=hidden).logits
    log_p = logits[0, :, 0].double().log_softmax(-1)
    p = torch.zeros(2, 2, dtype=torch.float64)
    for values in itertools.product((0, 1), repeat=2):
        trust = torch.stack([log_p[0, values[0]], log_p[1, values[1]]])
        for stays, share in enumerate((trust / scale).softmax(-1)):
            mask = hidden.clone()
            mask[0, stays] = False
            logits = generator(labels, torch.tensor([values]), mask=mask).logits[0, 1 - stays, 0].double()
            for value, of_value in enumerate(logits.softmax(-1)):
                image = (values[0], value) if stays == 0 else (value, values[1])
                p[image] += trust.sum().exp() * share * of_value
    assert scale == 1.5 and p.sum().item() == pytest.approx(1) and p.max() < 0.9

    count = 10000
    tokens = generate(generator, torch.ones(count, dtype=torch.int64), seed=2, passes=passes)
    seen = torch.bincount(2 * tokens[:, 0] + tokens[:, 1], minlength=4).view(2, 2)
    assert ((seen - count * p) ** 2 / (count * p)).sum() < 16.3  # 3 degrees of freedom, 0.1 %


@codes_of
def test_a_sample_does_not_depend_on_its_batch(sizes):
    generator = network(sizes, num_tokens=9)
    both = generate(generator, [0, 2], seed=3, sample_ids=[4, 7], guidance_scale=2.0)
    assert torch.equal(generate(generator, [2], seed=3, sample_ids=[7], guidance_scale=2.0), both[1:])
    assert torch.equal(generate(generator, [2], draw=greedy), generate(generator, [2], draw=greedy, passes=8))


def test_guidance_counts_passes(monkeypatch):
    """power_cosine leaves the first pass alone; after the last guided one there are no unconditional rows."""
    generator = network([5])
    rows = []
    inner = generator._guided_logits

    def watched(labels, tokens, is_masked, settings):
        rows.append((len(labels), settings[0].guidance_scale))
        return inner(labels, tokens, is_masked, settings)

    monkeypatch.setattr(generator, "_guided_logits", watched)
    guidance = Guidance(scale=3.0, schedule="power_cosine", last_guided=1)
    generate(generator, [0], passes=4, guidance=guidance)
    assert [count for count, _ in rows] == [2, 2, 2, 1]
    assert [scale for _, scale in rows] == pytest.approx([1.0, 1 + 2 * (1 - 0.5**0.5) / 2, 2.0, 1.0])


def settings_from(*flags: str) -> SamplerSettings:
    parser = argparse.ArgumentParser()
    add_sampler_flags(parser)
    return settings_of(parser.parse_args(flags))


def test_flags_set_single_settings_of_the_passes():
    """The others are as the generator does by itself; results say all of them, and those of a GPT none."""
    generator = network([5], num_tokens=9, mask_schedule="arccos")
    plain = GPT(GPTConfig(**SIZES, vocab_size=5, num_tokens=4)).eval()
    given = settings_from("--choice-temperature", "2", "--cfg-scale", "1")
    facts = given.fitted_to(generator, None).facts()
    assert facts["passes"] == {"count": 8, "choice_temperature": 2.0, "schedule": "arccos"}
    assert settings_from().fitted_to(generator, None).facts()["passes"]["choice_temperature"] == 4.5
    assert "passes" not in settings_from().fitted_to(plain, None).facts()
    assert settings_from("--passes", "3").fitted_to(generator, None).in_words().endswith(", 3 passes")
    for flags, asked, message in (
        (["--passes", "2"], plain, "--mask-schedule are for a masked generator"),
        (["--passes", "10"], generator, "10 passes: an image has 9 indices"),
        (["--num-tokens", "3"], generator, "does not draw one token after the other"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings_from(*flags).fitted_to(asked, None)
    with pytest.raises(ConfigError, match="count=0 must be 1 or more"):
        settings_from("--passes", "0")


def test_what_cannot_be_drawn_is_refused():
    generator = network([5])
    plain = GPT(GPTConfig(**SIZES, vocab_size=5, num_tokens=4)).eval()
    for asked, options, message in (
        (plain, {"passes": 2}, "does not draw its tokens in passes"),
        (generator, {"passes": 2, "order": range(4)}, "give passes or order, not both"),
        (generator, {"passes": 5}, "5 passes: an image has 4 indices"),
        (generator, {"num_tokens": 2}, "does not draw its tokens one after the other"),
    ):
        with pytest.raises(UserError, match=message):
            generate(asked, [0], **options)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{size: xl}", "one of: b, l"),
        ("{width: 12, layers: 1, heads: 2, positions: rope2d}", "divisible by 8"),
        ("{size: b, positions: rope2d, num_tokens: 8}", "a square number"),
        ("{size: b, mask_schedule: sine}", "one of: arccos, cosine, linear"),
        ("{size: b, label_smoothing: 1.0}", "label_smoothing"),
        ("{size: b, codebook_sizes: [0]}", "numbers of 1 or more"),
    ],
)
def test_what_does_not_fit_is_named(section, message):
    with pytest.raises(ConfigError, match=message):
        load_config(GPTTrainConfig, overrides=["model.name=maskgit", f"model.maskgit={section}"])


# ------------------------------------------------------------------------------------------------ training
SECTION = "model={name: maskgit, maskgit: {width: 16, layers: 2, heads: 2, token_dropout: 0.0, residual_dropout: 0.0}}"
RUNS = Runs((SECTION, "loop={steps: 6, save_every: 3, eval_every: 3}", "optim={lr: 1e-2, eps: 1e-3}"))


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return codes_below(tmp_path_factory.mktemp("codes"))


@pytest.fixture(scope="module")
def whole(codes, tmp_path_factory):
    return RUNS.train(ALONE, tmp_path_factory.mktemp("whole") / "run", codes)


def test_masks_depend_on_seed_and_position_alone(codes):
    store = CodeStore(codes[0], "train")
    choices = network([16]).training_choices()
    batch = code_batch(store, 5, 0.1, choices)(np.arange(4), range(7, 11))
    for row, position in enumerate(range(7, 11)):
        expected = draw_mask((4,), "cosine", counter_rng(5, CHOICES_KEY, position))
        assert torch.equal(batch["mask"][row], expected["mask"])


def test_micro_batches_and_processes_change_nothing(whole, codes, tmp_path):
    RUNS.require_parts_change_nothing(whole, codes, tmp_path)


def test_a_run_that_goes_on_has_the_same_bits(whole, codes, tmp_path):
    RUNS.require_the_same_bits_without_the_last(whole, codes, tmp_path / "run")


def test_the_loss_of_a_training_is_that_of_the_evaluation(whole, codes):
    """The mean over the held-out images, with the masks of each. It is not called `val/loss`."""
    records = read_metrics(whole)
    recorded = [record["val/loss_bound"] for record in records if "val/loss_bound" in record][-1]
    assert not any("val/loss" in record for record in records)
    generator = load_gpt(whole, weights="model")
    store = CodeStore(codes[0], "val")
    tokens, labels = store.read(np.arange(len(store)))
    with torch.no_grad():
        losses = held_out_losses(generator, labels, tokens)
        again = held_out_losses(generator, labels[:5], tokens[:5])
    torch.testing.assert_close(again, losses[:5])
    assert recorded == pytest.approx(losses[fixed_choice(len(store), 4)].mean().item(), rel=1e-5)
