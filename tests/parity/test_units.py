"""Single pieces of GigaTok's tokenizer and GPT give the released numbers."""

import functools
import json
import re

import goldens
import pytest
import torch
from gigatok_gpts import SCHEDULES, released_guidance

from autoregressive.generate import filter_logits, probabilities
from autoregressive.gpt import RMSNorm, apply_rope, mlp_width, rope2d_table
from tokenizer.models.attention import QFormerBlock, ViTBlock
from tokenizer.models.cnn import AdaptiveGroupNorm, CNNConfig, depth_to_space
from tokenizer.models.query import multi_level_pooling
from tokenizer.quantizers.entropy import assignment_entropies
from tokenizer.quantizers.vector import VectorQuantizer, VQConfig

TINY = "gigatok/tiny"
CASES = goldens.cases(TINY, "units")
COMMITMENT_WEIGHT = 0.25  # of the quantizer's cases


@functools.cache
def io(case):
    return goldens.tensors(TINY, case)


def named(pattern: str) -> list[tuple[str, str]]:
    """(case, tensor name) of all tensors whose whole name matches."""
    return [(case, name) for case in CASES for name in goldens.names(TINY, case) if re.fullmatch(pattern, name)]


def prefixed(case: str, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in io(case).items() if name.startswith(prefix)}


def close(case: str, actual: torch.Tensor, name: str) -> None:
    goldens.assert_close(actual, io(case)[name], f"{case} {name}")


@pytest.mark.parametrize(("case", "variant"), [(c, v) for c in CASES for v in goldens.meta(TINY, c)["vq"]])
def test_quantizer(case, variant):
    """Indices, outputs in both modes, losses, usage and both gradients; variants l2{0,1}_rot{0,1}_ent{weight}."""
    given, expected = io(case), goldens.meta(TINY, case)["vq"][variant]
    l2_norm, rotation, weight = re.fullmatch(r"l2([01])_rot([01])_ent(.+)", variant).groups()
    codebook, weight = given["vq_embedding"], float(weight)
    config = VQConfig(
        codebook_size=len(codebook),
        codebook_dim=codebook.shape[1],
        l2_norm=l2_norm == "1",
        rotation_trick=rotation == "1",
    )
    quantizer = VectorQuantizer(config)
    quantizer.load_state_dict({"codebook": codebook}, strict=False)
    z = given["vq_z"].clone().requires_grad_()
    tokens, shape = z.flatten(2).transpose(1, 2), given["vq_z"].shape

    def as_map(z_q: torch.Tensor) -> torch.Tensor:
        return z_q.transpose(1, 2).reshape(shape)

    with torch.no_grad():
        close(case, as_map(quantizer.eval()(tokens).z_q), f"vq_{variant}_eval_zq")
    output = quantizer.train()(tokens, entropy=weight > 0)
    terms = {"vq": output.losses["codebook"], "commit": COMMITMENT_WEIGHT * output.losses["commitment"]}
    if weight:
        terms["entropy"] = weight * (output.losses["sample_entropy"] - output.losses["codebook_entropy"])
    z_q = as_map(output.z_q)
    ((z_q * given["vq_upstream_grad"]).sum() + sum(terms.values())).backward()

    goldens.assert_equal(output.indices.flatten(), given[f"vq_{variant}_idx"], f"{case} {variant} indices")
    for name, value in terms.items():
        goldens.assert_loss(value, expected[name], f"{case} {variant} {name}")
    close(case, z_q, f"vq_{variant}_zq")
    close(case, z.grad, f"vq_{variant}_grad_z")
    close(case, quantizer.codebook.grad, f"vq_{variant}_grad_emb")
    goldens.assert_loss(quantizer.usage()["codebook_usage"], expected["usage"], f"{case} {variant} usage")


@pytest.mark.parametrize(("case", "name"), named("entropy_affinity"))
def test_entropy_loss_of_an_affinity_table(case, name):
    """Sample entropy less codebook entropy of any table (tokens, codes) at the released temperature.

    Our function takes latents: with one-hot codes and latents of half a row, -distance is that row up to a constant.
    """
    affinity = io(case)[name]
    temperature = VQConfig().entropy_temperature
    sample, codebook = assignment_entropies(affinity / 2, torch.eye(affinity.shape[1]), temperature)
    expected = goldens.meta(TINY, case)["entropy_loss_of_affinity"]
    goldens.assert_loss(sample - codebook, expected, f"{case} entropy_loss_of_affinity")


@pytest.mark.parametrize(("case", "name"), named("adagn_out"))
def test_adaptive_group_norm(case, name):
    """Unbiased variance of the style, no `1 +` on the gain."""
    given = prefixed(case, "adagn_")
    norm = AdaptiveGroupNorm(given["x"].shape[1], given["style"].shape[1], CNNConfig().norm_groups)
    parameters = {f"{p}.{q}": given[f"{p}_{q}"] for p in ("gamma", "beta") for q in ("weight", "bias")}
    norm.load_state_dict(parameters)
    with torch.no_grad():
        close(case, norm(given["x"], given["style"]), name)


