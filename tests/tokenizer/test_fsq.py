"""The numerics of FSQ: borders and shares of levels in closed form, codes of other programs, several indices."""

import json
import math
from pathlib import Path

import mini
import pytest
import torch
from torch import Tensor

from engine.checkpoint.weights import fingerprint, tensors_digest
from engine.messages import ConfigError
from tokenizer.quantizers.fsq import FSQ, MARGINS, FSQConfig

GOLDEN = Path(__file__).parents[1] / "goldens" / "quantizers" / "fsq.json"
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
IFSQ = {"activation": "sigmoid", "slope": 1.6, "numerics": "plain"}
FULL = {"edges": "full", "even": "symmetric"}
EVEN_TO_ODD = {"even": "symmetric", "numerics": "plain"}


def fsq(*levels: int, **options) -> FSQ:
    return FSQ(FSQConfig(levels=list(levels), **options)).eval()


def normal_latents(count: int = 50_001) -> Tensor:
    """Evenly spread quantiles of N(0,1): (1, count, 1) float32."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()[None, :, None]


def shares(quantizer: FSQ) -> Tensor:
    """The share of normal latents that each code of a single channel gets, float64."""
    indices = quantizer(normal_latents()).indices
    return torch.bincount(indices.flatten(), minlength=quantizer.codebook_size).double() / indices.numel()


def evenness(quantizer: FSQ) -> float:
    """The entropy of `shares`, 1 for equally likely levels."""
    p = shares(quantizer)
    return -torch.special.xlogy(p, p).sum().item() / math.log(len(p))


# ---------------------------------------------------------------------------------------------- as it was
def released_form(z: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    """The listing of the paper's appendix A.1, with the shift of its released code: (codes, indices)."""
    counts = torch.tensor(levels)
    half = (counts - 1) * (1 - 1e-3) / 2
    offset = (counts % 2 == 0) / 2
    bounded = (z + (offset / half).tan()).tanh() * half - offset
    steps = bounded + (bounded.round() - bounded).detach()
    places = torch.cumprod(torch.tensor([1, *levels[:-1]]), 0)
    return steps / (counts // 2), ((steps.detach().round().long() + counts // 2) * places).sum(-1)


@pytest.mark.parametrize("levels", [[8, 8, 8, 5, 5, 5], [2, 2], [3, 17], [7, 6, 5, 2]])
def test_the_defaults_are_the_paper_bit_for_bit(levels):
    z = (2 * torch.randn(3, 500, len(levels))).requires_grad_()
    out, (codes, indices) = fsq(*levels)(z), released_form(z, levels)
    assert torch.equal(out.indices, indices) and torch.equal(out.z_q, codes)
    g = torch.randn_like(codes)
    actual, expected = (torch.autograd.grad((value * g).sum(), z)[0] for value in (out.z_q, codes))
    assert torch.equal(actual, expected)


# ---------------------------------------------------------------------------------------------- closed forms
@pytest.mark.parametrize("edges", ["half", "full"])
@pytest.mark.parametrize("numerics", MARGINS)
@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 17])
def test_borders_of_levels_are_where_the_formula_has_them(count, numerics, edges):
    """Of odd and symmetric levels at atanh(border / half) 2 / slope; just beside it is the level of that side."""
    quantizer = fsq(count, slope=1.3, numerics=numerics, edges=edges, even="symmetric")
    half = (count if edges == "full" else count - 1) / 2 * MARGINS[numerics]
    borders = torch.arange(1, count, dtype=torch.float64) - count / 2
    z = (borders / half).atanh() * 2 / 1.3
    for offset, expected in ((-1e-4, torch.arange(count - 1)), (1e-4, torch.arange(1, count))):
        assert torch.equal(quantizer((z + offset).float()[None, :, None]).indices[0], expected)


@pytest.mark.parametrize("numerics", ["paper", "atanh"])
@pytest.mark.parametrize("count", [4, 6, 16])
def test_borders_of_shifted_levels(count, numerics):
    """At atanh((border + 1/2) / half) - shift."""
    quantizer, half = fsq(count, numerics=numerics), (count - 1) / 2 * MARGINS[numerics]
    shift = math.tan(0.5 / half) if numerics == "paper" else math.atanh(0.5 / half)
    borders = torch.arange(1, count, dtype=torch.float64) - count / 2 - 0.5
    z = ((borders + 0.5) / half).atanh() - shift
    for offset, expected in ((-1e-4, torch.arange(count - 1)), (1e-4, torch.arange(1, count))):
        assert torch.equal(quantizer((z + offset).float()[None, :, None]).indices[0], expected)
    assert quantizer(torch.zeros(1, 1, 1)).indices.item() == count // 2


