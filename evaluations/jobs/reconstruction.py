"""The evaluation behind `evaluations.reconstruction`: images through a tokenizer and its codes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from engine.data.sources import ImageSource, open_source
from engine.messages import UserError
from engine.world import World
from evaluations.cli import (
    assets_from,
    extractor_from,
    held_out_features,
    numbers_from,
    open_reference,
    output_path,
)
from evaluations.image_sets import decoding_facts, numbered_ids, with_bar
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.registry import Metric, metrics_to_compute
from evaluations.preset_flags import preset_section
from evaluations.protocols.accumulators import Accumulator, measure
from evaluations.protocols.preset import Preset
from evaluations.protocols.reconstruction import (
    ReconstructedBatch,
    ReconstructionProtocol,
    Reconstructor,
    Score,
)
from evaluations.protocols.reconstruction_accumulators import (
    CodebookUsage,
    Compression,
    Examples,
    PairScores,
    ReconstructionDistances,
    own_reference_facts,
    plugin_score,
)
from evaluations.protocols.reference import ReferenceSource
from evaluations.protocols.registry import PROTOCOLS
from evaluations.protocols.trust import require_trust
from evaluations.readback.measurement import TextReadback, through_network
from evaluations.readback.model import load_reader
from evaluations.readback.pictures import DrawnPictures
from evaluations.results import claim_result, write_arrays, write_result
from tokenizer.cli import images_from, reconstructing_from
from tokenizer.frozen.lpips import lpips_network
from tokenizer.models.reconstructing import Reconstructing

MIN_LPIPS_SIZE = 32  # pixels; smaller images vanish in its network


@dataclass
class ReconstructionJob:
    """A tokenizer and held-out images, checked, and the accumulators of everything that was asked for."""

    output: Path
    reconstructor: Reconstructor
    source: ImageSource
    originals: dict[str, Any]  # what the protocol says about the images
    skip_broken: bool
    batch_size: int
    lpips_stamps: dict[str, str]
    scores: PairScores
    distances: ReconstructionDistances | None
    text: TextReadback | None  # also measured, on pictures of its own
    preset: Preset | None = None  # which --protocol asked for

    @classmethod
    def from_args(cls, args: argparse.Namespace, world: World) -> ReconstructionJob:
        """Opens and checks everything that the flags name, before anything is measured.

        Raises UserError for what does not fit.
        """
        output = output_path(args, "reconstruction")
        plugin_metrics = metrics_to_compute(args.metrics, "pairs")

        # The networks and the rules.
        protocol = PROTOCOLS[args.protocol]()
        lpips, lpips_stamps = lpips_networks(args, protocol, world)
        extractor = extractor_from(args, world)
        tokenizer = reconstructing_from(args, world.device)
        reconstructor = Reconstructor(tokenizer, protocol, args.image_size_eval, args.original_resolution)
        for problem in protocol.problems(extractor, args.reference):
            raise UserError(f"--protocol {protocol.name} {problem}")
        require_lpips_size(args.with_lpips, None if reconstructor.whole else reconstructor.eval_size)
        scores = all_scores(protocol.scores(lpips), plugin_metrics)
        text = None
        if args.text_reader is not None:
            reader, reader_facts = load_reader(args.text_reader, world.device)
            text = TextReadback(DrawnPictures(tokenizer.image_size, args.text_pictures), reader, reader_facts)

        # The images.
        data = images_from(args, tokenizer)
        source = open_source(data, "val")
        require_images(source.name, len(source))
        originals = {"data": source.name, "split": "val", "content": source.identity(), **decoding_facts(data.decoding)}

        # The reference comes last: its statistics may take long.
        distances = None
        numbers = numbers_from(args)
        if extractor is not None:
            opened = None  # the images themselves, unless the flags name others
            if args.reference != "val":
                size = reconstructor.eval_size
                opened = open_reference(args, "reconstruction", len(source), data, size, extractor)
            size = None if reconstructor.whole else reconstructor.eval_size
            measured = MeasuredImages(originals, len(source), size)
            distances = distances_to(opened, measured, numbers, args, protocol, extractor, output.parent, world)
        return cls(
            output=output,
            reconstructor=reconstructor,
            source=source,
            originals=originals,
            skip_broken=data.skip_broken,
            batch_size=args.per_proc_batch_size,
            lpips_stamps=lpips_stamps,
            scores=PairScores(scores, len(source)),
            distances=distances,
            text=text,
            preset=args.preset,
        )

    def accumulators(self) -> list[Accumulator[ReconstructedBatch]]:
        """Everything that is measured, in the order of the result file."""
        quantizer = self.reconstructor.tokenizer.quantizer
        count = len(self.source)
        accumulators: list[Accumulator[ReconstructedBatch]] = [self.scores]
        if quantizer is not None:
            accumulators += [CodebookUsage(quantizer), Compression(quantizer, count)]
        if self.distances is not None:
            accumulators.append(self.distances)
        if not self.reconstructor.whole:
            accumulators.append(Examples(count))  # whole images differ in size: they make no table
        return accumulators

    def batches(self, world: World) -> Iterator[ReconstructedBatch]:
        """The images of this rank with their reconstructions."""
        originals = self.reconstructor.originals(self.source, self.batch_size, self.skip_broken, world)
        for ids, images in with_bar(originals, len(self.source), "reconstruction", world):
            yield self.reconstructor.reconstruct(ids, images.to(world.device))

    def protocol(self) -> dict[str, Any]:
        """How the numbers were made."""
        tokenizer = self.reconstructor.tokenizer
        protocol = {
            "kind": "reconstruction",
            "name": self.reconstructor.protocol.name,
            "num_images": len(self.source),
            **self.originals,
            "skip_broken": self.skip_broken,
            **self.reconstructor.facts(),
            "reference": self.distances.facts if self.distances is not None else None,
            "lpips_weights": self.lpips_stamps,
            **code_facts(tokenizer),
            "precision": "fp32",
            "tokenizer": tokenizer.provenance.facts(),
            **({"text_readback": self.text.facts()} if self.text is not None else {}),
        }

        # What the preset asked for, beside what was done.
        extractor = self.distances.extractor if self.distances is not None else None
        resize = self.reconstructor.protocol.resize_name
        return protocol | preset_section(self.preset, protocol, extractor, resize)

    def run(self, world: World) -> None:
        """Measures, and writes the result."""
        protocol = self.protocol()
        claim_result(self.output, protocol)
        measurement = measure(self.batches(world), self.accumulators(), world)
        if self.text is not None:
            rounding = self.reconstructor.protocol.to_uint8
            reconstruct = through_network(self.reconstructor.tokenizer, rounding, world.device)
            measurement.add(self.text.measure(reconstruct, self.batch_size, world))
        if world.is_main:
            ids = numbered_ids(len(self.source))
            write_result(self.output, measurement.metrics, protocol, ids=ids, **measurement.sections())
            write_arrays(self.output, **measurement.arrays)


def require_images(name: str, count: int) -> None:
    """Raises UserError for fewer than two images."""
    if count < 2:
        raise UserError(f"{name} has {count} images; statistics need 2 or more")


def require_lpips_size(with_lpips: bool, size: int | None) -> None:
    """Raises UserError for images of `size` pixels that are too small for LPIPS; None for whole ones of any size."""
    if with_lpips and size is not None and size < MIN_LPIPS_SIZE:
        raise UserError(f"--lpips needs images of {MIN_LPIPS_SIZE} px or more, these have {size}")


def code_facts(tokenizer: Reconstructing) -> dict[str, int]:
    """What a protocol says about the codes between the images; nothing where there are none."""
    if tokenizer.quantizer is None:
        return {}
    num_tokens = tokenizer.used_tokens or tokenizer.num_tokens
    return {"codebook_size": tokenizer.quantizer.codebook_size, "num_tokens": num_tokens}


@dataclass(frozen=True)
class MeasuredImages:
    """The originals of a measurement."""

    facts: dict[str, Any]  # what the protocol says about them
    count: int
    size: int | None  # side in pixels; None where they differ in size


def distances_to(
    opened: ReferenceSource | None,
    originals: MeasuredImages,
    numbers: Sequence[str],
    args: argparse.Namespace,
    rules: ReconstructionProtocol,
    extractor: Extractor,
    cache_dir: Path,
    world: World,
) -> ReconstructionDistances:
    """The distances to a reference that can be trusted, or where it is None to the originals; and the groups `numbers`.

    Raises UserError for a distance to too few originals, unless it is forced; nothing is computed before.
    """
    reference = None
    if opened is None:
        facts = own_reference_facts(originals.facts, originals.count, extractor)
        require_trust(facts, args, "reconstruction", originals.count, None, extractor)
    else:
        facts = opened.facts
        reference = opened.reference(cache_dir, world, args.precision_recall or bool(numbers))
    return ReconstructionDistances(
        rules,
        extractor,
        facts,
        reference,
        originals.count,
        args.precision_recall,
        args.fp16_emulation,
        numbers,
        held_out_features(args, originals.size, extractor, world),
    )


def lpips_networks(
    args: argparse.Namespace, protocol: ReconstructionProtocol, world: World
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """({metric: network}, {metric: stamp}) of the protocol's LPIPS; both empty without --lpips."""
    networks: dict[str, nn.Module] = {}
    stamps: dict[str, str] = {}
    if args.with_lpips:
        for metric, backbone in protocol.lpips_backbones.items():
            network, stamps[metric] = lpips_network(assets_from(args), backbone)
            networks[metric] = network.to(world.device)
    return networks, stamps


def all_scores(protocol_scores: dict[str, Score], plugin_metrics: list[Metric]) -> dict[str, Score]:
    """The scores of the protocol and of plug-ins.

    Raises UserError where one of a plug-in has the name of one of the protocol.
    """
    scores = dict(protocol_scores)
    for metric in plugin_metrics:
        if metric.name in protocol_scores:
            raise UserError(f"--metrics {metric.name}: the protocol has a score of this name; register another name")
        scores[metric.name] = plugin_score(metric)
    return scores
