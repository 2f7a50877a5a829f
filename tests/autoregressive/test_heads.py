"""The factorized head: causal over tokens and over the indices of a token, any number and size of indices."""

import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from autoregressive import load_gpt
from autoregressive.cli import per_index_type
from autoregressive.code_writer import CodeWriter
from autoregressive.codes import FORMAT, CodesError, CodesManifest, CodeStore, code_dtype
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.heads import HEADS
from autoregressive.models.token_by_token import next_token_loss
from autoregressive.sampling import greedy, probabilities, seeded_draw
from autoregressive.training.sizes import check_codes
from engine.messages import ConfigError

SIZES = [[5], [4, 4], [3, 6, 2], [4] * 7]  # codebook size of each index of a token
POSITIONS = ["learned", "rope2d"]


def gpt_of(codebook_sizes: list[int], positions: str = "rope2d", seed: int = 0, **options) -> GPT:
    """Two small layers and two over the indices, with weights that are no longer those of the start."""
    torch.manual_seed(seed)
    sizes = {"width": 16, "layers": 2, "heads": 2, "num_tokens": 9, "num_classes": 3, "positions": positions}
    sizes |= {"head": "factorized", "codebook_sizes": codebook_sizes}
    gpt = GPT(GPTConfig(**sizes | options))
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return gpt.eval()


def tokens_of(gpt: GPT, count: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, size, (count, 9), generator=generator) for size in gpt.codebook_sizes]
    return torch.stack(columns, dim=-1)


LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_logits_depend_on_what_was_before_only(sizes, positions):
    """Changing index i of token n moves later indices of that token and later tokens, and nothing else."""
    gpt = gpt_of(sizes, positions)
    tokens = tokens_of(gpt)
    before = gpt(LABELS, tokens)
    assert before.shape == (3, 9, len(sizes), max(sizes))
    for n, i in ((0, 0), (4, len(sizes) - 1), (8, 0)):
        changed = tokens.clone()
        changed[:, n, i] = (changed[:, n, i] + 1) % sizes[i]
        moved = (gpt(LABELS, changed) - before).nan_to_num().abs().amax((0, 3)) > 1e-7  # (N,k)
        later = torch.zeros_like(moved)
        later[n, i + 1 :] = True
        later[n + 1 :] = True
        assert torch.equal(moved, later)


def test_sizes_may_differ_and_what_is_beyond_one_is_impossible():
    gpt = gpt_of([3, 6, 2])
    p = gpt(LABELS, tokens_of(gpt)).softmax(-1)
    for i, size in enumerate([3, 6, 2]):
        assert not p[:, :, i, size:].any()
        torch.testing.assert_close(p[:, :, i, :size].sum(-1), torch.ones(3, 9))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_cached_steps_equal_one_pass(sizes, positions):
    """Token by token and index by index; the cache of the head is used again for every token."""
    gpt = gpt_of(sizes, positions)
    tokens, cache = tokens_of(gpt), gpt.new_cache(3)
    head_cache = gpt.head.new_cache(3, gpt.dtype, gpt.device)
    expected, inputs = gpt(LABELS, tokens), [LABELS, *tokens.unbind(1)]
    for position in range(9):
        hidden = gpt.decode_hidden(inputs[position], position, cache)
        previous_index = None
        for i, size in enumerate(sizes):
            logits = gpt.head.next_logits(hidden, previous_index, i, head_cache)
            torch.testing.assert_close(logits, expected[:, position, i, :size], atol=1e-4, rtol=1e-4)
            previous_index = tokens[:, position, i]


def test_the_loss_is_the_sum_over_the_indices():
    gpt = gpt_of([3, 6, 2])
    tokens = tokens_of(gpt)
    logits = gpt(LABELS, tokens)
    parts = [
        F.cross_entropy(logits[:, :, i, :s].flatten(0, 1), tokens[:, :, i].flatten()) for i, s in enumerate([3, 6, 2])
    ]
    torch.testing.assert_close(next_token_loss(logits, tokens), sum(parts))
    next_token_loss(logits, tokens).backward()
    assert all(torch.isfinite(p.grad).all() for p in gpt.parameters())
    fresh = GPT(gpt.config).eval()
    assert next_token_loss(fresh(LABELS, tokens), tokens).item() == pytest.approx(math.log(3 * 6 * 2), abs=1e-5)


