"""Sampling: guidance, filters and random numbers, against a plain version that recomputes everything."""

import argparse
import math

import mini
import numpy as np
import pytest
import torch
from torch import Tensor

from autoregressive.cli import add_sampler_flags, settings_of
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings, sample_images
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.sampling import filter_logits, greedy, probabilities, seeded_draw, settings_text
from engine.data.images import to_uint8
from engine.messages import ConfigError, UserError

NUM_TOKENS = 9


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(0)
    made = GPT(GPTConfig(width=16, layers=2, heads=2, vocab_size=32, num_tokens=NUM_TOKENS, num_classes=5))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.eval()


LABELS = torch.tensor([0, 3, 3, 1])
IDS = torch.tensor([5, 0, 7, 1])


def draw(seed: int = 0, ids: Tensor = IDS):
    return seeded_draw(seed, ids, NUM_TOKENS)


@torch.no_grad()
def plain_generate(gpt, labels, draw, scales, temperature=1.0, top_k=0, top_p=1.0) -> Tensor:
    """Both full passes for every token, no cache, nothing dropped."""
    tokens = torch.zeros(len(labels), NUM_TOKENS, dtype=torch.long)
    for t, scale in enumerate(scales):
        cond, uncond = (gpt(label, tokens)[:, t] for label in (labels, torch.full_like(labels, gpt.null_class)))
        logits = (uncond + scale * (cond - uncond)) / temperature
        tokens[:, t] = draw(filter_logits(logits, top_k, top_p).softmax(-1), t)
    return tokens


# ---------------------------------------------------------------------------------------------- guidance
@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(),
        Guidance(scale=2.5),
        Guidance(scale=3.0, schedule="step", start=0.5),
        Guidance(scale=3.0, schedule="step", start=0.5, first_token="schedule"),
        Guidance(scale=3.0, schedule="step", start=0.5, unguided_scale=1.0001),
        Guidance(scale=4.0, schedule="linear"),
        Guidance(scale=2.0, last_guided=3),
        Guidance(scale=2.0, last_guided=0),
    ],
    ids=lambda g: f"{g.schedule} {g.scale} last {g.last_guided} {g.first_token} {g.unguided_scale}",
)
def test_tokens_are_those_of_two_full_passes_for_every_token(gpt, guidance):
    """Cache, doubled batch and dropped rows change nothing, for every schedule."""
    tokens = generate(gpt, LABELS, draw=draw(), guidance=guidance)
    assert tokens.dtype == torch.int64 and tokens.shape == (4, NUM_TOKENS)
    assert torch.equal(tokens, plain_generate(gpt, LABELS, draw(), guidance.scales(NUM_TOKENS)))


def rows_per_token(gpt, guidance, monkeypatch) -> list[int]:
    rows, forward = [], gpt.decode_hidden
    monkeypatch.setattr(
        gpt, "decode_hidden", lambda inputs, *args: (rows.append(len(inputs)), forward(inputs, *args))[1]
    )
    generate(gpt, LABELS, draw=draw(), guidance=guidance)
    return rows


@pytest.mark.parametrize(
    ("guidance", "doubled"),
    [
        (Guidance(), 0),
        (Guidance(scale=2.0), 9),
        (Guidance(scale=2.0, last_guided=3), 5),
        (Guidance(scale=2.0, schedule="step", start=0.5), 9),
        (Guidance(scale=2.0, schedule="step", start=2.0), 1),
    ],
)
def test_the_batch_is_doubled_only_as_long_as_a_later_token_needs_it(gpt, guidance, doubled, monkeypatch):
    """Without guidance never: scale 1 costs one pass."""
    assert rows_per_token(gpt, guidance, monkeypatch) == [8] * doubled + [4] * (9 - doubled)


