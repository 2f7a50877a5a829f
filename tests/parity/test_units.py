"""Single pieces of GigaTok's and LlamaGen's tokenizers and GPTs give the released numbers."""

import functools
import json
import re

import goldens
import pytest
import torch
from gpts import SCHEDULES, released_guidance
from PIL import Image

from autoregressive.models.layers import RMSNorm, mlp_width
from autoregressive.models.rope import apply_rope, rope2d_table
from autoregressive.sampling import filter_logits, probabilities
from engine.data.crops import ten_crop
from engine.data.images import image_tensor, resize_for_evaluation
from tokenizer.models.attention import QFormerBlock, ViTBlock
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.cnn_blocks import AdaptiveGroupNorm, AttentionBlock, Downsample, NearestUpsample, depth_to_space
from tokenizer.models.query_transformer import multi_level_pooling
from tokenizer.quantizers.entropy_assignment import assignment_entropies
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig

COMMITMENT_WEIGHT = 0.25  # of the quantizer's cases
UNITS = [f"{s}/tiny/{case}" for s in ("gigatok", "llamagen") for case in goldens.cases(f"{s}/tiny", "units")]


@functools.cache
def io(unit):
    return goldens.tensors(*unit.rsplit("/", 1))


def meta(unit):
    return goldens.meta(*unit.rsplit("/", 1))


def named(pattern: str) -> list[tuple[str, str]]:
    """(unit, tensor name) of all tensors whose whole name matches."""
    return [(unit, name) for unit in UNITS for name in io(unit) if re.fullmatch(pattern, name)]


def prefixed(unit: str, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in io(unit).items() if name.startswith(prefix)}


def close(unit: str, actual: torch.Tensor, name: str) -> None:
    goldens.assert_close(actual, io(unit)[name], f"{unit} {name}")


@pytest.mark.parametrize(("unit", "variant"), [(u, v) for u in UNITS for v in meta(u).get("vq", {})])
def test_quantizer(unit, variant):
    """Indices, outputs in both modes, losses, usage and both gradients; variants l2{0,1}[_rot{0,1}]_ent{weight}."""
    given, expected = io(unit), meta(unit)["vq"][variant]
    l2_norm, rotation, weight = re.fullmatch(r"l2([01])(?:_rot([01]))?_ent(.+)", variant).groups()
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

    if f"vq_{variant}_eval_zq" in given:
        with torch.no_grad():
            close(unit, as_map(quantizer.eval()(tokens).z_q), f"vq_{variant}_eval_zq")
    output = quantizer.train()(tokens, entropy=weight > 0)
    terms = {"vq": output.losses["codebook"], "commit": COMMITMENT_WEIGHT * output.losses["commitment"]}
    if weight:
        terms["entropy"] = weight * (output.losses["sample_entropy"] - output.losses["codebook_entropy"])
    z_q = as_map(output.z_q)
    ((z_q * given["vq_upstream_grad"]).sum() + sum(terms.values())).backward()

    goldens.assert_equal(output.indices.flatten(), given[f"vq_{variant}_idx"], f"{unit} {variant} indices")
    for name, value in terms.items():
        goldens.assert_loss(value, expected[name], f"{unit} {variant} {name}")
    close(unit, z_q, f"vq_{variant}_zq")
    close(unit, z.grad, f"vq_{variant}_grad_z")
    close(unit, quantizer.codebook.grad, f"vq_{variant}_grad_emb")
    goldens.assert_loss(quantizer.usage()["codebook_usage"], expected["usage"], f"{unit} {variant} usage")


@pytest.mark.parametrize(("unit", "name"), named("entropy_affinity"))
def test_entropy_loss_of_an_affinity_table(unit, name):
    """Sample entropy less codebook entropy of any table (tokens, codes) at the released temperature.

    Our function takes latents: with one-hot codes and latents of half a row, -distance is that row up to a constant.
    """
    affinity = io(unit)[name]
    temperature = VQConfig().entropy_temperature
    sample, codebook = assignment_entropies(affinity / 2, torch.eye(affinity.shape[1]), temperature)
    expected = meta(unit)["entropy_loss_of_affinity"]
    goldens.assert_loss(sample - codebook, expected, f"{unit} entropy_loss_of_affinity")


