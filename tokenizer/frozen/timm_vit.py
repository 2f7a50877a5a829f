"""Vision transformers of the package timm: DINO, DINOv2, CLIP, SigLIP (`engine.assets.TIMM_VITS`)."""

from __future__ import annotations

from safetensors import SafetensorError
from torch import nn

from engine.assets import TIMM_VITS, AssetError, AssetsConfig, resolve, seeded
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


def vit_flops(frozen: Frozen) -> int:
    """Operations of all blocks of a network that `timm_vit` built, for one image (engine/flops.py)."""
    network = frozen.network
    num_patches = network.patch_embed.num_patches
    num_tokens = num_patches + network.num_prefix_tokens
    layers = [layer for layer in network.blocks.modules() if isinstance(layer, nn.Linear)]
    attentions = len(network.blocks) * attention_flops(num_tokens, num_tokens, network.embed_dim)
    embedding = conv_flops(network.patch_embed.proj, num_patches)
    return embedding + attentions + sum(linear_flops(layer, num_tokens) for layer in layers)
