"""Generated images as a stream for the metrics: labels, batches, time and protocol."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoregressive.cli import add_gpt_flags, add_sampler_flags, gpt_needs, sampler_needs
from autoregressive.image_sampler import SamplerSettings, sample_images
from autoregressive.loading import classes_of
from autoregressive.models.base import Generator
from engine.cli import positive
from engine.data.classes import Classes
from engine.preflight import Preflight
from engine.world import World
from evaluations.cli import add_measure_flags, add_published_flags, output_needs
from evaluations.image_sets import RESIZE, ROUNDING, rank_batches, with_bar
from evaluations.measured_needs import ToMeasure, measure_needs
from evaluations.preset_flags import add_protocol_flag
from evaluations.protocols.generation_accumulators import GeneratedBatch
from tokenizer.cli import add_image_flags, add_tokenizer_flags, images_to_check, tokenizer_needs
from tokenizer.models.base import Tokenizer

LABEL_STREAM = 0x1ABE1  # keeps random labels apart from other random numbers of the same seed

GUIDANCE_NAMES = {  # field of `Guidance` -> its name in a protocol; the other fields keep theirs
    "scale": "guidance_scale",
    "schedule": "guidance_schedule",
    "start": "guidance_start",
    "first_token": "guidance_first_token",
    "power": "guidance_power",
}


def add_sampled_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that names networks, sampler, images and reference."""
    add_tokenizer_flags(parser)
    add_gpt_flags(parser)
    add_image_flags(parser)
    parser.add_argument(
        "--num-fid-samples", type=positive, default=50000, help="number of images to generate (default 50000)"
    )
    parser.add_argument(
        "--labels", default="balanced", choices=["balanced", "random"],
        help="balanced: sample i has class i modulo the number of classes (equally many, if their number "
        "divides that of the samples); random: drawn uniformly, as published",
    )  # fmt: skip
    add_sampler_flags(parser)
    add_protocol_flag(parser, "generation")
    add_measure_flags(parser, reference="train", batch_size=32)
    add_published_flags(parser)


def sampled_needs(args: argparse.Namespace, name: str, preflight: Preflight) -> Classes | None:
    """Looks for both networks, the reference, the network that measures, and a place for the result `name`.

    Returns the classes of the generator, or None where it is not there.
    """
    output_needs(args, name, preflight)
    tokenizer = tokenizer_needs(args, preflight)
    generator = gpt_needs(args, tokenizer, preflight)
    sampler_needs(args, generator, tokenizer, preflight)
    classes = classes_of(generator) if generator is not None else None
    data = None
    with preflight.collecting():
        data = images_to_check(args, tokenizer)
    size = args.image_size_eval or (tokenizer.image_size if tokenizer is not None else None)
    measure_needs(args, ToMeasure("generation", args.num_fid_samples, size), data, preflight, classes)
    return classes


def labels_of(mode: str, count: int, num_classes: int, seed: int) -> Tensor:
    """The class of each of `count` samples, int64; a longer list begins with the shorter one."""
    if mode == "balanced":
        return torch.arange(count) % num_classes
    return torch.from_numpy(np.random.default_rng([seed, LABEL_STREAM]).integers(num_classes, size=count))


def labels_text(mode: str, labels: Tensor, num_classes: int) -> str:
    """What a protocol says about the labels of the samples: `balanced` only where each class has as many."""
    if mode != "balanced":
        return mode
    counts = torch.bincount(labels, minlength=num_classes)
    least, most = int(counts.min()), int(counts.max())
    return mode if least == most else f"in turn, {least} to {most} per class"


@dataclass
class SampleStream:
    """A generator with its tokenizer and settings, asked for `len(labels)` samples."""

    generator: Generator
    tokenizer: Tokenizer
    settings: SamplerSettings
    labels: Tensor  # (count,) int64
    label_mode: str  # balanced | random
    batch_size: int
    image_size: int  # at which images are measured
    world: World
    seconds: dict[str, float] = field(default_factory=dict)  # of this process, by `generation` and `decoding`

    @classmethod
    def from_args(
        cls,
        args: argparse.Namespace,
        generator: Generator,
        tokenizer: Tokenizer,
        settings: SamplerSettings,
        world: World,
    ) -> SampleStream:
        """The stream that the flags describe. Raises ConfigError for settings that do not fit the networks."""
        settings = settings.fitted_to(generator, tokenizer)
        return cls(
            generator=generator,
            tokenizer=tokenizer,
            settings=settings,
            labels=labels_of(args.labels, args.num_fid_samples, generator.num_classes, settings.seed),
            label_mode=args.labels,
            batch_size=args.per_proc_batch_size,
            image_size=args.image_size_eval or tokenizer.image_size,
            world=world,
        )

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of the tokens of a sample, (n,) or (n,k)."""
        all_tokens, *indices = self.generator.token_shape
        return (self.settings.num_tokens or all_tokens, *indices)

    def at(self, scale: float) -> SampleStream:
        """The same stream with another guidance scale."""
        guidance = replace(self.settings.guidance, scale=scale)
        return replace(self, settings=replace(self.settings, guidance=guidance))

    def batches(self, title: str = "generation") -> Iterator[GeneratedBatch]:
        """The samples of this rank; whole batches are dealt to the ranks in turn."""
        return with_bar(self._batches(), len(self.labels), title, self.world)

    def _batches(self) -> Iterator[GeneratedBatch]:
        for ids in rank_batches(len(self.labels), self.batch_size, self.world):
            labels = self.labels[ids]
            generated = sample_images(
                self.generator, self.tokenizer, labels, ids, self.settings, len(ids), self.image_size, self.seconds
            )
            for tokens, images in generated:
                yield GeneratedBatch(ids, labels, tokens, images)

    def times(self) -> dict[str, float]:
        """`seconds_per_image` of one process, and the fraction of it that decoding takes. A collective."""
        rank_seconds = [self.seconds.get(name, 0.0) for name in ("generation", "decoding")]
        generation, decoding = self.world.sum(torch.tensor(rank_seconds, device=self.world.device)).tolist()
        total = generation + decoding
        return {"seconds_per_image": total / len(self.labels), "decoding_share": decoding / max(total, 1e-9)}

    def protocol(self, reference_facts: dict[str, Any] | None) -> dict[str, Any]:
        """How a number that is measured over these samples, perhaps against a reference, was made."""
        # The sampler, with its guidance among its other settings.
        settings = self.settings.facts()
        guidance = settings.pop("guidance")
        guidance_facts = {GUIDANCE_NAMES.get(name, name): value for name, value in guidance.items()}

        return {
            # What is measured, and against what.
            "kind": "generation",
            "num_images": len(self.labels),
            "labels": labels_text(self.label_mode, self.labels, self.generator.num_classes),
            "image_size": self.tokenizer.image_size,
            "image_size_eval": self.image_size,
            "resize": RESIZE,
            "rounding": ROUNDING,
            "reference": reference_facts,
            # What made it.
            "sampler": {**guidance_facts, **settings, "batch_size": self.batch_size},
            "precision": str(self.generator.dtype).removeprefix("torch."),
            **self.generator.weight_facts,
            "tokenizer": self.tokenizer.provenance.facts(),
            "gpt": self.generator.provenance.facts(),
        }
