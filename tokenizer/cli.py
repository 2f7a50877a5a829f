"""Command-line flags that name a trained tokenizer and images for it, and what they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.cli import add_weights_flag, positive
from engine.data.config import DataConfig
from engine.data.sources import SOURCES, keys_without_use, kind_of, source_names
from engine.messages import ConfigError, UserError
from engine.preflight import Preflight
from engine.registry import extended
from tokenizer.autoencoders.loading import load_reconstructing, require_codes, survey_reconstructing
from tokenizer.autoencoders.torchscript import AUTO, DTYPES
from tokenizer.loading import SOURCE, load_tokenizer, survey_tokenizer
from tokenizer.models.base import Tokenizer
from tokenizer.models.reconstructing import Reconstructing
from tokenizer.published.files import is_published


def trained_network_help(kind: str, default: str | None = None) -> str:
    """The help of an argument that names a trained network of this kind."""
    return f"{kind}: {SOURCE}" + (f" (default {default})" if default else "")


def add_tokenizer_flags(parser: argparse.ArgumentParser, several: bool = False, default: str | None = None) -> None:
    """Adds the flags that name a tokenizer; with `several` they are repeated, once per tokenizer.

    With a `default` the flag may be left out, and is None then: what that means is the entry's to say.
    """
    action = "append" if several else "store"

    # Which network.
    parser.add_argument(
        "--vq-ckpt",
        required=default is None,
        action=action,
        help=trained_network_help("tokenizer", default),
    )
    parser.add_argument(
        "--tok-config", "--model-config", action=action, help="YAML file of the architecture, for a published file"
    )
    parser.add_argument("--quant-way", default="vq", choices=["vq"], help="accepted because published commands have it")

    # How it is used.
    add_image_size_flag(parser)
    add_weights_flag(parser)
    parser.add_argument(
        "--noise-seed", type=int, help="seed for the noise of the generative decoder (default: that of its config, 0)"
    )


def add_reconstructing_flags(
    parser: argparse.ArgumentParser, several: bool = False, default: str | None = None
) -> None:
    """Adds the flags of `add_tokenizer_flags`, where an autoencoder of another program may take the place of a
    tokenizer.
    """
    add_tokenizer_flags(parser, several, default)
    parser.add_argument(
        "--num-tokens", type=positive, dest="decoded_tokens",
        help="decode the first tokens of each image only, of a tokenizer of flexible length (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--trust-jit", action="store_true",
        help="run the code that a TorchScript file given as --vq-ckpt brings: only for publishers that you trust",
    )  # fmt: skip
    parser.add_argument(
        "--jit-dtype", default=AUTO, choices=[AUTO, *DTYPES],
        help="type of numbers that such a file is given images in (default: that of its parameters)",
    )  # fmt: skip


def flags_of_tokenizer(args: argparse.Namespace, number: int) -> argparse.Namespace:
    """Makes the flags as if only tokenizer `number` of several was given, with the --tok-config of `config_among`."""
    tok_config = config_among(args.tok_config or [], args.vq_ckpt, number)
    return argparse.Namespace(**{**vars(args), "vq_ckpt": args.vq_ckpt[number], "tok_config": tok_config})


def add_label_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --label, which names several tokenizers in a figure."""
    parser.add_argument(
        "--label", action="append", help="name in the figure, given once per tokenizer (default: its folder)"
    )


def tokenizer_labels(args: argparse.Namespace) -> list[str]:
    """The names of several tokenizers in a figure. Raises UserError where there are more or fewer of them."""
    labels = args.label or [Path(path).stem for path in args.vq_ckpt]
    if len(labels) != len(args.vq_ckpt):
        raise UserError(f"--label is given {len(labels)} times for {len(args.vq_ckpt)} tokenizers")
    return labels


def config_among(configs: Sequence[str], networks: Sequence[str], number: int) -> str | None:
    """The --tok-config of network `number`, of several `networks` and their `configs`; None where it has none.

    The last config also serves all later networks. Where there are fewer configs than networks, they are for the
    published files among them.
    """
    if not configs or (len(configs) < len(networks) and not is_published(networks[number])):
        return None
    return configs[min(number, len(configs) - 1)]


