"""What a measurement needs, for `--check`: a reference that fits, weights, held-out images, numbers to be trusted.

A run refuses some of its flags only because of what it measures: a reference of another size or kind, too few images, a
distance that a protocol does not know. All of that is known before the first batch, so it is asked here, by the same
functions as in the run and with the same messages.
"""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.assets import assets_of, find_asset, resolve
from engine.data.classes import Classes
from engine.data.config import DataConfig
from engine.messages import UserError
from engine.preflight import Preflight
from evaluations.cli import (
    assets_from,
    extractor_name,
    no_kind,
    numbers_from,
    open_held_out,
    reference_path,
    require_use_of_held_out,
)
from evaluations.image_sets import open_images, survey_images
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.metrics.registry import Kind, metrics_to_compute
from evaluations.protocols.reference_file import ReferenceFile
from evaluations.protocols.registry import PROTOCOLS
from evaluations.protocols.trust import accepted_doubts
from evaluations.readback.model import reader_needs
from tokenizer.frozen.lpips import LPIPS_BACKBONES

UNKNOWN = "unknown"  # a number of images that only opening them would tell


@dataclass(frozen=True)
class ToMeasure:
    """What is known of the images to measure before one of them is there."""

    kind: str  # generation | reconstruction
    count: int | str  # or UNKNOWN
    image_size: int | None = None  # side in pixels; None where it is not known
    is_one_size: bool = True  # False where only the first image was looked at, and others may differ


# ------------------------------------------------------------------------------------------------ distances
def measure_needs(
    args: argparse.Namespace,
    images: ToMeasure,
    data: DataConfig | None,
    preflight: Preflight,
    classes: Classes | None = None,
) -> None:
    """The weights of the feature extractor, and a reference that fits: a file, a folder (of commands that have no
    `data`), or images of `data`, of the `classes` of the generator. Then the images of --held-out.
    """
    # The numbers, and what computes features.
    with preflight.collecting():
        numbers_from(args)
        require_use_of_held_out(args)
    name = extractor_name(args)
    if name == "none":
        return
    component = EXTRACTORS[name]
    preflight.assets(assets_of(component), assets_from(args), hashed=True)

    # What the reference is, and whether numbers against it can be trusted.
    facts = None
    with preflight.collecting():
        facts = reference_facts(args, images, data, component.without_network(), preflight, classes)
    if facts is not None:
        with preflight.collecting():
            if images.image_size is None:
                facts.pop("image_size", None)  # nothing to compare it with
            accepted_doubts(facts, args, images.kind, images.count, images.image_size, component.without_network())

    # The images that were not trained on.
    with preflight.collecting():
        open_held_out(args.held_out, images.image_size if images.is_one_size else None)


def reference_facts(
    args: argparse.Namespace,
    images: ToMeasure,
    data: DataConfig | None,
    extractor: Extractor,
    preflight: Preflight,
    classes: Classes | None,
) -> dict[str, Any] | None:
    """The facts that `evaluations.protocols.trust` judges; None where they are not known yet, or the problem is told.

    Raises UserError for a reference that does not fit the extractor.
    """
    path = reference_path(args)
    if path is None:
        return split_facts(args, images, data, preflight, classes)
    if path.is_dir() and data is None:
        return folder_facts(path, args, preflight)
    if not preflight.file(path, "--reference"):
        return None
    if not zipfile.is_zipfile(path):
        preflight.problem(f"--reference: {path} is not an npz file")
        return None
    return ReferenceFile.survey(path, args.reference_kind, extractor, lambda: weights_stamp(extractor, args))


def split_facts(
    args: argparse.Namespace,
    images: ToMeasure,
    data: DataConfig | None,
    preflight: Preflight,
    classes: Classes | None,
) -> dict[str, Any] | None:
    """The facts of a split of `data`; of a reconstruction, the held-out images themselves are the reference."""
    if images.kind == "reconstruction" and args.reference == "val":
        return {"kind": "val", "num_images": images.count}
    if data is None:
        return None
    survey = preflight.images(data, args.reference)
    preflight.classes(survey, classes)
    if survey is None:
        return None
    count = UNKNOWN if survey.num_images is None else survey.num_images
    return {"data": survey.name, "kind": args.reference, "num_images": count}


def folder_facts(path: Path, args: argparse.Namespace, preflight: Preflight) -> dict[str, Any]:
    """The facts of a folder of images. Raises UserError where its kind is not known."""
    opened = open_images(path, "--reference", args.skip_broken)
    preflight.ready.append(f"--reference: {len(opened):,} images in {path}")
    if args.reference_kind is None:
        raise UserError(no_kind(path))
    kind = args.reference_kind
    return {"data": str(path), "kind": kind, "num_images": len(opened), "image_size": opened.image_size}


def weights_stamp(extractor: Extractor, args: argparse.Namespace) -> str | None:
    """The stamp that the extractor would have with its weights; None where they are not there, which is told before."""
    names = assets_of(extractor)
    if not names:
        return getattr(extractor, "stamp", None)
    assets = assets_from(args)
    if assets.random_stand_in:
        return resolve(names[0], assets).stamp
    try:
        find_asset(names[0], assets)
    except UserError:
        return None
    return resolve(names[0], assets).stamp


# ------------------------------------------------------------------------------------------------ images and pairs
def images_needs(path: str | Path, flag: str, skip_broken: bool, preflight: Preflight) -> ToMeasure | None:
    """Looks for the images of an npz file or a folder; None where they are not there."""
    with preflight.collecting():
        count = survey_images(path, flag, skip_broken)
        preflight.ready.append(f"{flag}: {count:,} images in {path}")
        return ToMeasure("generation", count, open_images(path, flag, skip_broken).image_size)
    return None


def pair_metric_needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """The reader of drawn text, the networks of LPIPS and metrics of plug-ins, where the flags ask for them; and the
    rules of the protocol for the extractor and the reference.
    """
    if args.text_reader is not None:
        reader_needs(args.text_reader, "--text-reader", preflight)
    protocol = PROTOCOLS[args.protocol]()
    if args.with_lpips:
        backbones = protocol.lpips_backbones.values()
        preflight.assets(tuple(LPIPS_BACKBONES[backbone] for backbone in backbones), assets_from(args))

    name = extractor_name(args)
    extractor = EXTRACTORS[name].without_network() if name != "none" else None
    for problem in protocol.problems(extractor, args.reference):
        preflight.problem(f"--protocol {protocol.name} {problem}")
    metric_needs(args, "pairs", preflight)


def metric_needs(args: argparse.Namespace, kind: Kind, preflight: Preflight) -> None:
    """The metrics of plug-ins that --metrics asks for."""
    with preflight.collecting():
        metrics_to_compute(args.metrics, kind)
