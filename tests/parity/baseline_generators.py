"""Generators of the published baselines from golden cases, and their outputs under the names of the goldens.

A case of a part of a golden folder is a generator if its outputs have an `argmax`. Its json tells the family's sizes,
how its weights are drawn, and with which settings the published sampler ran; each draw took the most probable code.
"""

import copy
import functools
from collections.abc import Callable
from contextlib import suppress

import baseline_tokenizers
import goldens
import torch
from torch import Tensor

from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.models.adaln_gpt import AdaLNGPTConfig
from autoregressive.models.base import Generator
from autoregressive.models.gpt import GPTConfig
from autoregressive.models.next_scale import NextScale, NextScaleConfig
from autoregressive.models.random_order import in_order
from autoregressive.models.rar import RARConfig
from autoregressive.models.registry import GeneratorConfig, build_generator
from autoregressive.models.token_by_token import next_token_loss
from autoregressive.published import layout_of
from autoregressive.published_var import CODES
from autoregressive.sampling import greedy
from engine.checkpoint.weights import load_strict
from engine.without_storage import without_storage
from tokenizer.models.registry import build_tokenizer
from tokenizer.published.layout import export_state, import_state
from tokenizer.published.registry import layout_rules as tokenizer_rules

SETS = ("tiny_seeded", "real_seeded")
WEIGHTS = "llamagen"  # whose generator of seeded weights is that of these goldens too
CELL = 16  # pixels per side of a cell of VAR's tokenizer
NEAR_TIE = 1e-4  # a code whose margin is below this may be another one
LOWEST_LOG_P, LARGEST_MARGIN = -20, 9  # stored numbers are clipped there


def cases(which: str) -> list[tuple[str, str]]:
    """(folder, case) of all generators of a set."""
    folders = [f"{part}/{which}" for part in CONFIG_OF]
    return [
        (folder, case)
        for folder in folders
        for case in goldens.cases(folder, "")
        if any(name.startswith("argmax") for name in goldens.names(folder, case))
    ]


# ------------------------------------------------------------------------------------------------ configs
def magvit2_config(meta: dict) -> GeneratorConfig:
    """Open-MAGVIT2: WeTok's GPT, over codes that are cut into two indices."""
    params = meta["params"]
    assert params["token_factorization"] and params["cond_dim"] == params["dim"]
    gpt = GPTConfig(
        width=params["dim"],
        layers=params["spatial_n_layer"],
        heads=params["n_head"],
        codebook_sizes=[2**bits for bits in params["factorized_bits"]],
        head_layers=params["factorized_n_layer"],
        num_tokens=params["block_size"],
        num_classes=params["class_num"],
        positions="rope2d",
    )
    return GeneratorConfig(name="gpt", gpt=gpt)


def ibq_config(meta: dict) -> GeneratorConfig:
    """IBQ: the GPT that the class modulates."""
    params = meta["params"]
    assert params["cond_dim"] == params["n_embd"] and not params["drop_path_rate"]
    gpt = AdaLNGPTConfig(
        width=params["n_embd"],
        layers=params["n_layer"],
        heads=params["n_head"],
        vocab_size=params["vocab_size"],
        num_tokens=params["block_size"],
        num_classes=params["class_num"],
        positions="rope2d",
    )
    return GeneratorConfig(name="adaln_gpt", adaln_gpt=gpt)


def rar_config(meta: dict) -> GeneratorConfig:
    """RAR over the codes of MaskGIT-VQ."""
    sizes, codes = meta["config"]["generator"], meta["config"]["vq_model"]
    rar = RARConfig(
        width=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        mlp_width=sizes["intermediate_size"],
        vocab_size=codes["codebook_size"],
        num_tokens=sizes["image_seq_len"],
        num_classes=sizes["condition_num_classes"],
    )
    return GeneratorConfig(name="rar", rar=rar)


def var_config(meta: dict) -> GeneratorConfig:
    """VAR over the codes of its own tokenizer."""
    args, codes = meta["var_args"], meta["vae_init_args"]
    assert args["attn_l2_norm"] and args["norm_eps"] == 1e-6
    section = NextScaleConfig(
        width=args["embed_dim"],
        layers=args["depth"],
        heads=args["num_heads"],
        scales=meta["scales"],
        code_dim=codes["z_channels"],
        num_phis=codes["share_quant_resi"],
        vocab_size=codes["vocab_size"],
        num_classes=args["num_classes"],
        shared_adaln=args["shared_aln"],
    )
    return GeneratorConfig(name="next_scale", next_scale=section)


