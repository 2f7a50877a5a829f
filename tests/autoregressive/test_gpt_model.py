"""The GPT: causal, class-conditional, equal in one pass and token by token, with the published sizes and start."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.adaln_gpt import AdaLNGPT, AdaLNGPTConfig
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.layers import mlp_width
from autoregressive.published import GPT_NAMES
from engine.messages import ConfigError
from tokenizer.published.layout import export_state

PUBLISHED = {"b": (111.09, 110.89), "l": (343.17, 342.91), "xl": (775.03, 774.70), "xxl": (1411.37, 1410.97)}
SMALL = {"width": 16, "layers": 1, "heads": 2}
POSITIONS = ["learned", "rope2d"]


def gpt_of(seed: int = 0, **options) -> GPT:
    """Three small layers with weights that are no longer those of the start."""
    sizes = {"width": 16, "layers": 3, "heads": 2, "vocab_size": 20, "num_tokens": 9, "num_classes": 5}
    torch.manual_seed(seed)
    gpt = GPT(GPTConfig(**sizes | options))
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return gpt.eval()


def sample(count: int = 3) -> tuple[Tensor, Tensor]:
    return torch.arange(count) % 5, torch.randint(0, 20, (count, 9))


def cached_logits(gpt: GPT, inputs: Tensor, position: int, caches) -> Tensor:
    """Logits (B,V) of token number `position` by cached steps; `caches`: those of the GPT and of its head."""
    cache, head_cache = caches
    return gpt.head.next_logits(gpt.decode_hidden(inputs, position, cache), None, 0, head_cache)


def new_caches(gpt: GPT, count: int):
    return gpt.new_cache(count), gpt.head.new_cache(count, gpt.dtype, gpt.device)


def plain_forward(gpt: GPT, labels: Tensor, tokens: Tensor) -> Tensor:
    """The published formula with an explicit mask, for learned positions, one head at a time."""

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    x = torch.cat([gpt.class_embedding.weight[labels][:, None], gpt.token_embedding.weight[tokens[:, :-1]]], 1)
    x = x + gpt.positional_embedding[:9]
    future = torch.ones(9, 9, dtype=torch.bool).triu(1)
    for layer in gpt.layers:
        n = norm(x, layer.attention_norm.weight)
        q, k, v = (n @ w.T for w in layer.attention.wqkv.weight.split(16))
        heads = []
        for h in (slice(0, 8), slice(8, 16)):
            scores = (q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(8)).masked_fill(future, -torch.inf)
            heads.append(scores.softmax(-1) @ v[..., h])
        x = x + torch.cat(heads, -1) @ layer.attention.wo.weight.T
        n, mlp = norm(x, layer.ffn_norm.weight), layer.feed_forward
        x = x + (F.silu(n @ mlp.w1.weight.T) * (n @ mlp.w3.weight.T)) @ mlp.w2.weight.T
    return norm(x, gpt.norm.weight) @ gpt.output.weight.T


def test_forward_is_the_published_formula():
    gpt, (labels, tokens) = gpt_of(), sample()
    torch.testing.assert_close(gpt(labels, tokens), plain_forward(gpt, labels, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_token_by_token_equals_one_pass(positions):
    """Cached keys and values give the logits of the full pass at every position, also after rows were dropped."""
    gpt, (labels, tokens) = gpt_of(positions=positions), sample()
    with torch.no_grad():
        full, caches, inputs = gpt(labels, tokens), new_caches(gpt, 3), labels
        for position in range(9):
            if position == 5:
                for cache in caches:
                    cache.keep_rows(2)
                inputs = inputs[:2]
            logits = cached_logits(gpt, inputs, position, caches)
            torch.testing.assert_close(logits, full[: len(inputs), position], rtol=1e-4, atol=1e-4)
            inputs = tokens[: len(inputs), position]


@pytest.mark.parametrize("positions", POSITIONS)
def test_no_logit_sees_its_own_token_or_a_later_one(positions):
    """Changing token t leaves logits 0..t as they are, bit for bit, and reaches logits t+1."""
    gpt, (labels, tokens) = gpt_of(positions=positions), sample()
    with torch.no_grad():
        base = gpt(labels, tokens)
        for t in range(9):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1) % 20
            logits = gpt(labels, changed)
            assert torch.equal(logits[:, : t + 1], base[:, : t + 1])
            if t < 8:
                assert (logits[:, t + 1] - base[:, t + 1]).abs().amax(-1).min() > 1e-4, "token t is not used"


def test_the_class_reaches_every_position_and_can_be_dropped():
    """The null class is number num_classes; dropped rows are exactly rows of the null class, others are untouched."""
    gpt, (labels, tokens) = gpt_of(), sample()
    assert gpt.null_class == 5 and gpt.class_embedding.num_embeddings == 6
    with torch.no_grad():
        kept, null = gpt(labels, tokens), gpt(torch.full_like(labels, 5), tokens)
        assert (kept - null).abs().amax(-1).min() > 1e-4
        mixed = gpt(labels, tokens, torch.tensor([True, False, True]))
    assert torch.equal(mixed, torch.stack([null[0], kept[1], null[2]]))


def test_a_sample_does_not_depend_on_its_batch():
    gpt, (labels, tokens) = gpt_of(), sample()
    with torch.no_grad():
        alone = torch.cat([gpt(labels[i : i + 1], tokens[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(gpt(labels, tokens), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_hidden_states_of_a_layer(positions):
    """`features` counts layers from 1 and has no final norm; the last one gives the logits."""
    gpt, (labels, tokens) = gpt_of(positions=positions), sample()
    seen = []
    for layer in gpt.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        logits = gpt(labels, tokens)
        for number in (1, 2, 3):
            assert torch.equal(gpt.features(labels, tokens, number), seen[number - 1])
        assert torch.equal(gpt.output(gpt.norm(seen[2])), logits)


# ---------------------------------------------------------------------------------------------- start and sizes
def test_first_loss_is_the_logarithm_of_the_vocabulary():
    """The output layer starts at zero: every token is equally likely, exactly."""
    gpt = GPT(GPTConfig(width=16, layers=2, heads=2, vocab_size=50, num_tokens=4, num_classes=3))
    logits = gpt(torch.arange(3), torch.randint(0, 50, (3, 4)))
    assert not logits.any()
    assert F.cross_entropy(logits.flatten(0, 1), torch.zeros(12, dtype=torch.long)).item() == pytest.approx(
        math.log(50)
    )


def test_initial_values():
    """Linear and embedding normal(0, 0.02), gains 1, positions width^-0.5, no biases."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(width=128, layers=2, heads=4, vocab_size=300, num_tokens=64, num_classes=40))
    for name, module in gpt.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and name != "output":
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.weight.mean().abs().item() < 0.002, name
    assert gpt.positional_embedding.shape == (65, 128)
    assert gpt.positional_embedding.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert all(torch.equal(p, torch.ones(128)) for name, p in gpt.named_parameters() if "norm" in name)
    assert not any("bias" in name for name, _ in gpt.named_parameters())
    assert gpt.output.weight is not gpt.token_embedding.weight


