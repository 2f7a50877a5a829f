"""Multi-scale residual quantization: sums, rests and codes of scales, and maps at other sizes."""

import copy
import itertools

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

import tokenizer.train
from engine.config import load_config
from engine.messages import ConfigError
from engine.run_log import read_metrics
from evaluations.doctor.evidence import RunEvidence
from tokenizer.loading import load_tokenizer
from tokenizer.models.registry import build_tokenizer
from tokenizer.quantizers.grid_resampling import enlarge, shrink
from tokenizer.quantizers.multi_scale import MultiScaleConfig, MultiScaleVQ, phi_numbers
from tokenizer.quantizers.usage import images_of_window
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig
from tokenizer.training.config import TokenizerTrainConfig

SCALES = [1, 2, 3, 5]


def quantizer_of(**options) -> MultiScaleVQ:
    torch.manual_seed(0)
    quantizer = MultiScaleVQ(MultiScaleConfig(**{"scales": SCALES, "codebook_size": 32, "codebook_dim": 4} | options))
    nn.init.normal_(quantizer.codebook)
    return quantizer.eval()


def latents_of(quantizer: MultiScaleVQ, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, quantizer.grid_side**2, quantizer.codebook_dim, generator=generator)


@pytest.mark.parametrize(("size", "new_size"), itertools.product([5, 8, 16], [1, 2, 3, 5, 8]))
def test_maps_at_another_size_are_those_of_interpolate(size, new_size):
    """Area means down, bicubic up, in float32."""
    generator = torch.Generator().manual_seed(size)
    large = torch.randn(2, 3, size, size, generator=generator)
    small = torch.randn(2, 3, new_size, new_size, generator=generator)
    if new_size <= size:
        torch.testing.assert_close(shrink(large, new_size), F.interpolate(large, (new_size, new_size), mode="area"))
    expected = F.interpolate(small, (size, size), mode="bicubic", align_corners=False)
    torch.testing.assert_close(enlarge(small, size), expected, atol=2e-6, rtol=1e-5)


