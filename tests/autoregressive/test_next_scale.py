"""The generator of scales: what a token may see, one pass per scale, probabilities, and codes of its tokenizer."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from autoregressive.guidance import Guidance
from autoregressive.loading import require_sizes
from autoregressive.models.next_scale import NextScale, NextScaleConfig
from autoregressive.published_var import VARLayout
from autoregressive.sampling import greedy, seeded_draw
from autoregressive.training.config import GPTTrainConfig
from engine.checkpoint.foreign.reader import read_checkpoint
from engine.config import load_config
from engine.messages import ConfigError, UserError
from tokenizer.quantizers.multi_scale import MultiScaleConfig, MultiScaleVQ

SIZES = {"width": 16, "layers": 2, "heads": 2, "code_dim": 4, "num_phis": 2, "num_classes": 3, "drop_path": 0.0}


def quantizer_of(scales: list[int], codes: int) -> MultiScaleVQ:
    torch.manual_seed(1)
    config = MultiScaleConfig(scales=scales, codebook_size=codes, codebook_dim=4, num_phis=2)
    quantizer = MultiScaleVQ(config)
    nn.init.normal_(quantizer.codebook)
    return quantizer


def generator_of(scales: list[int], codes: int, **options) -> NextScale:
    """All weights are drawn, so that gates and the output let differences through."""
    torch.manual_seed(0)
    network = NextScale(NextScaleConfig(**SIZES, scales=scales, vocab_size=codes, **options)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    network.adopt_codes(quantizer_of(scales, codes))
    return network.requires_grad_(False)


def tokens_of(network: NextScale, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(network.codebook_sizes[0], (count, network.num_tokens), generator=generator)


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_logits_of_a_scale_depend_on_coarser_scales_alone(shared_adaln):
    network = generator_of([1, 2, 3], 8, shared_adaln=shared_adaln)
    tokens, labels = tokens_of(network), torch.tensor([0, 2])
    logits = network(labels, tokens)
    for first, end in ((0, 1), (1, 5), (5, 14)):
        changed = tokens.clone()
        changed[:, first:] = (changed[:, first:] + 1) % 8
        others = network(labels, changed)
        assert torch.equal(others[:, :end], logits[:, :end])
        assert end == 14 or not torch.equal(others[:, end:], logits[:, end:])


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=2.5, schedule="linear", first_token="schedule")])
def test_passes_with_a_cache_give_the_teacher_forced_probabilities(guidance):
    """Scale k of K is guided by 1 + 1.5 (k-1) / (K-1), the first one not at all."""
    network = generator_of([1, 2, 3], 8)
    labels = torch.tensor([0, 2])
    seen = []

    def draw(p: Tensor, position: int) -> Tensor:
        assert position == len(seen)
        seen.append(p)
        return seeded(p, position)

    seeded = seeded_draw(3, torch.arange(2), network.num_draws)
    tokens = network.sample(labels, draw=draw, guidance=guidance)
    logits = network(labels, tokens)
    without = network(torch.full_like(labels, network.null_class), tokens)
    ratio = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(torch.tensor([1, 4, 9]))[:, None]
    expected = (logits + (guidance.scale - 1) * ratio * (logits - without)).softmax(-1)
    torch.testing.assert_close(torch.stack(seen, dim=1), expected, atol=2e-5, rtol=0)


def test_a_sample_does_not_depend_on_its_batch():
    network = generator_of([1, 2, 3], 8)
    both = network.sample(torch.tensor([0, 2]), draw=seeded_draw(0, torch.tensor([4, 7]), network.num_draws))
    one = network.sample(torch.tensor([2]), draw=seeded_draw(0, torch.tensor([7]), network.num_draws))
    assert torch.equal(both[1:], one)


def test_probabilities_of_all_images_sum_to_one():
    """Two codes in scales of 1 and 2 cells: 2^5 images."""
    network = generator_of([1, 2], 2)
    images = torch.tensor(list(itertools.product([0, 1], repeat=5)))
    logits = network(torch.zeros(32, dtype=torch.int64), images)
    chosen = logits.log_softmax(-1).gather(-1, images[..., None]).sum((1, 2))
    torch.testing.assert_close(chosen.double().exp().sum().item(), 1.0, atol=1e-5, rtol=0)


def test_first_loss_is_near_that_of_equal_probabilities_and_gradients_reach_all_weights():
    torch.manual_seed(0)
    network = NextScale(NextScaleConfig(**SIZES, scales=[1, 2, 3], vocab_size=8))
    network.adopt_codes(quantizer_of([1, 2, 3], 8))
    tokens = tokens_of(network)
    codes = {name: tensor.clone() for name, tensor in network.scale_codes.state_dict().items()}
    loss = network.loss(network(torch.tensor([0, 1]), tokens, torch.tensor([True, False])), tokens)
    loss.backward()
    assert abs(loss.item() - torch.tensor(8.0).log().item()) < 0.1
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not any(name.startswith("scale_codes") for name, _ in network.named_parameters())
    assert all(torch.equal(tensor, codes[name]) for name, tensor in network.scale_codes.state_dict().items())


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_initial_values_are_the_released_ones(shared_adaln):
    """Truncated normal of std (1 / (3C))^0.5, and parts of it: output 0.02, AdaLN 0.5, gates `gate_init`, what closes a
    branch 1 / sqrt(2 layers); no bias, and queries four times as long as keys.
    """
    torch.manual_seed(0)
    sizes = SIZES | {"width": 64, "scales": [1, 2, 4], "num_classes": 100}
    network = NextScale(NextScaleConfig(**sizes, vocab_size=64, shared_adaln=shared_adaln, gate_init=1e-2))
    layer, std = network.layers[1], (1 / (3 * 64)) ** 0.5
    if shared_adaln:
        gates, others = layer.table[0, 0].split([2, 4])
        parts = {"gates": (gates, 1e-2), "scales": (others, 0.5), "shared": (network.shared_modulation.weight, 0.5)}
    else:
        gates, others = layer.modulation.weight.split([2 * 64, 4 * 64])
        parts = {"gates": (gates, 1e-2), "scales": (others, 0.5)}
    parts |= {
        "output": (network.output.weight, 0.02),
        "last norm": (network.final_modulation.weight, 0.5),
        "attention": (layer.attention.proj.weight, 0.5),
        "MLP": (layer.fc2.weight, 0.5),
        "qkv": (layer.attention.qkv.weight, 1.0),
        "classes": (network.class_embedding.weight, 1.0),
        "positions": (network.positions, 1.0),
    }
    for name, (weight, factor) in parts.items():
        assert weight.std().item() == pytest.approx(std * factor, rel=0.15 if weight.numel() < 1000 else 0.05), name
    assert not any(parameter.any() for name, parameter in network.named_parameters() if name.endswith("bias"))
    assert torch.equal(layer.attention.log_scale, torch.full((1, 2, 1, 1), 4.0).log())


def test_branches_are_dropped_more_often_the_deeper_they_are():
    """Linear over depth to 0.1 L / 24; samples that keep their branch have a larger one, so that the mean stays."""
    network = NextScale(NextScaleConfig(**SIZES | {"layers": 12, "drop_path": None}, scales=[1], vocab_size=8))
    assert [layer.drop_path for layer in network.layers] == pytest.approx([0.05 * n / 11 for n in range(12)])
    (layer,) = NextScale(NextScaleConfig(**SIZES | {"layers": 1}, scales=[1], vocab_size=8)).layers
    layer.drop_path = 0.25
    torch.manual_seed(0)
    factor = layer._dropped(torch.ones(4000, 2, 3))
    assert torch.equal(factor.amin((1, 2)), factor.amax((1, 2))), "a sample loses all of its branch, or nothing"
    assert factor.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert factor.mean().item() == pytest.approx(1, abs=0.03)
    assert layer.eval()._dropped(torch.ones(4000, 2, 3)).min() == 1


def test_codes_are_needed_and_must_fit():
    network = NextScale(NextScaleConfig(**SIZES, scales=[1, 2], vocab_size=8)).eval()
    with pytest.raises(UserError, match="has no codes of a tokenizer"):
        network.sample(torch.tensor([0]), draw=greedy)
    with pytest.raises(UserError, match="has no codes of a tokenizer"):
        network(torch.tensor([0]), tokens_of(network, 1))
    with pytest.raises(ConfigError, match="for a tokenizer of scales"):
        network.adopt_codes(quantizer_of([1, 3], 8))
    network.adopt_codes(quantizer_of([1, 2], 8))
    assert network.sample(torch.tensor([0]), draw=greedy).shape == (1, 5)
    plain = SimpleNamespace(num_tokens=4, quantizer=SimpleNamespace(group_sizes=[8]))
    with pytest.raises(ConfigError, match=r"5 tokens of 8 codes per image.* 4 tokens.*for a tokenizer of scales"):
        require_sizes(network, plain)


def test_a_published_file_has_tables_and_no_codes(tmp_path):
    """Written and read again: the same weights; a tokenizer must bring the codes."""
    network = generator_of([1, 2], 8)
    layout = VARLayout(network.config)
    ((key, state),) = layout.export(network).items()
    assert key == "" and state["lvl_1L"].tolist() == [[0, 1, 1, 1, 1]]
    assert state["attn_bias_for_masking"][0, 0, 0].tolist() == [0.0] + [-torch.inf] * 4
    assert not state["attn_bias_for_masking"][0, 0, 1:].any() and not state["blocks.1.attn.zero_k_bias"].any()

    torch.save(state, tmp_path / "var.pth")
    contents = layout.read(tmp_path / "var.pth", "auto")
    ours, own = layout.import_state(contents.state, network.state_dict()), network.state_dict()
    assert ours.keys() == own.keys() and not ours["has_codes"] and not ours["scale_codes.codebook"].any()
    assert all(torch.equal(ours[name], own[name]) for name, _ in network.named_parameters())
    assert read_checkpoint(tmp_path / "var.pth").state.keys() == state.keys()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{size: d17}", "size"),
        ("{size: d16, scales: [2, 2]}", "one or more rising numbers"),
        ("{width: 10, layers: 1, heads: 3}", "divisible by heads=3"),
        ("{size: d16, heads: 3}", "null where heads is given"),
    ],
)
def test_what_does_not_fit_is_named(section, message):
    with pytest.raises(ConfigError, match=message):
        load_config(GPTTrainConfig, overrides=["model.name=next_scale", f"model.next_scale={section}"])
