"""The evaluation behind `evaluations.generation`: samples of a generator, and what is measured over them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoregressive.cli import gpt_from, set_sampling, settings_of
from autoregressive.codes import CodeStore
from autoregressive.image_sampler import sample_images
from autoregressive.loading import classes_of
from engine.checkpoint.weights import fingerprint
from engine.data.classes import Classes
from engine.data.config import DataConfig
from engine.data.samples import center_batch, fixed_choice
from engine.data.sources import has_split, open_source
from engine.facts import without_facts
from engine.messages import UserError, logger
from engine.world import World
from evaluations.cli import extractor_from, numbers_from, open_reference, output_path, reference_of_generated
from evaluations.digits.model import load_classifier
from evaluations.image_sets import numbered_ids
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.registry import Metric, metrics_to_compute
from evaluations.metrics.sequences import NEAREST_CANDIDATES, nearest_training
from evaluations.preset_flags import preset_section
from evaluations.protocols.accumulators import Accumulator, measure
from evaluations.protocols.generation_accumulators import (
    EXPORTS,
    Checksums,
    ClassAgreement,
    CodeSequences,
    GeneratedBatch,
    GenerationDistances,
    ImageScores,
    NoiseDistance,
    NpzExport,
    PngExport,
)
from evaluations.protocols.preset import Preset
from evaluations.protocols.reference import Reference
from evaluations.results import MOVABLE_FACTS, claim_result, write_arrays, write_result
from evaluations.sample_stream import SampleStream
from tokenizer.cli import images_from, tokenizer_from

SHOWN_CLASSES = 10  # of which images are kept for the report
SHOWN_PER_CLASS = 8
STORE_FACTS = ("fingerprint", "data", "num_images", "views")  # of the training codes, for the protocol


@dataclass
class GenerationJob:
    """A generator with its tokenizer, checked, and everything that its samples are measured with."""

    output: Path
    stream: SampleStream
    data: DataConfig
    extractor: Extractor | None
    reference: Reference | None  # with an extractor
    numbers: tuple[str, ...]  # groups of evaluations.protocols.feature_numbers
    held_out: Tensor | None  # features
    emulate_fp16: bool
    plugin_metrics: list[Metric]
    classifier: nn.Module | None
    training_codes: CodeStore | None
    export: NpzExport | PngExport | None
    preset: Preset | None = None  # which --protocol asked for

    @classmethod
    def from_args(cls, args: argparse.Namespace, world: World) -> GenerationJob:
        """Opens and checks everything that the flags name, before anything is sampled.

        Raises UserError for what does not fit.
        """
        output = output_path(args, "generation")
        settings = settings_of(args)
        plugin_metrics = metrics_to_compute(args.metrics, "images")
        require_flags(args)

        # The networks.
        extractor = extractor_from(args, world)
        tokenizer = tokenizer_from(args, world.device)
        generator = gpt_from(args, tokenizer, world.device)
        set_sampling(args, generator, settings, args.per_proc_batch_size, world)
        classifier = None
        if args.classifier is not None:
            classifier = load_classifier(args.classifier, classes_of(generator))
        stream = SampleStream.from_args(args, generator, tokenizer, settings, world)

        # Codes and images, of the classes that the generator knows.
        classes = classes_of(generator)
        training_codes = None
        if args.code_path is not None:
            training_codes = CodeStore(args.code_path, "train")
            training_codes.require(tokenizer.code_maker(), args.vq_ckpt)
            training_codes.take_labels_of(classes)
        data = images_from(args, tokenizer)
        opened = None
        if extractor is not None:
            opened = open_reference(args, "generation", len(stream.labels), data, stream.image_size, extractor, classes)
        export = None
        if args.export:
            facts = without_facts(stream.protocol(None), MOVABLE_FACTS)
            sampled = {"command": "evaluations.generation", **facts}
            export = EXPORTS[args.export](args.sample_dir, stream.labels, stream.image_size, sampled, world)

        # The reference comes last: its statistics may take long.
        reference, held_out = None, None
        numbers = numbers_from(args)
        if opened is not None:
            reference, held_out = reference_of_generated(
                args, opened, stream.image_size, extractor, output.parent, world
            )
        return cls(
            output=output,
            stream=stream,
            data=data,
            extractor=extractor,
            reference=reference,
            numbers=numbers,
            held_out=held_out,
            emulate_fp16=args.fp16_emulation,
            plugin_metrics=plugin_metrics,
            classifier=classifier,
            training_codes=training_codes,
            export=export,
            preset=args.preset,
        )

    def accumulators(self) -> list[Accumulator[GeneratedBatch]]:
        """Everything that is measured, in the order of the result file."""
        stream = self.stream
        count = len(stream.labels)
        device = stream.world.device
        accumulators: list[Accumulator[GeneratedBatch]] = []

        # Distances.
        if self.extractor is not None:
            settings = (self.emulate_fp16, device, self.numbers, self.held_out)
            accumulators.append(GenerationDistances(self.extractor, self.reference, count, *settings))
            if "published" not in self.extractor.capabilities:
                accumulators.append(NoiseDistance(self.extractor, self.reference, count, device))

        # What single images and code sequences show.
        if self.plugin_metrics:
            accumulators.append(ImageScores(self.plugin_metrics, count, device))
        if self.classifier is not None:
            accumulators.append(ClassAgreement(self.classifier, count))
        accumulators.append(CodeSequences(count, stream.token_shape, self.training_codes))

        # The images themselves.
        accumulators.append(Checksums(count))
        if self.export is not None:
            accumulators.append(self.export)
        return accumulators

    def protocol(self) -> dict[str, Any]:
        """How the numbers were made."""
        protocol = self.stream.protocol(self.reference.facts if self.reference is not None else None)
        protocol["classifier"] = None
        if self.classifier is not None:
            protocol["classifier"] = {"fingerprint": fingerprint(self.classifier)}
        protocol["training_codes"] = None
        if self.training_codes is not None:
            protocol["training_codes"] = {name: getattr(self.training_codes.manifest, name) for name in STORE_FACTS}
        return protocol | preset_section(self.preset, protocol, self.extractor)

    def run(self, world: World) -> None:
        """Samples, measures, and writes the result, then examples for the report."""
        protocol = self.protocol()
        claim_result(self.output, protocol)
        measurement = measure(self.stream.batches(), self.accumulators(), world)
        timing = self.stream.times()
        if not world.is_main:
            return

        write_result(
            self.output,
            measurement.metrics,
            protocol,
            ids=numbered_ids(len(self.stream.labels)),
            timing=timing,
            **measurement.sections(),
        )
        write_arrays(self.output, **measurement.arrays)

        # Hours of work are safe by now: what goes wrong with the examples is a warning.
        try:
            write_arrays(self.output, **measurement.arrays, **examples(self.stream, self.data))
        except UserError as error:
            logger.warning("no examples for the report: %s", error)


def examples(stream: SampleStream, data: DataConfig) -> dict[str, np.ndarray]:
    """The first samples of each class and the training image nearest to each, for the report.

    Raises UserError where the data names no training images.
    """
    if not has_split(data, "train"):
        raise UserError("the data names no training images")
    source = open_source(data, "train")
    classes = classes_of(stream.generator)
    if not classes.are_named and len(source.class_names) == len(classes):
        classes = Classes.of(source)  # nobody knows better

    # Samples of balanced labels, whatever the labels of the measurement are: sample i has class i modulo the classes.
    num_classes = stream.generator.num_classes
    num_shown = min(SHOWN_CLASSES, num_classes)
    labels = torch.arange(num_shown).repeat_interleave(SHOWN_PER_CLASS)
    ids = labels + torch.arange(SHOWN_PER_CLASS).repeat(num_shown) * num_classes
    batches = sample_images(
        stream.generator, stream.tokenizer, labels, ids, stream.settings, stream.batch_size, stream.image_size
    )
    generated = torch.cat([images for _, images in batches])

    # The nearest among a fixed choice of training images.
    candidates = fixed_choice(len(source), NEAREST_CANDIDATES)
    training = center_batch(source, stream.image_size, candidates, data.skip_broken)
    return {
        "images": generated.numpy(),
        "labels": labels.numpy(),
        "nearest": training[nearest_training(generated, training)].numpy(),
        "num_candidates": np.array(len(candidates)),
        "class_names": np.array(classes.names),
    }


def require_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags that leave nothing to measure, or no place for the images."""
    if args.num_fid_samples < 2:
        raise UserError(f"--num-fid-samples {args.num_fid_samples}: statistics need 2 or more")
    if args.export and args.sample_dir is None:
        raise UserError("--export needs --sample-dir, the folder for the images")
