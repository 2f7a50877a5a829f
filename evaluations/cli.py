"""Command-line flags that several evaluations share, and what they mean."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from autoregressive.codes import CodeStore
from engine.assets import ASSETS, AssetsConfig
from engine.cli import add_device_flag, positive
from engine.config import load_config
from engine.data.classes import Classes, labels_among, with_labels_of
from engine.data.config import DataConfig
from engine.data.sources import open_source
from engine.messages import UserError, logger
from engine.outputs import require_suffix
from engine.preflight import Preflight
from engine.world import World, distributed_world
from evaluations.image_sets import ImageSequence, SourceImages, open_images
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.extractors import EXTRACTORS, FILE_EXTRACTOR, OFFLINE_EXTRACTOR
from evaluations.protocols.feature_numbers import DEFAULT_GROUPS, GROUPS
from evaluations.protocols.reference import Reference, ReferenceImages, ReferenceSource, features_of
from evaluations.protocols.reference_file import ReferenceFile
from evaluations.protocols.trust import add_force_flags, require_trust

ALL, NONE = "all", "none"  # values of --numbers beside the names of groups
SPLITS = ("val", "train")  # values of --reference that are images of the data
REFERENCE_KINDS = (*SPLITS, "test")  # of files and folders; test: those of a benchmark, of no published FID


# ------------------------------------------------------------------------------------------------ flags
def add_asset_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say how pretrained networks are resolved."""
    parser.add_argument(
        "--allow-unknown-weights", nargs="+", default=[], metavar="NAME",
        help=f"accept files of these networks with another hash than the one on record: {', '.join(sorted(ASSETS))}",
    )  # fmt: skip
    parser.add_argument(
        "--weights-sha256", nargs="+", default=[], metavar="NAME=SHA256",
        help="hashes that publishers state for files without one on record: such files are checked, and then known",
    )  # fmt: skip
    parser.add_argument(
        "--random-stand-in", action="store_true", help="for tests only: random weights, recorded as such"
    )


def add_measure_flags(parser: argparse.ArgumentParser, reference: str | None, batch_size: int) -> None:
    """Flags of everything that measures images with a feature extractor.

    `reference` is the default split of the data; without one --reference must name a file.
    """
    data_help = f"val or train (that split of the data; default {reference}), or " if reference else ""

    # What is compared with what.
    parser.add_argument(
        "--extractor", choices=[*sorted(EXTRACTORS), "none"],
        help=f"feature extractor (default: {FILE_EXTRACTOR} if the reference is a file, else {OFFLINE_EXTRACTOR})",
    )  # fmt: skip
    parser.add_argument(
        "--reference", "--gt-npz-path", default=reference, help=f"{data_help}an npz file in ADM's layout"
    )
    parser.add_argument(
        "--reference-kind", choices=sorted(REFERENCE_KINDS), help="kind of a reference file that does not record it"
    )
    add_force_flags(parser)

    # Which numbers, and how they are computed.
    meanings = "; ".join(f"{name}: {group.meaning}" for name, group in GROUPS.items())
    parser.add_argument(
        "--numbers", nargs="+", choices=[*GROUPS, ALL, NONE], default=list(DEFAULT_GROUPS), metavar="NAME",
        help=f"numbers of features beside the distance (default: {' '.join(DEFAULT_GROUPS)}; or {ALL}, {NONE}). "
        f"{meanings}",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", metavar="PATH",
        help="npz file or folder of images that were not trained on: the scale of numbers of copied training images",
    )  # fmt: skip
    parser.add_argument(
        "--fp16-emulation", action="store_true", help="also compute precision and recall with TensorFlow's rounding"
    )
    parser.add_argument("--eval-python-path", help="not used; accepted because published commands have it")
    add_output_flags(parser, batch_size)
    add_asset_flags(parser)


def add_output_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Flags of everything that writes a result: where, on which device, how many images at a time."""
    parser.add_argument("--per-proc-batch-size", type=positive, default=batch_size)
    parser.add_argument("--output", type=Path, help="result file (JSON); arrays are written beside it as .npz")
    add_device_flag(parser)


def add_pair_metric_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of everything that measures reconstructions beside their originals; `pair_metric_needs` belongs to them."""
    parser.add_argument(
        "--precision-recall", action="store_true", help="also compute precision and recall (slow without a GPU)"
    )
    parser.add_argument(
        "--lpips",
        dest="with_lpips",
        action="store_true",
        help="also compute LPIPS (its networks must be in PRETRAINED_DIR)",
    )
    parser.add_argument(
        "--text-reader", type=Path, help="also measure text_readback, with this reader (evaluations.text_reader)"
    )
    add_metric_flags(parser)