def test_the_convolution_of_each_scale_is_the_released_choice():
    """Of ten scales; of five the middle one lies between two ticks, and of one there is no division by 0."""
    assert phi_numbers(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert phi_numbers(5, 4)[2] == 2
    assert phi_numbers(4, 4) == [0, 1, 2, 3] and phi_numbers(7, 7) == list(range(7))
    assert phi_numbers(1, 4) == [0] and phi_numbers(3, 1) == [0, 0, 0]


def test_latents_are_what_codes_add_up_to_and_the_last_rest():
    """f = f_k + r_k to 3e-7 of the largest latent, for the rest that the next scale sees; and decoding the indices
    gives what `forward` gave.
    """
    quantizer = quantizer_of()
    z = latents_of(quantizer)
    rounding = {"atol": 3e-7 * z.abs().max().item(), "rtol": 0}
    with torch.no_grad():
        quantized = quantizer(z)
        sums = quantizer.sums_of(quantized.indices)
    assert quantized.indices.shape == (2, 1 + 4 + 9 + 25) and len(sums) == len(SCALES)
    torch.testing.assert_close(quantizer.decode_indices(quantized.indices), quantized.z_q, **rounding)

    # Each scale chooses for what the sum before leaves, the last one at full size.
    rests = quantizer.rests_of(z)
    torch.testing.assert_close(sums[-2].flatten(2).mT + rests[:, -25:], z, **rounding)
    left = (z.mT.unflatten(2, (5, 5)) - sums[1]).detach()
    torch.testing.assert_close(rests[:, 5:14], F.interpolate(left, (3, 3), mode="area").flatten(2).mT, **rounding)
    nearest = torch.cdist(rests, quantizer.codebook[None]).argmin(-1)
    assert torch.equal(nearest, quantized.indices)


def test_codes_of_a_scale_do_not_depend_on_finer_ones():
    """Coding that ends after three scales gives the first codes of all; they decode by themselves."""
    quantizer = quantizer_of()
    z = latents_of(quantizer)
    full = quantizer(z).indices
    coarse = copy.deepcopy(quantizer)
    coarse.scales = SCALES[:3]
    assert torch.equal(coarse(z).indices, full[:, :14])
    changed = full.clone()
    changed[:, 14:] = 0
    for whole, other in zip(quantizer.sums_of(full)[:3], quantizer.sums_of(changed)[:3], strict=True):
        assert torch.equal(whole, other)
    assert torch.equal(quantizer.decode_indices(full[:, :5]), quantizer.sums_of(full)[1].flatten(2).mT)
    with pytest.raises(ValueError, match="7 indices are not those of the first of the scales"):
        quantizer.sums_of(full[:, :7])


def test_inputs_of_a_generator_come_from_coarser_scales_alone():
    """At the places of scale k: the sum up to scale k-1, shrunk to its size."""
    quantizer = quantizer_of()
    indices = quantizer(latents_of(quantizer)).indices
    inputs = quantizer.next_inputs(indices)
    sums = quantizer.sums_of(indices)
    assert inputs.shape == (2, indices.shape[1] - 1, 4)
    expected = F.interpolate(sums[1], (3, 3), mode="area").flatten(2).mT
    torch.testing.assert_close(inputs[:, 4:13], expected)
    assert torch.equal(inputs[:, 13:], sums[2].flatten(2).mT)


def test_one_scale_with_an_idle_convolution_is_vector_quantization():
    """A convolution that passes its input: codes, latents and losses of `VectorQuantizer` without norms."""
    quantizer = quantizer_of(scales=[5], num_phis=1)
    plain = VectorQuantizer(VQConfig(codebook_size=32, codebook_dim=4, l2_norm=False, rotation_trick=False)).eval()
    with torch.no_grad():
        nn.init.dirac_(quantizer.phis[0].weight)
        nn.init.zeros_(quantizer.phis[0].bias)
        plain.codebook.copy_(quantizer.codebook)
    z = latents_of(quantizer)
    ours, expected = quantizer(z), plain(z)
    assert torch.equal(ours.indices, expected.indices)
    torch.testing.assert_close(ours.z_q, expected.z_q)
    for name in ("codebook", "commitment"):
        torch.testing.assert_close(ours.losses[name], expected.losses[name])


def test_losses_of_codes_that_are_zero():
    """Nothing is added at any scale: both are the mean square of the latents; gradients reach all that is trained."""
    quantizer = quantizer_of()
    with torch.no_grad():
        quantizer.codebook.zero_()
        for phi in quantizer.phis:
            nn.init.zeros_(phi.bias)
    z = latents_of(quantizer).requires_grad_()
    losses = quantizer(z).losses
    torch.testing.assert_close(losses["codebook"], z.square().mean())
    torch.testing.assert_close(losses["commitment"], z.square().mean())

    quantizer = quantizer_of()
    quantized = quantizer(z)
    (quantized.z_q.square().mean() + sum(quantized.losses.values())).backward()
    used = [quantizer.phis[number] for number in set(quantizer.phi_of_scale)]
    assert all(phi.weight.grad.abs().sum() > 0 for phi in used)
    assert quantizer.codebook.grad.abs().sum() > 0 and z.grad.abs().sum() > 0


# ---------------------------------------------------------------------------------------------- codes that live
def test_usage_of_each_scale_is_that_of_the_whole_images_in_the_window():
    """Images at the end of the window; one that is cut by its begin counts for no scale."""
    quantizer = quantizer_of(scales=[1, 2]).train()
    for _ in range(2):
        quantizer(latents_of(quantizer, 3))
    indices = quantizer.recent_indices[-30:].view(6, 5).long()
    usage = quantizer.usage()
    assert usage["codebook_usage_scale_1"] == len(indices[:, 0].unique()) / 32
    assert usage["codebook_usage_scale_2"] == len(indices[:, 1:].unique()) / 32
    assert images_of_window(torch.arange(-3, 10), [1, 2]).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_training_moves_all_it_has_and_records_the_usage_of_scales(tmp_path, image_folder, world):
    """Codebook and the convolution of each scale; recent training tokens and held-out images, as the doctor reads."""
    options = ["loop.eval_every=6", "loop.save_every=3", "optim.schedule=constant"]
    config = tiny.tokenizer_config(tmp_path / "run", image_folder, *tiny.SCALES, *options)
    tokenizer.train.train(config, world)
    before, after = (load_tokenizer(tmp_path / "run" / "checkpoints" / f"step_0000000{step}") for step in (3, 6))
    trained = [name for name, _ in after.named_parameters()]
    assert {f"quantizer.phis.{number}.{kind}" for number in range(4) for kind in ("weight", "bias")} < set(trained)
    assert [name for name in trained if torch.equal(before.state_dict()[name], after.state_dict()[name])] == []

    recorded = {name for record in read_metrics(tmp_path / "run") for name in record}
    for side in (1, 2, 3, 4):
        assert {f"{prefix}codebook_usage_scale_{side}" for prefix in ("", "val/", "val_ema/")} <= recorded
    counts = RunEvidence(tmp_path / "run").scale_counts
    assert {side: int(of_scale.sum()) for side, of_scale in counts.items()} == {s: 24 * s**2 for s in (1, 2, 3, 4)}


@pytest.mark.parametrize("restart", ["random", "nearest"])
def test_codes_that_no_scale_uses_start_anew_at_rests(restart):
    """Two micro-batches are one batch, bit for bit."""
    rule = {"restart": restart, "restart_threshold": 0.5, "decay": 0.4}
    one, two = quantizer_of(**rule).train(), quantizer_of(**rule).train()
    with torch.no_grad():
        for quantizer in (one, two):
            quantizer.codebook[20:] = 40.0  # nobody chooses them
    assert one.can_restart_codes is False and quantizer_of().can_restart_codes
    z = latents_of(one, 4)
    rests = one.rests_of(z).flatten(0, 1)
    one(z)
    two(z[:2])
    two(z[2:])
    good = torch.tensor(False)
    rows = one.after_update(3, 5, good)[one.codebook]
    two.after_update(3, 5, good)
    assert torch.equal(one.codebook, two.codebook) and rows[20:].all()
    assert torch.cdist(one.codebook[20:], rests).amin() < (1e-6 if restart == "random" else 0.1)
    assert one.usage()["restarted_codes"] == rows.sum()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=llamagen", "data.image_size=64"], "takes a grid of 5 cells per side, which is that of 80 pixels"),
        (["model.name=hybrid"], "takes the latents of a grid, and the hybrid tokenizer has a sequence"),
        (["model.quantizer.multi_scale.scales=[2, 2]"], "one or more rising numbers"),
        (["model.quantizer.multi_scale.num_phis=0"], "num_phis=0 must be 1 or more"),
        (["model.quantizer.multi_scale.decay=1"], "decay=1"),
    ],
)
def test_what_does_not_fit_is_named(overrides, message):
    section = ["model.quantizer.name=multi_scale", "model.quantizer.multi_scale.scales=[1, 5]", "data.image_size=256"]
    with pytest.raises(ConfigError, match=message):
        config = load_config(TokenizerTrainConfig, overrides=[*section, *overrides])
        build_tokenizer(config.model, config.data.image_size)
