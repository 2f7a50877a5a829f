"""Values that are NaN or infinite are refused at the border of every stage, with the numbers of samples or images."""

import math

import mini
import pytest
import torch
from torch import nn

from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings, sample_images
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.sampling import greedy, seeded_draw
from engine.data.images import to_float, to_uint8
from engine.finite import FiniteCheck, NonFiniteValuesError, deferred_checks, numbered, require_finite, spread_nan
from evaluations.metrics.inception_score import InceptionScore
from evaluations.probes.pca import grid_features

BAD = [math.nan, math.inf, -math.inf]
NUM_TOKENS, NUM_CODES = 8, 32
IDS = torch.tensor([40, 7, 12])


@pytest.fixture(scope="module")
def tokenizer():
    return mini.tokenizer_of(mini.tokenizer_config()).eval().requires_grad_(False)


@pytest.fixture
def gpt():
    """Fresh for every test, which spoils it. Class 2 alone can be spoiled: its embedding is a row."""
    torch.manual_seed(0)
    made = GPT(GPTConfig(width=16, layers=2, heads=2, vocab_size=NUM_CODES, num_tokens=NUM_TOKENS, num_classes=3))
    nn.init.normal_(made.output.weight)
    return made.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------- the mechanism
@pytest.mark.parametrize("bad", BAD)
def test_a_check_gathers_flags_and_names_every_bad_row_once(bad):
    """Rows of several notes count together, and only the reading raises."""
    check = FiniteCheck("logits")
    for row, step in ((3, 0), (1, 1), (3, 2)):
        values = torch.zeros(5, 4)
        values[row, step] = bad
        check.note(values)
    with pytest.raises(NonFiniteValuesError, match=r"logits are not finite \(NaN or infinity\) for row 1, 3") as caught:
        check.require()
    assert caught.value.rows == [1, 3]