def add_published_flags(parser: argparse.ArgumentParser) -> None:
    """Further flags of the published evaluation commands."""
    parser.add_argument(
        "--image-size-eval",
        type=positive,
        help="measure at this image size (LlamaGen measures its 384 px models at 256)",
    )
    parser.add_argument(
        "--sample-dir", type=Path, help="folder for exported images, and for the result if there is no --output"
    )
    parser.add_argument("--clear-cache", action="store_true", help="not used: no files are left over")


def add_metric_flags(parser: argparse.ArgumentParser) -> None:
    """The flag that asks for metrics of plug-ins."""
    parser.add_argument(
        "--metrics", action="append", default=[], metavar="NAME",
        help="also compute this metric, which a --plugin registers; may be repeated",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ what they mean
def take_data_path_as_held_out(args: argparse.Namespace) -> None:
    """Moves --data-path to --val-path where that is not given: the published commands name held-out images so."""
    if args.val_path is None:
        args.val_path = args.data_path
        args.data_path = None


def numbers_from(args: argparse.Namespace) -> tuple[str, ...]:
    """The groups of numbers that --numbers names. Raises UserError for `none` or `all` beside others."""
    names = tuple(dict.fromkeys(args.numbers))
    for word, groups in ((ALL, tuple(GROUPS)), (NONE, ())):
        if names == (word,):
            return groups
        if word in names:
            raise UserError(f"--numbers {' '.join(args.numbers)}: {word} stands alone")
    return names


def require_use_of_held_out(args: argparse.Namespace) -> None:
    """Raises UserError where --held-out is given and no number reads its images."""
    if args.held_out is None:
        return
    if extractor_name(args) == "none":
        raise UserError(f"--held-out {args.held_out}: its numbers need features, and --extractor none has none")
    readers = [name for name, group in GROUPS.items() if group.reads_held_out]
    if not set(readers) & set(numbers_from(args)):
        raise UserError(
            f"--held-out {args.held_out} is for --numbers {' '.join(readers)}, which is not among those that are asked "
            f"for ({' '.join(args.numbers)}): add it, or leave --held-out out"
        )


def open_held_out(path: str | None, image_size: int | None) -> ImageSequence | None:
    """The images that --held-out names, None without it. `image_size` of the others in pixels, None where that differs
    or is not known. Raises UserError for images of another size.
    """
    if path is None:
        return None
    images = open_images(path, "--held-out")
    if image_size is not None and images.image_size != image_size:
        raise UserError(f"--held-out {path}: images of {images.image_size} px, the others have {image_size} px")
    return images


def held_out_features(
    args: argparse.Namespace, image_size: int | None, extractor: Extractor, world: World
) -> Tensor | None:
    """Features (n,D) of the images that --held-out names, None without it. A collective.

    Raises UserError for images of another size than those that are measured.
    """
    require_use_of_held_out(args)
    images = open_held_out(args.held_out, image_size)
    if images is None:
        return None
    statistics = features_of(images, extractor, world, keep_features=True, title="held-out features")
    return statistics.all_features(world)


def reference_of_generated(
    args: argparse.Namespace,
    opened: ReferenceSource,
    image_size: int | None,
    extractor: Extractor,
    cache_dir: Path,
    world: World,
) -> tuple[Reference, Tensor | None]:
    """(what generated images are compared with, the features of --held-out). A collective, which may take long."""
    held_out = held_out_features(args, image_size, extractor, world)
    keep_features = "published" in extractor.capabilities or bool(numbers_from(args))
    return opened.reference(cache_dir, world, keep_features), held_out


def assets_from(args: argparse.Namespace) -> AssetsConfig:
    """The asset settings of the flags; the folder is PRETRAINED_DIR."""
    lists = {"allow_unknown": args.allow_unknown_weights, "sha256": args.weights_sha256}
    overrides = [f"{key}=[{','.join(values)}]" for key, values in lists.items()]
    return load_config(AssetsConfig, overrides=[*overrides, f"random_stand_in={str(args.random_stand_in).lower()}"])


def output_path(args: argparse.Namespace, name: str) -> Path:
    """--output, or `name`.json in the sample folder of the published commands.

    Raises UserError where no such file can be written.
    """
    path = output_name(args, name)
    if args.output is None:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path}: its folder cannot be made: {error}") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--output {path}: its folder cannot be written")
    return path


