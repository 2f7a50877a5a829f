"""Command-line flags that several evaluations share, and what they mean."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from torch import nn

from engine.assets import AssetsConfig
from engine.cli import positive
from engine.config import load_config
from engine.data.config import DataConfig
from engine.data.sources import open_source
from engine.messages import UserError, logger
from engine.world import World, distributed_world
from evaluations.image_sets import SourceImages
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.protocols.reference import (
    Reference,
    reference_of_file,
    reference_of_images,
    require_kind,
    require_size,
)


def add_asset_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say how pretrained networks are resolved."""
    parser.add_argument("--allow-unknown-weights", action="store_true", help="accept weight files with another hash")
    parser.add_argument("--random-stand-in", action="store_true", help="tests only: random weights, stamped so")


def assets_of(args: argparse.Namespace) -> AssetsConfig:
    """The asset settings of the flags; the folder is PRETRAINED_DIR."""
    flags = {"allow_unknown": args.allow_unknown_weights, "random_stand_in": args.random_stand_in}
    return load_config(AssetsConfig, overrides=[f"{key}={str(value).lower()}" for key, value in flags.items()])


def add_measure_flags(parser: argparse.ArgumentParser, reference: str | None, batch_size: int) -> None:
    """Flags of everything that measures images with a feature extractor; without a default `reference` is a file."""
    of_data = f"val or train (images of the data, default {reference}), or " if reference else ""
    parser.add_argument(
        "--extractor", choices=[*sorted(EXTRACTORS), "none"],
        help="default: inception where the reference is a file, else efficientnet_lite0",
    )  # fmt: skip
    parser.add_argument(
        "--reference", "--gt-npz-path", default=reference,
        help=f"{of_data}an npz file in ADM's layout",
    )  # fmt: skip
    parser.add_argument("--reference-kind", choices=["train", "val"], help="of a file that does not say it itself")
    parser.add_argument("--force-reference", action="store_true", help="accept a reference of the wrong kind")
    parser.add_argument("--fp16-emulation", action="store_true", help="also precision and recall as TensorFlow rounds")
    parser.add_argument("--eval-python-path", help="not needed: kept for published commands")
    add_output_flags(parser, batch_size)
    add_asset_flags(parser)


def add_output_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Flags of everything that writes a result: where, on which device, how many images at a time."""
    parser.add_argument("--per-proc-batch-size", type=positive, default=batch_size)
    parser.add_argument("--output", type=Path, help="result file (JSON); arrays beside it as .npz")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])


def add_published_flags(parser: argparse.ArgumentParser) -> None:
    """Further flags of the published evaluation commands."""
    parser.add_argument(
        "--image-size-eval", type=positive, help="measure at this size (LlamaGen: 384 px models at 256)"
    )
    parser.add_argument("--sample-dir", type=Path, help="folder of exported images, and of the result without --output")
    parser.add_argument("--clear-cache", action="store_true", help="not needed: no files are left over")


def held_out(args: argparse.Namespace) -> argparse.Namespace:
    """The same flags with --data-path as --val-path: so the published commands name held-out images."""
    if args.val_path is None:
        args.val_path, args.data_path = args.data_path, None
    return args


def output_of(args: argparse.Namespace, name: str) -> Path:
    """--output, or `name`.json in the sample folder of the published commands."""
    if args.output is not None:
        if args.output.suffix != ".json" or args.output.is_dir():
            raise UserError(f"--output {args.output} must be the name of a .json file")
        try:
            args.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {args.output}: its folder cannot be made: {error}") from error
        if not os.access(args.output.parent, os.W_OK):
            raise UserError(f"--output {args.output}: its folder cannot be written")
        return args.output
    if getattr(args, "sample_dir", None) is None:
        raise UserError("--output FILE.json is missing: where the result is written")
    return args.sample_dir / f"{name}.json"


def extractor_of(args: argparse.Namespace, world: World) -> nn.Module | None:
    """The feature extractor that the flags name, or None."""
    if args.eval_python_path:
        logger.info("--eval-python-path %s is not used: all metrics are computed here", args.eval_python_path)
    name = args.extractor or ("efficientnet_lite0" if args.reference in ("train", "val") else "inception")
    return None if name == "none" else EXTRACTORS[name](assets_of(args)).to(world.device)


def reference_path(args: argparse.Namespace) -> Path | None:
    """The reference file that the flags name, or None for images of the data."""
    return None if args.reference in ("train", "val") else Path(args.reference).expanduser()


def reference_from(
    args: argparse.Namespace,
    measured: str,
    data: DataConfig,
    size: int,
    extractor: nn.Module,
    folder: Path,
    world: World,
    keep: bool,
) -> Reference:
    """The reference that the flags name for a `measured` (generation | reconstruction), checked: a file, or images of
    `data` at `size`. `folder` keeps computed statistics; `keep`: features too, for precision and recall.
    """
    path = reference_path(args)
    if path is not None:
        reference = reference_of_file(path, args.reference_kind, extractor, folder, world, keep)
    else:
        images = SourceImages(open_source(data, args.reference), args.reference, size, data.skip_broken)
        reference = reference_of_images(images, args.reference, extractor, folder, world, keep)
    if extractor.metric == "fid":
        require_kind(reference, measured, args.force_reference)
    require_size(reference, size)
    return reference


def run_evaluation(args: argparse.Namespace, evaluate: Callable[[argparse.Namespace, World], None]) -> None:
    """Runs `evaluate` on the device of the flags, alone or as one of the processes that torchrun started."""
    with distributed_world(args.device, tf32=False) as world:  # numbers of a GPU are those of a CPU
        evaluate(args, world)
