"""The vector quantizer: nearest codes, gradients, fp32 islands, warm-up, and statistics of use."""

from collections import Counter, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.messages import ConfigError
from tokenizer.quantizers import base
from tokenizer.quantizers import entropy_assignment as entropy
from tokenizer.quantizers.fsq import FSQ, FSQConfig
from tokenizer.quantizers.gradients import rotation_trick, straight_through
from tokenizer.quantizers.vq import ENTROPY_DISTANCES, KMEANS_LATENTS_PER_CODE, KMEANS_ROUNDS, VectorQuantizer, VQConfig


def quantizer(size: int = 32, dim: int = 4, seed: int = 0, **options) -> VectorQuantizer:
    torch.manual_seed(seed)
    return VectorQuantizer(VQConfig(codebook_size=size, codebook_dim=dim, **options))


def use_codes(vq: VectorQuantizer, codes: Tensor) -> None:
    """Feeds latents that lie on the given codes, in training mode."""
    with torch.no_grad():
        assert torch.equal(vq.train()(vq.decode_indices(codes[None])).indices[0], codes)


# ---------------------------------------------------------------------------------------------- nearest codes
@pytest.mark.parametrize("table_entries", [1, 100, 2**20])
def test_nearest_index_is_the_first_of_the_closest_codes(table_entries, monkeypatch):
    """Brute force over integers, where many distances tie, for any number of latents at a time."""
    monkeypatch.setitem(entropy.CHUNK_ELEMENTS, "cpu", table_entries)
    rng = np.random.default_rng(0)
    z, codes = rng.integers(-2, 3, (60, 3)), rng.integers(-2, 3, (40, 3))
    codes[30] = codes[3]
    distances = [[((a - b) ** 2).sum() for b in codes] for a in z]
    expected = [row.index(min(row)) for row in distances]
    assert sum(row.count(min(row)) > 1 for row in distances) > 20, "the case has no ties"
    actual = VectorQuantizer.nearest(torch.from_numpy(z).float(), torch.from_numpy(codes).float())
    assert actual.dtype == torch.int64
    assert actual.tolist() == expected


@pytest.mark.parametrize("l2_norm", [True, False])
def test_normalized_codes_are_compared_by_direction(l2_norm):
    """With `l2_norm` a long and a short latent of one direction get one index; without it the distance decides."""
    vq = quantizer(2, 2, l2_norm=l2_norm)
    vq.codebook.data = torch.tensor([[0.0, 1.0], [10.0, 0.1]])
    z = torch.tensor([[[1.0, 0.0], [9.0, 0.0]]])
    assert vq.eval()(z).indices.tolist() == ([[1, 1]] if l2_norm else [[0, 1]])


@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_quantized_latents_are_rows_of_the_codebook(rotation, training):
    """decode_indices gives the row itself, z_q the same up to rounding; rows have length 1."""
    vq = quantizer(rotation_trick=rotation).train(training)
    vq.codebook.data *= 3  # stored rows need not have length 1
    out = vq(torch.randn(5, 8, 4))
    rows = F.normalize(vq.codebook.detach(), dim=-1)
    assert out.indices.shape == (5, 8)
    assert torch.equal(vq.decode_indices(out.indices), rows[out.indices])
    torch.testing.assert_close(out.z_q, rows[out.indices], atol=1e-5, rtol=0)
    torch.testing.assert_close(vq.decode_indices(out.indices.to(torch.int32)).norm(dim=-1), torch.ones(5, 8))


