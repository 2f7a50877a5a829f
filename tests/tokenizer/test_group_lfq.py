"""Group-wise lookup-free quantization: codes, gradients, both entropies, memory, and health of the groups."""

import math

import pytest
import torch
import torch.nn.functional as F
from ranks import on_ranks
from torch import Tensor

from engine.config import load_config
from engine.messages import ConfigError
from tokenizer.quantizers import entropy_assignment as entropy
from tokenizer.quantizers.entropy_bits import bit_entropies, codebook_entropy_bytes
from tokenizer.quantizers.gq import GQConfig, GroupLFQ
from tokenizer.quantizers.ibq import IBQ, IBQConfig
from tokenizer.quantizers.usage import code_usage
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig
from tokenizer.training.checks import validate
from tokenizer.training.config import TokenizerTrainConfig

SHAPES = [(1, 8), (2, 4), (8, 1), (3, 3)]  # groups, channels of a group


def latents(channels: int, scale: float = 0.05, batch: int = 3, tokens: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, tokens, channels, generator=generator) * scale).requires_grad_()


def quantizer(num_groups: int, group_dim: int, **options) -> GroupLFQ:
    return GroupLFQ(GQConfig(num_groups=num_groups, group_dim=group_dim, **options)).train()


def sign_vectors(bits: int) -> Tensor:
    """All codes in the order of their index, (2^bits, bits); written by counting, not with the product's own code."""
    return torch.tensor([[1.0 if i // 2**b % 2 else -1.0 for b in range(bits)] for i in range(2**bits)])


def plain_entropies(z: Tensor, groups: int, temperature: float, per_group: bool, size: float = 1.0) -> tuple:
    """softmax(-|u - c|^2 / temperature) over every code of every group, as the papers write it."""
    u = z.reshape(-1, groups, z.shape[-1] // groups)
    codes = size * sign_vectors(u.shape[-1])
    p = (-(u[:, :, None] - codes).square().sum(-1) / temperature).softmax(-1)  # (n,G,K)
    sample = -(p * p.clamp_min(1e-38).log()).sum(-1)
    mean = p.mean(0) if per_group else p.mean((0, 1))[None]
    of_codes = -(mean * (mean + entropy.LOG_EPS).log()).sum()
    return (sample.sum(1).mean() if per_group else sample.mean()), of_codes


# ---------------------------------------------------------------------------------------------- codes
@pytest.mark.parametrize(("groups", "dim"), SHAPES)
@pytest.mark.parametrize("l2_norm", [False, True])
def test_indices_are_lossless(groups, dim, l2_norm):
    """decode(indices) is the quantized latent itself; every index is below 2^dim; one group gives (B,N)."""
    out = quantizer(groups, dim, l2_norm=l2_norm)(latents(groups * dim))
    assert out.indices.shape == ((3, 7) if groups == 1 else (3, 7, groups)) and out.indices.dtype == torch.int64
    assert out.indices.min() >= 0 and out.indices.max() < 2**dim
    decoded = quantizer(groups, dim, l2_norm=l2_norm).decode_indices(out.indices)
    torch.testing.assert_close(decoded, out.z_q, atol=1e-7 if l2_norm else 0, rtol=0)
    assert decoded.norm(dim=-1).sub(1 if l2_norm else (groups * dim) ** 0.5).abs().max() < 1e-6


def test_the_first_channel_is_the_lowest_bit_and_zero_is_negative():
    z = torch.tensor([[[0.3, -1.0, 0.0, -0.0, -2.0, 5.0]]])
    assert quantizer(2, 3)(z).indices.tolist() == [[[1, 4]]]
    assert quantizer(1, 6)(z).indices.tolist() == [[33]]
    assert quantizer(2, 3, index_bits=[1, 5])(z).indices.tolist() == [[[1, 16]]]


@pytest.mark.parametrize("bits", [[6], [2, 4], [1, 2, 3], [3, 3]])
def test_indices_may_cut_the_bits_elsewhere_than_the_groups(bits):
    """Losses and latents are those of the groups; the indices hold the same bits."""
    z = latents(6)
    own, cut = quantizer(2, 3)(z, entropy=True), quantizer(2, 3, index_bits=bits)
    out = cut(z, entropy=True)
    assert torch.equal(out.z_q, own.z_q) and cut.group_sizes == tuple(2**b for b in bits)
    assert all(torch.equal(out.losses[name], value) for name, value in own.losses.items())
    assert torch.equal(cut.decode_indices(out.indices), own.z_q)


def test_the_gradient_passes_unchanged():
    z, g = latents(6), torch.randn(3, 7, 6)
    out = quantizer(2, 3)(z)
    assert torch.equal(torch.autograd.grad((out.z_q * g).sum(), z)[0], g)
    assert torch.equal(out.z_q.abs(), torch.ones(3, 7, 6)), "the value is exactly +-1"


def test_bsq_works_on_the_unit_sphere():
    """With l2_norm the length of a latent has no influence, and the commitment is that of the sphere."""
    z = latents(6).detach()
    short, long = quantizer(1, 6, l2_norm=True)(z, entropy=True), quantizer(1, 6, l2_norm=True)(100 * z, entropy=True)
    for name, value in short.losses.items():
        torch.testing.assert_close(long.losses[name], value)
    u = F.normalize(z, dim=-1)
    torch.testing.assert_close(short.losses["commitment"], (u - u.sign() / 6**0.5).square().mean())


# ---------------------------------------------------------------------------------------------- entropies
@pytest.mark.parametrize(("groups", "dim"), SHAPES)
@pytest.mark.parametrize("mode", ["pooled", "per_group"])
@pytest.mark.parametrize("form", ["factorized", "naive"])
@pytest.mark.parametrize("rows", [2, 2**20])
def test_entropies_and_gradients_are_those_of_the_whole_table(groups, dim, mode, form, rows, monkeypatch):
    """Against the softmax over all codes, in chunks of any size, on the sphere and off it."""
    monkeypatch.setitem(entropy.CHUNK_ELEMENTS, "cpu", rows)
    for l2_norm in (False, True):
        z = latents(groups * dim, 0.02)
        out = quantizer(groups, dim, codebook_entropy=mode, entropy_form=form, l2_norm=l2_norm)(z, entropy=True)
        u, size = (F.normalize(z, dim=-1), (groups * dim) ** -0.5) if l2_norm else (z, 1.0)
        sample, of_codes = plain_entropies(u, groups, 0.01, mode == "per_group", size)
        torch.testing.assert_close(out.losses["sample_entropy"], sample, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.losses["codebook_entropy"], of_codes, atol=1e-5, rtol=1e-5)
        assert torch.equal(out.losses["entropy"], out.losses["sample_entropy"] - out.losses["codebook_entropy"])
        ours, theirs = (torch.autograd.grad(loss, z)[0] for loss in (out.losses["entropy"], sample - of_codes))
        torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-3)


def test_gradients_pass_the_numerical_check():
    """Finite differences in double precision."""
    logits = torch.randn(4, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for per_group in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, g=per_group: bit_entropies(x, with_codebook_entropy=True, per_group=g), logits
        )


def test_the_sample_entropy_does_not_depend_on_the_groups():
    """Summed over groups it is the same for every cut of the same channels: entropies of independent bits add."""
    z = latents(12)
    totals = [quantizer(g, 12 // g, codebook_entropy="per_group")(z, entropy=True) for g in (1, 2, 3, 12)]
    for out in totals[1:]:
        torch.testing.assert_close(out.losses["sample_entropy"], totals[0].losses["sample_entropy"])


def test_groups_that_collapse_onto_their_own_quarter_of_the_codes():
    """Each of 4 groups uses a quarter of 256 codes, all together every one: the pooled entropy is the highest there is,
    the entropy per group sees a quarter, and the gauge of each group says 25 %.
    """
    codes = torch.cartesian_prod(*(torch.tensor([-1.0, 1.0]),) * 6)  # 64 sign patterns of 6 channels
    quarter = [(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)]  # the last two channels of each group
    z = torch.cat([torch.cat([codes, torch.tensor([q]).expand(64, 2)], 1) for q in quarter], 1)[None]
    pooled = quantizer(4, 8)
    losses = pooled(z, entropy=True).losses
    assert losses["codebook_entropy"].item() == pytest.approx(math.log(256), abs=3e-3)
    per_group = quantizer(4, 8, codebook_entropy="per_group")(z, entropy=True).losses
    assert per_group["codebook_entropy"].item() == pytest.approx(4 * math.log(64), abs=3e-3)
    usage = pooled.usage()
    assert usage["codebook_usage_pooled"] == 1
    assert [usage[f"codebook_usage_group_{g}"].item() for g in range(4)] == [0.25] * 4
    assert usage["codebook_usage"] == 0.25 and usage["codebook_perplexity"].item() == pytest.approx(64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 1, "group_dim": 25}, r"2\^25 codes needs about 939,524,096 bytes.*num_groups=5 .*fit"),
        ({"num_groups": 1, "group_dim": 40}, r"2\^40 codes needs about 30,786,325,577,728 bytes.*num_groups=2"),
        ({"num_groups": 1, "group_dim": 16, "entropy_form": "naive"}, r"num_groups=2 would fit for 16 channels"),
    ],
)
def test_a_codebook_entropy_that_does_not_fit_is_refused_before_it_is_allocated(options, message):
    """The message names bytes and groups, and its way out works: the sample entropy alone needs no memory."""
    z = torch.randn(16, 64, options["group_dim"], requires_grad=True)
    with pytest.raises(ConfigError, match=message):
        quantizer(**options)(z, entropy=True)
    alone = quantizer(**options | {"entropy_form": "factorized"}, codebook_entropy_weight=0)(z, entropy=True).losses
    assert alone.keys() == {"commitment", "sample_entropy", "entropy"}
    alone["entropy"].backward()
    assert torch.isfinite(z.grad).all()


def test_lfq_of_24_bits_fits_the_default():
    quantizer(1, 24).require_memory(10**9)


def _global_statistics(world, folder):
    """The gradient, averaged over ranks as data parallelism does, is that of one process with all latents."""
    z = latents(8, batch=4).detach()
    whole, mine = z.clone().requires_grad_(), z.chunk(world.size)[world.rank].clone().requires_grad_()
    expected = plain_entropies(whole, 2, 0.01, False)
    (expected[0] - expected[1]).backward()
    out = quantizer(2, 4, entropy_statistics="global")(mine, entropy=True)
    torch.testing.assert_close(out.losses["codebook_entropy"], expected[1], atol=1e-5, rtol=1e-5)
    out.losses["entropy"].backward()
    torch.testing.assert_close(mine.grad / world.size, whole.grad.chunk(world.size)[world.rank], atol=1e-5, rtol=1e-3)
    local = quantizer(2, 4)(mine, entropy=True).losses["codebook_entropy"]
    assert (local - expected[1]).abs() > 1e-3, "statistics of one rank are others"


def _global_statistics_of_codebooks(world, folder):
    """The same for learned codebooks: gradients of latents and codes."""
    z = latents(4, batch=4, scale=1.0).detach()
    for build, options in ((VectorQuantizer, VQConfig), (IBQ, IBQConfig)):
        torch.manual_seed(0)
        sizes = {"codebook_size": 8, "codebook_dim": 4, "entropy_temperature": 0.5}
        whole = build(options(**sizes)).train()
        whole.codebook.data.normal_()
        parts = build(options(**sizes, entropy_statistics="global")).train()
        parts.load_state_dict(whole.state_dict())
        own = slice(2 * world.rank, 2 * world.rank + 2)
        x, y = z.clone().requires_grad_(), z[own].clone().requires_grad_()
        # what is gathered in a window is not the question here
        expected, shared = whole.eval()(x, entropy=True).losses, parts(y, entropy=True).losses
        torch.testing.assert_close(shared["codebook_entropy"], expected["codebook_entropy"], atol=1e-6, rtol=1e-6)
        expected["entropy"].backward()
        shared["entropy"].backward()
        torch.testing.assert_close(y.grad / world.size, x.grad[own], atol=1e-6, rtol=1e-4)
        averaged = world.sum(parts.codebook.grad) / world.size
        torch.testing.assert_close(averaged, whole.codebook.grad, atol=1e-6, rtol=1e-4)
        alone = parts.eval()(y, entropy=True).losses["codebook_entropy"]
        assert (alone - expected["codebook_entropy"]).abs() > 1e-3, "validation is of one rank"


def _both(world, folder):
    _global_statistics(world, folder)
    _global_statistics_of_codebooks(world, folder)


def test_statistics_of_all_ranks(tmp_path):
    on_ranks(2, tmp_path, _both, tmp_path)


# ---------------------------------------------------------------------------------------------- usage
def test_histograms_of_every_group_count_in_the_memory_that_is_needed():
    """Eight groups of 22 bits, each with a histogram of its own, need 35 tables instead of 7 (476 MB were measured
    beside 108): one that fits pooled may not fit per group.
    """
    assert codebook_entropy_bytes(22, 1, False, 8) == 5 * codebook_entropy_bytes(22, 1, False)
    quantizer(8, 22).require_memory(1)
    with pytest.raises(ConfigError, match=r"2\^22 codes needs about 587,202,560 bytes"):
        quantizer(8, 22, codebook_entropy="per_group").require_memory(1)


def test_a_recipe_that_cannot_hold_its_entropy_is_refused_before_training():
    """LFQ of 32 bits with an entropy loss: `validate` says so, without data or networks; without the loss it passes."""
    own = ["model={name: wetok, quantizer: {name: gq, gq: {num_groups: 1, group_dim: 32}}}", "loss.perceptual_weight=0"]
    validate(load_config(TokenizerTrainConfig, overrides=own))
    with pytest.raises(ConfigError, match=r"the codebook entropy of 2\^32 codes needs about"):
        validate(load_config(TokenizerTrainConfig, overrides=[*own, "loss.entropy_weight=0.1"]))


def test_usage_of_groups_and_distinct_codes():
    """Against counts by hand, of uneven codebooks."""
    indices = torch.tensor([[0, 1], [0, 3], [1, 3], [0, 1]])
    usage = {name: value.item() for name, value in code_usage(indices, (2, 8)).items()}
    assert usage["codebook_usage_group_0"] == 1 and usage["codebook_usage_group_1"] == 0.25
    assert usage["codebook_usage"] == 0.625 and usage["codebook_usage_pooled"] == 3 / 8
    assert usage["codebook_perplexity"] == pytest.approx((math.exp(0.5623351446) + 2) / 2)


def test_the_window_fills_with_training_tokens_only():
    """A huge codebook is counted without a table of its size; evaluation leaves the window alone."""
    q = quantizer(1, 40)
    assert q.usage()["codebook_usage"] == 0
    q(latents(40))
    assert q.usage()["codebook_perplexity"].item() == pytest.approx(21)
    before = q.recent_indices.clone()
    q.eval()(latents(40, seed=1))
    assert torch.equal(q.recent_indices, before) and q.recent_indices.dtype == torch.int64


@pytest.mark.parametrize(
    "options",
    [
        {"num_groups": 0},
        {"group_dim": 63},
        {"index_bits": [8, 8]},
        {"index_bits": [32, 0]},
        {"entropy_temperature": 0},
        {"codebook_entropy_weight": -1},
        {"max_entropy_mb": 0},
    ],
)
def test_options_that_do_not_fit_are_named_with_their_section(options):
    (name, _) = next(iter(options.items()))
    with pytest.raises(ConfigError, match=rf"{name}=.* must be"):
        GQConfig(**options)
    given = [f"model.quantizer.gq.{name}={value}" for name, value in options.items()]
    with pytest.raises(ConfigError, match=rf"model\.quantizer\.gq\.{name}=.* must be"):
        load_config(TokenizerTrainConfig, overrides=["model.quantizer.name=gq", *given])