def test_guidance_scale_one_is_no_guidance(gpt):
    """Under every schedule, and different from a real scale."""
    expected = plain_generate(gpt, LABELS, draw(), [1.0] * NUM_TOKENS)
    for schedule in ("constant", "step", "linear"):
        guidance = Guidance(scale=1.0, schedule=schedule, unguided_scale=1.0001)
        assert guidance.scales(NUM_TOKENS) == [1.0] * NUM_TOKENS
        assert torch.equal(generate(gpt, LABELS, draw=draw(), guidance=guidance), expected)
    assert not torch.equal(generate(gpt, LABELS, draw=draw(), guidance=Guidance(scale=5.0)), expected)


def test_step_schedule_of_the_paper_on_256_tokens():
    """Start ratio 0.18: tokens 1..45 unguided, 46..255 guided, token 0 guided as released; 211 guided in all."""
    scales = Guidance(scale=2.0, schedule="step").scales(256)
    assert scales[0] == 2.0 and set(scales[1:46]) == {1.0} and set(scales[46:]) == {2.0}
    assert scales.count(2.0) == 211
    clean = Guidance(scale=2.0, schedule="step", first_token="schedule").scales(256)
    assert clean[0] == 1.0 and clean[1:] == scales[1:]
    released = Guidance(scale=2.0, schedule="step", unguided_scale=1.0001).scales(256)
    assert set(released[1:46]) == {1.0001}


@pytest.mark.parametrize("num_tokens", [1, 2, 16, 256])
def test_schedules_at_their_ends(num_tokens):
    """linear goes from 1 to the scale in equal steps; the first token is full unless it follows the schedule."""
    linear = Guidance(scale=3.0, schedule="linear", first_token="schedule").scales(num_tokens)
    assert linear == pytest.approx([1 + 2 * t / max(1, num_tokens - 1) for t in range(num_tokens)])
    assert Guidance(scale=3.0, schedule="linear").scales(num_tokens) == [3.0, *linear[1:]]
    assert Guidance(scale=3.0).scales(num_tokens) == [3.0] * num_tokens
    assert Guidance(scale=3.0, schedule="step", start=0.0, first_token="schedule").scales(num_tokens)[0] == 3.0


@pytest.mark.parametrize(("last_guided", "guided"), [(-1, 16), (0, 2), (3, 5), (100, 16)])
def test_guidance_interval_counts_decoding_steps(last_guided, guided):
    """--cfg-interval v: decoding steps after v (token v + 1) use the conditional logits alone."""
    scales = Guidance(scale=2.0, last_guided=last_guided).scales(16)
    assert scales == [2.0] * guided + [1.0] * (16 - guided)


# ---------------------------------------------------------------------------------------------- filters
@pytest.mark.parametrize("options", [{"top_k": 1}, {"temperature": 1e-4}, {"top_p": 1e-6}])
def test_limits_of_the_filters_are_greedy(gpt, options):
    """One candidate, a temperature near 0 or a tiny nucleus leave the most probable token only."""
    expected = generate(gpt, LABELS, draw=greedy, guidance=Guidance(scale=2.0))
    assert torch.equal(generate(gpt, LABELS, draw=draw(), guidance=Guidance(scale=2.0), **options), expected)


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.6}, {"temperature": 0.5, "top_k": 8, "top_p": 0.7}])
def test_filters_act_on_guided_logits(gpt, options):
    guidance = Guidance(scale=2.0)
    tokens = generate(gpt, LABELS, draw=draw(), guidance=guidance, **options)
    assert torch.equal(tokens, plain_generate(gpt, LABELS, draw(), guidance.scales(NUM_TOKENS), **options))
    assert not torch.equal(tokens, generate(gpt, LABELS, draw=draw(), guidance=guidance))


def plain_filter(row: list[float], top_k: int, top_p: float) -> list[bool]:
    """Which entries stay, one row at a time."""
    stays = [True] * len(row)
    if top_k:
        limit = sorted(row, reverse=True)[min(top_k, len(row)) - 1]
        stays = [v >= limit for v in row]
    if top_p < 1:
        weights = [math.exp(v) if s else 0.0 for v, s in zip(row, stays, strict=True)]
        order = sorted(range(len(row)), key=lambda i: -row[i] if stays[i] else math.inf)
        cumulative = 0.0
        for i in order:
            if cumulative > top_p:
                stays[i] = False
            cumulative += weights[i] / sum(weights)
    return stays


