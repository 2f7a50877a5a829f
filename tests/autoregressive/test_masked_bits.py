"""The head of masked bits: exact likelihoods, masks of training, and draws of bits that have closed forms."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from autoregressive.codes import choices_at
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.bits import MASKED, BitsConfig, draw_bit_masks, expected_share, to_bits, to_tokens
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.masked_bits import bit_losses
from autoregressive.sampling import greedy, gumbel, probabilities, seeded_draw
from engine.messages import ConfigError

FIXED = {"order": "fixed", "temperature": "constant"}


def gpt_of(codebook_sizes: list[int], *, is_new: bool = False, **options) -> GPT:
    """One small layer and two of the head; unless it is new, with weights that are no longer those of the start."""
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 1, "heads": 2, "num_tokens": 2, "num_classes": 3}
    sizes |= {"head": "masked_bits", "codebook_sizes": codebook_sizes}
    bits = {"bits": BitsConfig(**options.pop("bits", {}))}
    gpt = GPT(GPTConfig(**sizes | bits | options))
    if not is_new:
        with torch.no_grad():
            for parameter in gpt.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return gpt.eval()


def all_tokens(codebook_sizes: list[int]) -> Tensor:
    """Every token (V,k), or (V,) of one index."""
    grid = torch.tensor(list(itertools.product(*(range(size) for size in codebook_sizes))))
    return grid[:, 0] if len(codebook_sizes) == 1 else grid


def random_tokens(gpt: GPT, count: int) -> Tensor:
    columns = [torch.randint(0, size, (count, gpt.num_tokens)) for size in gpt.codebook_sizes]
    return columns[0] if len(columns) == 1 else torch.stack(columns, dim=-1)


def chosen(gpt: GPT, count: int) -> dict[str, Tensor]:
    """The choices of training of `count` samples, as a batch has them."""
    drawn = [choices_at(0, position, gpt.training_choices()) for position in range(count)]
    return {name: torch.stack([choice[name] for choice in drawn]) for name in drawn[0]}


def training_losses(gpt: GPT, tokens: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return gpt.train()(torch.zeros(len(tokens), dtype=torch.long), tokens, **gpt.training_inputs(batch, 0.0))


# ---------------------------------------------------------------------------------------------------- bits
@pytest.mark.parametrize("sizes", [[2**16], [2**6, 2**12], [2**16] * 2, [2**16] * 4])
def test_indices_are_bits_and_back(sizes):
    """16, 18, 32 and 64 bits; the lowest of the first index comes first."""
    bits_of_index = [size.bit_length() - 1 for size in sizes]
    tokens = torch.stack([torch.randint(0, size, (3, 5)) for size in sizes], dim=-1)
    tokens = tokens[..., 0] if len(sizes) == 1 else tokens
    bits = to_bits(tokens, bits_of_index)
    assert bits.shape == (3, 5, sum(bits_of_index)) and bits.max() == 1
    assert torch.equal(to_tokens(bits, bits_of_index), tokens)
    assert to_bits(torch.tensor([[6, 1]]), [3, 1]).tolist() == [[0, 1, 1, 1]]


def test_steps_are_the_published_ones_at_16_bits():
    assert BitsConfig().steps(16) == [2, 4, 9, 16]
    assert BitsConfig(allocation=[2, 2, 2, 4]).steps(10) == [2, 4, 6, 10]
    for bits in range(1, 65):
        steps = BitsConfig().steps(bits)
        assert steps[-1] == bits and all(np.diff(steps) > 0)


@pytest.mark.parametrize(("bits", "full"), [(16, 0.0), (5, 0.3)])
def test_masks_follow_their_law(bits, full):
    """One bit or more is masked; P(all) as in closed form; the mean is the one that losses are divided by."""
    drawn = draw_bit_masks(60000, bits, full, np.random.default_rng(0))
    mask, share = drawn["bit_mask"], drawn["masked_share"]
    counts = mask.sum(-1)
    assert counts.min() == 1 and 1 / bits - 1e-6 <= share.min() and share.max() <= 1
    assert torch.equal(counts, (bits * share.double()).round().long())
    assert mask.float().mean().item() == pytest.approx(expected_share(bits, full), abs=5e-3)
    part = (bits - 0.5) / bits
    is_full = full + (1 - full) * NormalDist().cdf(math.log(1 / part - 1) / 0.8)
    assert (counts == bits).double().mean().item() == pytest.approx(is_full, abs=5e-3)
    assert mask.float().mean(0).std() < 0.01  # every bit is masked as often


# ---------------------------------------------------------------------------------------------------- likelihoods
@pytest.mark.parametrize("sizes", [[4, 2], [8]])
@torch.no_grad()
def test_the_chain_rule_sums_to_one(sizes):
    """Over all images of two tokens of 3 bits; the log p of an image is the sum over its bits."""
    gpt = gpt_of(sizes)
    tokens = all_tokens(sizes)
    pairs = torch.stack([torch.stack(pair) for pair in itertools.product(tokens, tokens)])
    losses = gpt(torch.ones(len(pairs), dtype=torch.long), pairs)
    assert losses.shape == (64, 2, 3)
    assert losses.double().sum((1, 2)).neg().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert gpt.loss(losses, pairs).item() == pytest.approx(losses.sum((1, 2)).mean().item() / 2, rel=1e-6)
    torch.testing.assert_close(gpt.image_losses(losses, pairs), gpt.sample_losses(losses, pairs))
    assert gpt.held_out_facts["likelihood"] == "chain rule, the bits of a token one by one in fixed order"


@torch.no_grad()
def test_any_order_of_bits_sums_to_one():
    """A property of conditionals that a step of sampling relies on: any bits may be known."""
    head = gpt_of([16]).head
    projected, bits = torch.randn(1, 16), to_bits(torch.arange(16), [4])
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        log_p = torch.zeros(16, dtype=torch.float64)
        for number, bit in enumerate(order):
            hidden = torch.ones(4, dtype=torch.bool)
            hidden[order[:number]] = False
            logits = head.bit_logits(projected, bits.masked_fill(hidden, MASKED), torch.tensor([1 - number / 4]))
            log_p -= bit_losses(logits[:, bit], bits[:, bit])
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_first_loss_is_log_two_per_bit():
    gpt = gpt_of([256, 256], is_new=True)
    tokens = random_tokens(gpt, 3)
    assert gpt.loss(gpt(torch.arange(3), tokens), tokens).item() == pytest.approx(16 * math.log(2), abs=1e-5)


def test_a_full_mask_is_as_many_independent_bits():
    gpt = gpt_of([4, 8], bits={"full_mask_share": 1.0, "visible_weight": 0.0}, token_dropout=0.0, residual_dropout=0.0)
    tokens = random_tokens(gpt, 4)
    losses = training_losses(gpt, tokens, chosen(gpt, 4))
    hidden = gpt.features(torch.zeros(4, dtype=torch.long), tokens, 1)
    projected = gpt.head.project(gpt.head.hidden_norm(hidden))
    bits = to_bits(tokens, [2, 3])
    p = gpt.head.bit_logits(projected, torch.full_like(bits, MASKED), torch.ones(1, 1)).softmax(-1)
    expected = -p.gather(-1, bits[..., None])[..., 0].log()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_visible_bits_have_a_small_weight_and_a_sample_does_not_depend_on_its_batch():
    gpt = gpt_of([256], token_dropout=0.0, residual_dropout=0.0)
    tokens, batch = random_tokens(gpt, 4), chosen(gpt, 4)
    losses = training_losses(gpt, tokens, batch)
    full = gpt_of([256], bits={"visible_weight": 1.0}, token_dropout=0.0, residual_dropout=0.0)
    unweighted = training_losses(full, tokens, batch)
    weights = torch.where(batch["bit_mask"], 1.0, 0.1)
    assert full.head.mean_weight == 1
    torch.testing.assert_close(losses, weights * unweighted / gpt.head.mean_weight)

    # Halves of a batch add up to the whole: accumulation and ranks change nothing but rounding.
    halves = [training_losses(gpt, tokens[i : i + 2], {k: v[i : i + 2] for k, v in batch.items()}) for i in (0, 2)]
    torch.testing.assert_close(torch.cat(halves), losses, rtol=1e-4, atol=1e-4)


def test_choices_of_the_order_and_of_the_bits_go_together():
    """Each sample draws both from its own numbers; without random orders, masks alone."""
    order = {"target_positions": True, "order": {"random_start": 1.0, "random_end": 1.0}}
    config = GPTConfig(width=16, layers=1, heads=2, num_tokens=4, num_classes=2, codebook_sizes=[4], head="masked_bits")
    assert GPT(config).training_choices()(np.random.default_rng(0)).keys() == {"bit_mask", "masked_share"}
    gpt = gpt_of([4], target_positions=True, order=type(config.order)(**order["order"]))
    batch = chosen(gpt, 3)
    assert batch.keys() == {"order", "order_chance", "bit_mask", "masked_share"}
    assert training_losses(gpt, random_tokens(gpt, 3), batch).shape == (3, 2, 2)
    assert GPT(GPTConfig(width=16, layers=1, heads=2)).training_choices() is None


# ---------------------------------------------------------------------------------------------------- sampling
@torch.no_grad()
def test_one_bit_a_step_draws_the_chain_rule():
    """Fixed order, constant temperature: frequencies of 4 bits are those of the exact table (chi-square)."""
    gpt = gpt_of([4, 4], bits=FIXED | {"allocation": [1] * 4}, num_tokens=1)
    count = 20000
    assert gpt.num_draws == 4
    tokens = generate(gpt, torch.zeros(count, dtype=torch.long), seed=3)[:, 0]
    seen = torch.bincount(tokens[:, 0] * 4 + tokens[:, 1], minlength=16).double()
    table = all_tokens([4, 4])[:, None]
    p = gpt(torch.zeros(16, dtype=torch.long), table).double().sum((1, 2)).neg().exp()
    assert ((seen - count * p) ** 2 / (count * p)).sum() < 37.7  # 15 degrees of freedom, 0.1 %


@pytest.mark.parametrize("temperature", ["falling", "constant"])
@torch.no_grad()
def test_frequencies_of_trusted_bits_are_those_of_the_formula(temperature):
    """Two bits in two steps, the more trusted one first. The argmax of logits and noise of the standard Gumbel
    distribution, times tau, has the law softmax(logits / tau): of the values, and of the bit that stays.
    """
    gpt = gpt_of([4], num_tokens=1, bits={"allocation": [1, 1], "temperature": temperature})
    for parameter in gpt.head.output.parameters():
        parameter.mul_(0.3)  # so far apart that it matters which bit stays, and not so far that chance says nothing
    taus = [3.0, 1.5] if temperature == "falling" else [3.0, 3.0]
    hidden, bits = gpt.decode_hidden(torch.tensor([0]), 0, gpt.new_cache(1)), torch.tensor([[MASKED, MASKED]])
    first = gpt.head.next_logits(hidden, None, 0, None)[0].double()
    p = torch.zeros(4, dtype=torch.float64)
    for values in itertools.product((0, 1), repeat=2):
        logits = torch.stack([first[0, values[0]], first[1, values[1]]])
        is_drawn = math.prod((first[j] / taus[0]).softmax(-1)[values[j]].item() for j in (0, 1))
        for stays, share in enumerate((logits / taus[0]).softmax(-1)):
            partial = bits.clone()
            partial[0, stays] = values[stays]
            second = (gpt.head.next_logits(hidden, partial, 1, None)[0, 1 - stays].double() / taus[1]).softmax(-1)
            for value in (0, 1):
                token = (values[stays] << stays) + (value << 1 - stays)
                p[token] += is_drawn * share * second[value]
    assert p.sum().item() == pytest.approx(1) and p.max() < 0.9

    count = 5000
    tokens = generate(gpt, torch.zeros(count, dtype=torch.long), seed=5, temperature=3.0)[:, 0]
    seen = torch.bincount(tokens, minlength=4).double()
    assert ((seen - count * p) ** 2 / (count * p)).sum() < 16.3  # 3 degrees of freedom, 0.1 %


def test_a_draw_is_the_argmax_of_logits_and_noise():
    """The law that the published sampler uses: argmax(l + tau g) is a draw from softmax(l / tau)."""
    logits, tau = torch.tensor([0.3, 1.1], dtype=torch.float64), 2.5
    noise = gumbel(torch.from_numpy(np.random.default_rng(0).random((40000, 2))))
    share = (logits + tau * noise).argmax(-1).double().mean()
    assert share.item() == pytest.approx(probabilities(logits[None], tau)[0, 1].item(), abs=0.01)


@pytest.mark.parametrize("order", ["confidence", "fixed"])
def test_samples_do_not_depend_on_their_batch_and_guidance_of_one_is_off(order):
    gpt = gpt_of([16, 8], bits={"order": order}, num_tokens=4)
    labels = torch.tensor([0, 1, 2])
    together = generate(gpt, labels, seed=1)
    assert together.shape == (3, 4, 2)
    alone = [generate(gpt, labels[i : i + 1], seed=1, sample_ids=[i]) for i in range(3)]
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(generate(gpt, labels, seed=1, guidance_scale=1.0), together)
    assert not torch.equal(generate(gpt, labels, seed=2), together)
    half = generate(gpt, labels, seed=1, num_tokens=2)
    assert torch.equal(half, together[:, :2])

    # Without unconditional rows after the last guided token.
    guidance = Guidance(scale=3.0, schedule="rising", last_guided=1)
    assert not torch.equal(generate(gpt, labels, seed=1, guidance=guidance)[:, 1:], together[:, 1:])


@torch.no_grad()
def test_the_most_trusted_bits_stay():
    """Greedy, so without noise: each step keeps the bits whose drawn values have the largest logits, and known ones."""
    gpt = gpt_of([16], num_tokens=1, bits={"allocation": [1, 3]})
    drawn = to_bits(generate(gpt, [0, 1, 2], draw=greedy)[:, 0], [4])
    hidden = gpt.decode_hidden(torch.arange(3), 0, gpt.new_cache(3))
    first = gpt.head.next_logits(hidden, None, 0, gpt.head.new_cache(3, torch.float32, torch.device("cpu")))
    known = first.amax(-1).argmax(-1, keepdim=True)
    bits = torch.full((3, 4), MASKED).scatter(1, known, first.argmax(-1).gather(1, known))
    second = gpt.head.next_logits(hidden, bits, 1, gpt.head.new_cache(3, torch.float32, torch.device("cpu")))
    assert torch.equal(drawn, torch.where(bits == MASKED, second.argmax(-1), bits))


def test_tokens_of_48_and_64_bits_are_drawn_and_learned():
    """Codes that no table could hold."""
    for sizes in ([2**16] * 3, [2**16] * 4):
        gpt = gpt_of(sizes, is_new=True)
        tokens = generate(gpt, [0, 1], seed=0)
        assert tokens.shape == (2, 2, len(sizes)) and tokens.max() > 2**12
        training_losses(gpt, tokens, chosen(gpt, 2)).sum().backward()
        assert gpt.head.output.weight.grad.abs().sum() > 0


def test_rising_guidance_grows_with_the_token():
    assert Guidance(scale=5.0, schedule="rising").scales(4) == [1, 2, 3, 4]


# ---------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"codebook_sizes": [12]}, r"codebook_sizes=\[12\] must be powers of two"),
        ({"bits": BitsConfig(allocation=[1, 2])}, r"bits\.allocation=\[1, 2\] must be numbers whose sum is 4"),
        ({"head": "plain", "bits": BitsConfig(order="fixed")}, "this head does not write bits"),
    ],
)
def test_what_a_config_cannot_have(options, expected):
    with pytest.raises(ConfigError, match=expected):
        GPTConfig(**{"width": 16, "layers": 1, "heads": 2, "head": "masked_bits", "codebook_sizes": [16]} | options)
    with pytest.raises(ConfigError, match="full_mask_share"):
        BitsConfig(full_mask_share=1.5)


@pytest.mark.parametrize("options", [{"top_k": 5}, {"temperature": (1.0, 2.0)}, {"top_p": 0.5}])
def test_settings_that_bits_do_not_have_are_refused(options):
    with pytest.raises(ConfigError, match="a head that writes bits"):
        generate(gpt_of([4, 4]), [0], **options)


def test_draws_of_a_table_are_as_many_as_are_counted():
    """Every number of the table is in reach, and none beyond it."""
    gpt = gpt_of([16], bits={"allocation": [2, 2]})
    table = seeded_draw(0, torch.arange(1), gpt.num_draws)
    seen = set()

    def draw(p: Tensor, position: int) -> Tensor:
        seen.add(position)
        return table(p, position)

    def numbers(first: int, count: int) -> Tensor:
        seen.update(range(first, first + count))
        return table.numbers(first, count)

    gpt.sample(torch.zeros(1, dtype=torch.long), draw=draw, numbers=numbers)
    assert seen == set(range(gpt.num_draws))
