"""The streamed entropies of soft assignments equal the plain formula, in value and in gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenizer.quantizers import entropy_assignment as entropy
from tokenizer.quantizers.affinity import Affinity, PlainDistance, Product, SquaredDistance
from tokenizer.quantizers.entropy_assignment import LOG_EPS, assignment_entropies

AFFINITIES = [SquaredDistance, PlainDistance, Product]


def dense(z: Tensor, codes: Tensor, temperature: float, affinity: type[Affinity]) -> tuple[Tensor, Tensor]:
    """The formula of the module docstring with the whole table."""
    distance = torch.cdist(z, codes, compute_mode="donot_use_mm_for_euclid_dist")
    nearness = {SquaredDistance: -distance.square(), PlainDistance: -distance, Product: z @ codes.T}[affinity]
    p = (nearness / temperature).softmax(1)
    sample = -(p * p.clamp_min(1e-30).log()).sum(1).mean()
    mean = p.mean(0)
    return sample, -(mean * (mean + LOG_EPS).log()).sum()


def case(n: int, k: int, dim: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z, codes = (F.normalize(torch.randn(m, dim, generator=generator, dtype=dtype), dim=1) for m in (n, k))
    return z.requires_grad_(), codes.requires_grad_()


@pytest.mark.parametrize("rows", [1, 7, 1000], ids=lambda rows: f"{rows}_rows_at_a_time")
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -1.3)])
def test_values_and_gradients_equal_those_of_the_whole_table(rows, temperature, affinity, weights, monkeypatch):
    """float32, for chunks of any size, for all affinities, and for each term alone and together."""
    monkeypatch.setitem(entropy.CHUNK_ELEMENTS, "cpu", rows * 48)
    z, codes = case(60, 48, 8, torch.float32)
    streamed, plain = assignment_entropies(z, codes, temperature, affinity), dense(z, codes, temperature, affinity)
    for ours, theirs in zip(streamed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    ours = torch.autograd.grad(weights[0] * streamed[0] + weights[1] * streamed[1], [z, codes])
    theirs = torch.autograd.grad(weights[0] * plain[0] + weights[1] * plain[1], [z, codes])
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-4 * expected.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_gradients_pass_the_numerical_check(affinity):
    """Finite differences in double precision, independent of any other formula."""
    z, codes = case(5, 6, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: assignment_entropies(a, b, 0.3, affinity), (z, codes))


def test_gradients_stay_finite_for_latents_that_lie_on_a_code():
    """There a plain distance has no gradient of its own."""
    codes = torch.eye(4).requires_grad_()
    z = torch.eye(4)[:3].clone().requires_grad_()
    for affinity in AFFINITIES:
        sample, codebook = assignment_entropies(z, codes, 0.01, affinity)
        gradients = torch.autograd.grad(sample - codebook, [z, codes])
        assert all(torch.isfinite(g).all() for g in gradients)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    k=st.integers(2, 40),
    temperature=st.sampled_from([0.01, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 10_000),
)
def test_entropies_are_ordered_and_bounded(n, k, temperature, seed):
    """0 <= sample <= codebook <= log K, up to the released 1e-5 inside the logarithm."""
    z, codes = case(n, k, 4, torch.float32, seed)
    sample, codebook = (value.item() for value in assignment_entropies(z, codes, temperature))
    slack = 1e-4 + k * LOG_EPS
    assert -1e-5 <= sample <= codebook + slack
    assert codebook <= math.log(k) + 1e-4


def test_extremes():
    """Sure and evenly spread latents: sample 0 and codebook log K; a very high temperature: both log K."""
    codes = torch.eye(16)
    sample, codebook = assignment_entropies(codes, codes, 0.01)
    assert sample.item() == pytest.approx(0, abs=1e-6)
    assert codebook.item() == pytest.approx(math.log(16), abs=2e-4)
    sample, codebook = assignment_entropies(codes, codes, 1e6)
    assert sample.item() == pytest.approx(math.log(16), abs=1e-4)
    sample, codebook = assignment_entropies(codes[:1].expand(16, 16), codes, 0.01)
    assert codebook.item() == pytest.approx(0, abs=2e-4), "all latents on one code"


@pytest.mark.parametrize("spread", [0.02, 0.3, 10.0], ids=lambda spread: f"latents_{spread}_from_codes")
def test_gradients_are_as_near_to_double_precision_as_those_of_the_whole_table(spread):
    """At the temperature of the recipes, where most probabilities are below the smallest normal float32."""
    generator = torch.Generator().manual_seed(0)
    codes = F.normalize(torch.randn(4096, 8, generator=generator), dim=1)
    noise = spread * torch.randn(256, 8, generator=generator)
    z = F.normalize(codes[torch.randint(4096, (256,), generator=generator)] + noise, dim=1)

    def gradients(function, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (z, codes)]
        sample, codebook = function(*inputs, 0.01, SquaredDistance)
        return torch.autograd.grad(sample - codebook, inputs)

    exact = gradients(dense_by_product, torch.float64)
    for ours, plain, truth in zip(
        gradients(assignment_entropies, torch.float32), gradients(dense_by_product, torch.float32), exact, strict=True
    ):
        error, plain_error = ((value - truth).norm() / truth.norm() for value in (ours, plain))
        assert error < 1.5 * plain_error + 1e-7


def dense_by_product(z: Tensor, codes: Tensor, temperature: float, affinity: type[Affinity]) -> tuple[Tensor, Tensor]:
    """The formulation of published code: all squared distances by one matrix product."""
    assert affinity is SquaredDistance
    distance = z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.T
    log_p = (-distance / temperature).log_softmax(1)
    p = log_p.exp()
    mean = p.mean(0)
    return -(p * log_p).sum(1).mean(), -(mean * (mean + LOG_EPS).log()).sum()


@pytest.mark.parametrize(("gigabytes", "elements"), [(80, 2**26), (16, 2**26), (8, 2**25), (2, 2**23)])
def test_chunks_follow_the_whole_memory_of_a_gpu(gigabytes, elements, monkeypatch):
    """A table of float32 takes at most 1/64 of it: 256 MiB of 16 GiB and more, 128 MiB of 8 GiB."""
    monkeypatch.setattr(entropy, "memory_of", lambda device: gigabytes * 2**30)
    assert entropy.chunk_elements(torch.device("cuda")) == elements
    assert entropy.chunk_elements(torch.device("cpu")) == 2**18
