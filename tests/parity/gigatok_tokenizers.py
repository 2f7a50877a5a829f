"""GigaTok tokenizers from golden cases, and their outputs in the layout of the goldens."""

import functools
import math
import re
from pathlib import Path

import goldens
import torch
from stages import ModelSection, Outputs, code_margins
from torch import Tensor

from engine.checkpoint.weights import load_strict
from engine.config import load_sections
from engine.data.images import to_float, to_uint8
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.hybrid import HybridConfig, HybridTokenizer
from tokenizer.models.query_transformer import TransformerConfig
from tokenizer.models.registry import ModelConfig, QuantizerConfig, build_tokenizer
from tokenizer.published.layout import import_state
from tokenizer.published.registry import layout_rules
from tokenizer.quantizers.base import Quantized
from tokenizer.quantizers.vq import VQConfig

TINY, FULL = "gigatok/tiny", "gigatok/real_seeded"
CONFIGS = Path(__file__).parents[2] / "configs" / "vq"
SIZE_OF_LETTERS = {"XXL": "xxl", "XL": "xl", "L": "large", "B": "base", "S": "small"}
FULL_NAME = re.compile(r"VQ_(XXL|XL|L|B|S)(XXL|XL|L|B|S)\d+(_dino_disc|_train_new|_2d)?")
CLASSES = ("VQVitModelPlus", "VQVitModel2DPlus")
BLOCKS = {"TransformerLayer": "vit", "TransformerDecoderLayer": "qformer"}
ONLY_BUILT_WITH = {  # released options of which one value exists here
    "adaptive_gn": True,
    "d2s_up": True,
    "use_attn": False,
    "use_qk_norm": False,
    "dropout_p": 0.0,
    "fea_rec_loss_type": "mse",
    "multi_level_query_init": True,
    "last_level_2d_query_init": False,
    "multi_level_2d_query_init": False,
}


def tiny_cases() -> list[str]:
    """The tokenizers of the tiny set."""
    return [c for c in goldens.cases(TINY, "tok") if goldens.meta(TINY, c).get("model_cls") in CLASSES]


def full_cases() -> list[str]:
    """The tokenizers of the full-size set."""
    return [c for c in goldens.cases(FULL, "VQ_") if FULL_NAME.fullmatch(c)]


def tiny_weights(case: str) -> dict[str, Tensor]:
    """The published state dict of a tiny case; large parts may stand in a file that all cases share."""
    shared = (goldens.ROOT / TINY / "tok_shared.weights.safetensors").exists()
    return {
        **(goldens.tensors(TINY, "tok_shared", "weights") if shared else {}),
        **goldens.tensors(TINY, case, "weights"),
    }


def tiny_config(case: str, rotation: bool | None = None) -> ModelConfig:
    """Our config of a tiny case; `rotation` replaces the case's own choice."""
    args, sizes = goldens.meta(TINY, case)["init_args"], goldens.meta(TINY, case)["tiny_overrides"]
    other = {k: args[k] for k, built in ONLY_BUILT_WITH.items() if args.get(k, built) != built}
    assert not other and args["encoder_ch_mult"] == args["decoder_ch_mult"], f"{case} needs options not built: {other}"
    layout = "1d" if goldens.meta(TINY, case)["model_cls"] == "VQVitModelPlus" else "2d"
    hybrid = HybridConfig(
        layout=layout,
        block=BLOCKS[args.get("transformer_layer_type", "TransformerDecoderLayer")] if layout == "2d" else None,
        encoder=TransformerConfig(**sizes["encoder"]),
        decoder=TransformerConfig(**sizes["decoder"]),
        num_tokens=args["num_latent_tokens"],
        z_channels=args["z_channels"],
        cnn=CNNConfig(base_channels=sizes["cnn_base_channels"], channel_multipliers=args["encoder_ch_mult"]),
        semantic_layer=args.get("distill_depth"),
        semantic_dim=args.get("out_inner_dim", 768),
    )
    vq = VQConfig(
        codebook_size=args["codebook_size"],
        codebook_dim=args["codebook_embed_dim"],
        l2_norm=args["codebook_l2_norm"],
        rotation_trick=args["rot"] if rotation is None else rotation,
    )
    return ModelConfig(hybrid=hybrid, quantizer=QuantizerConfig(vq=vq))


def tiny_tokenizer(case: str, rotation: bool | None = None) -> HybridTokenizer:
    """A tiny case with its weights, in evaluation mode."""
    image_size = goldens.meta(TINY, case)["tiny_overrides"]["image_size"]
    config = tiny_config(case, rotation)
    tokenizer = build_tokenizer(config, image_size)
    load_strict(tokenizer, import_state(tiny_weights(case), tokenizer.state_dict(), layout_rules(config)), case)
    return tokenizer.to(goldens.DEVICE).eval()


