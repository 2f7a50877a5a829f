"""Names and layouts of published tokenizer checkpoints (GigaTok, LlamaGen), both ways.

A rule is (our name, published name, layout). Layouts: `same`; `conv1x1`: our linear weight (O,I) is their 1x1
convolution (O,I,1,1); `table`: our (N,C) is their (N,1,C); `codes`: our int32 ring is their float32 one;
`own`: state of our training that no published file has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.messages import ConfigError

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


def export_state(state: Mapping[str, Tensor], rules: tuple[Rule, ...]) -> dict[str, Tensor]:
    """Our state dict under published names and layouts."""
    named = {name: published_name(name, rules) for name in state}
    return {theirs: to_published(state[ours], how) for ours, (theirs, how) in named.items() if how != "own"}


def import_state(
    published: Mapping[str, Tensor], own: Mapping[str, Tensor], rules: tuple[Rule, ...]
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
