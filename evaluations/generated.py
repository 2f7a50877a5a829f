"""Generated images as a stream for the metrics: which labels, which batches, how long it took, and the stamp."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoregressive.cli import add_gpt_flags, add_sampler_flags
from autoregressive.models.base import Generator
from autoregressive.sampler import SamplerSettings, sample_images
from engine.cli import positive
from engine.world import World
from evaluations.cli import add_measure_flags, add_published_flags
from evaluations.image_sets import rank_batches, with_bar
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.protocols.reference import Reference, compute_metrics
from tokenizer.cli import add_image_flags, add_tokenizer_flags

LABEL_STREAM = 0x1ABE1  # keeps random labels apart from other random numbers of the same seed


def add_sampled_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that names networks, sampler, images and reference."""
    add_tokenizer_flags(parser)
    add_gpt_flags(parser)
    add_image_flags(parser)
    parser.add_argument("--num-fid-samples", type=positive, default=50000, help="images to generate (default 50000)")
    parser.add_argument(
        "--labels", default="balanced", choices=["balanced", "random"],
        help="balanced: sample i has class i modulo the number of classes; random: as published",
    )  # fmt: skip
    add_sampler_flags(parser)
    add_measure_flags(parser, reference="train", batch_size=32)
    add_published_flags(parser)


def labels_of(mode: str, count: int, num_classes: int, seed: int) -> Tensor:
    """The class of each of `count` samples, int64; a longer list begins with the shorter one."""
    if mode == "balanced":
        return torch.arange(count) % num_classes
    return torch.from_numpy(np.random.default_rng([seed, LABEL_STREAM]).integers(num_classes, size=count))


@dataclass
class Sampler:
    """A generator with its tokenizer and settings, asked for `len(labels)` samples."""

    gpt: Generator
    tokenizer: nn.Module
    settings: SamplerSettings
    labels: Tensor
    label_mode: str
    batch_size: int
    image_size: int
    world: World
    seconds: dict[str, float] = field(default_factory=dict)

    def batches(self, title: str = "generation") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(sample numbers (b,), tokens (b,N), images uint8 (b,3,H,W)) of this rank, whole batches dealt in turn."""
        return with_bar(self._batches(), len(self.labels), title, self.world)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for ids in rank_batches(len(self.labels), self.batch_size, self.world):
            made = sample_images(
                self.gpt, self.tokenizer, self.labels[ids], ids, self.settings, len(ids), self.image_size, self.seconds
            )
            yield from ((ids, tokens, images) for tokens, images in made)

    def times(self) -> dict[str, float]:
        """Seconds an image of one process, and the share of decoding (the paper's table of generation time)."""
        both = [self.seconds.get(name, 0.0) for name in ("generation", "decoding")]
        generation, decoding = self.world.sum(torch.tensor(both, device=self.world.device)).tolist()
        total = generation + decoding
        return {"seconds_per_image": total / len(self.labels), "decoding_share": decoding / max(total, 1e-9)}

    def protocol(self, reference: Reference | None) -> dict[str, Any]:
        """The stamp of a number that is measured over these samples."""
        sampler = asdict(self.settings)
        guidance = sampler.pop("guidance")
        named = {"scale": "guidance_scale", "schedule": "guidance_schedule", "start": "guidance_start"}
        named["first_token"] = "guidance_first_token"
        sampler = {named.get(key, key): value for key, value in guidance.items()} | sampler
        return {
            "kind": "generation",
            "num_images": len(self.labels),
            "labels": self.label_mode,
            "image_size": self.tokenizer.image_size,
            "image_size_eval": self.image_size,
            "rounding": "uint8(clamp(127.5 x + 128))",
            "reference": reference.facts if reference is not None else None,
            "sampler": {**sampler, "batch_size": self.batch_size},
            "precision": str(self.gpt.dtype).removeprefix("torch."),
            "tokenizer": self.tokenizer.provenance.facts(),
            "gpt": self.gpt.provenance.facts(),
        }


def measured(
    sampler: Sampler, extractor: nn.Module, reference: Reference, half: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """The suite of metrics over all samples."""
    made = FeatureStatistics(extractor, len(sampler.labels), keep=extractor.metric == "fid")
    for ids, _, images in sampler.batches(f"guidance {sampler.settings.guidance.scale:g}"):
        made.update(ids, extractor(images.to(sampler.world.device)))
    return compute_metrics(made, reference, sampler.world, "generation", half)
