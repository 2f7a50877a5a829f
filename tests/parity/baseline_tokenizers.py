"""Tokenizers of the published baselines from golden cases, and their outputs under the names of the goldens.

A part of a golden folder, such as `ibq`, holds `tiny_seeded` and `real_seeded`; a case is a tokenizer if its outputs
have latents. The json of a case tells the family's sizes, how its weights are drawn, and what its image is.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import goldens
import numpy as np
import torch
from torch import Tensor

from engine.checkpoint.weights import load_strict
from engine.data.images import to_float
from tokenizer.models.base import Tokenizer
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.llamagen import LlamaGenConfig
from tokenizer.models.maskgit_vq import MaskGITVQConfig
from tokenizer.models.registry import ModelConfig, QuantizerConfig, build_tokenizer
from tokenizer.models.var_vae import VARVAEConfig
from tokenizer.models.wetok import WeTokConfig
from tokenizer.published.layout import export_state, import_state
from tokenizer.published.registry import layout_rules
from tokenizer.quantizers.gq import GQConfig, GroupLFQ
from tokenizer.quantizers.ibq import IBQ, IBQConfig
from tokenizer.quantizers.multi_scale import MultiScaleConfig, MultiScaleVQ
from tokenizer.quantizers.vq import VQConfig

SETS = ("tiny_seeded", "real_seeded")
WEIGHTS = "llamagen"  # whose generator of seeded weights and images is that of these goldens too
NEAR_TIE = 1e-4  # a code whose margin is below this may be another one
VAR_MULTIPLIERS = [1, 1, 2, 2, 4]  # VAR's code has no option for them


@dataclass
class Outputs:
    """What our code gives for a case, under the names of its io file; and numbers of its json."""

    tensors: dict[str, Tensor]
    facts: dict[str, float]


def cases(which: str) -> list[tuple[str, str]]:
    """(folder, case) of all tokenizers of a set."""
    folders = [f"{part}/{which}" for part in goldens.BASELINES]
    return [
        (folder, case)
        for folder in folders
        for case in goldens.cases(folder, "")
        if "latents" in goldens.names(folder, case)
    ]


# ------------------------------------------------------------------------------------------------ configs
def model_config(folder: str, case: str) -> ModelConfig:
    """Our config of a case, by the family of its folder."""
    return CONFIG_OF[folder.split("/")[0]](goldens.meta(folder, case))


def magvit2_config(meta: dict) -> ModelConfig:
    """WeTok's CNN with one group of bits."""
    sizes = meta["init_args"]["ddconfig"]
    blocks = sizes["num_res_blocks"]
    cnn = CNNConfig(
        base_channels=sizes["ch"],
        channel_multipliers=sizes["ch_mult"],
        encoder_res_blocks=blocks,
        decoder_res_blocks=blocks,
        mid_blocks=blocks,
    )
    gq = GQConfig(num_groups=1, group_dim=sizes["z_channels"])
    return ModelConfig(name="wetok", wetok=WeTokConfig(cnn=cnn), quantizer=QuantizerConfig(name="gq", gq=gq))


def ibq_config(meta: dict) -> ModelConfig:
    """LlamaGen's CNN with index backpropagation."""
    args = meta["init_args"]
    sizes = args["ddconfig"]
    coarsest = sizes["resolution"] // 2 ** (len(sizes["ch_mult"]) - 1)
    assert sizes["attn_resolutions"] == [coarsest] and not args["l2_normalize"] and not sizes["dropout"]
    cnn = CNNConfig(
        base_channels=sizes["ch"],
        channel_multipliers=sizes["ch_mult"],
        encoder_res_blocks=sizes["num_res_blocks"],
        decoder_res_blocks=sizes["num_res_blocks"] + 1,
    )
    ibq = IBQConfig(codebook_size=args["n_embed"], codebook_dim=args["embed_dim"])
    llamagen = LlamaGenConfig(z_channels=sizes["z_channels"], cnn=cnn)
    return ModelConfig(name="llamagen", llamagen=llamagen, quantizer=QuantizerConfig(name="ibq", ibq=ibq))


def maskgit_config(meta: dict) -> ModelConfig:
    """MaskGIT-VQ, which RAR generates codes of."""
    sizes = meta["structure"]
    blocks = sizes["num_res_blocks"]
    cnn = CNNConfig(
        base_channels=sizes["hidden_channels"],
        channel_multipliers=sizes["channel_mult"],
        encoder_res_blocks=blocks,
        decoder_res_blocks=blocks,
        mid_blocks=blocks,
    )
    codebook_size, codebook_dim = meta["codebook"]
    assert codebook_dim == sizes["z_channels"]
    vq = VQConfig(codebook_size=codebook_size, codebook_dim=codebook_dim, l2_norm=False, rotation_trick=False)
    return ModelConfig(
        name="maskgit_vq", maskgit_vq=MaskGITVQConfig(cnn=cnn), quantizer=QuantizerConfig(name="vq", vq=vq)
    )


def var_config(meta: dict) -> ModelConfig:
    """VAR's tokenizer."""
    args = meta["init_args"]
    cnn = CNNConfig(base_channels=args["ch"], channel_multipliers=VAR_MULTIPLIERS)
    multi_scale = MultiScaleConfig(
        scales=meta["scales"],
        codebook_size=args["vocab_size"],
        codebook_dim=args["z_channels"],
        num_phis=args["share_quant_resi"],
    )
    return ModelConfig(
        name="var_vae",
        var_vae=VARVAEConfig(z_channels=args["z_channels"], cnn=cnn),
        quantizer=QuantizerConfig(name="multi_scale", multi_scale=multi_scale),
    )


