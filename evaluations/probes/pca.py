"""Principal components of a tokenizer's inner features."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.data.sources import ImageSource
from engine.messages import UserError
from evaluations.probes.features import decoder_tokens

COMPONENTS, LOW, HIGH = 3, 1, 99  # percentiles that become 0 and 255


def of_one_class(source: ImageSource, name: str | None, count: int) -> tuple[np.ndarray, str]:
    """The first images of a class, and its name."""
    name = name if name is not None else source.class_names[0]
    if name not in source.class_names:
        shown = ", ".join(map(str, source.class_names[:12]))
        raise UserError(f"--class-name {name!r} is not a class of {source.name}; it has: {shown} ...")
    found = np.flatnonzero(source.labels == source.class_names.index(name))[:count]
    if len(found) < 2:
        raise UserError(f"class {name!r} of {source.name} has {len(found)} images; 2 or more are needed")
    return found, str(name)


def grid_features(tokenizer: nn.Module, images: Tensor, layer: int | None) -> tuple[Tensor, str]:
    """Inner features (B,h,w,C) of images, and which they are."""
    if not hasattr(tokenizer, "query_decoder"):
        if layer is not None:
            raise UserError("--layer names a block of a transformer decoder; this tokenizer has none")
        return tokenizer.encode_features(images).permute(0, 2, 3, 1), "encoder features"
    decoder = tokenizer.query_decoder
    layer = layer or decoder.semantic_layer or len(decoder.transformer)
    if layer > len(decoder.transformer):
        raise UserError(f"--layer {layer}: the decoder has {len(decoder.transformer)} blocks")
    tokens = decoder_tokens(tokenizer, images, layer)
    return tokens.unflatten(1, (decoder.grid, decoder.grid)), f"decoder block {layer}"


def principal_components(features: Tensor) -> np.ndarray:
    """(B,h,w,C) -> (B,h,w,3) in 0..1: the first three components over all cells, signs fixed by the largest loading."""
    flat = features.flatten(0, 2).double().cpu()
    flat = flat - flat.mean(0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    axes = F.pad(axes[:COMPONENTS], (0, 0, 0, max(0, COMPONENTS - len(axes))))
    signs = torch.gather(axes, 1, axes.abs().argmax(1, keepdim=True)).sign()
    found = (flat @ (axes * torch.where(signs == 0, 1.0, signs)).T).numpy()
    low, high = np.percentile(found, [LOW, HIGH], axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    return scaled.reshape(*features.shape[:3], COMPONENTS)