def output_name(args: argparse.Namespace, name: str) -> Path:
    """The file that `output_path` makes a place for. Raises UserError where the flags name none."""
    if args.output is None:
        if getattr(args, "sample_dir", None) is None:
            raise UserError("--output FILE.json is missing: where the result is written")
        return args.sample_dir / f"{name}.json"

    require_suffix(args.output, ".json", "--output")
    return args.output


def extractor_from(args: argparse.Namespace, world: World) -> Extractor | None:
    """The feature extractor that the flags name, or None."""
    if args.eval_python_path:
        logger.info("--eval-python-path %s is not used: all metrics are computed here", args.eval_python_path)
    name = extractor_name(args)
    return None if name == "none" else EXTRACTORS[name](assets_from(args)).to(world.device)


def extractor_name(args: argparse.Namespace) -> str:
    """The name of the feature extractor that the flags ask for, or `none`."""
    if args.extractor is not None:
        return args.extractor
    return OFFLINE_EXTRACTOR if args.reference in SPLITS else FILE_EXTRACTOR


def reference_path(args: argparse.Namespace) -> Path | None:
    """The reference file that the flags name, or None for images of the data."""
    return None if args.reference in SPLITS else Path(args.reference).expanduser()


def open_named_reference(
    path: Path, kind: str | None, extractor: Extractor, skip_broken: bool = False
) -> ReferenceSource:
    """The reference in an npz file, or the images of a folder as one.

    Raises UserError where its kind is not known.
    """
    if path.suffix == ".npz":
        return ReferenceFile.read(path, kind, extractor)
    if kind is None:
        raise UserError(no_kind(path))
    return ReferenceImages(open_images(path, "--reference", skip_broken), kind, extractor)


def no_kind(path: Path) -> str:
    """The problem of a folder as a reference of which nobody says whose images it holds."""
    return f"say whose images {path} holds: --reference-kind train or val"


def open_reference(
    args: argparse.Namespace,
    measured: str,
    num_images: int,
    data: DataConfig,
    size: int,
    extractor: Extractor,
    classes: Classes | None = None,
) -> ReferenceSource:
    """The reference for `num_images` images that the flags name: a file, or images of `data` at `size` pixels.

    `measured` is `generation` or `reconstruction`; `classes` are those of the generator. Raises UserError for images of
    other classes, and for numbers that should not be trusted, unless they are forced; nothing is computed before.
    """
    path = reference_path(args)
    if path is not None:
        source: ReferenceSource = ReferenceFile.read(path, args.reference_kind, extractor)
    else:
        opened = open_source(data, args.reference)
        if classes is not None and Classes.of(opened).are_labels:
            opened = with_labels_of(opened, classes)
        images = SourceImages(opened, args.reference, size, data.skip_broken)
        source = ReferenceImages(images, args.reference, extractor)
    require_trust(source.facts, args, measured, num_images, size, extractor)
    return source


# ------------------------------------------------------------------------------------------------ what they need
def output_needs(args: argparse.Namespace, name: str, preflight: Preflight) -> None:
    """A device, and a place for the result `name`."""
    preflight.device(args.device)
    with preflight.collecting():
        preflight.output(output_name(args, name).parent, "--output")


def codes_needs(args: argparse.Namespace, split: str, classes: Classes | None, preflight: Preflight) -> None:
    """Looks for the codes of a split that --code-path names, of `classes` where these are known."""
    if preflight.comes_later(args.code_path, "--code-path"):
        return
    with preflight.collecting():
        codes = CodeStore(args.code_path, split)
        if classes is not None:
            labels_among(codes.classes, classes)


def run_evaluation(args: argparse.Namespace, evaluate: Callable[[argparse.Namespace, World], None]) -> None:
    """Runs `evaluate` on the device of the flags, alone or as one of the processes that torchrun started."""
    with distributed_world(args.device, tf32=False) as world:  # numbers of a GPU are those of a CPU
        evaluate(args, world)