@pytest.mark.parametrize("top_k", [0, 1, 3, 7, 12, 50])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
def test_filters_against_loops(top_k, top_p):
    """What stays keeps its logit, the rest is at -inf; the probabilities that are left sum to 1."""
    logits = torch.randn(20, 12) * 2
    out = filter_logits(logits, top_k, top_p)
    expected = torch.tensor([plain_filter(row, top_k, top_p) for row in logits.tolist()])
    assert torch.equal(out, logits.masked_fill(~expected, -torch.inf))
    assert expected.any(1).all()
    p = probabilities(logits, 0.7, top_k, top_p)
    torch.testing.assert_close(p.sum(1), torch.ones(20))


def test_ties_at_the_limit_of_top_k_stay():
    assert filter_logits(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), top_k=2).isfinite().tolist() == [
        [True, True, True, False]
    ]


def test_settings_are_said_in_one_line():
    """Filters where they filter; one value, or one per index; a greedy draw has neither seed nor temperature."""
    assert SamplerSettings(guidance=Guidance(scale=2.0)).in_words() == "seed 0, guidance scale 2, temperature 1"
    settings = SamplerSettings(
        guidance=Guidance(scale=(1.5, 3.0), schedule="step"), temperature=(1.0, 0.9), top_k=100, top_p=0.95, seed=7
    )
    expected = "seed 7, guidance scale 1.5/3 (step), temperature 1/0.9, top-k 100, top-p 0.95"
    assert settings.in_words() == expected
    assert settings_text(guidance_scale=[1.5, 3.0], guidance_schedule="step", temperature=[1.0, 0.9], top_k=100,
                         top_p=0.95, seed=7) == expected  # as a JSON file has them  # fmt: skip
    greedy_settings = SamplerSettings(guidance=Guidance(scale=2.0), greedy=True)
    assert greedy_settings.in_words() == "always the most probable code, guidance scale 2"


def test_temperature_scales_logits():
    logits = torch.randn(3, 8)
    torch.testing.assert_close(probabilities(logits, 2.0), (logits / 2).softmax(-1))


# ---------------------------------------------------------------------------------------------- random numbers
def test_frequencies_of_draws_match_the_probabilities():
    """20,000 samples of one position: every frequency within 5 standard deviations, chi-square in its usual range."""
    p = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.15, 0.1, 0.04, 0.01, 0.0])
    count = 20_000
    drawn = seeded_draw(3, torch.arange(count), 2)(p.expand(count, -1), 1)
    found = torch.bincount(drawn, minlength=len(p)).double()
    expected = count * p.double()
    assert not found[p == 0].any()
    assert ((found - expected).abs() <= 5 * (expected * (1 - p)).sqrt()).all()
    chi_square = ((found - expected).square() / expected.clamp_min(1e-9))[p > 0].sum().item()
    assert chi_square < 25, "5 degrees of freedom: above 25 once in 7,000"


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_no_token_of_probability_zero_is_drawn(scale, monkeypatch):
    """Also for the smallest and largest random numbers, and where rounding leaves the sum below 1."""
    p = torch.tensor([[0.0, 0.0, 0.3, 0.0, 0.7, 0.0]] * 2) * scale
    extreme = np.array([0.0, np.nextafter(1.0, 0.0)])

    class Generator:
        def __init__(self, bits):
            pass

        def random(self, count):
            return np.full(count, values.pop())

    values = list(extreme[::-1])
    monkeypatch.setattr(np.random, "Generator", Generator)
    assert seeded_draw(0, torch.arange(2), 1)(p, 0).tolist() == [2, 4]


