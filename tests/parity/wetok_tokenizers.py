"""WeTok's tokenizers from golden cases: `tokenizer*.json` of wetok/tiny, sizes and weights from the files."""

import dataclasses

import goldens
import torch
from torch import Tensor

from engine.checkpoint.weights import load_strict
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.registry import ModelConfig, QuantizerConfig, build_tokenizer
from tokenizer.models.wetok import WeTokConfig, WeTokTokenizer
from tokenizer.published.layout import import_state
from tokenizer.published.registry import layout_rules
from tokenizer.quantizers.gq import GQConfig

TINY = "wetok/tiny"
TOLERANCE = 1e-4  # absolute


def tiny_cases() -> list[str]:
    return goldens.cases(TINY, "tokenizer")


def full_cases() -> list[str]:
    """There is no full-size set; the manifests have the full sizes."""
    return []


def tiny_config(case: str, generative: bool = False) -> ModelConfig:
    """Our config of a case."""
    meta = goldens.meta(TINY, case)
    sizes, groups = meta["ddconfig"], meta["num_codebooks"]
    assert sizes["in_channels"] == sizes["out_ch"] == 3 and sizes["z_channels"] == meta["embed_dim"]
    blocks = sizes["num_res_blocks"]
    cnn = CNNConfig(
        base_channels=sizes["ch"],
        channel_multipliers=sizes["ch_mult"],
        encoder_res_blocks=blocks,
        decoder_res_blocks=blocks,
        mid_blocks=blocks,
    )
    gq = GQConfig(num_groups=groups, group_dim=meta["n_embed"].bit_length() - 1)
    assert gq.num_groups * gq.group_dim == meta["embed_dim"] and 2**gq.group_dim == meta["n_embed"]
    wetok = WeTokConfig(cnn=cnn, generative_decoder=generative)
    return ModelConfig(name="wetok", wetok=wetok, quantizer=QuantizerConfig(name="gq", gq=gq))


def weights(case: str, generative: bool = False) -> dict[str, Tensor]:
    """The published state dict of encoder and decoder; that of the generative decoder has another first convolution."""
    loaded = {k: v for k, v in goldens.tensors(TINY, case, "weights").items() if k.startswith(("encoder", "decoder"))}
    if generative:
        loaded["decoder.conv_in.weight"] = goldens.tensors(TINY, case)["gd/conv_in_weight"]
    return loaded


def tiny_tokenizer(case: str, generative: bool = False, **changes) -> WeTokTokenizer:
    """A case with its weights, in evaluation mode; `changes` are of the quantizer."""
    config = tiny_config(case, generative)
    config.quantizer.gq = dataclasses.replace(config.quantizer.gq, **changes)
    tokenizer = build_tokenizer(config, 2 * config.wetok.cnn.factor)
    load_strict(tokenizer, import_state(weights(case, generative), tokenizer.state_dict(), layout_rules(config)), case)
    return tokenizer.to(goldens.DEVICE).eval()


def as_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B,h*w,D) -> (B,D,h,w), the grid of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def activations(tokenizer: WeTokTokenizer, images: Tensor) -> dict[str, Tensor]:
    """Output of every module that has a published name, by that name, of one pass over images."""
    levels = len(tokenizer.config.cnn.channel_multipliers)
    seen: dict[str, Tensor] = {}

    def name_of(name: str) -> str:
        for part, theirs in (("encoder.conv_blocks.", "encoder.down."), (".res.", ".block."), (".mid.", ".mid_block.")):
            name = name.replace(part, theirs)
        for ours in range(levels):
            for part, theirs in (("conv_blocks", "up"), ("adaptive", "adaptive")):
                prefix = f"decoder.{part}.{ours}"
                if name == prefix or name.startswith(prefix + "."):
                    return f"decoder.{theirs}.{levels - 1 - ours}" + name.removeprefix(prefix)
        return name

    named = {module: name_of(name) for name, module in tokenizer.named_modules() if name.startswith(("enc", "dec"))}
    hooks = [m.register_forward_hook(lambda m, i, out: seen.setdefault(named[m], out)) for m in named]
    with torch.no_grad():
        tokenizer(images)
    for hook in hooks:
        hook.remove()
    return seen
