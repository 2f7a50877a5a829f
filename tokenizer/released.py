"""Names and layouts of published tokenizer checkpoints (GigaTok, LlamaGen), both ways.

A rule is (our name, published name, layout). Layouts: `same`; `conv1x1`: our linear weight (O,I) is their 1x1
convolution (O,I,1,1); `table`: our (N,C) is their (N,1,C); `codes`: our int32 ring is their float32 one;
`own`: state of our training that no published file has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint import CheckpointError
from engine.config import ConfigError, logger
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.registry import ModelConfig
from tokenizer.quantizers.group_lfq import GQConfig

Rule = tuple[str, str, str]

CODE_PATH: tuple[Rule, ...] = (  # from features to codes and back, in all families
    (r"quantizer\.codebook", "quantize.embedding.weight", "same"),
    (r"quantizer\.recent_indices", "quantize.codebook_used", "codes"),
    (r"quant_proj\.weight", "quant_conv.weight", "conv1x1"),
    (r"quant_proj\.bias", "quant_conv.bias", "same"),
    (r"post_quant_proj\.weight", "post_quant_conv.weight", "conv1x1"),
    (r"post_quant_proj\.bias", "post_quant_conv.bias", "same"),
    (r"quantizer\.recent_latents", "", "own"),
)
CNN: Rule = (r"(encoder|decoder)\.(.*)", r"\1.\2", "same")


def _hybrid(encoder: str, decoder: str) -> tuple[Rule, ...]:
    """GigaTok's names, with those of the two transformers of a layout."""
    return (
        (r"query_encoder\.positional_embedding", f"{encoder}.positional_embedding", "table"),
        (r"query_encoder\.latent_positional_embedding", f"{encoder}.latent_token_positional_embedding", "table"),
        (r"query_encoder\.embed\.(.*)", rf"{encoder}.encoder_embed.\1", "same"),
        (r"query_encoder\.out_proj\.weight", f"{encoder}.conv_out.weight", "conv1x1"),
        (r"query_encoder\.out_proj\.bias", f"{encoder}.conv_out.bias", "same"),
        (r"query_encoder\.(.*)", rf"{encoder}.\1", "same"),
        (r"query_decoder\.positional_embedding", f"{decoder}.positional_embedding", "table"),
        (r"query_decoder\.latent_positional_embedding", f"{decoder}.latent_token_positional_embedding", "table"),
        (r"query_decoder\.embed\.(.*)", rf"{decoder}.decoder_embed.\1", "same"),
        (r"query_decoder\.semantic_head\.(.*)", rf"{decoder}.distill_mlp.\1", "same"),
        (r"query_decoder\.(.*)", rf"{decoder}.\1", "same"),
        *CODE_PATH,
        CNN,
    )


SEMANTIC_HEADS = ("s1to2decoder.distill_mlp.4.weight", "s2ddecoder.distill_mlp.4.weight")  # rows = width of the teacher

HYBRID_1D = _hybrid("s2to1encoder", "s1to2decoder")
HYBRID_2D = _hybrid("s2dencoder", "s2ddecoder")
LLAMAGEN: tuple[Rule, ...] = (*CODE_PATH, CNN)


def _wetok(levels: int) -> tuple[Rule, ...]:
    """WeTok's names; its decoder counts levels from the finest, ours runs from the coarsest."""
    rules: list[Rule] = []
    for level in range(levels):
        ours = levels - 1 - level
        rules += [
            (rf"decoder\.adaptive\.{ours}\.(.*)", rf"decoder.adaptive.{level}.\1", "same"),
            (rf"decoder\.conv_blocks\.{ours}\.res\.(.*)", rf"decoder.up.{level}.block.\1", "same"),
            (rf"decoder\.conv_blocks\.{ours}\.upsample\.(.*)", rf"decoder.up.{level}.upsample.\1", "same"),
        ]
    return (
        *rules,
        (r"encoder\.conv_blocks\.(\d+)\.res\.(.*)", r"encoder.down.\1.block.\2", "same"),
        (r"encoder\.conv_blocks\.(\d+)\.downsample\.conv\.(.*)", r"encoder.down.\1.downsample.\2", "same"),
        (r"(encoder|decoder)\.mid\.(.*)", r"\1.mid_block.\2", "same"),
        (r"(encoder|decoder)\.((?:conv|norm)_(?:in|out)\..*)", r"\1.\2", "same"),
        (r"quantizer\.recent_.*", "", "own"),
    )


def rules_of(config: ModelConfig) -> tuple[Rule, ...]:
    """The rules of the family that a model config describes."""
    if config.name == "wetok":
        return _wetok(len(config.wetok.cnn.channel_multipliers))
    if config.quantizer.name != "vq":
        raise ConfigError(f"model.quantizer.name={config.quantizer.name}: no published layout of {config.name} has it")
    if config.name == "llamagen":
        return LLAMAGEN
    if config.hybrid.qk_norm:
        raise ConfigError("model.hybrid.qk_norm=true: no published layout has it")
    return HYBRID_1D if config.hybrid.layout == "1d" else HYBRID_2D


def published_name(name: str, rules: tuple[Rule, ...]) -> tuple[str, str]:
    """(published name, layout) of one of our names."""
    for pattern, replacement, layout in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement), layout
    raise ConfigError(f"no published name is known for {name!r}: no released model has such a part")