def test_initial_values_of_the_modulated_gpt():
    """As released: gates a thousandth, scales and shifts half of normal(0, 0.02), no bias, the output zero."""
    torch.manual_seed(0)
    gpt = AdaLNGPT(AdaLNGPTConfig(width=64, layers=2, heads=2, vocab_size=300, num_tokens=16, num_classes=40))
    parts = {"of the last norm": (gpt.final_norm.modulation.weight, 0.5)}
    for number, layer in enumerate(gpt.layers):
        gates, others = layer.modulation.weight.split([2 * 64, 4 * 64])
        parts |= {f"gates {number}": (gates, 1e-3), f"others {number}": (others, 0.5)}
    for name, (weight, factor) in parts.items():
        assert weight.std().item() == pytest.approx(0.02 * factor, rel=0.05), name
    biases = [parameter for name, parameter in gpt.named_parameters() if name.endswith("bias")]
    assert len(biases) == 3 and not any(bias.any() for bias in biases)
    assert not gpt.output.weight.any() and gpt.class_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(size):
    """In millions, with learned and with 2D rotary positions."""
    for positions, millions in zip(POSITIONS, PUBLISHED[size], strict=True):
        with torch.device("meta"):
            gpt = GPT(GPTConfig(size=size, positions=positions))
        assert round(sum(p.numel() for p in gpt.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("width", [16, 96, 100, 192, 384, 768, 1024, 1280, 1536, 2560])
def test_mlp_width_is_two_thirds_of_four_widths_rounded_up_to_256(width):
    hidden = mlp_width(width)
    exact = int(8 * width / 3)
    assert hidden % 256 == 0 and hidden - 256 < exact <= hidden


@pytest.mark.parametrize("dropout", ["token_dropout", "residual_dropout"])
def test_dropout_acts_in_training_only(dropout):
    """Each of the two makes training passes differ; in evaluation, or with both at 0, a pass repeats exactly."""
    labels, tokens = sample()
    off = {"token_dropout": 0.0, "residual_dropout": 0.0}
    gpt = gpt_of(**off | {dropout: 0.3})
    with torch.no_grad():
        evaluated = gpt(labels, tokens)
        assert torch.equal(evaluated, gpt(labels, tokens))
        trained = gpt.train()(labels, tokens)
        assert not torch.equal(trained, gpt(labels, tokens))
        torch.manual_seed(1)
        first = gpt(labels, tokens)
        torch.manual_seed(1)
        assert torch.equal(first, gpt(labels, tokens)), "dropout is a function of the seed"
        assert torch.equal(gpt_of(**off).train()(labels, tokens), evaluated)


def test_residual_dropout_is_on_both_branches_of_a_layer():
    """At probability 1 nothing is added to the residual stream; with one branch left it would move."""
    gpt, (labels, tokens) = gpt_of(residual_dropout=1.0, token_dropout=0.0), sample()
    with torch.no_grad():
        assert torch.equal(gpt.train().features(labels, tokens, 3), gpt.embed(labels, tokens[:, :-1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"model\.gpt: give size \(one of b, l, xl, xxl, 3b\) or width, layers and heads"),
        ({"size": "b", "width": 768}, r"size='b' must be null where width is given"),
        ({"size": "huge"}, r"size='huge' must be one of: .*xxl"),
        ({"width": 16, "layers": 1}, r"heads=null must be given with width, layers"),
        ({**SMALL, "layers": 0}, "layers=0 must be 1 or more"),
        ({**SMALL, "heads": 3}, r"width=16 must be divisible by 3 with heads=3"),
        (
            {"width": 16, "layers": 1, "heads": 2, "num_tokens": 8, "positions": "rope2d"},
            r"num_tokens=8 must be a square",
        ),
        ({**SMALL, "width": 12, "positions": "rope2d"}, r"width=12 must be divisible by 8"),
        ({**SMALL, "head": "round"}, r"head='round' must be one of: factorized, masked_bits, plain"),
        ({**SMALL, "head": "plain", "codebook_sizes": [4, 4]}, r"head='plain' must be null or another"),
        ({**SMALL, "token_dropout": 1.5}, r"token_dropout=1\.5 must be in \[0, 1\]"),
    ],
)
def test_sizes_that_do_not_fit_name_their_key(options, message):
    with pytest.raises(ConfigError, match=message):
        GPT(GPTConfig(**options))


@pytest.mark.parametrize("positions", ["learned", "rope2d"])
def test_qk_norm_normalizes_each_head(positions):
    """Scaling the weights of queries and keys changes nothing with it, and does without; cached steps agree; it has no
    published layout.
    """
    sizes = {"width": 16, "layers": 2, "heads": 2, "vocab_size": 8, "num_tokens": 4, "num_classes": 3}
    labels, tokens = torch.tensor([0, 2]), torch.randint(0, 8, (2, 4), generator=torch.Generator().manual_seed(0))
    for qk_norm in (True, False):
        torch.manual_seed(0)
        gpt = GPT(GPTConfig(**sizes, positions=positions, qk_norm=qk_norm)).eval()
        torch.nn.init.normal_(gpt.output.weight)
        before, caches = gpt(labels, tokens), new_caches(gpt, 2)
        steps = [cached_logits(gpt, labels if t == 0 else tokens[:, t - 1], t, caches) for t in range(4)]
        torch.testing.assert_close(torch.stack(steps, 1), before, atol=1e-5, rtol=1e-4)
        for layer in gpt.layers:
            layer.attention.wqkv.weight.data[:32] *= 40
        assert torch.allclose(gpt(labels, tokens), before, atol=0.05) == qk_norm
        if qk_norm:
            with pytest.raises(ConfigError, match=r"no published name is known for 'layers\.0.attention.q_norm"):
                export_state(gpt.state_dict(), GPT_NAMES)