def add_image_size_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --image-size, which `set_image_size` applies to a trained tokenizer."""
    parser.add_argument(
        "--image-size",
        type=positive,
        help="image size (default: that of its training; convolutional tokenizers also take others)",
    )


def tokenizer_from(args: argparse.Namespace, device: torch.device | str) -> Tokenizer:
    """Loads the tokenizer that the flags name, for images of `--image-size` pixels.

    Raises ConfigError for a flag that this tokenizer has no use for.
    """
    require_codes(args.vq_ckpt)
    tokenizer = load_tokenizer(args.vq_ckpt, config=args.tok_config, weights=args.weights, device=device)
    _apply_flags(args, tokenizer)
    return tokenizer


def reconstructing_from(args: argparse.Namespace, device: torch.device | str) -> Reconstructing:
    """Loads what the flags name to reconstruct with: a tokenizer, or an autoencoder of another program.

    Raises ConfigError for a flag that it has no use for.
    """
    network = load_reconstructing(
        args.vq_ckpt, config=args.tok_config, weights=args.weights, device=device, **_trust(args)
    )
    _apply_flags(args, network)
    return network


def reconstructing_needs(args: argparse.Namespace, preflight: Preflight) -> Reconstructing | None:
    """Looks for what `reconstructing_from` would load; returns it without storage, or None where it is not there."""
    if preflight.comes_later(args.vq_ckpt, "--vq-ckpt"):
        return None
    with preflight.collecting():
        network = survey_reconstructing(
            args.vq_ckpt, config=args.tok_config, weights=args.weights, hashed=preflight.hashes, **_trust(args)
        )
        _apply_flags(args, network)
        preflight.ready.append(f"--vq-ckpt: {args.vq_ckpt} ({network.summary()})")
        return network
    return None


def _trust(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of files that bring code."""
    return {"trust_jit": args.trust_jit, "jit_dtype": args.jit_dtype}


def tokenizer_needs(args: argparse.Namespace, preflight: Preflight) -> Tokenizer | None:
    """Looks for the tokenizer that the flags name; returns it without storage, or None where it is not there."""
    if preflight.comes_later(args.vq_ckpt, "--vq-ckpt"):
        return None
    with preflight.collecting():
        require_codes(args.vq_ckpt)
        tokenizer = survey_tokenizer(
            args.vq_ckpt, config=args.tok_config, weights=args.weights, hashed=preflight.hashes
        )
        _apply_flags(args, tokenizer)
        preflight.ready.append(f"--vq-ckpt: {args.vq_ckpt} ({tokenizer.summary()})")
        return tokenizer
    return None


def _apply_flags(args: argparse.Namespace, tokenizer: Reconstructing) -> None:
    """Sets what flags change. Raises ConfigError for a flag that this network has no use for, or that it needs."""
    if args.noise_seed is not None:
        if "noise" not in tokenizer.capabilities:
            raise ConfigError(f"--noise-seed {args.noise_seed}: the tokenizer {args.vq_ckpt} has no generative decoder")
        tokenizer.set_noise_seed(args.noise_seed)
    num_tokens = getattr(args, "decoded_tokens", None)
    if num_tokens is not None:
        if "flexible" not in tokenizer.capabilities:
            raise ConfigError(f"--num-tokens {num_tokens}: {args.vq_ckpt} is no tokenizer of flexible length")
        tokenizer.use_tokens(num_tokens)

    set_image_size(tokenizer, args.image_size, args.vq_ckpt)
    is_whole = getattr(args, "original_resolution", False) and args.text_reader is None  # then no size is needed
    if tokenizer.image_size is None and not is_whole:
        raise ConfigError(f"--image-size is missing: {args.vq_ckpt} does not say for which size it was trained")