# ---------------------------------------------------------------------------------------------- sampling
def plain_generate(gpt: GPT, labels: Tensor, draw, scales, temperatures, top_ks, top_ps) -> Tensor:
    """Without caches: the whole sequence anew for every index."""
    count, k = len(labels), len(gpt.codebook_sizes)
    tokens = torch.zeros(count, 9, k, dtype=torch.long)
    null = torch.full_like(labels, gpt.null_class)
    for n in range(9):
        for i, size in enumerate(gpt.codebook_sizes):
            cond, uncond = (gpt(classes, tokens)[:, n, i, :size] for classes in (labels, null))
            logits = uncond + (cond - uncond) * scales[i]
            tokens[:, n, i] = draw(probabilities(logits, temperatures[i], top_ks[i], top_ps[i]), n * k + i)
    return tokens


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.5), (1.0, 3.0, 1.0)])
@torch.no_grad()
def test_every_index_has_its_own_guidance_temperature_and_filters(scales):
    """Against a sampler without caches; scales of 1 and above may be mixed."""
    gpt = gpt_of([4, 6, 5])
    settings = ((1.0, 0.7, 1.5), (0, 3, 2), (1.0, 0.9, 1.0))
    draws = [seeded_draw(5, torch.arange(3), 27) for _ in range(2)]
    expected = plain_generate(gpt, LABELS, draws[0], scales, *settings)
    temperature, top_k, top_p = settings
    actual = generate(
        gpt, LABELS, draw=draws[1], guidance=Guidance(scale=scales), temperature=temperature, top_k=top_k, top_p=top_p
    )
    assert torch.equal(actual, expected)


def test_a_sample_does_not_depend_on_its_batch():
    gpt, ids = gpt_of([4, 4]), torch.arange(3)
    whole = generate(gpt, LABELS, draw=seeded_draw(1, ids, 18), guidance=Guidance(scale=2.0))
    for i in range(3):
        one = generate(gpt, LABELS[i : i + 1], draw=seeded_draw(1, ids[i : i + 1], 18), guidance=Guidance(scale=2.0))
        assert torch.equal(one[0], whole[i])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 3


def test_settings_of_another_number_of_indices_are_refused():
    gpt = gpt_of([4, 4])
    with pytest.raises(ConfigError, match="top_k has 3 values, but a token has 2 indices"):
        generate(gpt, LABELS, draw=greedy, top_k=(1, 2, 3))
    with pytest.raises(ConfigError, match="guidance scale has 3 values"):
        generate(gpt, LABELS, draw=greedy, guidance=Guidance(scale=(1.0, 2.0, 3.0)))
    with pytest.raises(ConfigError, match=r"scale=\(2\.0, 0\.5\) must be 1 \(off\) or more"):
        Guidance(scale=(2.0, 0.5))
    assert per_index_type(float)("1.75,2") == (1.75, 2.0) and per_index_type(int)("3") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_sizes": [4, 0]}, r"codebook_sizes=\[4, 0\] must be numbers of 1 or more"),
        ({"head_layers": 0}, "head_layers=0 must be 1 or more"),
        ({"codebook_sizes": [2] * 11}, "at most 10 sizes with positions=rope2d"),
    ],
)
def test_codebook_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        GPTConfig(width=16, layers=1, heads=2, num_tokens=9, positions="rope2d", **options)


# ---------------------------------------------------------------------------------------------- the store
def write_store(folder, fingerprint: str, sizes: list[int], num_tokens: int = 4) -> Tensor:
    """Random codes of several indices per token, splits `train` and `val`, as `tiny.write_codes`."""
    codes = torch.stack([torch.randint(0, s, (12, 2, num_tokens)) for s in sizes], dim=-1)
    for split in ("train", "val"):
        facts = {"num_views": 2, "codebook_size": max(sizes), "image_size": 8, "views": "flip", "split": split}
        manifest = CodesManifest(
            format=FORMAT,
            fingerprint=fingerprint,
            tokenizer="tiny",
            data="random",
            num_images=12,
            num_tokens=num_tokens,
            class_names=["cat", "dog"],
            codebook_sizes=sizes,
            **facts,
        )
        writer = CodeWriter(folder, manifest, 5, rank=0)
        writer.create((torch.arange(12) % 2).numpy())
        for block in writer.pending(0, 1):
            writer.write(block, codes[block.start : block.stop])
        writer.finish()
    return codes


def small_gpt(**options) -> GPT:
    """Four tokens, two classes."""
    return GPT(GPTConfig(width=16, layers=1, heads=2, num_tokens=4, num_classes=2, **options))