@pytest.mark.parametrize(("unit", "name"), named("adagn_out"))
def test_adaptive_group_norm(unit, name):
    """Unbiased variance of the style, no `1 +` on the gain."""
    given = prefixed(unit, "adagn_")
    norm = AdaptiveGroupNorm(given["x"].shape[1], given["style"].shape[1], CNNConfig().norm_groups)
    parameters = {f"{p}.{q}": given[f"{p}_{q}"] for p in ("gamma", "beta") for q in ("weight", "bias")}
    norm.load_state_dict(parameters)
    with torch.no_grad():
        close(unit, norm(given["x"], given["style"]), name)


@pytest.mark.parametrize(("unit", "name"), named("d2s_out"))
def test_depth_to_space(unit, name):
    """The order of channels is DCR; numbers only move."""
    assert torch.equal(depth_to_space(io(unit)["d2s_in"]), io(unit)[name])


@pytest.mark.parametrize(("unit", "name"), named(r"pool_out_\d+"))
def test_multi_level_pooling(unit, name):
    """Boxes coarse to fine, width split first, the global mean twice."""
    maps = io(unit)[name.replace("out", "in")]
    close(unit, multi_level_pooling(maps, maps.shape[-1] ** 2), name)


@pytest.mark.parametrize(("unit", "name"), named("(qformer|vit)_layer_out"))
def test_transformer_block(unit, name):
    """Q-Former block: positions on queries and keys, never on values; ViT block: no positions of its own.

    The file does not tell the number of heads: one must fit.
    """
    kind = name.removesuffix("_out")
    given = {k: v.transpose(0, 1) for k, v in prefixed(unit, f"{kind}_").items()}
    width = given["tgt"].shape[-1]
    differences = {}
    for heads in (h for h in range(1, width + 1) if width % h == 0):
        block = (QFormerBlock if kind == "qformer_layer" else ViTBlock)(width, heads)
        block.load_state_dict(prefixed(unit, f"{kind}."))
        others = () if kind == "vit_layer" else (given["memory"], given["query_pos"][0], given["pos"][0])
        with torch.no_grad():
            output = block(given["tgt"], *others)
        differences[heads] = (output - given["out"]).abs().max().item(), output
    best = min(differences, key=lambda heads: differences[heads][0])
    close(unit, differences[best][1].transpose(0, 1), name)


@pytest.mark.parametrize(("unit", "name"), named("rms_y(_bf16_module_and_input)?"))
def test_rms_norm(unit, name):
    """In fp32, and with module and input in bf16: the norm itself stays in fp32, the gain comes after the cast."""
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    norm = RMSNorm(io(unit)["rms_w"].numel())
    norm.load_state_dict({"weight": io(unit)["rms_w"]})
    with torch.no_grad():
        output = norm.to(dtype)(io(unit)["rms_x"].to(dtype))
    assert output.dtype == dtype
    close(unit, output.float(), name)


@pytest.mark.parametrize(("unit", "name"), named(r"filter_k\d+_p[\d.]+"))
def test_top_k_and_top_p(unit, name):
    """The same logits stay, unchanged, and all others are at -inf."""
    top_k, top_p = re.fullmatch(r"filter_k(\d+)_p([\d.]+)", name).groups()
    assert torch.equal(filter_logits(io(unit)["filter_logits"], int(top_k), float(top_p)), io(unit)[name])


@pytest.mark.parametrize(("unit", "name"), named(r"sample_probs(_[tkp][\d.]+){3}"))
def test_distribution_that_tokens_are_drawn_from(unit, name):
    """Temperature, then top-k, then top-p, then softmax."""
    given = {letter: float(value) for letter, value in re.findall(r"_([tkp])([\d.]+)", name)}
    close(unit, probabilities(io(unit)["filter_logits"], given["t"], int(given["k"]), given["p"]), name)