CONFIG_OF: dict[str, Callable[[dict], GeneratorConfig]] = {
    "open_magvit2": magvit2_config,
    "ibq": ibq_config,
    "rar": rar_config,
    "var": var_config,
}


def config_of(folder: str, case: str) -> GeneratorConfig:
    """Our config of a case, by the family of its folder."""
    return CONFIG_OF[folder.split("/")[0]](goldens.meta(folder, case))


# ------------------------------------------------------------------------------------------------ networks and inputs
def seeded_state(folder: str, case: str, network: Generator) -> dict[str, Tensor]:
    """The weights of a case under their published names."""
    meta = goldens.meta(folder, case)
    draw = goldens.seeded_weights(WEIGHTS).seeded_tensor
    rules = layout_of(config_of(folder, case)).rules
    state = {}
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(CODES)}
    for name, tensor in export_state(own, rules).items():
        assert not any(part in name for part in meta["skip"])
        factor = next((factor for part, factor in meta["rescale"] if part in name), 1.0)
        state[name] = draw(name, tensor.shape, meta["seed"]) * factor
    return state


def generator_of(folder: str, case: str) -> Generator:
    """A case with its weights, in evaluation mode."""
    config = config_of(folder, case)
    with without_storage():
        network = build_generator(config)
    state = layout_of(config).import_state(seeded_state(folder, case, network), network.state_dict())
    load_strict(network, state, case, assign=True)
    network = network.to(goldens.DEVICE).eval().requires_grad_(False)
    if "vae_init_args" in goldens.meta(folder, case):
        adopt_seeded_codes(network, goldens.meta(folder, case))
    return network


def adopt_seeded_codes(network: Generator, meta: dict) -> None:
    """Gives a generator of scales the codes of its case's tokenizer, drawn by their published names."""
    draw = goldens.seeded_weights(WEIGHTS).seeded_tensor
    quantizer = copy.deepcopy(network.scale_codes)
    for name, tensor in quantizer.state_dict().items():
        theirs = name.replace("phis.", "quantize.quant_resi.qresi_ls.").replace("codebook", "quantize.embedding.weight")
        factor = next((factor for part, factor in meta["vae_rescale"] if part in theirs), 1.0)
        tensor.copy_(draw(theirs, tensor.shape, meta["vae_seed"]) * factor)
    network.adopt_codes(quantizer)


def tokens_of(io: dict[str, Tensor], prefix: str = "ids") -> Tensor:
    """Tokens (B,N), or (B,N,2) where their two indices are stored apart."""
    if prefix in io:
        return io[prefix]
    return torch.stack([io[f"{prefix}_{part}"] for part in ("pre", "post")], dim=-1)


# ------------------------------------------------------------------------------------------------ outputs
@functools.cache
@torch.inference_mode()
def outputs(folder: str, case: str) -> dict[str, Tensor]:
    """All outputs of a case under the names of its io file, not strided, and of its json; the network is not kept."""
    meta, io = goldens.meta(folder, case), goldens.tensors(folder, case)
    network, tokens = generator_of(folder, case), tokens_of(io)
    labels = torch.tensor(meta["labels"], device=goldens.DEVICE)
    null = torch.full_like(labels, network.null_class)

    # Teacher-forced logits, each index by itself.
    logits = network(labels, tokens)
    without_class = network(null, tokens)
    found = {"loss": next_token_loss(logits, tokens), "n_params": torch.tensor(goldens.parameter_count(network))}
    if tokens.ndim == 3:
        for i, part in enumerate(("pre", "post")):
            size = network.codebook_sizes[i]
            found |= of_logits(f"_{part}", logits[:, :, i, :size])
            found |= of_logits(f"_uncond_{part}", without_class[:, :, i, :size])
            found[f"loss_{part}"] = next_token_loss(logits[:, :, i, :size], tokens[:, :, i])
    elif "orders" in io:
        permuted = in_order(network(labels, tokens, order=io["orders"]), io["orders"])
        found |= of_logits("_raster", logits) | of_logits("_uncond_raster", without_class)
        found |= of_logits("_permuted", permuted) | {"loss_raster": found["loss"]}
        found["loss_permuted"] = next_token_loss(permuted, in_order(tokens, io["orders"]))
    else:
        found |= of_logits("", logits) | of_logits("_uncond", without_class)

    if isinstance(network, NextScale):
        found["var_input"] = network.scale_codes.next_inputs(tokens)
        for name in ("logits", "logits_uncond"):
            found[name] = found[name][:, io["positions"]]
    if any(name.startswith("block0") for name in io):
        first = network.layers[0]
        found["block0_modulation"] = first.modulations(network.class_embedding(labels)).unflatten(1, (6, -1))
        found["block0_out"] = network.features(labels, tokens, 1)
    for tag, run in meta["greedy"].items():
        found |= greedy_run(network, labels, tag, run)
    if isinstance(network, NextScale):
        found |= pictures_of_scales(meta, found["greedy_cfg"])
    return {name: tensor.cpu() for name, tensor in found.items()}


