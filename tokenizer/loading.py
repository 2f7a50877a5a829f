"""Loads a trained tokenizer: one of ours, whose folder carries everything that is needed, or a published file."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.checkpoint import find_weights, fingerprint, load_strict, read_weights
from engine.config import ConfigError, load_sections, positive
from engine.datasets import DataConfig, kind_of
from engine.packaged import PACKAGED
from tokenizer import released
from tokenizer.models.registry import ModelConfig, build_tokenizer
from tokenizer.models.wetok import FIRST_CONV
from tokenizer.published import is_published, read_published


@dataclass(kw_only=True, slots=True)
class TokenizerSections:
    """The part of a training config that a trained tokenizer needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class Provenance:
    """Where a loaded network came from. `fingerprint` is the SHA-256 of its parameters."""

    path: str
    weights: str  # "ema" or "model"
    fingerprint: str
    stamp: dict[str, Any]
    config: Any

    def facts(self) -> dict[str, Any]:
        """What a result says about the network."""
        facts = {name: getattr(self, name) for name in ("path", "weights", "fingerprint", "stamp")}
        wetok = getattr(self.config.model, "wetok", None)
        return facts | ({"noise_seed": wetok.noise_seed} if wetok is not None and wetok.generative_decoder else {})


@dataclass(kw_only=True, slots=True)
class _ImageSize:
    image_size: int = 256


@dataclass(kw_only=True, slots=True)
class _Sizes:
    """The part of a recipe that fixes the network; its other keys (data folders, say) need not resolve here."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: _ImageSize = field(default_factory=_ImageSize, metadata={"partial": True})


def load_tokenizer(
    path: str | Path, *, config: str | Path | None = None, weights: str = "auto", device: str = "cpu"
) -> nn.Module:
    """A tokenizer in evaluation mode from a run folder, a checkpoint, an exported folder, or a published file.

    A published `.pt` file needs `config`, the YAML of its architecture; WeTok's `.ckpt` shows its own. `weights`:
    `ema`, `model`, or `auto` (ema where there is one). The result has an attribute `provenance`. Another kind of
    network, another size, or a damaged file is an error; nothing loads partly.
    """
    if is_published(path):
        model, provenance = _load_published(Path(path), config, weights)
    else:
        model, provenance = _load_own(path, weights)
    model = model.to(device).eval().requires_grad_(False)
    model.provenance = replace(provenance, fingerprint=fingerprint(model))
    return model


def _load_own(path: str | Path, weights: str) -> tuple[nn.Module, Provenance]:
    found = find_weights(path, weights, "tokenizer")
    try:
        config = load_sections(TokenizerSections, found.folder / "config.yaml")
    except ConfigError as error:
        raise ConfigError(f"{found.folder} is not a tokenizer: {error}") from error
    model = build_tokenizer(config.model, config.data.image_size)
    load_strict(model, read_weights(found.path), found.path)
    return model, Provenance(str(found.folder), found.kind, "", found.stamp, config)


def _load_published(path: Path, config_path: str | Path | None, weights: str) -> tuple[nn.Module, Provenance]:
    sizes = _Sizes() if config_path is None else load_sections(_Sizes, config_path)
    wetok = config_path is None or sizes.model.name == "wetok"  # raw and averaged weights are in one state dict
    state, picked = read_published(path, ("ema", "model", "state_dict"), "auto" if wetok else weights)
    state = released.part_of(state, released.TOKENIZER_PART)
    if released.is_gpt(state):
        raise ConfigError(f"{path} holds a GPT, not a tokenizer")
    shown = released.wetok_config(state)
    if config_path is None and shown is None:
        raise ConfigError(
            f"{path} is a published file: name the YAML of its architecture (--tok-config, --model-config)"
        )
    if config_path is None:
        sizes.model = shown
    head = next((state[name] for name in released.SEMANTIC_HEADS if name in state), None)
    if head is not None and sizes.model.name == "hybrid":
        sizes.model.hybrid.semantic_dim = head.shape[0]  # the file knows the width of its training-only head
    with torch.device("meta"):
        model = build_tokenizer(sizes.model, sizes.data.image_size)
        first = state.get(FIRST_CONV, state.get(released.flattened(FIRST_CONV)))
        if sizes.model.name == "wetok" and first is not None:  # as wide again: a generative decoder
            sizes.model.wetok.generative_decoder = first.shape[1] == 2 * model.quantizer.codebook_dim
            model = build_tokenizer(sizes.model, sizes.data.image_size)
    rules, own = released.rules_of(sizes.model), model.state_dict()
    if sizes.model.name == "wetok":
        state, picked = released.averaged_or_raw(state, own, rules, weights, path)
    state = {name: value.float() for name, value in state.items()}
    if sizes.model.name != "wetok":
        state.setdefault("quantize.codebook_used", torch.zeros(own["quantizer.recent_indices"].shape))
    source = f"{path} (as {config_path})" if config_path else str(path)
    load_strict(model, released.import_state(state, own, rules), source, assign=True)
    data = DataConfig(image_size=sizes.data.image_size)
    return model, Provenance(str(path), picked, "", {}, TokenizerSections(model=sizes.model, data=data))


def streams_of(tokenizer: nn.Module) -> list[int]:
    """Codebook size of each index of a token; empty where a token has one index."""
    quantizer = tokenizer.quantizer
    return list(quantizer.group_sizes) if quantizer.num_groups > 1 else []


def add_tokenizer_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The documented flags that name a tokenizer, or `several` of them, one after the other."""
    action = "append" if several else "store"
    parser.add_argument(
        "--vq-ckpt", required=True, action=action, help="a run, a checkpoint, an export (folders), or a published file"
    )
    parser.add_argument(
        "--tok-config", "--model-config", action=action, help="YAML of the architecture, for a published file"
    )
    parser.add_argument("--quant-way", default="vq", choices=["vq"], help="kept for published commands")
    parser.add_argument(
        "--image-size", type=positive, help="default: that of its training; convolutional tokenizers take others"
    )
    parser.add_argument(
        "--weights", default="auto", choices=["auto", "ema", "model"], help="auto: ema where there is one"
    )
    parser.add_argument("--noise-seed", type=int, help="of a generative decoder; default: that of its config (0)")