def schedules() -> list[tuple[str, str, str]]:
    """(unit, group, entry) of all guidance schedules that exist here; an entry is a name and its options as JSON."""
    groups = [(u, g) for u in UNITS for g in meta(u) if g.startswith("schedules_")]
    return [(u, g, e) for u, g in groups for e in meta(u)[g] if e.partition("{")[0] in SCHEDULES]


@pytest.mark.parametrize(("unit", "group", "entry"), schedules())
def test_guidance_schedule(unit, group, entry):
    """The scale of every token after the first."""
    steps, scale = re.fullmatch(r"schedules_(\d+)_steps_scale([\d.]+)", group).groups()
    name, brace, options = entry.partition("{")
    guidance = released_guidance(float(scale), name, json.loads(brace + options))
    expected = torch.tensor(meta(unit)[group][entry])
    actual = torch.tensor(guidance.scales(int(steps) + 1)[1:])
    goldens.assert_close(actual, expected, f"{unit} {group} {entry}", 1e-6)


@pytest.mark.parametrize("unit", [u for u in UNITS if "ffn_hidden_by_dim" in meta(u)])
def test_width_of_the_gpt_mlp(unit):
    """Hidden widths for all published sizes."""
    expected = meta(unit)["ffn_hidden_by_dim"]
    assert {width: mlp_width(int(width)) for width in expected} == expected


@pytest.mark.parametrize(("unit", "name"), named(r"rope2d_grid\d+_headdim\d+(_rows_every_\d+)?"))
def test_rotary_table_and_rotation(unit, name):
    """The table with its zero row for the class slot, and queries rotated by it in interleaved pairs."""
    grid, head_dim, *stride = map(int, re.findall(r"\d+", name.removeprefix("rope2d")))
    table = rope2d_table(grid, head_dim, torch.device("cpu"))
    close(unit, table[:: stride[0] if stride else 1], name)
    assert not table[0].any()
    x = io(unit).get("rope_x")
    if x is not None and x.shape[1] == len(table) and x.shape[-1] == head_dim:
        close(unit, apply_rope(x.transpose(1, 2), table).transpose(1, 2), "rope_y")


@pytest.mark.parametrize(("unit", "name"), named("(attn|up|down)_y"))
def test_block_of_the_llamagen_cnn(unit, name):
    """Attention in one head over all positions; nearest upsampling; downsampling padded right and below only."""
    kind, given = name.removesuffix("_y"), io(unit)
    channels = given[f"{kind}_x"].shape[1]
    block = {
        "attn": lambda: AttentionBlock(channels, CNNConfig().norm_groups),
        "up": lambda: NearestUpsample(channels),
        "down": lambda: Downsample(channels),
    }[kind]()
    block.load_state_dict(prefixed(unit, f"{kind}."))
    with torch.no_grad():
        close(unit, block(given[f"{kind}_x"]), name)


@pytest.mark.parametrize(("unit", "name"), named("eval_resize_y"))
def test_resize_of_large_samples_for_evaluation(unit, name):
    """Bicubic without antialias on the float image, before it is clamped to 8 bits."""
    given = io(unit)
    resized = resize_for_evaluation(given["eval_resize_x"], given[name].shape[-1])
    close(unit, resized, name)
    if "eval_resize_u8_nhwc" in given:
        goldens.assert_pixels(resized, given["eval_resize_u8_nhwc"], f"{unit} eval_resize_u8_nhwc", given[name])


@pytest.mark.parametrize(("unit", "name"), named(r"tencrop_range[\d.]+_first_rows_u8"))
def test_ten_crops(unit, name):
    """The published order: corners and centre, then the same of the mirrored image; every n-th row is in the file."""
    crop_range = re.fullmatch(r"tencrop_range([\d.]+)_first_rows_u8", name)[1]
    facts = meta(unit)["crop"][crop_range]
    crops = ten_crop(Image.fromarray(io(unit)["crop_image_hwc"].numpy()), facts["image_size"], float(crop_range))
    every = int(re.search(r"every (\d+)", facts["rows_kept"])[1])
    actual = torch.stack([image_tensor(crop) for crop in crops])[:, :, ::every]
    goldens.assert_equal(actual.int(), io(unit)[name].int(), f"{unit} {name}")