def test_a_sample_depends_on_seed_and_number_alone(gpt):
    """The same tokens for any split of the batch and any order; other seeds, numbers and positions give others."""
    labels, ids = torch.arange(12) % 5, torch.arange(100, 112)
    options = {"guidance": Guidance(scale=2.0), "top_k": 20}

    def made(rows, seed=0):
        return generate(gpt, labels[rows], draw=draw(seed, ids[rows]), **options)

    together = made(torch.arange(12))
    for size in (1, 5, 7):
        assert torch.equal(torch.cat([made(rows) for rows in torch.arange(12).split(size)]), together)
    order = torch.randperm(12)
    assert torch.equal(made(order), together[order])
    assert (made(torch.arange(12), seed=1) != together).any(1).all()
    same_class = generate(gpt, torch.zeros(12, dtype=torch.long), draw=draw(0, ids), **options)
    assert len(same_class.unique(dim=0)) == 12


def test_random_numbers_of_positions_and_samples_are_independent():
    """No two of 500 samples x 4 positions share one; their mean and correlations are those of uniform numbers."""
    p = torch.full((500, 4096), 1 / 4096)
    drawn = torch.stack([seeded_draw(1, torch.arange(500), 4)(p, t) for t in range(4)]).double() / 4096
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    correlation = torch.corrcoef(drawn) - torch.eye(4)
    assert correlation.abs().max() < 0.2
    assert abs(torch.corrcoef(torch.stack([drawn[0, 1:], drawn[0, :-1]]))[0, 1]) < 0.2


def test_generation_needs_evaluation_mode(gpt):
    gpt.train()
    try:
        with pytest.raises(UserError, match="eval"):
            generate(gpt, LABELS, draw=greedy)
        with pytest.raises(AssertionError, match="eval"):
            gpt.sample(LABELS, draw=greedy)
    finally:
        gpt.eval()


# ---------------------------------------------------------------------------------------------- images and flags
@pytest.fixture(scope="module")
def pair():
    """A tokenizer, and a GPT over its codes."""
    small = GPT(GPTConfig(width=16, layers=1, heads=2, vocab_size=32, num_tokens=8, num_classes=3)).eval()
    torch.nn.init.normal_(small.output.weight)
    return small, mini.tokenizer_of(mini.tokenizer_config()).eval()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_images_are_those_of_the_tokens(pair, batch_size):
    """Batches in order, every setting in use, pixels of decode_indices, the same for every batch size."""
    labels, ids = torch.arange(7) % 3, torch.arange(7) + 50
    guidance = Guidance(scale=2.0, schedule="step", start=0.4)
    settings = SamplerSettings(guidance, temperature=0.8, top_k=20, top_p=0.9, seed=4)
    batches = list(sample_images(*pair, labels, ids, settings, batch_size))
    assert [len(t) for t, _ in batches] == [len(chunk) for chunk in ids.split(batch_size)]
    tokens, images = (torch.cat(part) for part in zip(*batches, strict=True))
    draws = seeded_draw(4, ids, 8)
    expected = generate(pair[0], labels, draw=draws, guidance=guidance, temperature=0.8, top_k=20, top_p=0.9)
    assert torch.equal(tokens, expected)
    with torch.no_grad():
        pixels = to_uint8(pair[1].decode_indices(tokens))
    assert images.dtype == torch.uint8
    assert (images.int() - pixels.int()).abs().max() <= 1


@pytest.mark.parametrize("change", [{"temperature": 3.0}, {"top_k": 2}, {"top_p": 0.2}, {"seed": 1}, {"greedy": True}])
def test_every_setting_reaches_the_samples(pair, change):
    def tokens(**options):
        settings = SamplerSettings(Guidance(), **options)
        return next(sample_images(*pair, torch.arange(12) % 3, torch.arange(12), settings, 12))[0]

    assert not torch.equal(tokens(**change), tokens())


def parsed(*flags: str) -> SamplerSettings:
    parser = argparse.ArgumentParser()
    add_sampler_flags(parser)
    return settings_of(parser.parse_args(flags))


