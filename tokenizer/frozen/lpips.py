"""LPIPS on VGG16 or AlexNet."""

from __future__ import annotations

import re
import warnings

from engine.assets import AssetsConfig, read_state, resolve, seeded
from engine.checkpoint.weights import load_strict
from tokenizer.frozen.base import Frozen

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