def test_codes_of_several_indices_are_stored_and_read(tmp_path):
    codes = write_store(tmp_path, "x", [4, 70_000, 2])
    store = CodeStore(tmp_path, "train")
    assert store.codes.shape == (12, 2, 4, 3)
    assert all(torch.equal(store.tokens(i, v), codes[i, v]) for i in range(12) for v in range(2))
    check_codes(small_gpt(codebook_sizes=[4, 70_000, 2]), "gpt", store)
    with pytest.raises(ConfigError, match=r"model\.gpt has codebook_sizes=\[4, 4\], but .* has \[4, 70000, 2\]"):
        check_codes(small_gpt(codebook_sizes=[4, 4]), "gpt", store)
    with pytest.raises(ConfigError, match=r"model\.gpt has codebook_sizes=\[16384\], but"):
        check_codes(small_gpt(), "gpt", store)
    (tmp_path / "train/manifest.json").write_text((tmp_path / "train/manifest.json").read_text().replace("70000,", ""))
    with pytest.raises(CodesError, match=r"damaged|shape"):
        CodeStore(tmp_path, "train")
    assert [code_dtype(n).__name__ for n in (2**16, 2**31, 2**40)] == ["uint16", "int32", "int64"]


def test_a_list_of_one_index_is_not_a_plain_index(tmp_path):
    """Tokens of shape (N,1) and (N,) are not mixed up; one index gets the plain head unless the other is asked for."""
    tiny.write_codes(tmp_path, "x")
    store = CodeStore(tmp_path, "train")
    check_codes(small_gpt(codebook_sizes=[16]), "gpt", store)
    with pytest.raises(ConfigError, match=r"tokens of shape \(4, 1\), but .* has \(4,\)"):
        check_codes(small_gpt(codebook_sizes=[16], head="factorized"), "gpt", store)


def test_a_store_of_an_earlier_version_is_read_under_present_names(tmp_path):
    """`streams` is `codebook_sizes` now, and the view `centre` is `center`."""
    codes = write_store(tmp_path, "x", [4, 6])
    path = tmp_path / "train/manifest.json"
    text = path.read_text().replace('"codebook_sizes"', '"streams"').replace('"flip"', '"centre"')
    path.write_text(text)
    store = CodeStore(tmp_path, "train")
    assert (store.manifest.codebook_sizes, store.manifest.views) == ([4, 6], "center")
    assert torch.equal(store.tokens(3, 1), codes[3, 1])


def test_every_head_is_found_by_name():
    """The config names one, or the number of indices decides."""
    assert HEADS.keys() == {"plain", "factorized", "masked_bits"}
    assert [
        type(small_gpt(**options).head) for options in ({}, {"codebook_sizes": [4, 4]}, {"head": "factorized"})
    ] == [
        HEADS["plain"],
        HEADS["factorized"],
        HEADS["factorized"],
    ]
    plain, factorized = small_gpt(vocab_size=7), small_gpt(vocab_size=7, head="factorized")
    assert (plain.codebook_sizes, plain.token_shape) == ((7,), (4,))
    assert (factorized.codebook_sizes, factorized.token_shape) == ((7,), (4, 1))


def test_training_on_the_store_learns_and_the_run_loads(tmp_path, image_folder, world):
    """The same entry and task; the loss falls below that of the start, and a sample has one value for every index."""
    import autoregressive.train
    import tokenizer.train
    from tokenizer import load_tokenizer

    run, store = tmp_path / "tokenizer", tmp_path / "codes"
    tokenizer.train.train(tiny.tokenizer_config(run, image_folder, "loop.steps=1", base=tiny.WETOK), world)
    codes = write_store(store, load_tokenizer(run).provenance.fingerprint, [4, 4], 16)
    overrides = [
        "model.gpt={codebook_sizes: [4, 4], num_tokens: 16, token_dropout: 0, residual_dropout: 0}",
        "loop.steps=80",
    ]
    config = tiny.gpt_config(tmp_path / "gpt", store, run, *overrides, "validation.preview_classes=2")
    autoregressive.train.train(config, world)
    from engine.run_log import read_metrics

    losses = [r["loss"] for r in read_metrics(tmp_path / "gpt") if "loss" in r]
    assert losses[0] == pytest.approx(math.log(16), abs=1e-3) and min(losses) < 0.9 * losses[0]
    gpt = load_gpt(tmp_path / "gpt")
    sample = generate(gpt, torch.tensor([0, 1]), draw=greedy)
    assert sample.shape == (2, *codes.shape[2:])