@pytest.mark.parametrize(("case", "name"), named("d2s_out"))
def test_depth_to_space(case, name):
    """The order of channels is DCR; numbers only move."""
    assert torch.equal(depth_to_space(io(case)["d2s_in"]), io(case)[name])


@pytest.mark.parametrize(("case", "name"), named(r"pool_out_\d+"))
def test_multi_level_pooling(case, name):
    """Boxes coarse to fine, width split first, the global mean twice."""
    maps = io(case)[name.replace("out", "in")]
    close(case, multi_level_pooling(maps, maps.shape[-1] ** 2), name)


@pytest.mark.parametrize(("case", "name"), named("(qformer|vit)_layer_out"))
def test_transformer_block(case, name):
    """Q-Former block: positions on queries and keys, never on values; ViT block: no positions of its own.

    The file does not tell the number of heads: one must fit.
    """
    kind = name.removesuffix("_out")
    given = {k: v.transpose(0, 1) for k, v in prefixed(case, f"{kind}_").items()}
    width = given["tgt"].shape[-1]
    differences = {}
    for heads in (h for h in range(1, width + 1) if width % h == 0):
        block = (QFormerBlock if kind == "qformer_layer" else ViTBlock)(width, heads)
        block.load_state_dict(prefixed(case, f"{kind}."))
        others = () if kind == "vit_layer" else (given["memory"], given["query_pos"][0], given["pos"][0])
        with torch.no_grad():
            output = block(given["tgt"], *others)
        differences[heads] = (output - given["out"]).abs().max().item(), output
    best = min(differences, key=lambda heads: differences[heads][0])
    close(case, differences[best][1].transpose(0, 1), name)


@pytest.mark.parametrize(("case", "name"), named("rms_y(_bf16_module_and_input)?"))
def test_rms_norm(case, name):
    """In fp32, and with module and input in bf16: the norm itself stays in fp32, the gain comes after the cast."""
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    norm = RMSNorm(io(case)["rms_w"].numel())
    norm.load_state_dict({"weight": io(case)["rms_w"]})
    with torch.no_grad():
        output = norm.to(dtype)(io(case)["rms_x"].to(dtype))
    assert output.dtype == dtype
    close(case, output.float(), name)


@pytest.mark.parametrize(("case", "name"), named(r"filter_k\d+_p[\d.]+"))
def test_top_k_and_top_p(case, name):
    """The same logits stay, unchanged, and all others are at -inf."""
    top_k, top_p = re.fullmatch(r"filter_k(\d+)_p([\d.]+)", name).groups()
    assert torch.equal(filter_logits(io(case)["filter_logits"], int(top_k), float(top_p)), io(case)[name])


@pytest.mark.parametrize(("case", "name"), named(r"sample_probs_t[\d.]+_k\d+_p[\d.]+"))
def test_distribution_that_tokens_are_drawn_from(case, name):
    """Temperature, then top-k, then top-p, then softmax."""
    t, k, p = re.fullmatch(r"sample_probs_t([\d.]+)_k(\d+)_p([\d.]+)", name).groups()
    close(case, probabilities(io(case)["filter_logits"], float(t), int(k), float(p)), name)


def schedules() -> list[tuple[str, str, str]]:
    """(case, group, entry) of all guidance schedules that exist here; an entry is a name and its options as JSON."""
    groups = [(c, g) for c in CASES for g in goldens.meta(TINY, c) if g.startswith("schedules_")]
    return [(c, g, e) for c, g in groups for e in goldens.meta(TINY, c)[g] if e.partition("{")[0] in SCHEDULES]


@pytest.mark.parametrize(("case", "group", "entry"), schedules())
def test_guidance_schedule(case, group, entry):
    """The scale of every token after the first."""
    steps, scale = re.fullmatch(r"schedules_(\d+)_steps_scale([\d.]+)", group).groups()
    name, brace, options = entry.partition("{")
    guidance = released_guidance(float(scale), name, json.loads(brace + options))
    expected = torch.tensor(goldens.meta(TINY, case)[group][entry])
    actual = torch.tensor(guidance.scales(int(steps) + 1)[1:])
    goldens.assert_close(actual, expected, f"{case} {group} {entry}", 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_width_of_the_gpt_mlp(case):
    """Hidden widths for all published sizes."""
    expected = goldens.meta(TINY, case)["ffn_hidden_by_dim"]
    assert {width: mlp_width(int(width)) for width in expected} == expected


@pytest.mark.parametrize(("case", "name"), named(r"rope2d_grid\d+_headdim\d+"))
def test_rotary_table_and_rotation(case, name):
    """The table with its zero row for the class slot, and queries rotated by it in interleaved pairs."""
    grid, head_dim = map(int, re.fullmatch(r"rope2d_grid(\d+)_headdim(\d+)", name).groups())
    table = rope2d_table(grid, head_dim, torch.device("cpu"))
    close(case, table, name)
    assert not table[0].any()
    x = io(case)["rope_x"]
    if x.shape[1] == len(table) and x.shape[-1] == head_dim:
        close(case, apply_rope(x.transpose(1, 2), table).transpose(1, 2), "rope_y")