def test_a_check_waits_for_the_device_only_when_it_is_read(monkeypatch):
    """No flag reaches the host before `require`, and then once for all rows and steps."""
    reads = []
    for name in ("nonzero", "item", "tolist", "cpu", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counted(tensor, *args, name=name, original=original, **options):
            reads.append(name)
            return original(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    check = FiniteCheck("logits")
    for _ in range(9):
        check.note(torch.ones(4, 3))
    assert reads == []
    check.require()
    assert reads == ["nonzero", "tolist"]


def test_rows_get_the_numbers_of_those_who_know_them():
    """Ten views of an image are named once; a long list is cut."""
    with pytest.raises(NonFiniteValuesError, match=r"for image 8, 9 *;") as caught, numbered("image", [8, 8, 9, 9]):
        require_finite(torch.tensor([[math.nan], [1.0], [math.inf], [math.nan]]), "latents")
    assert caught.value.rows == [8, 9]
    with pytest.raises(NonFiniteValuesError, match="row 0, 1, 2 and 4 more"):
        require_finite(torch.full((7, 2), math.nan), "latents")


def test_deferred_checks_raise_nothing_and_keep_the_flag():
    with deferred_checks() as checks:
        require_finite(torch.zeros(2), "latents")
        require_finite(torch.full((2,), math.nan), "latents")
    assert [bool(check.any()) for check in checks] == [False, True]
    with pytest.raises(NonFiniteValuesError):
        require_finite(torch.full((2,), math.nan), "latents")


def test_finite_rows_keep_their_bits():
    values = torch.tensor([[1.0, -0.0, 3e38], [1.0, -math.inf, 2.0]])
    spread = spread_nan(values)
    assert torch.equal(spread[0].view(torch.int32), values[0].view(torch.int32)) and spread[1].isnan().all()


# ---------------------------------------------------------------------------------------------- logits
SAMPLERS = {
    "greedy": (greedy, {}),
    "drawn": (seeded_draw(0, IDS, NUM_TOKENS), {}),
    "filtered": (seeded_draw(0, IDS, NUM_TOKENS), {"top_k": 5, "top_p": 0.9}),
    "guided": (seeded_draw(0, IDS, NUM_TOKENS), {"guidance": Guidance(scale=2.0)}),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("bad", BAD)
def test_a_class_whose_logits_are_not_finite_is_refused_by_its_row(gpt, bad, sampler):
    """The embedding of class 2 is spoiled: rows of other classes are not named."""
    draw, options = SAMPLERS[sampler]
    gpt.class_embedding.weight[2, 3] = bad
    with pytest.raises(NonFiniteValuesError, match="logits of the generator") as caught:
        generate(gpt, torch.tensor([0, 2, 1]), draw=draw, **options)
    assert caught.value.rows == [1]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("bad", BAD)
def test_one_code_with_a_bad_logit_is_refused(gpt, monkeypatch, bad, sampler):
    """A logit of -inf would only make its code impossible, in silence; with guidance it is inf - inf."""
    original = gpt.head.next_logits

    def next_logits(*args):
        logits = original(*args)
        logits[..., 4] = bad
        return logits

    monkeypatch.setattr(gpt.head, "next_logits", next_logits)
    draw, options = SAMPLERS[sampler]
    with pytest.raises(NonFiniteValuesError):
        generate(gpt, torch.tensor([0, 2, 1]), draw=draw, **options)


def test_a_token_late_in_the_sequence_is_refused_too(gpt):
    """What the KV cache keeps of a bad position poisons the rest."""
    gpt.positional_embedding[NUM_TOKENS - 1] = math.nan
    with pytest.raises(NonFiniteValuesError) as caught:
        generate(gpt, torch.tensor([0, 1]), draw=greedy)
    assert caught.value.rows == [0, 1]


def test_samples_are_named_by_their_numbers(gpt, tokenizer):
    gpt.class_embedding.weight[2] = math.nan
    settings = SamplerSettings(Guidance())
    batches = sample_images(gpt, tokenizer, torch.tensor([0, 1, 2]), IDS, settings, batch_size=2)
    next(batches)
    with pytest.raises(NonFiniteValuesError, match=r"logits of the generator .* for sample 12;"):
        next(batches)


# ---------------------------------------------------------------------------------------------- latents and pixels
@pytest.mark.parametrize("bad", BAD)
def test_an_image_that_is_not_finite_has_no_codes(tokenizer, bad):
    images = to_float(mini.random_images(3))
    images[1, 0, 2, 2] = bad
    with pytest.raises(NonFiniteValuesError, match=r"images: pixels .*; pixels must be numbers") as caught:
        tokenizer.tokenize(images)
    assert caught.value.rows == [1]
    with pytest.raises(NonFiniteValuesError, match=r"latents of the tokenizer .*; are the weights") as caught:
        tokenizer.encode(images)
    assert caught.value.rows == [1]


def test_codes_whose_pixels_are_not_finite_give_no_image(tokenizer, gpt):
    spoiled = mini.tokenizer_of(mini.tokenizer_config()).eval().requires_grad_(False)
    spoiled.decoder.conv_out.bias[1] = math.nan
    codes = torch.zeros(2, 8, dtype=torch.long)
    for decode in (spoiled.detokenize, spoiled.decode_indices):
        with pytest.raises(NonFiniteValuesError, match="pixels decoded by the tokenizer"):
            decode(codes)
    with pytest.raises(NonFiniteValuesError, match=r"pixels decoded by the tokenizer .* for sample 40, 7, 12;"):
        list(sample_images(gpt, spoiled, torch.tensor([0, 1, 2]), IDS, SamplerSettings(Guidance()), 4))


def test_images_lie_in_their_range_unless_raw_pixels_are_asked_for(tokenizer):
    """Bytes of them are right: a pixel beyond 1 must not wrap to a dark one."""
    loud = mini.tokenizer_of(mini.tokenizer_config()).eval().requires_grad_(False)
    loud.decoder.conv_out.weight.mul_(30)
    codes = torch.arange(16).reshape(2, 8)
    raw, images = loud.detokenize(codes, clamp=False), loud.detokenize(codes)
    assert raw.abs().max() > 1.2 and torch.equal(raw, loud.decode_indices(codes))
    assert images.abs().max() == 1 and torch.equal(images, raw.clamp(-1, 1))
    assert torch.equal((images * 127.5 + 128).byte(), to_uint8(raw))


@pytest.mark.parametrize("bad", BAD)
def test_pixels_that_are_not_finite_become_no_bytes(bad):
    images = torch.zeros(2, 3, 4, 4)
    images[1, 2, 3, 3] = bad
    with pytest.raises(NonFiniteValuesError, match=r"pixels .* for row 1;"):
        to_uint8(images)
    assert to_uint8(images[:1]).unique().tolist() == [128]


# ---------------------------------------------------------------------------------------------- features
def test_features_of_evaluations_are_checked(tokenizer):
    with pytest.raises(NonFiniteValuesError, match="logits of the classes"):
        InceptionScore(2, 3).update(torch.arange(2), torch.tensor([[0.0, 1.0, math.nan], [0.0, 0.0, 0.0]]))
    spoiled = mini.tokenizer_of(mini.tokenizer_config()).eval().requires_grad_(False)
    spoiled.query_decoder.transformer[0].requires_grad_(False)
    next(spoiled.query_decoder.transformer[0].parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteValuesError, match="features of the decoder block"):
        grid_features(spoiled, to_float(mini.random_images(2)), layer=1)