def test_a_bf16_region_does_not_change_indices_or_losses():
    """The quantizer is an fp32 island: half-precision distances would move indices."""
    vq, z = quantizer(4096, 8).eval(), torch.randn(4, 128, 8)
    expected = vq(z, entropy=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = vq(z, entropy=True)
        low = (F.normalize(z, dim=-1) @ F.normalize(vq.codebook, dim=-1).T).argmax(-1)
    assert (low != expected.indices).any(), "bf16 would make no difference here"
    assert torch.equal(actual.indices, expected.indices)
    assert actual.z_q.dtype == torch.float32
    for name, value in expected.losses.items():
        assert torch.equal(actual.losses[name], value), name
    half = vq(z.bfloat16())
    assert torch.equal(half.indices, vq(z.bfloat16().float()).indices)


# ---------------------------------------------------------------------------------------------- gradients
def test_straight_through_copies_the_gradient():
    z, z_q, g = (torch.randn(3, 4, requires_grad=r) for r in (True, True, False))
    out = straight_through(z, z_q)
    torch.testing.assert_close(out, z_q)
    out.backward(g)
    assert torch.equal(z.grad, g)
    assert z_q.grad is None


def test_rotation_trick_rotates_the_gradient():
    """Against R = I - 2 r r^T + 2 q z^T of each pair of directions: the value is q, the gradient R^T g."""
    z, z_q, g = torch.randn(7, 5), F.normalize(torch.randn(7, 5), dim=-1), torch.randn(7, 5)
    z.requires_grad_()
    z_q.requires_grad_()
    out = rotation_trick(z, z_q)
    out.backward(g)
    torch.testing.assert_close(out, z_q, atol=1e-5, rtol=0)
    assert z_q.grad is None
    for i in range(7):
        length, q = z[i].detach().norm(), z_q[i].detach()
        u = z[i].detach() / length
        r = (u + q) / (u + q).norm()
        rotation = torch.eye(5) - 2 * torch.outer(r, r) + 2 * torch.outer(q, u)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(5), atol=1e-5, rtol=0)
        of_direction = (torch.eye(5) - torch.outer(u, u)) / length
        torch.testing.assert_close(z.grad[i], of_direction @ rotation.T @ g[i], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("option", "through"), [(True, rotation_trick), (False, straight_through)])
def test_the_config_picks_how_the_gradient_passes(option, through):
    vq, z, g = quantizer(rotation_trick=option).train(), torch.randn(2, 8, 4, requires_grad=True), torch.randn(2, 8, 4)
    out = vq(z)
    expected = through(F.normalize(z, dim=-1), vq.decode_indices(out.indices))
    actual, wanted = (torch.autograd.grad((value * g).sum(), z)[0] for value in (out.z_q, expected))
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize(("distance", "temperature"), [("squared", 0.01), ("plain", 0.01), ("squared", 0.5)])
def test_the_config_picks_the_soft_assignment_of_the_entropies(distance, temperature):
    """Distance and temperature of the config reach the entropies; directions are compared, not lengths."""
    vq = quantizer(entropy_distance=distance, entropy_temperature=temperature)
    z = 3 * torch.randn(2, 8, 4)
    out, codes = vq.train()(z, entropy=True), F.normalize(vq.codebook, dim=-1)
    expected = entropy.assignment_entropies(
        F.normalize(z, dim=-1).flatten(0, 1), codes, temperature, ENTROPY_DISTANCES[distance]
    )
    torch.testing.assert_close((out.losses["sample_entropy"], out.losses["codebook_entropy"]), expected)
    default = quantizer().train()(z, entropy=True).losses["sample_entropy"]
    assert torch.equal(out.losses["sample_entropy"], default) == ((distance, temperature) == ("squared", 0.01))


def test_losses_send_gradients_to_one_side_each():
    """codebook moves the codes only, commitment the latents only; both are the mean squared distance."""
    vq, z = quantizer(), torch.randn(2, 8, 4, requires_grad=True)
    out = vq.train()(z)
    distance = (F.normalize(z, dim=-1) - vq.decode_indices(out.indices)).square().mean()
    for name, reached, other in (("codebook", vq.codebook, z), ("commitment", z, vq.codebook)):
        torch.testing.assert_close(out.losses[name], distance)
        gradients = torch.autograd.grad(out.losses[name], [reached, other], allow_unused=True, retain_graph=True)
        assert gradients[0].abs().sum() > 0
        assert gradients[1] is None
    assert out.losses.keys() == {"codebook", "commitment"}


# ---------------------------------------------------------------------------------------------- usage
def test_usage_and_perplexity_describe_the_last_65536_training_indices():
    """Against a deque; the zeros that the window starts with count as code 0."""
    vq, window = quantizer(), deque([0] * base.USAGE_WINDOW, maxlen=base.USAGE_WINDOW)
    generator = torch.Generator().manual_seed(1)
    for count in (10, 30_000, 5, 40_000):
        codes = torch.randint(0, 20, (count,), generator=generator)
        use_codes(vq, codes)
        window.extend(codes.tolist())
        share = np.array(list(Counter(window).values())) / len(window)
        usage = vq.usage()
        assert usage["codebook_usage"].item() == pytest.approx(len(share) / 32)
        assert usage["codebook_perplexity"].item() == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        assert vq.recent_indices.tolist() == list(window)


