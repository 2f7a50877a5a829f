"""Principal components of a tokenizer's inner features."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.sources import ImageSource
from engine.finite import require_finite
from engine.messages import UserError
from tokenizer.models.base import Tokenizer

COMPONENTS = 3
PERCENTILES = [1, 99]  # that become 0 and 1


def images_of_class(source: ImageSource, name: str | None, count: int) -> tuple[np.ndarray, str]:
    """Finds the first `count` images of a class (by default the first one): indices, and its name.

    Raises UserError if there is no such class, or it has fewer than two images.
    """
    if name is None:
        name = source.class_names[0]
    if name not in source.class_names:
        accepted = ", ".join(map(str, source.class_names[:12]))
        raise UserError(f"--class-name {name!r} is not a class of {source.name}; it has: {accepted} ...")
    indices = np.flatnonzero(source.labels == source.class_names.index(name))[:count]
    if len(indices) < 2:
        raise UserError(f"class {name!r} of {source.name} has {len(indices)} images; 2 or more are needed")
    return indices, str(name)


def grid_features(tokenizer: Tokenizer, images: Tensor, layer: int | None) -> tuple[Tensor, str]:
    """Reads inner features (B,h,w,C) of images; also returns their title.

    They are those of the decoder if they lie on a grid, else those of the encoder. `layer` counts from 1; by default it
    is the source's own, or the last. Raises UserError if there is no such layer.
    """
    sources = tokenizer.feature_sources()
    with_grid = [name for name in ("decoder", "encoder") if name in sources and sources[name].grid is not None]
    if not with_grid:
        raise UserError(f"this tokenizer has no inner features on a grid; it has: {', '.join(sources) or 'none'}")
    source = sources[with_grid[0]]

    title = source.title
    if source.num_layers is None:
        if layer is not None:
            raise UserError(f"--layer names a block of a decoder; of this tokenizer {title} are read, without layers")
    else:
        layer = layer or source.default_layer or source.num_layers
        if layer > source.num_layers:
            raise UserError(f"--layer {layer}: the decoder has {source.num_layers} blocks")
        title = f"{title} {layer}"
    features = source.read(images, layer)
    require_finite(features, f"features of the {title}")
    return features.unflatten(1, source.grid), title


def principal_components(features: Tensor) -> np.ndarray:
    """Projects (B,h,w,C) on its first three components over all cells: (B,h,w,3) in 0..1."""
    flat = features.flatten(0, 2).double().cpu()
    flat = flat - flat.mean(0)

    # The axes of largest variance; zeros where there are fewer than three.
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    axes = F.pad(axes[:COMPONENTS], (0, 0, 0, max(0, COMPONENTS - len(axes))))

    # The sign of an axis is arbitrary: the largest loading is made positive.
    signs = torch.gather(axes, 1, axes.abs().argmax(1, keepdim=True)).sign()
    components = (flat @ (axes * torch.where(signs == 0, 1.0, signs)).T).numpy()

    # Outliers are cut off, so that they do not set the contrast of all others.
    low, high = np.percentile(components, PERCENTILES, axis=0)
    scaled = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return scaled.reshape(*features.shape[:3], COMPONENTS)
