"""The evaluation of pairs behind `evaluations.measure`: originals, and what another program made of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.images import to_float
from engine.image_metrics import WINDOW
from engine.messages import UserError, logger
from engine.world import World
from evaluations.cli import (
    extractor_from,
    numbers_from,
    open_named_reference,
    output_path,
    reference_path,
)
from evaluations.image_pairs import ImagePairs, PairFacts, open_pairs
from evaluations.image_sets import AS_STORED, with_bar
from evaluations.jobs.reconstruction import (
    MIN_LPIPS_SIZE,
    MeasuredImages,
    all_scores,
    distances_to,
    lpips_networks,
    require_images,
)
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.registry import metrics_to_compute
from evaluations.preset_flags import OF_FILES, preset_section
from evaluations.protocols.accumulators import Accumulator, measure
from evaluations.protocols.preset import Preset
from evaluations.protocols.reconstruction import ReconstructedBatch, ReconstructionProtocol
from evaluations.protocols.reconstruction_accumulators import (
    Examples,
    PairScores,
    ReconstructionDistances,
)
from evaluations.protocols.reference import ReferenceSource
from evaluations.protocols.registry import PROTOCOLS
from evaluations.protocols.stored import StoredImages
from evaluations.protocols.trust import require_trust
from evaluations.readback.measurement import TextReadback
from evaluations.readback.model import load_reader
from evaluations.readback.pictures import ReconstructedFiles, StoredPictures
from evaluations.results import claim_result, write_arrays, write_result

ORIGINAL_SIZE = "original"  # in results, where images differ in size


@dataclass
class ReadPairs:
    """Pictures of drawn text, and what another program made of them."""

    readback: TextReadback
    files: ReconstructedFiles


@dataclass
class PairsJob:
    """Pairs, checked, and the accumulators of everything that was asked for."""

    output: Path
    pairs: ImagePairs
    facts: PairFacts
    rules: ReconstructionProtocol
    batch_size: int
    lpips_stamps: dict[str, str]
    unavailable: dict[str, str]  # score -> why stored images cannot have it
    scores: PairScores
    distances: ReconstructionDistances | None
    text: ReadPairs | None  # also measured, on pictures of its own
    preset: Preset | None = None  # which --protocol asked for

    @classmethod
    def from_args(cls, args: argparse.Namespace, world: World) -> PairsJob:
        """Opens and checks everything that the flags name, before anything is measured.

        Raises UserError for what does not fit.
        """
        output = output_path(args, "result")
        plugin_metrics = metrics_to_compute(args.metrics, "pairs")

        # The images.
        pairs = open_pairs(args.originals, args.reconstructions)
        logger.info("%d pairs %s: %s and %s", len(pairs), pairs.paired, args.originals, args.reconstructions)
        require_images(str(args.originals), len(pairs))
        facts = pairs.look(world)
        require_size(facts, with_lpips=args.with_lpips)

        # The rules and the networks.
        rules = StoredImages(PROTOCOLS[args.protocol]())
        lpips, lpips_stamps = lpips_networks(args, rules, world)
        extractor = extractor_from(args, world)
        for problem in rules.problems(extractor, args.reference):
            raise UserError(f"--protocol {rules.name} {problem}")
        scores = all_scores(rules.scores(lpips), plugin_metrics)
        text = read_pairs(args, world)

        # The reference comes last: its statistics may take long.
        distances = None
        if extractor is not None:
            opened = named_reference(args, pairs, facts, extractor)
            measured = MeasuredImages(facts.originals, len(pairs), facts.image_size)
            numbers = numbers_from(args)
            distances = distances_to(opened, measured, numbers, args, rules, extractor, output.parent, world)
        return cls(
            output=output,
            pairs=pairs,
            facts=facts,
            rules=rules,
            batch_size=args.per_proc_batch_size,
            lpips_stamps=lpips_stamps,
            unavailable=rules.missing_scores(lpips),
            scores=PairScores(scores, len(pairs)),
            distances=distances,
            text=text,
            preset=args.preset,
        )

    def accumulators(self) -> list[Accumulator[ReconstructedBatch]]:
        """Everything that is measured, in the order of the result file."""
        accumulators: list[Accumulator[ReconstructedBatch]] = [self.scores]
        if self.distances is not None:
            accumulators.append(self.distances)
        if self.facts.image_size is not None:
            accumulators.append(Examples(len(self.pairs)))  # images of several sizes make no table
        return accumulators

    def batches(self, world: World) -> Iterator[ReconstructedBatch]:
        """The pairs of this rank."""
        batches = self.pairs.batches(self.batch_size, world)
        for ids, originals, reconstructions in with_bar(batches, len(self.pairs), "pairs", world):
            yield ReconstructedBatch(
                ids=ids,
                originals=to_float(originals.to(world.device)),
                reconstructions=to_float(reconstructions.to(world.device)),
                indices=None,
                num_pixels=originals.shape[-2] * originals.shape[-1],
                is_resized=False,
                protocol=self.rules,
            )

    def protocol(self) -> dict[str, Any]:
        """How the numbers were made."""
        # The files of both sides: those that are measured are the reconstructions.
        originals, reconstructions = dict(self.facts.originals), dict(self.facts.reconstructions)
        protocol = {
            "kind": "reconstruction",
            "name": self.rules.name,
            "num_images": len(self.pairs),
            "paired": self.pairs.paired,
            "original_file_format": originals.pop("file_format"),
            "file_format": reconstructions.pop("file_format"),
            **lossy_fact(self.facts),
            **originals,
            "image_size_eval": self.facts.image_size or ORIGINAL_SIZE,
            "crop": self.rules.crop_name,
            "resize": AS_STORED,
            "rounding": self.rules.rounding,
            "reference": self.distances.facts if self.distances is not None else None,
            "lpips_weights": self.lpips_stamps,
            "precision": "fp32",
            "samples": reconstructions,
            **({"text_readback": self.text.readback.facts()} if self.text is not None else {}),
        }

        # What the preset asked for, beside what was done.
        extractor = self.distances.extractor if self.distances is not None else None
        return protocol | preset_section(self.preset, protocol, extractor, self.rules.resize_name, OF_FILES)

    def run(self, world: World) -> None:
        """Measures, and writes the result."""
        protocol = self.protocol()
        claim_result(self.output, protocol)
        measurement = measure(self.batches(world), self.accumulators(), world)
        measurement.unavailable |= self.unavailable
        if self.text is not None:
            measurement.add(self.text.readback.measure(self.text.files, self.batch_size, world))
        if world.is_main:
            write_result(self.output, measurement.metrics, protocol, ids=self.pairs.ids(), **measurement.sections())
            write_arrays(self.output, **measurement.arrays)


def require_size(facts: PairFacts, *, with_lpips: bool) -> None:
    """Raises UserError for images that are smaller than what measures them."""
    needs = {"SSIM": WINDOW, **({"--lpips": MIN_LPIPS_SIZE} if with_lpips else {})}
    for what, least in needs.items():
        if facts.least_side < least:
            raise UserError(f"{what} needs images of {least} px or more, the smallest of these has {facts.least_side}")


def read_pairs(args: argparse.Namespace, world: World) -> ReadPairs | None:
    """The pictures of text that the flags name, with their reconstructions and the reader; None without a reader."""
    if args.text_reader is None:
        return None
    reader, reader_facts = load_reader(args.text_reader, world.device)
    pictures = StoredPictures(args.text_originals, "--text-originals")
    files = ReconstructedFiles(pictures, args.text_reconstructions, "--text-reconstructions")
    return ReadPairs(TextReadback(pictures, reader, reader_facts), files)


def named_reference(
    args: argparse.Namespace, pairs: ImagePairs, facts: PairFacts, extractor: Extractor
) -> ReferenceSource | None:
    """The reference that the flags name; None where it is the originals themselves.

    Raises UserError for numbers that should not be trusted, unless they are forced; nothing is computed before.
    """
    path = reference_path(args)
    if path is None:
        return None
    opened = open_named_reference(path, args.reference_kind, extractor)
    require_trust(opened.facts, args, "reconstruction", len(pairs), facts.image_size, extractor)
    return opened


def lossy_fact(facts: PairFacts) -> dict[str, str]:
    """`{lossy: JPEG}` for the protocol, and a warning, where reconstructions are in a format that loses details."""
    formats = facts.lossy_formats()
    if not formats:
        return {}
    logger.warning(
        "the reconstructions are stored as %s, which may lose details: the numbers are those of the network and of the "
        "file format together, and are not ranked against those of PNG or npz", formats
    )  # fmt: skip
    return {"lossy": formats}