def test_more_tokens_in_one_step_than_the_usage_window_holds():
    """Only the last 65,536 of them count."""
    vq = quantizer()
    use_codes(vq, torch.cat([torch.full((5_000,), 3), torch.full((base.USAGE_WINDOW,), 7)]))
    assert set(vq.recent_indices.tolist()) == {7}
    assert vq.usage()["codebook_usage"].item() == pytest.approx(1 / 32)
    assert vq.usage()["codebook_perplexity"].item() == pytest.approx(1)


@pytest.mark.parametrize("quantize", [True, False])
def test_evaluation_leaves_all_buffers_alone(quantize):
    vq = quantizer(warmup_steps=5, init="kmeans")
    vq.train()(torch.randn(2, 8, 4), quantize=False)
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq.eval()(torch.randn(2, 8, 4), quantize=quantize)
    after = vq.state_dict()
    assert before.keys() == after.keys() == {"codebook", "recent_indices", "recent_latents"}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# ---------------------------------------------------------------------------------------------- warm-up
def test_warm_up_passes_normalized_latents_through():
    """No loss and no quantization; the codebook stays in the graph with a gradient of zero."""
    vq, z = quantizer(), torch.randn(2, 8, 4, requires_grad=True)
    out = vq.train()(z, quantize=False)
    assert torch.equal(out.z_q, F.normalize(z, dim=-1))
    assert out.losses == {}
    assert torch.equal(out.indices, vq(z).indices)
    out.z_q.sum().backward()
    assert z.grad.abs().sum() > 0
    assert torch.equal(vq.codebook.grad, torch.zeros_like(vq.codebook))


def warmed_up(latents: Tensor, size: int, seed: int = 0, **options) -> VectorQuantizer:
    vq = quantizer(size, latents.shape[-1], seed, warmup_steps=1, init="kmeans", **options)
    vq.train()(latents[None], quantize=False)
    vq.init_from_latents()
    return vq


@pytest.mark.parametrize("l2_norm", [True, False])
def test_codebook_of_k_means_is_that_of_plain_lloyd_rounds(l2_norm):
    """A numpy version from the same start; cells that run empty keep their center."""
    latents = torch.randn(100, 3, generator=torch.Generator().manual_seed(2))
    points = (F.normalize(latents, dim=-1) if l2_norm else latents).double().numpy()
    points = points[-KMEANS_LATENTS_PER_CODE * 8 :]
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    centers = points[order[:8].numpy()]
    for _ in range(KMEANS_ROUNDS):
        owner = np.array([((centers - p) ** 2).sum(1).argmin() for p in points])
        centers = np.array([points[owner == k].mean(0) if (owner == k).any() else centers[k] for k in range(8)])
        if l2_norm:
            centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    actual = warmed_up(latents, 8, l2_norm=l2_norm).codebook.detach().numpy()
    np.testing.assert_allclose(actual, centers, atol=1e-5)


def test_k_means_recovers_planted_clusters():
    """Tight clusters around orthogonal directions: one code lies on each."""
    generator = torch.Generator().manual_seed(3)
    planted = torch.eye(4)
    latents = planted.repeat(16, 1) + 0.01 * torch.randn(64, 4, generator=generator)
    vq = warmed_up(latents, 8)
    found = VectorQuantizer.nearest(planted, vq.codebook.detach())
    torch.testing.assert_close(vq.codebook.detach()[found], planted, atol=0.02, rtol=0)


def test_k_means_depends_on_the_latents_alone():
    """Neither the random state nor the codebook before enters, and the random state is left alone."""
    latents = torch.randn(64, 4, generator=torch.Generator().manual_seed(4))
    first, second = warmed_up(latents, 4, seed=1), quantizer(4, 4, seed=2, warmup_steps=1, init="kmeans")
    second.train()(latents[None], quantize=False)
    state = torch.get_rng_state()
    second.init_from_latents()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.codebook, second.codebook)


