"""FSQ, IBQ and SimVQ against the formulas of their papers."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.messages import ConfigError
from tokenizer.quantizers.fsq import FSQ, FSQConfig
from tokenizer.quantizers.ibq import IBQ, IBQConfig
from tokenizer.quantizers.simvq import SimVQ, SimVQConfig
from tokenizer.quantizers.vq import VectorQuantizer


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------------- FSQ
@pytest.mark.parametrize("levels", [[2, 2], [3, 5], [8, 5, 4], [7, 6, 5, 2]])
def test_fsq_reaches_every_code_and_decodes_it(levels):
    """All products of the levels occur, indices count them with the first channel lowest, decode gives them back."""
    fsq = FSQ(FSQConfig(levels=levels)).eval()
    axes = [torch.linspace(-4, 4, 60)[:: 60 // (6 * n) or 1] for n in levels]
    z = torch.cartesian_prod(*axes)[None]
    out = fsq(z)
    assert out.indices.unique().tolist() == list(range(fsq.codebook_size))
    torch.testing.assert_close(fsq.decode_indices(out.indices), out.z_q, atol=1e-6, rtol=0)
    grid = [[(digit - n // 2) / (n // 2) for digit in range(n)] for n in levels]
    expected = torch.tensor([row[::-1] for row in itertools.product(*grid[::-1])])
    torch.testing.assert_close(fsq.decode_indices(torch.arange(fsq.codebook_size)[None])[0], expected)


def test_fsq_rounds_the_bounded_latent():
    """Odd levels: round(half * tanh z); even levels are shifted by half a step, and 0 stays within the middle."""
    z = torch.tensor([[[0.0, 0.2], [0.9, -0.4], [-3.0, 3.0]]])
    q = FSQ(FSQConfig(levels=[5, 5]))(z).z_q * 2
    torch.testing.assert_close(q, (z.tanh() * 2 * 0.999).round())
    even = FSQ(FSQConfig(levels=[4, 4]))(torch.zeros(1, 1, 2))
    assert even.indices.item() in (1 + 4, 2 + 8), "the latent 0 has one of the two middle levels of 0..3"


def test_fsq_copies_the_gradient_of_the_bounded_latent_and_has_no_losses():
    z = torch.randn(2, 3, 2, requires_grad=True)
    out = FSQ(FSQConfig(levels=[5, 3])).train()(z)
    out.z_q.sum().backward()
    expected = (1 - z.detach().tanh().square()) * torch.tensor([2 * 0.999 / 2, 1 * 0.999 / 1])
    torch.testing.assert_close(z.grad, expected)
    assert out.losses == {}


@pytest.mark.parametrize("levels", [[], [1, 5], [2] * 62])
def test_fsq_levels_that_do_not_work_are_named(levels):
    with pytest.raises(ConfigError, match=r"levels=.* must be"):
        FSQConfig(levels=levels)


# ---------------------------------------------------------------------------------------------- IBQ
def test_ibq_chooses_by_product_and_every_code_gets_a_gradient():
    """z_q is the row of the largest product; the gradient of a decoder reaches all rows through the softmax."""
    ibq = IBQ(IBQConfig(codebook_size=6, codebook_dim=4))
    nn.init.normal_(ibq.codebook)
    z, g = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4)
    out = ibq.train()(z)
    rows = ibq.codebook.detach()
    assert torch.equal(out.indices, (z @ rows.T).argmax(-1))
    torch.testing.assert_close(out.z_q, rows[out.indices])
    assert torch.equal(ibq.decode_indices(out.indices), rows[out.indices])
    ours = torch.autograd.grad((out.z_q * g).sum(), [z, ibq.codebook], retain_graph=True)
    c = ibq.codebook.detach().requires_grad_()
    p = (z @ c.T).softmax(-1)
    hard = F.one_hot(out.indices, 6).float()
    # (hard + p - sg p) C, differentiated by hand: through p with C fixed, and through C with the hard choice
    by_hand = torch.autograd.grad((p @ c.detach() * g).sum() + (hard @ c * g).sum(), [z, c])
    for actual, expected in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(actual, expected)
    assert (ours[1].abs().sum(1) > 0).all(), "also codes that nobody chose"


def test_ibq_losses_are_those_of_the_paper():
    ibq = IBQ(IBQConfig(codebook_size=6, codebook_dim=4, entropy_temperature=0.5))
    nn.init.normal_(ibq.codebook)
    z = torch.randn(2, 5, 4)
    losses, rows = ibq(z, entropy=True).losses, ibq.codebook.detach()
    distance = (rows[(z @ rows.T).argmax(-1)] - z).square().mean()
    torch.testing.assert_close(losses["codebook"].detach(), 2 * distance)
    torch.testing.assert_close(losses["commitment"], distance)
    p = (z @ rows.T / 0.5).softmax(-1).flatten(0, 1)
    torch.testing.assert_close(losses["sample_entropy"].detach(), -(p * p.log()).sum(-1).mean())
    mean = p.mean(0)
    torch.testing.assert_close(losses["codebook_entropy"].detach(), -(mean * (mean + 1e-5).log()).sum())


# ---------------------------------------------------------------------------------------------- SimVQ
def test_simvq_is_vector_quantization_with_the_projected_table():
    """Indices, z_q and losses of a VQ whose codebook is projection(table); gradients reach the projection alone."""
    sim = SimVQ(SimVQConfig(codebook_size=12, codebook_dim=4)).train()
    plain = VectorQuantizer(sim.config).train()
    plain.codebook.data = sim.projection(sim.codebook).detach()
    z = torch.randn(3, 5, 4)
    ours, theirs = sim(z, entropy=True), plain(z, entropy=True)
    assert torch.equal(ours.indices, theirs.indices) and torch.equal(ours.z_q, theirs.z_q)
    assert all(torch.equal(ours.losses[name], value) for name, value in theirs.losses.items())
    ours.losses["codebook"].backward()
    assert sim.projection.weight.grad.abs().sum() > 0 and sim.codebook.grad is None
    assert torch.equal(sim.decode_indices(ours.indices), plain.decode_indices(ours.indices))


def test_simvq_cannot_start_from_k_means():
    with pytest.raises(ConfigError, match="init='kmeans' must be random: this codebook is not learned"):
        SimVQConfig(init="kmeans", warmup_steps=3)
    with pytest.raises(ConfigError, match="codebook_size=1 must be 2 or more"):
        SimVQConfig(codebook_size=1)
