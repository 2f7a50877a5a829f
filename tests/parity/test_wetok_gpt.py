"""WeTok's GPT with its factorized head gives the released logits, loss, gradients, greedy tokens and filters."""

import functools
from pathlib import Path

import goldens
import pytest
import torch
from test_manifests import manifests
from test_wetok_tokenizer import TOLERANCE, close
from torch import Tensor

from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.loading import GeneratorSections
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.rope import rope2d_table
from autoregressive.models.token_by_token import next_token_loss
from autoregressive.published import WETOK_NAMES
from autoregressive.sampling import greedy, probabilities
from engine.checkpoint.weights import load_strict
from engine.config import load_sections
from tokenizer.published.layout import export_state, import_state

TINY, CASES = "wetok/tiny", goldens.cases("wetok/tiny", "ar")
GRADIENT = 2e-3


@functools.cache
def gpt_of(case: str) -> GPT:
    """A case with its weights, in evaluation mode."""
    args = goldens.meta(TINY, case)["config"]
    assert args["factorized_k"] == len(args["factorized_bits"]) and args["token_factorization"]
    config = GPTConfig(
        width=args["dim"],
        layers=args["spatial_n_layer"],
        heads=args["n_head"],
        head="factorized",
        codebook_sizes=[2**bits for bits in args["factorized_bits"]],
        head_layers=args["factorized_n_layer"],
        num_tokens=args["block_size"],
        num_classes=args["class_num"],
        positions="rope2d",
        token_dropout=args["token_drop"],
        residual_dropout=args["resid_dropout_p"],
    )
    gpt = GPT(config)
    weights = goldens.tensors(TINY, case, "weights")
    load_strict(gpt, import_state(weights, gpt.state_dict(), WETOK_NAMES), case)
    return gpt.to(goldens.DEVICE).eval()


def tokens_of(case: str, prefix: str = "") -> Tensor:
    """(B,N,k) tokens of the io file."""
    io, count = goldens.tensors(TINY, case), len(gpt_of(case).codebook_sizes)
    return torch.stack([io[f"{prefix}tokens{i}"] for i in range(count)], dim=-1).long()


@pytest.mark.parametrize("case", CASES)
def test_teacher_forced_logits_loss_and_gradients(case):
    """Logits of every index, of class and null class; the loss of each index; the gradient norm of every parameter."""
    io, meta, gpt = goldens.tensors(TINY, case), goldens.meta(TINY, case), gpt_of(case)
    labels, tokens = io["class"].flatten(), tokens_of(case)
    logits = gpt(labels, tokens)
    for i, size in enumerate(gpt.codebook_sizes):
        close(logits[:, :, i, :size], io[f"logits{i}"], f"{case} logits{i}")
        loss = torch.nn.functional.cross_entropy(logits[:, :, i, :size].flatten(0, 1), tokens[:, :, i].flatten())
        close(loss.item(), meta["losses"][i], f"{case} loss of index {i}")
    null = gpt(torch.full_like(labels, gpt.null_class), tokens)
    for i, size in enumerate(gpt.codebook_sizes):
        if f"logits{i}_uncond" in io:
            close(null[:, :, i, :size], io[f"logits{i}_uncond"], f"{case} logits{i}_uncond")
    loss = next_token_loss(logits, tokens)
    close(loss.item(), meta["loss"], f"{case} loss", len(gpt.codebook_sizes) * TOLERANCE)
    gradients = torch.autograd.grad(loss, list(gpt.parameters()))
    norms = export_state(
        {n: g.norm() for (n, _), g in zip(gpt.named_parameters(), gradients, strict=True)}, WETOK_NAMES
    )
    assert norms.keys() == meta["grad_norms"].keys()
    for name, norm in meta["grad_norms"].items():
        close(norms[name].item(), norm, f"{case} gradient norm of {name}", GRADIENT * norm)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_with_and_without_guidance(case):
    """Through the caches of both transformers, with one guidance scale for each index."""
    io, meta, gpt = goldens.tensors(TINY, case), goldens.meta(TINY, case), gpt_of(case)
    labels = io["class"].flatten()
    runs = sorted(name.removesuffix("/tokens0") for name in io if name.endswith("/tokens0"))
    assert runs, f"{case} has no greedy tokens"
    for name in runs:
        scales = meta.get(f"{name}_scales")
        guidance = Guidance() if scales is None else Guidance(scale=tuple(scales))
        seen: list[Tensor] = []

        def draw(p, position, seen=seen):
            seen.append(p)
            return greedy(p, position)

        tokens = generate(gpt, labels, draw=draw, guidance=guidance)
        goldens.assert_equal(tokens, tokens_of(case, f"{name}/"), f"{case} {name}")
        count = len(gpt.codebook_sizes)
        for where, first in (("first", 0), ("last", len(seen) - count)):
            for i, size in enumerate(gpt.codebook_sizes):
                if f"{name}/{where}_logits{i}" in io:
                    expected = io[f"{name}/{where}_logits{i}"].softmax(-1)
                    close(seen[first + i][:, :size], expected, f"{case} {name} {where} probabilities of index {i}")


@pytest.mark.parametrize("case", CASES)
def test_filters_and_rotary_table(case):
    io, meta, gpt = goldens.tensors(TINY, case), goldens.meta(TINY, case), gpt_of(case)
    for i, options in enumerate(meta.get("filters", [])):
        p = probabilities(io["filter/logits"], options["temperature"], options["top_k"], options["top_p"])
        close(p, io[f"filter/{i}/probs"], f"{case} filter {i}", 1e-6)
    if "freqs_cis" not in io:
        return
    width, _, heads = gpt.config.dims()
    table = rope2d_table(int(gpt.config.num_tokens**0.5), width // heads, torch.device("cpu"))
    close(table, io["freqs_cis"], f"{case} rotary table", 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_initialization_and_export(case):
    """Zero heads, deviation 0.02 elsewhere, the released width of the MLP; imported weights leave as they came."""
    meta, gpt = goldens.meta(TINY, case), gpt_of(case)
    torch.manual_seed(0)
    fresh = GPT(gpt.config)
    assert meta["heads_zero_at_init"] and not any(output.weight.any() for output in fresh.head.outputs)
    close(fresh.layers[0].attention.wqkv.weight.std().item(), meta["init_std_wqkv"], f"{case} init", 2e-3)
    assert fresh.layers[0].feed_forward.w1.out_features == meta["ffn_hidden"]
    goldens.assert_same_state(export_state(gpt.state_dict(), WETOK_NAMES), goldens.tensors(TINY, case, "weights"))


@pytest.mark.parametrize("size", ["B", "L", "XL"])
def test_a_recipe_builds_the_published_network(size):
    """Every name and shape of the transformer, and the parameter counts of its two stacks."""
    manifest = manifests("wetok")[f"ar_{size}"]
    config = load_sections(
        GeneratorSections, Path(__file__).parents[2] / f"configs/gpt/GPT_wetok_{size}.yaml"
    ).model.gpt
    with torch.device("meta"):
        gpt = GPT(config)
    ours = {
        f"transformer.{k}": [list(v.shape), "float32"] for k, v in export_state(gpt.state_dict(), WETOK_NAMES).items()
    }
    assert ours == {k: v for k, v in manifest["state_dict"].items() if k.startswith("transformer.")}
    assert goldens.parameter_count(gpt) == manifest["counts"]["transformer_params"]
    assert goldens.parameter_count(gpt.layers) == manifest["counts"]["spatial_params"]
    assert goldens.parameter_count(gpt.head.layers) == manifest["counts"]["factorized_params"]
