"""Continuous tokenizers in the format of diffusers: `AutoencoderKL`, as Stable Diffusion 1 to 3.5 and FLUX have it.

A folder holds config.json and diffusion_pytorch_model.safetensors, or is a pipeline with such a folder `vae`. On the
hub it is `hf-hub:organization/name`, or `hf-hub:organization/name/folder` for one folder of a pipeline; nothing but
these two files is fetched. The network is that of the package diffusers; its files are read here, and never pickles.

Images are in [-1,1]. The latent is the mode of the posterior (its mean), not a sample, and goes to the decoder as it
is: `scaling_factor` and `shift_factor` belong to diffusion models in between, and cancel here.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine import hub
from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.stamp import read_stamp
from engine.checkpoint.weights import fingerprint, load_strict, read_header, read_weights, require_fit
from engine.finite import require_finite
from engine.installation import install_hint
from engine.messages import ConfigError, UserError
from engine.without_storage import without_storage
from tokenizer.autoencoders.base import Autoencoder, provenance_config
from tokenizer.loading import Provenance

PACKAGE = "diffusers"  # also the name of the extra that installs it
CLASS = "AutoencoderKL"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
HOUSE_CONFIG = "config.yaml"  # a folder with it is a tokenizer of this program
PIPELINE_PART = "vae"  # the folder of this network in that of a pipeline, which holds several

# Earlier versions of diffusers named the layers of attention otherwise, and their files still do.
ATTENTION_LAYER = re.compile(r"(?<=\.attentions\.)(\d+)\.(query|key|value|proj_attn)(?=\.)")
PRESENT_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Files(NamedTuple):
    """Where a network lies."""

    folder: Path
    shown: str  # for people and results
    copy: hub.HubCopy | None  # of the hub, where it came from there


class AutoencoderKL(Autoencoder):
    """See the module docstring."""

    def __init__(self, network: nn.Module, section: Mapping[str, Any], shown: str) -> None:
        super().__init__()
        self.network = network
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)
        channels = (network.config.in_channels, network.config.out_channels)
        if channels != (3, 3):
            raise ConfigError(
                f"{shown} is for images of {channels[0]} channels, and returns {channels[1]}; 3 are needed"
            )
        sample_size = section.get("sample_size")
        self.image_size = None
        if isinstance(sample_size, int) and sample_size > 0 and sample_size % self.factor == 0:
            self.image_size = sample_size

    # ------------------------------------------------------------------------------------------------ its files
    @classmethod
    def recognizes(cls, source: str | Path) -> bool:
        if not hub.is_address(source):
            folder = _part_of_pipeline(Path(source))
        elif hub.has_folder(str(source)):
            return True
        else:
            folder = hub.fetch_files(str(source), (HOUSE_CONFIG, CONFIG)).folder
        return (folder / CONFIG).is_file() and not (folder / HOUSE_CONFIG).is_file()

    @classmethod
    def load(cls, source: str | Path, *, device: str, header_only: bool = False, **others: Any) -> AutoencoderKL:
        files = _files_of(source)
        section = _read_config(files.folder / CONFIG, files.shown)
        if importlib.util.find_spec(PACKAGE) is None:
            raise UserError(f"{files.shown} is an {CLASS} of {PACKAGE}, which is missing: {install_hint(PACKAGE)}")
        weights = files.folder / WEIGHTS
        if not weights.is_file():
            raise CheckpointError(
                f"{files.shown} has no {WEIGHTS}, and no other file of weights is read (a .bin holds pickles); it has: "
                f"{', '.join(sorted(path.name for path in files.folder.iterdir()))}"
            )

        # The network without storage, and its tensors from the file.
        network = _build(section, files.shown)
        autoencoder = cls(network, section, files.shown)
        if header_only:
            require_fit(network, present_names(read_header(weights)), weights)
        else:
            load_strict(network, present_names(read_weights(weights)), weights, assign=True)
            autoencoder = autoencoder.to(device).eval().requires_grad_(False)

        stamp = read_stamp(weights)
        if files.copy is not None:
            stamp |= files.copy.stamp([weights, files.folder / CONFIG] if not header_only else [])
        autoencoder.provenance = Provenance(
            path=files.shown,
            weights="model",
            fingerprint="" if header_only else fingerprint(network),
            stamp=stamp,
            config=provenance_config(autoencoder.image_size),
            network_facts=autoencoder.facts,
        )
        return autoencoder

    # ------------------------------------------------------------------------------------------------ its use
    def through(self, images: Tensor) -> Tensor:
        latents = self.network.encode(images).latent_dist.mode()
        require_finite(latents, "latents of the autoencoder")
        return self.network.decode(latents).sample

    def summary(self) -> str:
        channels = self.network.config.latent_channels
        return f"{CLASS}, {channels} continuous channels per {self.factor} x {self.factor} pixels, {self.image_size} px"

    def facts(self) -> dict[str, Any]:
        return {
            "network": f"{CLASS} of {PACKAGE} {version(PACKAGE)}",
            "latents": "mode of the posterior, neither scaled nor shifted",
            "latent_channels": self.network.config.latent_channels,
            "factor": self.factor,
        }


def present_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the present names of the layers of attention."""
    return {ATTENTION_LAYER.sub(lambda m: f"{m[1]}.{PRESENT_NAMES[m[2]]}", name): t for name, t in state.items()}


def _part_of_pipeline(folder: Path) -> Path:
    """The folder of the autoencoder: of a pipeline the one inside it."""
    part = folder / PIPELINE_PART
    return part if (part / CONFIG).is_file() and not (folder / CONFIG).is_file() else folder


def _files_of(source: str | Path) -> Files:
    """Finds the files, on the hub or in a folder. Raises UserError as `hub.fetch_files` does."""
    if hub.is_address(source):
        copy = hub.fetch_files(str(source), (CONFIG, WEIGHTS))
        if not (copy.folder / CONFIG).is_file():
            raise UserError(f"{source} (commit {copy.commit}) has no {CONFIG}: it is no network of {PACKAGE}")
        return Files(copy.folder, copy.text(), copy)
    folder = _part_of_pipeline(Path(source))
    return Files(folder, str(folder), None)


def _read_config(path: Path, shown: str) -> dict[str, Any]:
    """The config of an autoencoder. Raises ConfigError for one of another network."""
    try:
        section = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    named = section.get("_class_name") if isinstance(section, dict) else None
    if named != CLASS:
        raise ConfigError(f"{shown}: {CONFIG} is of a {named!r}, and only an {CLASS} of {PACKAGE} is read here")
    return section


def _build(section: dict[str, Any], shown: str) -> nn.Module:
    """The network of a config, without storage. Raises ConfigError for values that make none."""
    import diffusers

    try:
        with without_storage():
            return diffusers.AutoencoderKL.from_config(section)
    except Exception as error:  # whatever the library meets first
        raise ConfigError(f"{shown}: {CONFIG} makes no {CLASS}: {type(error).__name__}: {error}") from error