def to_published(tensor: Tensor, layout: str) -> Tensor:
    """One of our tensors in the published layout."""
    if layout == "conv1x1":
        return tensor[:, :, None, None]
    if layout == "table":
        return tensor[:, None]
    return tensor.float() if layout == "codes" else tensor


def from_published(tensor: Tensor, layout: str) -> Tensor:
    """One published tensor in our layout; a tensor that cannot have come from it is returned as it is, for a strict
    load.
    """
    if layout == "conv1x1" and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    if layout == "table" and tensor.ndim == 3 and tensor.shape[1] == 1:
        return tensor[:, 0]
    return tensor.to(torch.int32) if layout == "codes" else tensor


def export_state(state: Mapping[str, Tensor], rules: tuple[Rule, ...] = HYBRID_1D) -> dict[str, Tensor]:
    """Our state dict under published names and layouts."""
    named = {name: published_name(name, rules) for name in state}
    return {theirs: to_published(state[ours], how) for ours, (theirs, how) in named.items() if how != "own"}


def import_state(
    published: Mapping[str, Tensor], own: Mapping[str, Tensor], rules: tuple[Rule, ...] = HYBRID_1D
) -> dict[str, Tensor]:
    """A published state dict under our names. `own` gives the names we expect; unknown published names keep theirs.

    The result is meant for a strict load, which names everything missing or unexpected.
    """
    named = {published_name(name, rules)[0]: name for name in own}
    unseen = {name: -1 if name.endswith("indices") else 0 for name in own if published_name(name, rules)[1] == "own"}
    result = {name: torch.full(own[name].shape, fill, dtype=own[name].dtype) for name, fill in unseen.items()}
    for theirs, tensor in published.items():
        ours = named.get(theirs, theirs)
        layout = published_name(ours, rules)[1] if theirs in named else "same"
        result[ours] = from_published(tensor, layout)
    return result


# ------------------------------------------------------------------------------------------------ files of WeTok
EMA_PREFIX = "model_ema."  # averaged weights
OF_GPT = TOKENIZER_PART, GPT_PART = "first_stage_model.", "transformer."  # in the file of a GPT: its tokenizer, itself
WEIGHTLESS = ("loss.", "model_ema.loss", "model_ema.decay", "model_ema.num_updates")
GROUP_BITS = 8  # of all released models; the files do not say it


def flattened(name: str) -> str:
    """The name of an averaged tensor: it has lost its dots, so it is made from the plain name, never parsed."""
    return EMA_PREFIX + name.replace(".", "")


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a tokenizer or GPT, also inside a file that holds both, without losses and discriminator."""
    if any(name.startswith(prefix) for name in state):
        state = {
            k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) or not k.startswith(OF_GPT)
        }
    return {name: tensor for name, tensor in state.items() if not name.startswith(WEIGHTLESS)}


def wetok_config(state: Mapping[str, Tensor]) -> ModelConfig | None:
    """The architecture that the shapes of a WeTok file show, or None for another file."""
    if "encoder.down.0.block.0.conv1.weight" not in state:
        return None

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    levels, base = range(count("encoder.down.")), len(state["encoder.conv_in.weight"])
    config, channels = ModelConfig(name="wetok"), len(state["encoder.conv_out.weight"])
    config.wetok.cnn = CNNConfig(
        base_channels=base,
        channel_multipliers=[len(state[f"encoder.down.{i}.block.0.conv1.weight"]) // base for i in levels],
        encoder_res_blocks=count("encoder.down.0.block."),
        decoder_res_blocks=count("decoder.up.0.block."),
        mid_blocks=count("encoder.mid_block."),
    )
    if channels % GROUP_BITS:
        raise ConfigError(f"{channels} latent channels are no groups of {GROUP_BITS} bits: name the file's YAML")
    config.quantizer.name = "gq"
    config.quantizer.gq = GQConfig(num_groups=channels // GROUP_BITS, group_dim=GROUP_BITS)
    return config


def averaged_or_raw(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], rules: tuple[Rule, ...], weights: str, path: str | Path
) -> tuple[dict[str, Tensor], str]:
    """(published state, which one) of a WeTok file: `model` is raw, `ema` and `auto` averaged where there are averages.

    A tensor without an average stays raw, and one line says so: files of stage 2 have none of the frozen encoder.
    """
    raw = {name: tensor for name, tensor in state.items() if not name.startswith(EMA_PREFIX)}
    averages = {name: tensor for name, tensor in state.items() if name.startswith(EMA_PREFIX)}
    if weights == "model" or (weights == "auto" and not averages):
        return raw, "model"
    if not averages:
        raise CheckpointError(f"{path} has no averaged weights ({EMA_PREFIX}*); use weights=model")
    named = [published_name(name, rules) for name in own]
    expected = [theirs for theirs, layout in named if layout != "own"]
    kept = [name for name in expected if flattened(name) not in averages]
    if kept:
        parts = ", ".join(sorted({name.split(".")[0] for name in kept}))
        logger.info("%s: %d tensors (%s) have no average; their raw weights are taken", path, len(kept), parts)
    found = {name: averages.pop(flattened(name)) for name in expected if flattened(name) in averages}
    return raw | found | averages, "ema"  # averages that nobody expects stay, for the strict load to name


def is_gpt(published: Mapping[str, Tensor]) -> bool:
    """Whether a published state dict is that of a GPT."""
    names = {name.removeprefix(GPT_PART) for name in published}
    return bool(names & {"tok_embeddings.weight", "class_emb.embedding_table.weight"})