def test_flags_of_the_sampler_become_settings():
    """Every documented flag, with its documented default."""
    assert parsed() == SamplerSettings(Guidance(scale=2.0, schedule="constant", start=0.18))
    flags = "--cfg-scale 3 --cfg-schedule step --step-start-ratio 0.3 --cfg-interval 7 --guidance-first-token schedule"
    more = "--unguided-scale 1.0001 --temperature 0.9 --top-k 100 --top-p 0.8 --greedy --global-seed 5"
    settings = parsed(*flags.split(), *more.split())
    guidance = settings.guidance
    assert (guidance.scale, guidance.schedule, guidance.start, guidance.last_guided) == (3.0, "step", 0.3, 7)
    assert (guidance.first_token, guidance.unguided_scale) == ("schedule", 1.0001)
    assert (settings.temperature, settings.top_k, settings.top_p, settings.seed) == (0.9, 100, 0.8, 5)
    assert settings.greedy
    assert parsed("--seed", "9").seed == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cfg-scale", "0.5"], r"guidance\.scale=0\.5 must be 1 \(off\) or more"),
        (["--temperature", "0"], r"temperature=0\.0 must be above 0"),
        (["--top-k", "-1"], r"top_k=-1 must be 0 \(all\) or more"),
        (["--top-p", "0"], r"top_p=0\.0 must be in \(0, 1\]"),
        (["--top-p", "1.5"], r"top_p=1\.5 must be in \(0, 1\]"),
    ],
)
def test_impossible_settings_are_named(flags, message):
    with pytest.raises(ConfigError, match=message):
        parsed(*flags)
    with pytest.raises(ConfigError, match=r"'cosine' must be one of: constant, linear, power_cosine, rising, step"):
        Guidance(schedule="cosine")


def test_all_impossible_settings_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        parsed("--cfg-scale", "0.5", "--top-k", "-1", "--temperature", "1,0")
    for part in ("the sampler has 3 problems", "guidance.scale=0.5", "top_k=-1", "temperature=(1.0, 0.0)"):
        assert part in str(caught.value)


def test_greedy_settings_ignore_the_seed(pair):
    for seed in (0, 1):
        settings = SamplerSettings(Guidance(), seed=seed, greedy=True)
        made = next(sample_images(*pair, LABELS % 3, IDS, settings, 4))[0]
        assert torch.equal(made, generate(pair[0], LABELS % 3, draw=greedy))


# ---------------------------------------------------------------------------------------------- values out of range
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("flag", ["--cfg-scale", "--temperature", "--top-p", "--step-start-ratio", "--unguided-scale"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_flag_of_the_sampler_takes_a_number_that_is_not_finite(flag, value):
    with pytest.raises(ConfigError, match="must be"):
        parsed(f"{flag}={value}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": NAN}, "temperature=nan must be above 0"),
        ({"temperature": INF}, "temperature=inf must be above 0"),
        ({"temperature": -1.0}, r"temperature=-1\.0 must be above 0"),
        ({"top_k": -1}, "top_k=-1 must be 0"),
        ({"top_k": 2.5}, r"top_k=2\.5 must be 0 \(all\) or more, a whole number"),
        ({"top_p": NAN}, r"top_p=nan must be in \(0, 1\]"),
        ({"top_p": 0.0}, r"top_p=0\.0 must be in \(0, 1\]"),
    ],
)
def test_the_public_function_refuses_what_the_flags_refuse(gpt, wrong, message):
    for sample in (generate, lambda generator, labels, **options: generator.sample(labels, **options)):
        with pytest.raises(ConfigError, match=message):
            sample(gpt, LABELS, draw=greedy, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": NAN}, "scale=nan"),
        ({"start": NAN}, "start=nan must be a finite number"),
        ({"unguided_scale": -3.0}, r"unguided_scale=-3\.0 must be 0 or more"),
        ({"unguided_scale": INF}, "unguided_scale=inf"),
        ({"last_guided": -2}, "last_guided=-2 must be -1 or more"),
        ({"first_token": "half"}, "first_token='half' must be one of: full, schedule"),
    ],
)
def test_guidance_refuses_values_without_a_meaning(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Guidance(**wrong)
