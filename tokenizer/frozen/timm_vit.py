"""Vision transformers of the package timm: DINO, DINOv2, CLIP, SigLIP (`engine.assets.TIMM_VITS`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from engine.assets import TIMM_VITS, AssetError, AssetsConfig, PretrainedFile, read_state, resolve, seeded
from engine.checkpoint.weights import load_strict
from engine.flops import attention_flops, conv_flops, linear_flops
from tokenizer.frozen.base import Frozen


def timm_vit(asset: str, image_size: int, assets: AssetsConfig) -> tuple[Frozen, str]:
    """A vision transformer without classifier, for images of `image_size` pixels per side, and its stamp.

    Its table of positions is resampled to that size. Raises AssetError where the weights cannot be had or do not fit.
    """
    import timm

    weights = resolve(asset, assets)
    model_name = TIMM_VITS[asset]
    options = {"num_classes": 0, "img_size": image_size}

    if weights.random:
        with seeded():
            network = timm.create_model(model_name, pretrained=False, **options)
    elif weights.path is not None:
        overlay = {"file": str(weights.path)}
        try:
            network = timm.create_model(model_name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except (RuntimeError, OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise AssetError(f"{weights.path} does not fit {model_name}: {reason}") from error
    else:  # timm fetches the weights itself
        network = timm.create_model(model_name, pretrained=True, **options)
    return Frozen(network), weights.stamp


def adapted_vit(
    asset: str, assets: AssetsConfig, adapt: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]], **options: int
) -> tuple[Frozen, PretrainedFile]:
    """A vision transformer whose weights `adapt` changes before they are loaded, and where they came from.

    `options` are those of timm's constructor. `adapt(state, network)` takes the tensors of the file, or those of timm's
    network at its own image size, and returns the ones of `network`, which lies on the meta device. timm's loader would
    resample a table of positions by a rule of its own.

    Raises AssetError where the weights cannot be had, or `adapt` finds them wrong (ValueError), and CheckpointError
    where they do not fit.
    """
    import timm

    # The tensors: of the file, read without running it; else of timm's network, with random or downloaded weights.
    weights = resolve(asset, assets)
    model_name = TIMM_VITS[asset]
    if weights.path is not None:
        state = read_state(weights.path)
    else:
        with seeded():
            state = timm.create_model(model_name, pretrained=not weights.random).state_dict()

    with torch.device("meta"):
        network = timm.create_model(model_name, pretrained=False, **options)
    source = weights.path or model_name
    try:
        state = adapt(state, network)
    except ValueError as error:
        raise AssetError(f"{source} does not fit {model_name}: {error}") from error
    load_strict(network, state, source, assign=True)
    return Frozen(network), weights


def vit_flops(frozen: Frozen) -> int:
    """Operations of all blocks of a network that `timm_vit` built, for one image (engine/flops.py)."""
    network = frozen.network
    num_patches = network.patch_embed.num_patches
    num_tokens = num_patches + network.num_prefix_tokens
    layers = [layer for layer in network.blocks.modules() if isinstance(layer, nn.Linear)]
    attentions = len(network.blocks) * attention_flops(num_tokens, num_tokens, network.embed_dim)
    embedding = conv_flops(network.patch_embed.proj, num_patches)
    return embedding + attentions + sum(linear_flops(layer, num_tokens) for layer in layers)