def full_config(case: str) -> ModelConfig:
    """The shipped config of a full-size case where there is one, else the size table."""
    path = CONFIGS / f"{case}.yaml"
    if path.exists():
        return load_sections(ModelSection, path).model
    *letters, kind = FULL_NAME.fullmatch(case).groups()
    encoder, decoder = (TransformerConfig(size=SIZE_OF_LETTERS[s]) for s in letters)
    layout, block = ("2d", "qformer" if case == "VQ_SS256_2d" else "vit") if kind == "_2d" else ("1d", None)
    return ModelConfig(hybrid=HybridConfig(layout=layout, block=block, encoder=encoder, decoder=decoder))


def _sequence(tokens: Tensor, layout: str) -> Tensor:
    """(B,N,C) -> the goldens' (B,C,1,N), or (B,C,h,w) in the 2D layout."""
    rows = 1 if layout == "1d" else math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (rows, -1))


def _encoded(tokenizer: HybridTokenizer, images: Tensor, layout: str) -> tuple[dict[str, Tensor], Quantized]:
    """Every stage of the encoder, and what the quantizer makes of the last."""
    grid_features = tokenizer.encode_features(images)
    tokens = tokenizer.query_encoder.features(grid_features)
    latents = tokenizer.query_encoder.out_proj(tokens)
    z = tokenizer.quant_proj(latents)
    quantized = tokenizer.quantizer(z)
    outputs = {
        "cnn_encoder_out": grid_features,
        "enc_feat_width": _sequence(tokens, layout),
        "enc_feat_z_channels": _sequence(latents, layout),
        "enc_feat_codebook_dim": _sequence(z, layout),
        "codes": quantized.indices.flatten(),
    }
    return outputs, quantized


@functools.cache
@torch.no_grad()
def tiny_outputs(case: str) -> Outputs:
    """All evaluation outputs of a tiny case."""
    meta, tokenizer = goldens.meta(TINY, case), tiny_tokenizer(case)
    images = to_float(goldens.tensors(TINY, case)["image_u8"])
    layout = tiny_config(case).hybrid.layout
    outputs, _ = _encoded(tokenizer, images, layout)
    quantized = tokenizer.encode(images)
    latents = tokenizer.post_quant_proj(quantized.z_q)
    decoded, semantic = tokenizer.query_decoder(latents, semantic=True)
    image = tokenizer.decode_indices(quantized.indices)
    outputs |= {
        "codes": quantized.indices.flatten(),
        "quant_from_encode": _sequence(quantized.z_q, layout),
        "quant_from_codebook_entry": _sequence(tokenizer.quantizer.decode_indices(quantized.indices), layout),
        "rec_spatial": decoded,
        "inner_distill_feat": semantic,
        "decoder_probe_feat": tokenizer.query_decoder.features(latents, tokenizer.query_decoder.semantic_layer)[0],
        "rec_from_decode_code": image,
        "rec_u8_nhwc": to_uint8(image).permute(0, 2, 3, 1),
        "rec_row_mean": image.mean(dim=3),
    }
    if "crop" in meta:
        outputs["rec_from_decode_code_crop"] = image[(..., *goldens.window(meta["crop"]))]
    facts = {
        "n_params": goldens.parameter_count(tokenizer),
        "n_unique_codes": len(quantized.indices.unique()),
        "rec_full_mean": image.mean().item(),
        "rec_full_std": image.std().item(),
        "rec_full_abs_sum": image.abs().sum().item(),
    }
    return Outputs(outputs, facts)


@functools.cache
@torch.inference_mode()
def full_outputs(case: str) -> Outputs:
    """The outputs of a full-size tokenizer; only what the goldens hold stays in memory."""
    meta, io, config = goldens.meta(FULL, case), goldens.tensors(FULL, case), full_config(case)
    batch, _, grid, _ = io["cnn_encoder_out"].shape
    size = grid * config.hybrid.cnn.factor
    images_u8 = goldens.seeded_weights("gigatok").seeded_image_u8(meta["image_seed"], batch, size)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config, size)
    tokenizer.to_empty(device=goldens.DEVICE).eval()
    goldens.fill_seeded(tokenizer, layout_rules(config), "gigatok", meta["seed"])
    outputs, quantized = _encoded(tokenizer, to_float(images_u8.to(goldens.DEVICE)), config.hybrid.layout)
    z = outputs["enc_feat_codebook_dim"].flatten(2).transpose(1, 2)
    decoded, semantic = tokenizer.query_decoder(tokenizer.post_quant_proj(quantized.z_q), semantic=True)
    image = tokenizer.decode_indices(quantized.indices)
    outputs |= {
        "codes_margin_per_token": code_margins(tokenizer, z),
        "rec_spatial": decoded,
        "rec_crop": image[(..., *goldens.window(meta["crop"]))],
        "rec_row_mean": image.mean(dim=3),
        "inner_distill_feat": semantic,
    }
    facts = {
        "n_params": goldens.parameter_count(tokenizer),
        "n_unique_codes": len(quantized.indices.unique()),
        "image_sum": int(images_u8.long().sum()),
    }
    return Outputs(outputs, facts)
