"""LlamaGen's tokenizers from golden cases, and their outputs in the layout of the goldens."""

import functools
import re
from pathlib import Path

import goldens
import torch
from stages import ModelSection, Outputs, code_margins
from torch import Tensor

from engine.checkpoint.weights import load_strict
from engine.config import load_sections
from engine.data.images import resize_for_evaluation, to_float
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.llamagen import LlamaGenConfig, LlamaGenTokenizer
from tokenizer.models.registry import ModelConfig, QuantizerConfig, build_tokenizer
from tokenizer.published.layout import import_state
from tokenizer.published.registry import layout_rules
from tokenizer.quantizers.base import USAGE_WINDOW, Quantized
from tokenizer.quantizers.vq import VQConfig

TINY, FULL = "llamagen/tiny", "llamagen/real_seeded"
CONFIGS = Path(__file__).parents[2] / "configs" / "llamagen"
FULL_NAME = re.compile(r"VQ-(\d+)_(\d+)")  # factor between image and grid, image size


def tiny_cases() -> list[str]:
    """The tokenizers of the tiny set."""
    return goldens.cases(TINY, "tok")


def full_cases() -> list[str]:
    """The tokenizers of the full-size set."""
    return [c for c in goldens.cases(FULL, "VQ-") if FULL_NAME.fullmatch(c)]


def tiny_weights(case: str) -> dict[str, Tensor]:
    """The published state dict of a tiny case; the ring of recent codes is zero and left out of the file."""
    return {"quantize.codebook_used": torch.zeros(USAGE_WINDOW), **goldens.tensors(TINY, case, "weights")}


def tiny_config(case: str, rotation: bool = False) -> ModelConfig:
    """Our config of a tiny case."""
    args, sizes = goldens.meta(TINY, case)["init_args"], goldens.meta(TINY, case)["tiny_overrides"]
    assert args["encoder_ch_mult"] == args["decoder_ch_mult"] and not args["dropout_p"] and not rotation
    cnn = CNNConfig(base_channels=sizes["cnn_base_channels"], channel_multipliers=args["encoder_ch_mult"])
    vq = VQConfig(
        codebook_size=args["codebook_size"],
        codebook_dim=args["codebook_embed_dim"],
        l2_norm=args["codebook_l2_norm"],
        rotation_trick=False,
    )
    llamagen = LlamaGenConfig(z_channels=args["z_channels"], cnn=cnn)
    return ModelConfig(name="llamagen", llamagen=llamagen, quantizer=QuantizerConfig(vq=vq))


def tiny_tokenizer(case: str, rotation: bool = False) -> LlamaGenTokenizer:
    """A tiny case with its weights, in evaluation mode."""
    config = tiny_config(case, rotation)
    tokenizer = build_tokenizer(config, config.llamagen.cnn.factor)
    load_strict(tokenizer, import_state(tiny_weights(case), tokenizer.state_dict(), layout_rules(config)), case)
    return tokenizer.to(goldens.DEVICE).eval()


def full_config(case: str) -> ModelConfig:
    """The shipped config of a full-size case."""
    return load_sections(ModelSection, CONFIGS / f"VQ_{FULL_NAME.fullmatch(case)[1]}.yaml").model


def _as_map(tokens: Tensor, features: Tensor) -> Tensor:
    """(B,h*w,C) -> (B,C,h,w), the grid of `features`."""
    return tokens.transpose(1, 2).unflatten(2, features.shape[2:])


def _passed(tokenizer: LlamaGenTokenizer, images: Tensor) -> tuple[dict[str, Tensor], Quantized]:
    """Every stage from images (B,3,H,W) to the image that their codes decode to."""
    features, quantized = tokenizer.encode_features(images), tokenizer.encode(images)
    rows = tokenizer.quantizer.decode_indices(quantized.indices)
    outputs = {
        "cnn_encoder_out": features,
        "enc_feat_codebook_dim": _as_map(tokenizer.latents(features), features),
        "codes": quantized.indices.flatten(),
        "quant_from_encode": _as_map(quantized.z_q, features),
        "quant_from_codebook_entry": _as_map(rows, features),
        "rec_from_decode_code": tokenizer.decode_indices(quantized.indices, tuple(features.shape[2:])),
    }
    return outputs, quantized


@functools.cache
@torch.no_grad()
def tiny_outputs(case: str) -> Outputs:
    """All evaluation outputs of a tiny case: of its square images, and of `second_` ones that need not be square."""
    io, tokenizer = goldens.tensors(TINY, case), tiny_tokenizer(case)
    outputs, facts = {}, {"n_params": goldens.parameter_count(tokenizer)}
    for prefix in (name.removesuffix("image_u8") for name in io if name.endswith("image_u8")):
        passed, quantized = _passed(tokenizer, to_float(io[f"{prefix}image_u8"]))
        outputs |= {prefix + name: tensor for name, tensor in passed.items()}
        facts[f"{prefix}n_unique_codes"] = len(quantized.indices.unique())
    return Outputs(outputs, facts)


@functools.cache
@torch.inference_mode()
def full_outputs(case: str) -> Outputs:
    """The outputs of a full-size tokenizer; the network itself is not kept."""
    meta, config = goldens.meta(FULL, case), full_config(case)
    factor, size = map(int, FULL_NAME.fullmatch(case).groups())
    io = goldens.tensors(FULL, case)
    batch = len(io["codes"]) // (size // factor) ** 2
    images_u8 = goldens.seeded_weights("llamagen").seeded_image_u8(meta["image_seed"], batch, size)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config, size)
    tokenizer.to_empty(device=goldens.DEVICE).eval()
    goldens.fill_seeded(tokenizer, layout_rules(config), "llamagen", meta["seed"])
    outputs, quantized = _passed(tokenizer, to_float(images_u8.to(goldens.DEVICE)))
    image, z = outputs["rec_from_decode_code"], outputs["enc_feat_codebook_dim"]
    outputs |= {
        "codes_margin_per_token": code_margins(tokenizer, z.flatten(2).transpose(1, 2)),
        "rec_crop": image[(..., *goldens.window(meta["crop"]))],
        "rec_row_mean": image.mean(dim=3),
    }
    outputs |= {name: _evaluated(image, name, meta["crop"]) for name in io if re.search("eval|256", name)}
    facts = {
        "n_params": goldens.parameter_count(tokenizer),
        "n_unique_codes": len(quantized.indices.unique()),
        "image_sum": int(images_u8.long().sum()),
        "encoder_out": outputs["cnn_encoder_out"].std().item(),
        "quant_conv_out": z.std().item(),
        "rec": image.std().item(),
    }
    return Outputs(outputs, facts)


def _evaluated(image: Tensor, name: str, note: str) -> Tensor:
    """The image at the size of evaluation, or the crop or row means that `name` asks for.

    `note` tells: `rows ... of decode_code(codes); eval256: bicubic to 256, rows 64:128, columns 96:160`.
    """
    size, crop = re.search(r"eval(\d+)(.*)", note).groups()
    resized = resize_for_evaluation(image, int(size))
    if "row_mean" in name:
        return resized.mean(dim=3)
    return resized[(..., *goldens.window(crop))] if "crop" in name else resized