@pytest.mark.parametrize("levels", [[2, 3, 4], [5, 8], [2, 2, 2]])
@pytest.mark.parametrize("options", [EVEN_TO_ODD, FULL, {**FULL, "slope": 1.7}, {**FULL, **IFSQ}])
def test_every_code_is_reached_and_decodes_to_its_levels(levels, options):
    """Values are spread evenly over [-1,1], 2 levels are signs, and decode gives what forward gave."""
    quantizer = fsq(*levels, **options)
    z = torch.cartesian_prod(*[torch.linspace(-3, 3, 43)] * len(levels))[None]
    out = quantizer(z)
    assert out.indices.unique().tolist() == list(range(quantizer.codebook_size))
    torch.testing.assert_close(quantizer.decode_indices(out.indices), out.z_q, atol=1e-6, rtol=0)
    grids = [torch.linspace(-1, 1, count) for count in reversed(levels)]
    expected = torch.cartesian_prod(*grids).flip(-1)
    torch.testing.assert_close(quantizer.decode_indices(torch.arange(len(expected))[None])[0], expected)
    assert (quantizer.choice_distances(z, out.indices) <= quantizer.choice_distances(z, out.indices.flip(1))).all()


def test_sigmoid_of_slope_2_is_tanh():
    """One curve: values up to rounding, and the same codes away from borders."""
    z = torch.randn(2, 4000, 2)
    curves = [fsq(9, 5, activation=name, numerics="plain").bound(z) for name in ("tanh", "sigmoid")]
    torch.testing.assert_close(*curves, atol=2e-6, rtol=0)
    is_clear = ((curves[0] - 0.5).round() - (curves[0] - 0.5)).abs() > 1e-5
    assert is_clear.float().mean() > 0.99
    assert torch.equal(curves[0].round()[is_clear], curves[1].round()[is_clear])


def test_ifsq_is_its_formula_bit_for_bit():
    """y = 2 sigmoid(1.6 z) - 1, z_q = round(y (L - 1) / 2) / (L // 2)."""
    z = torch.randn(2, 5000, 4)
    y = 2 * torch.sigmoid(1.6 * z) - 1
    out = fsq(17, 17, 17, 17, **IFSQ)(z)
    torch.testing.assert_close(out.z_q, (y * 8).round() / 8, atol=1e-6, rtol=0)
    places = torch.tensor([1, 17, 17**2, 17**3])
    assert torch.equal(out.indices, (((y * 8).round().long() + 8) * places).sum(-1))


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        *((count, {"numerics": "plain"}, value) for count, value in ((3, 0.986), (5, 0.993), (9, 0.993), (17, 0.992))),
        *((count, IFSQ, value) for count, value in ((3, 0.941), (5, 0.957), (9, 0.972), (17, 0.983))),
        *((n, {**IFSQ, **FULL}, value) for n, value in ((3, 1.000), (5, 1.000), (9, 0.999), (17, 0.998))),
        *((n, {**IFSQ, **FULL}, value) for n, value in ((2, 1.000), (4, 1.000), (8, 0.999), (16, 0.998))),
    ],
)
def test_how_evenly_normal_latents_use_the_levels(count, options, expected):
    """The table of docs/quantizers.md: the entropy of the levels' shares over that of equal ones."""
    assert evenness(fsq(count, **options)) == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize(("slope", "expected"), [(2.0, 0.045), (1.6, 0.018), (1.7, 0.010)])
def test_how_uniform_the_curve_makes_normal_latents(slope, activation, expected):
    """The Kolmogorov distance of bounded normal latents to the uniform distribution on (-1,1); least at slope 1.7."""
    bounded = fsq(3, slope=slope, activation=activation, numerics="plain").bound(normal_latents()).flatten().double()
    ranks = torch.arange(len(bounded) + 1, dtype=torch.float64) / len(bounded)
    below = (bounded.sort().values + 1) / 2
    distance = torch.maximum((below - ranks[:-1]).abs(), (ranks[1:] - below).abs()).max()
    assert distance.item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("count", "expected"), [(3, 0.485), (5, 0.426), (9, 0.337), (17, 0.256)])
def test_outermost_levels_of_ifsq_get_less_than_half_of_their_neighbors(count, expected):
    """The shares that docs/quantizers.md tells."""
    shares_of_levels = shares(fsq(count, **IFSQ))
    assert (shares_of_levels[0] / shares_of_levels[1]).item() == pytest.approx(expected, abs=1e-3)


def test_two_levels_are_uneven_by_the_shift_and_even_as_signs():
    """The shares that docs and messages tell."""
    assert shares(fsq(2)).tolist() == pytest.approx([0.060, 0.940], abs=1e-3)
    quantizer = fsq(2, even="symmetric")
    assert shares(quantizer).tolist() == pytest.approx([0.5, 0.5], abs=1e-4)
    assert quantizer(torch.tensor([[[-0.3], [0.2]]])).z_q.flatten().tolist() == [-1, 1]
    assert "94 %" in next(fsq(2).warnings()) and "even=symmetric" in next(fsq(2).warnings())
    assert list(quantizer.warnings()) == []