def of_logits(suffix: str, logits: Tensor) -> dict[str, Tensor]:
    """Logits (B,N,V) with their most probable codes and how far ahead these are."""
    best = logits.topk(2, dim=-1)
    return {
        f"logits{suffix}": logits,
        f"argmax{suffix}": best.indices[..., 0],
        f"argmax_margin{suffix}": best.values[..., 0] - best.values[..., 1],
    }


def pictures_of_scales(meta: dict, tokens: Tensor) -> dict[str, Tensor]:
    """Crop and row means of the images, in [0, 1], that the tokenizer of a case decodes from tokens of all scales."""
    codes = baseline_tokenizers.var_config({"init_args": meta["vae_init_args"], "scales": meta["scales"]})
    tokenizer = build_tokenizer(codes, CELL * meta["scales"][-1])
    rules, own = tokenizer_rules(codes), tokenizer.state_dict()
    draw = goldens.seeded_weights(WEIGHTS).seeded_tensor
    state = {}
    for name, tensor in export_state(own, rules).items():
        factor = next((factor for part, factor in meta["vae_rescale"] if part in name), 1.0)
        state[name] = draw(name, tensor.shape, meta["vae_seed"]) * factor
    load_strict(tokenizer, import_state(state, own, rules), "the tokenizer of a case")
    tokenizer = tokenizer.to(goldens.DEVICE).eval()
    images = (tokenizer.decode_indices(tokens).clamp(-1, 1) + 1) / 2
    crop = images[(..., *goldens.window(meta["crop"]))]
    return {"greedy_image_crop": crop, "greedy_image_row_mean": images.mean(dim=3)}


class EnoughError(Exception):
    """Ends a sampling."""


def greedy_run(network: Generator, labels: Tensor, tag: str, run: dict) -> dict[str, Tensor]:
    """The first steps of our sampler, always with the most probable code; see `guidance_of`."""
    count = len(network.codebook_sizes)
    log_p: list[Tensor] = []
    drawn: list[Tensor] = []

    def draw(p: Tensor, position: int) -> Tensor:
        if position == count * run.get("steps", network.num_tokens):
            raise EnoughError
        log_p.append(p.log())
        drawn.append(greedy(p, position))
        return drawn[-1]

    temperature = run.get("temperature", 1.0)
    temperature = tuple(temperature) if isinstance(temperature, list) else temperature
    with suppress(EnoughError):
        filters = {"top_k": 900, "top_p": 0.96} if isinstance(network, NextScale) else {}
        network.sample(labels, draw=draw, guidance=guidance_of(run, network), temperature=temperature, **filters)

    best = [values.topk(2, dim=-1).values for values in log_p]
    margins = torch.stack([values[:, 0] - values[:, 1] for values in best], dim=1).clamp_max(LARGEST_MARGIN)
    clipped = [values.clamp_min(LOWEST_LOG_P) for values in log_p]
    if count == 1:
        return {
            f"greedy_{tag}": torch.stack(drawn, dim=1),
            f"greedy_{tag}_margin": margins,
            f"greedy_{tag}_logp_first": clipped[0],
            f"greedy_{tag}_logp_last": clipped[-1],
        }
    return {
        f"greedy_{tag}_pre": torch.stack(drawn[::2], dim=1),
        f"greedy_{tag}_post": torch.stack(drawn[1::2], dim=1),
        f"greedy_{tag}_margin": margins.unflatten(1, (-1, count)),
        f"greedy_{tag}_logp_first_pre": clipped[0],
        f"greedy_{tag}_logp_last_post": clipped[-1],
    }


def guidance_of(run: dict, network: Generator) -> Guidance:
    """The guidance of a greedy run, which for scales rises from 0 at the first one.

    A scale of 0 stands for none, and 1.000001 for one that the published code runs.
    """
    scale = run["scale"]
    if isinstance(network, NextScale):
        return Guidance(scale=1 + scale, schedule="linear", first_token="schedule")
    if isinstance(scale, list):
        scale = tuple(scale)
        return UNGUIDED if max(scale) == 0 else Guidance(scale=scale)
    if scale == 0:
        return UNGUIDED
    if "power" in run:
        return Guidance(scale=scale, schedule="power_cosine", power=run["power"])
    return Guidance(scale=scale)
