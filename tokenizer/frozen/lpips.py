"""LPIPS, the learned perceptual distance of image patches (Zhang et al., arXiv:1801.03924).

    d(x, y) = sum over layers l of mean over pixels of sum_c w_lc (f_lc(x) - f_lc(y))^2

where f are features of VGG16 or AlexNet, of unit length over channels. The package lpips ships the weights w (v0.1);
the backbone's come from torchvision's file.

Shapes    x, y (B,3,H,W) in [-1,1] -> (B,1,1,1)
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from torch import Tensor, nn

from engine.assets import AssetsConfig, read_state, resolve, seeded
from engine.checkpoint.weights import load_strict
from tokenizer.frozen.base import Frozen

LPIPS_BACKBONES = {"vgg": "vgg16", "alex": "alexnet"}  # name in the lpips package -> asset


def lpips_network(assets: AssetsConfig, net: str = "vgg") -> tuple[Frozen, str]:
    """LPIPS on torchvision's VGG16 (`vgg`) or AlexNet (`alex`), and the stamp of the backbone.

    Raises AssetError where the backbone's weights cannot be had.
    """
    import lpips

    weights = resolve(LPIPS_BACKBONES[net], assets)
    is_downloaded = weights.stamp == "download"  # otherwise the backbone begins random, and its library fetches nothing
    with seeded(), warnings.catch_warnings():
        # lpips names weights as torchvision no longer does; these two warnings of it are no matter of the caller's.
        deprecation = "The parameter 'pretrained' is deprecated|Arguments other than a weight enum"
        warnings.filterwarnings("ignore", deprecation, UserWarning, module=r"torchvision\.")
        network = lpips.LPIPS(net=net, pnet_rand=not is_downloaded, verbose=False)
    if weights.path is not None:
        _load_backbone(network.net, weights.path)
    return Frozen(network), weights.stamp


def lpips_features(network: Frozen, images: Tensor) -> list[Tensor]:
    """The features f_l of images, of unit length over channels: one map (B,C_l,h_l,w_l) per layer."""
    import lpips

    distance = network.network
    return [lpips.normalize_tensor(maps) for maps in distance.net(distance.scaling_layer(images))]


def lpips_distance(network: Frozen, features: list[Tensor], references: list[Tensor]) -> Tensor:
    """d of images from the features of both, (B,1,1,1)."""
    layers = zip(network.network.lins, features, references, strict=True)
    return sum(weigh((x - y) ** 2).mean((2, 3), keepdim=True) for weigh, x, y in layers)


def _load_backbone(backbone: nn.Module, path: Path) -> None:
    """Loads torchvision's file, classifier left out. Raises CheckpointError where tensors are missing.

    The package lpips cuts torchvision's list `features` into slices, whose layers keep their numbers.
    """
    published = read_state(path)
    state = {}
    for name in backbone.state_dict():
        published_name = re.sub(r"^slice\d+\.", "features.", name)
        if published_name in published:
            state[name] = published[published_name]
    load_strict(backbone, state, path)