def tokenizer_from(args: argparse.Namespace, device: torch.device | str) -> nn.Module:
    """The tokenizer that the flags name, for images of `--image-size` pixels."""
    tokenizer = load_tokenizer(args.vq_ckpt, config=args.tok_config, weights=args.weights, device=device)
    if args.noise_seed is not None:
        if not getattr(getattr(tokenizer, "config", None), "generative_decoder", False):
            raise ConfigError(f"--noise-seed {args.noise_seed}: the tokenizer {args.vq_ckpt} has no generative decoder")
        tokenizer.config.noise_seed = args.noise_seed  # the same object as in its provenance
    if args.image_size not in (None, tokenizer.image_size):
        if not hasattr(tokenizer, "set_image_size"):  # positions are learned: one size
            raise ConfigError(
                f"--image-size {args.image_size}, but the tokenizer {args.vq_ckpt} is for {tokenizer.image_size}"
            )
        tokenizer.set_image_size(args.image_size)
    return tokenizer


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that name images for a trained tokenizer."""
    parser.add_argument(
        "--data",
        help="name of the images (folder, loose, shards, mnist5k, twemoji, photos); default: the tokenizer's own",
    )
    parser.add_argument(
        "--data-path",
        help="training images: a folder of class folders, or tar files; held-out ones where only they count",
    )
    parser.add_argument(
        "--val-path",
        help="held-out images, likewise; of a folder without sub-folders or tar files all images are taken",
    )
    parser.add_argument("--skip-broken", action="store_true", help="replace unreadable images by their successor")


def images_from(args: argparse.Namespace, tokenizer: nn.Module) -> DataConfig:
    """The images that the flags name, at the tokenizer's size; without flags those of its own config."""
    own = tokenizer.provenance.config.data
    name = args.data
    if name in PACKAGED and (args.data_path or args.val_path):
        raise ConfigError(f"--data {name} is shipped by a package; leave out --data-path and --val-path")
    if name is None and (args.data_path or args.val_path):
        name = kind_of(args.data_path or args.val_path)
        if args.data_path is not None and name == "loose":
            name = "folder"  # training images have classes
    changes = {"name": name, "root": args.data_path, "val_root": args.val_path}
    changes = {key: value for key, value in changes.items() if value is not None}
    broken = own.skip_broken or args.skip_broken
    return replace(own, **changes, image_size=tokenizer.image_size, skip_broken=broken)