def decoded_facts(*tokenizers: Reconstructing) -> dict[str, int]:
    """What --num-tokens adds to the settings of a folder or a result; nothing where whole images are decoded."""
    counts = {tokenizer.used_tokens for tokenizer in tokenizers if "flexible" in tokenizer.capabilities} - {None}
    return {"num_tokens": counts.pop()} if counts else {}


def set_image_size(tokenizer: Reconstructing, image_size: int | None, path: str) -> None:
    """Makes the size that --image-size names, if any, that of the tokenizer from `path`.

    Raises ConfigError for a tokenizer that takes its own size only.
    """
    if image_size in (None, tokenizer.image_size):
        return
    if "any_size" not in tokenizer.capabilities:
        raise ConfigError(f"--image-size {image_size}, but the tokenizer {path} is for {tokenizer.image_size}")
    tokenizer.set_image_size(image_size)


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name images for a trained tokenizer."""
    parser.add_argument(
        "--data",
        help=f"kind of images ({source_names()}); default: that of the tokenizer's own images",
    )
    parser.add_argument(
        "--data-path",
        help="training images: a folder with one folder per class, or tar files; held-out ones if only those are used",
    )
    parser.add_argument(
        "--val-path",
        help="held-out images, in the same form; a folder without subfolders or tar files stands for all its images",
    )
    add_skip_flag(parser)


def add_skip_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of everything that reads images; without it an unreadable one is an error that names it."""
    parser.add_argument(
        "--skip-broken", action="store_true", help="replace each unreadable image with the next readable one"
    )


def images_from(args: argparse.Namespace, tokenizer: Reconstructing) -> DataConfig:
    """The images that the flags name, at the tokenizer's size.

    What no flag says is as in the tokenizer's own config. Raises ConfigError for a path of images that need none.
    """
    trained_on = tokenizer.provenance.config.data
    return _images(args, trained_on, tokenizer.image_size or trained_on.image_size)


def images_to_check(args: argparse.Namespace, tokenizer: Reconstructing | None) -> DataConfig | None:
    """The images that the flags name for a tokenizer that may be missing; None where only that would name them."""
    if tokenizer is not None:
        return images_from(args, tokenizer)
    if args.data is None and not args.data_path and not args.val_path:
        return None
    return _images(args, DataConfig(), DataConfig().image_size)


def _images(args: argparse.Namespace, trained_on: DataConfig, image_size: int) -> DataConfig:
    """The data config `trained_on` with what the flags change."""
    trained_on = extended(trained_on)
    flags = {"name": _source_name(args), "root": args.data_path, "val_root": args.val_path}
    changes = {key: value for key, value in flags.items() if value is not None}
    if args.data_path or args.val_path:
        changes["held_out"] = ""  # a list of other files

    # Another kind of images has no use for the section of the kind that was trained on.
    if changes.get("name", trained_on.name) != trained_on.name:
        unused = getattr(trained_on, trained_on.name, None)
        if unused is not None:
            changes[trained_on.name] = type(unused)()

    # Nor for keys that only kinds with files use.
    name = changes.get("name", trained_on.name)
    if name in SOURCES:
        changes |= keys_without_use(SOURCES[name])
    # A trained tokenizer gets exact pixels, however it was trained.
    changes["fast_decode"] = False
    return replace(
        trained_on,
        **changes,
        image_size=image_size,
        skip_broken=trained_on.skip_broken or args.skip_broken,
    )


def _source_name(args: argparse.Namespace) -> str | None:
    """The kind of the images: as `--data` says, or as the paths show; None where there is neither."""
    path = args.data_path or args.val_path
    if not path:
        return args.data
    if args.data is not None:
        if args.data in SOURCES and not SOURCES[args.data].needs_root:
            raise ConfigError(f"--data {args.data} needs no path; leave out --data-path and --val-path")
        return args.data

    # Training images have classes: where these have none, the error of the default kind says what is missing.
    name = kind_of(path)
    if args.data_path is not None and not SOURCES[name].has_classes:
        return DataConfig().name
    return name