CONFIG_OF: dict[str, Callable[[dict], ModelConfig]] = {
    "open_magvit2": magvit2_config,
    "ibq": ibq_config,
    "rar": maskgit_config,
    "var": var_config,
}


# ------------------------------------------------------------------------------------------------ networks and images
def seeded_state(folder: str, case: str, network: Tokenizer) -> dict[str, Tensor]:
    """The weights of a case under their published names."""
    meta = goldens.meta(folder, case)
    draw = goldens.seeded_weights(WEIGHTS).seeded_tensor
    state = {}
    for name, tensor in export_state(network.state_dict(), layout_rules(model_config(folder, case))).items():
        factor = next((factor for part, factor in meta["rescale"] if part in name), 1.0)
        state[name] = draw(name, tensor.shape, meta["seed"]) * factor
    return state


def tokenizer_of(folder: str, case: str) -> Tokenizer:
    """A case with its weights, in evaluation mode; its size is that of the case's image, or the nearest square one."""
    config = model_config(folder, case)
    network = build_tokenizer(config, goldens.meta(folder, case)["image_size"])
    rules = layout_rules(config)
    load_strict(network, import_state(seeded_state(folder, case, network), network.state_dict(), rules), case)
    return network.to(goldens.DEVICE).eval().requires_grad_(False)


def image_of(meta: dict) -> Tensor:
    """The image of a case, uint8 (1,3,H,W), which need not be square."""
    image = goldens.seeded_weights(WEIGHTS).seeded_image_u8(meta["image_seed"], 1, meta["image_size"])
    height, width = meta.get("image_rect", image.shape[2:])
    return image[:, :, :height, :width].to(goldens.DEVICE)


# ------------------------------------------------------------------------------------------------ outputs
def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B,h*w,C) -> (B,C,h,w)."""
    return tokens.mT.unflatten(2, grid)


@functools.cache
@torch.inference_mode()
def outputs(folder: str, case: str) -> Outputs:
    """All outputs of a case; the network itself is not kept."""
    meta, tokenizer = goldens.meta(folder, case), tokenizer_of(folder, case)
    image = image_of(meta)
    features = tokenizer.encode_features(to_float(image))
    grid = tuple(features.shape[2:])
    z = tokenizer.latents(features)
    quantized = tokenizer.quantizer(z)
    indices = quantized.indices
    square = None if tokenizer.num_tokens != tokenizer.num_cells else grid

    tensors = {
        "cnn_encoder_out": features,
        "latents": _as_map(z, grid),
        "indices": indices.flatten(),
        "codes": indices,
        "codes_margin_per_token": margins(tokenizer, z).flatten(),
        "quant": _as_map(quantized.z_q, grid),
        "fhat": _as_map(tokenizer.quantizer.decode_indices(indices), grid),
        "signs": (_as_map(quantized.z_q, grid) > 0).to(torch.int8),
        **pictures("rec", tokenizer.decode_indices(indices, square), meta),
    }
    if "factorized" in meta:
        low_bits, _ = meta["factorized"]["bits"]
        tensors["indices_pre"] = tensors["indices"] % 2**low_bits
        tensors["indices_post"] = tensors["indices"] // 2**low_bits
    if "given_codes_rule" in meta:
        given = given_codes(meta)
        tensors["given_codes"] = given
        tensors |= pictures("dec_given", tokenizer.decode_indices(given.flatten(1), tuple(given.shape[1:])), meta)
    if isinstance(tokenizer.quantizer, MultiScaleVQ):
        tensors["indices"] = indices
        tensors["var_input"] = tokenizer.quantizer.next_inputs(indices)
        sums = tokenizer.quantizer.sums_of(indices)
        tensors |= {f"fhat_scale_{number}": total for number, total in enumerate(sums, start=1)}
    facts = {
        "n_params": goldens.parameter_count(tokenizer),
        "n_unique_codes": len(indices.unique()),
        "n_tokens": indices.shape[1],
        "image_sum": int(image.long().sum()),
    }
    return Outputs({name: tensor.cpu() for name, tensor in tensors.items()}, facts)


def pictures(name: str, image: Tensor, meta: dict) -> dict[str, Tensor]:
    """Crop and row means of a decoded image, in the range of the case's input."""
    if "range 0..1" in meta["input"]:
        image = (image + 1) / 2
    return {f"{name}_crop": image[(..., *goldens.window(meta["crop"]))], f"{name}_row_mean": image.mean(dim=3)}


def given_codes(meta: dict) -> Tensor:
    """Codes (1,h,w) that were decoded by themselves, by the rule `numpy RandomState(seed+2).randint(0,256,(1,4,4))`."""
    rule = r"RandomState\(seed\+(\d+)\)\.randint\((\d+),\s*(\d+),\s*\((\d+),\s*(\d+),\s*(\d+)\)\)"
    offset, low, high, *shape = map(int, re.search(rule, meta["given_codes_rule"]).groups())
    codes = np.random.RandomState(meta["seed"] + offset).randint(low, high, shape)
    return torch.from_numpy(codes).to(goldens.DEVICE)


def margins(tokenizer: Tokenizer, z: Tensor) -> Tensor:
    """How much farther the second choice of each token is than the first (B,T), by what the quantizer compares."""
    quantizer = tokenizer.quantizer
    if isinstance(quantizer, GroupLFQ):
        return z.abs().amin(-1)
    codes = quantizer.code_vectors(torch.arange(quantizer.codebook_size, device=z.device)[None])[0].double()
    if isinstance(quantizer, IBQ):
        distances = -(z.double() @ codes.T)
    else:
        compared = quantizer.rests_of(z) if isinstance(quantizer, MultiScaleVQ) else z
        distances = torch.cdist(compared.double(), codes).square()
    nearest = distances.topk(2, largest=False).values
    return (nearest[..., 1] - nearest[..., 0]).float()