def test_k_means_uses_the_latest_warm_up_latents_and_only_those():
    """The ring keeps 16 latents a code; quantized steps do not enter it; a ring that is not full is enough."""
    old, new, later = (torch.full((n, 2), v) for n, v in ((32, 1.0), (32, -1.0), (32, 1.0)))
    vq = quantizer(2, 2, warmup_steps=2, init="kmeans").train()
    vq(old[None], quantize=False)
    vq(new[None], quantize=False)
    vq(later[None], quantize=True)
    vq.init_from_latents()
    torch.testing.assert_close(vq.codebook.detach(), torch.full((2, 2), -(0.5**0.5)))
    with pytest.raises(ConfigError, match=r"k-means for 8 codes has 5 latents.*warmup_steps"):
        warmed_up(torch.randn(5, 2), 8)
    assert torch.isfinite(warmed_up(torch.randn(9, 2), 8).codebook).all()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"codebook_size": 1}, "codebook_size"),
        ({"codebook_dim": 0}, "codebook_dim"),
        ({"entropy_temperature": 0.0}, "entropy_temperature=0.0"),
        ({"init": "kmeans"}, "warmup_steps"),
    ],
)
def test_impossible_settings_name_their_key(options, key):
    with pytest.raises(ConfigError, match=key):
        VQConfig(**options)


def test_initial_codebook_lies_on_the_sphere():
    """Uniform in +-1/K, then normalized: every row has length 1 and all differ."""
    rows = quantizer(512, 8).codebook.detach()
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(512))
    assert len(torch.unique(rows, dim=0)) == 512
    raw = quantizer(512, 8, l2_norm=False).codebook.detach()
    assert 0.99 / 512 < raw.abs().max() <= 1 / 512


# ---------------------------------------------------------------------------------------------- limits of the rotation
@pytest.mark.parametrize("length", [1.0, 3.0, 0.2])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_a_latent_opposite_to_its_code_is_reflected(channels, length):
    """Regression: NaN, or three times the code. R = I - 2 u u^T turns u into v = -u and leaves what is beside it."""
    v = F.normalize(torch.randn(channels), dim=0)
    z = (-2.5 * v)[None].clone().requires_grad_()
    z_q, g = (length * v)[None], torch.randn(1, channels)
    out = rotation_trick(z, z_q)
    out.backward(g)
    torch.testing.assert_close(out, z_q)
    reflected = g[0] - 2 * v * (v @ g[0])
    of_direction = length / 2.5 * (reflected - v * (v @ reflected))  # only the direction of z matters
    torch.testing.assert_close(z.grad[0], of_direction, atol=1e-5, rtol=1e-4)


def test_a_latent_of_length_zero_has_a_straight_through_gradient():
    """It has no direction to be turned. Regression: NaN."""
    z, z_q, g = torch.zeros(2, 4, requires_grad=True), torch.randn(2, 4), torch.randn(2, 4)
    out = rotation_trick(z, z_q)
    out.backward(g)
    assert torch.equal(out, z_q) and torch.equal(z.grad, g)


@pytest.mark.parametrize("l2_norm", [True, False])
def test_zero_and_opposite_latents_leave_all_others_alone(l2_norm):
    """Through the whole quantizer: finite gradients everywhere, and those of the other latents keep their bits."""
    vq = quantizer(rotation_trick=True, l2_norm=l2_norm)
    plain = torch.randn(1, 6, 4)
    spoiled = plain.clone()
    spoiled[0, 1], spoiled[0, 4] = 0.0, -1e3 * vq.codes().detach().mean(0)
    gradients = []
    for latents in (plain, spoiled):
        z = latents.detach().requires_grad_()
        vq(z).z_q.square().sum().backward()
        gradients.append(z.grad[0])
    assert gradients[1].isfinite().all()
    assert torch.equal(gradients[0][[0, 2, 3, 5]], gradients[1][[0, 2, 3, 5]])


def test_fsq_warns_of_two_levels_and_says_the_truth():
    two, three = FSQ(FSQConfig(levels=[3, 2])), FSQ(FSQConfig(levels=[3, 5, 4]))
    assert "94 %" in next(two.warnings()) and list(three.warnings()) == []
    indices = FSQ(FSQConfig(levels=[2])).eval()(torch.randn(1, 50_000, 1)).indices
    assert indices.float().mean().item() == pytest.approx(0.94, abs=0.01)
