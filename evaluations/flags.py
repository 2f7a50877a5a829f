"""Command-line flags that several evaluations share."""

from __future__ import annotations

import argparse
from dataclasses import replace

from engine.assets import AssetsConfig
from engine.config import load_config
from engine.datasets import DataConfig


def add_asset_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say how pretrained networks are resolved."""
    parser.add_argument("--allow-unknown-weights", action="store_true", help="accept weight files with another hash")
    parser.add_argument("--random-stand-in", action="store_true", help="tests only: random weights, stamped so")


def assets_of(args: argparse.Namespace) -> AssetsConfig:
    """The asset settings of the flags; the folder is PRETRAINED_DIR."""
    flags = {"allow_unknown": args.allow_unknown_weights, "random_stand_in": args.random_stand_in}
    return load_config(AssetsConfig, overrides=[f"{key}={str(value).lower()}" for key, value in flags.items()])


def images_of(config: DataConfig, args: argparse.Namespace) -> DataConfig:
    """The tokenizer's own images, changed by the flags."""
    name = args.data or ("folder" if args.val_path or args.data_path else None)
    changes = {"name": name, "root": args.data_path, "val_root": args.val_path}
    return replace(config, **{k: v for k, v in changes.items() if v is not None})