# ---------------------------------------------------------------------------------------------- other programs
@pytest.mark.parametrize(
    "case", json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"], ids=lambda case: str(case)[:60]
)
def test_codes_of_another_program(case):
    """Stored indices of vector-quantize-pytorch, which the paper's numerics do not give."""
    channels = torch.arange(1, len(case["levels"]) + 1, dtype=torch.float64)
    tokens = torch.arange(len(case["indices"]), dtype=torch.float64)[:, None]
    z = (2.5 * torch.sin(0.37 * tokens * channels + 0.1 * channels)).float()[None]
    options = EVEN_TO_ODD if case["preserve_symmetry"] else {"numerics": "atanh"}
    expected = torch.tensor(case["indices"])
    assert torch.equal(fsq(*case["levels"], **options)(z).indices[0], expected)
    assert not torch.equal(fsq(*case["levels"])(z).indices[0], expected)


def test_codes_of_other_options_are_those_of_another_tokenizer():
    """Equal weights, other numerics: another fingerprint, by which codes and generators are refused. The defaults have
    the fingerprint of the parameters alone.
    """
    options = ("", ", numerics: atanh", ", even: symmetric", ", index_levels: [1, 1]", ", slope: 1.7")
    seen = set()
    for option in options:
        section = "model.quantizer={name: fsq, fsq: {levels: [4, 3]" + option + "}}"
        torch.manual_seed(0)
        tokenizer = mini.tokenizer_of(mini.tokenizer_config("model.quantizer.vq=null", section))
        seen.add(fingerprint(tokenizer))
        assert (fingerprint(tokenizer) == tensors_digest(tokenizer.named_parameters())) == (option == "")
    assert len(seen) == len(options)


@pytest.mark.parametrize(("count", "expected"), [(5, 0.002), (17, 0.009)])
def test_how_many_choices_depend_on_the_numerics(count, expected):
    """The share of docs/quantizers.md."""
    differ = fsq(count)(normal_latents()).indices != fsq(count, numerics="atanh")(normal_latents()).indices
    assert differ.double().mean().item() == pytest.approx(expected, abs=5e-4)


# ---------------------------------------------------------------------------------------------- several indices
def test_channels_under_several_indices_are_the_same_codes():
    """index_levels=[2, 1]: the first index counts two channels, the second one; together they are the single index."""
    z = torch.randn(2, 300, 3)
    one, two = fsq(4, 3, 5), fsq(4, 3, 5, index_levels=[2, 1])
    assert two.group_sizes == (12, 5) and two.num_groups == 2
    a, b = one(z), two(z)
    assert torch.equal(a.z_q, b.z_q) and torch.equal(a.indices, b.indices[..., 0] + 12 * b.indices[..., 1])
    assert torch.equal(one.decode_indices(a.indices), two.decode_indices(b.indices))
    assert two.train()(z).indices.shape == (2, 300, 2) and two.usage().keys() >= {"codebook_usage_group_1"}


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ([5, 5], {"index_levels": [1]}, r"index_levels=\[1\] must be .* all together 2"),
        ([5, 5], {"index_levels": [2, 0]}, "index_levels"),
        ([2] * 62, {"even": "symmetric"}, r"levels=.*below 2\^62, for each index \(index_levels splits them\)"),
        ([5], {"slope": 0.0}, "slope=0.0 must be above 0"),
        ([4], {"edges": "full"}, "edges='full' must be half, or even=symmetric"),
        ([4], {"numerics": "plain"}, "numerics='plain' must be paper or atanh.*even=symmetric"),
        ([3, 2], {"numerics": "atanh"}, r"levels=\[3, 2\] must be 3 or more each, or even=symmetric.*99\.99 %"),
    ],
)
def test_settings_that_do_not_go_together_are_named(levels, options, message):
    with pytest.raises(ConfigError, match=message):
        FSQConfig(levels=levels, **options)


def test_many_binary_channels_fit_under_several_indices():
    quantizer = fsq(*[2] * 80, even="symmetric", index_levels=[40, 40])
    out = quantizer(torch.randn(1, 4, 80))
    assert torch.equal(quantizer.decode_indices(out.indices), out.z_q)


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        *((count, {}, value) for count, value in ((2, 0.325), (4, 0.960), (8, 0.989), (16, 0.992))),
        *((n, {"even": "symmetric"}, value) for n, value in ((2, 1.000), (4, 0.991), (8, 0.993), (16, 0.992))),
    ],
)
def test_how_evenly_even_numbers_of_levels_are_used(count, options, expected):
    """The other two rows of that table."""
    assert evenness(fsq(count, **options)) == pytest.approx(expected, abs=5.1e-4)
