"""Vision transformers of timm."""

from __future__ import annotations

from safetensors import SafetensorError

from engine.assets import TIMM_VITS, AssetError, AssetsConfig, resolve, seeded
from tokenizer.frozen.base import Frozen


def timm_vit(asset: str, image_size: int, assets: AssetsConfig) -> tuple[Frozen, str]:
    """A vision transformer of timm without its classifier, its positions resampled to `image_size`."""
    import timm

    resolved, model_name = resolve(asset, assets), TIMM_VITS[asset]
    options = {"num_classes": 0, "img_size": image_size}
    if resolved.random:
        with seeded():
            network = timm.create_model(model_name, pretrained=False, **options)
    elif resolved.path is not None:
        overlay = {"file": str(resolved.path)}
        try:
            network = timm.create_model(model_name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except (RuntimeError, OSError, SafetensorError) as error:
            raise AssetError(f"{resolved.path} does not fit {model_name}: {' '.join(str(error).split())}") from error
    else:
        network = timm.create_model(model_name, pretrained=True, **options)
    return Frozen(network), resolved.stamp
