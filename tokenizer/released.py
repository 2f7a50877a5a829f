"""Names and layouts of published tokenizer checkpoints (GigaTok, LlamaGen), both ways.

A rule is (our name, published name, layout). Layouts: `same`; `conv1x1`: our linear weight (O,I) is their 1x1
convolution (O,I,1,1); `table`: our (N,C) is their (N,1,C); `codes`: our int32 ring is their float32 one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.config import ConfigError
from tokenizer.models.registry import ModelConfig

Rule = tuple[str, str, str]

CODE_PATH: tuple[Rule, ...] = (  # from features to codes and back, in all families
    (r"quantizer\.codebook", "quantize.embedding.weight", "same"),
    (r"quantizer\.recent_indices", "quantize.codebook_used", "codes"),
    (r"quant_proj\.weight", "quant_conv.weight", "conv1x1"),
    (r"quant_proj\.bias", "quant_conv.bias", "same"),
    (r"post_quant_proj\.weight", "post_quant_conv.weight", "conv1x1"),
    (r"post_quant_proj\.bias", "post_quant_conv.bias", "same"),
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

UNPUBLISHED = {"quantizer.recent_latents"}  # state of our own training (k-means initialization); zeros elsewhere

HYBRID_1D = _hybrid("s2to1encoder", "s1to2decoder")
HYBRID_2D = _hybrid("s2dencoder", "s2ddecoder")
LLAMAGEN: tuple[Rule, ...] = (*CODE_PATH, CNN)


def rules_of(config: ModelConfig) -> tuple[Rule, ...]:
    """The rules of the family that a model config describes."""
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
    raise ConfigError(f"no published name is known for {name!r}")


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
    named = {name: published_name(name, rules) for name in state if name not in UNPUBLISHED}
    return {theirs: to_published(state[ours], layout) for ours, (theirs, layout) in named.items()}


def import_state(
    published: Mapping[str, Tensor], own: Mapping[str, Tensor], rules: tuple[Rule, ...] = HYBRID_1D
) -> dict[str, Tensor]:
    """A published state dict under our names. `own` gives the names we expect; unknown published names keep theirs.

    The result is meant for a strict load, which names everything missing or unexpected.
    """
    named = {published_name(name, rules)[0]: name for name in own if name not in UNPUBLISHED}
    result = {name: torch.zeros(own[name].shape) for name in own if name in UNPUBLISHED}
    for theirs, tensor in published.items():
        ours = named.get(theirs, theirs)
        layout = published_name(ours, rules)[1] if theirs in named else "same"
        result[ours] = from_published(tensor, layout)
    return result


def is_gpt(published: Mapping[str, Tensor]) -> bool:
    """Whether a published state dict is that of a GPT."""
    return "tok_embeddings.weight" in published
