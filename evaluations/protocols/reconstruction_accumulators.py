"""What is measured over the batches of a reconstruction; see `Accumulator`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.finite import numbered, require_finite
from engine.world import World
from evaluations.metrics.blocks import NUM_BLOCKS, block_numbers
from evaluations.metrics.code_usage import CodeUsage, compression, not_counted, scale_metrics, usage_metrics
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.metrics.intervals import jackknife
from evaluations.metrics.registry import Metric
from evaluations.protocols.accumulators import Accumulator, Measurement, mean_of_images
from evaluations.protocols.distances import compute_metrics, pool_distance
from evaluations.protocols.reconstruction import ReconstructedBatch, ReconstructionProtocol, Score
from evaluations.protocols.reference import Reference, extractor_facts
from evaluations.protocols.trust import KINDS
from tokenizer.quantizers.base import Quantizer

NUM_EXAMPLES = 32  # pairs kept for the report


def plugin_score(metric: Metric) -> Score:
    """The score of a plug-in's metric, which is given clamped reconstructions and originals."""
    return lambda batch: metric.pairs(batch.reconstructions.clamp(-1, 1), batch.originals)


class PairScores(Accumulator[ReconstructedBatch]):
    """Scores of each pair of images: their means, and `score_<metric>` (count,) for the report."""

    def __init__(self, scores: Mapping[str, Score], count: int) -> None:
        self.scores = scores
        self.table = torch.zeros(len(scores), count, dtype=torch.float64)

    def update(self, batch: ReconstructedBatch) -> None:
        for row, (name, score) in zip(self.table, self.scores.items(), strict=True):
            values = score(batch).double().cpu()
            with numbered("image", batch.ids):
                require_finite(values, f"values of the metric {name}")
            row[batch.ids] = values

    def result(self, world: World) -> Measurement:
        table = world.sum(self.table.to(world.device)).cpu()
        measurement = mean_of_images(self.scores, table)
        measurement.arrays = {f"score_{name}": row.numpy() for name, row in zip(self.scores, table, strict=True)}
        return measurement


class CodebookUsage(Accumulator[ReconstructedBatch]):
    """How the images use the codebook; for the report `code_counts` (G,K), of scales also `scale_counts` (S,K)."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.usage = CodeUsage(quantizer)

    def update(self, batch: ReconstructedBatch) -> None:
        self.usage.update(batch.indices)

    def result(self, world: World) -> Measurement:
        counts, num_distinct = self.usage.merged(world)
        metrics = usage_metrics(counts, num_distinct, self.usage.sizes)
        arrays = {"code_counts": counts.numpy()}
        if self.usage.scales:
            scale_counts = self.usage.merged_scales(world)
            metrics |= scale_metrics(scale_counts, self.usage.scales)
            arrays |= {"scales": np.array(self.usage.scales), "scale_counts": scale_counts.numpy()}
        return Measurement(metrics, not_counted(self.usage.sizes), arrays)


class Compression(Accumulator[ReconstructedBatch]):
    """Bits per image and compression ratio, for means over images, which may differ in size."""

    def __init__(self, quantizer: Quantizer, count: int) -> None:
        self.quantizer = quantizer
        self.num_pixels = torch.zeros(count, dtype=torch.float64)
        self.num_tokens = torch.zeros(count, dtype=torch.float64)

    def update(self, batch: ReconstructedBatch) -> None:
        self.num_pixels[batch.ids] = float(batch.num_pixels)
        self.num_tokens[batch.ids] = float(batch.indices.shape[1])

    def result(self, world: World) -> Measurement:
        num_pixels = world.sum(self.num_pixels.to(world.device)).cpu()
        num_tokens = world.sum(self.num_tokens.to(world.device)).cpu()
        measurement = Measurement(compression(self.quantizer, num_pixels.mean().item(), num_tokens.mean().item()))

        # The same without each block of images: exactly the same number where all images have one size.
        blocks = block_numbers(len(num_pixels))
        if len(num_pixels) >= 2 * NUM_BLOCKS:
            without = [
                compression(
                    self.quantizer, num_pixels[blocks != i].mean().item(), num_tokens[blocks != i].mean().item()
                )
                for i in range(NUM_BLOCKS)
            ]
            for name, value in measurement.metrics.items():
                measurement.errors[name] = jackknife(value, [part[name] for part in without])
        return measurement


def own_reference_facts(originals: Mapping[str, Any], count: int, extractor: Extractor) -> dict[str, Any]:
    """The facts of `count` images as a reference of their own reconstructions; `originals` are those of the images."""
    facts = {"kind": KINDS["reconstruction"], "num_images": count, "statistics": "of the images themselves"}
    return {**originals, **facts, **extractor_facts(extractor)}


class ReconstructionDistances(Accumulator[ReconstructedBatch]):
    """Metrics of reconstructions against a reference, or without one against their own originals.

    With a reference the distance of the originals to it is measured too, as the scale of the other. `facts` are those
    of the reference or of the originals; `numbers` are groups of `evaluations.protocols.feature_numbers`.
    """

    def __init__(
        self,
        protocol: ReconstructionProtocol,
        extractor: Extractor,
        facts: dict[str, Any],
        reference: Reference | None,
        count: int,
        precision_recall: bool,
        emulate_fp16: bool,
        numbers: Sequence[str] = (),
        held_out: Tensor | None = None,
    ) -> None:
        self.protocol = protocol
        self.extractor = extractor
        self.facts = facts
        self.reference = reference
        self.precision_recall = precision_recall
        self.emulate_fp16 = emulate_fp16
        self.numbers = numbers
        self.held_out = held_out
        keep_features = precision_recall or bool(numbers)
        self.reconstructions = FeatureStatistics(extractor, count, keep_features)
        self.originals = FeatureStatistics(extractor, count, keep_features and reference is None)

    def update(self, batch: ReconstructedBatch) -> None:
        self.reconstructions.update(batch.ids, self.protocol.features(self.extractor, batch.reconstructions))
        self.originals.update(batch.ids, self.protocol.features(self.extractor, batch.originals))

    def result(self, world: World) -> Measurement:
        reference = self.reference
        if reference is None:
            reference = self._originals_as_reference(world)
        measurement = compute_metrics(
            self.reconstructions,
            reference,
            world,
            "reconstruction",
            numbers=self.numbers,
            with_manifold=self.precision_recall,
            emulate_fp16=self.emulate_fp16,
            held_out=self.held_out,
        )
        if self.reference is not None:
            measurement.metrics[f"{self.extractor.metric}_real"] = pool_distance(self.originals, reference, world)
        return measurement

    def _originals_as_reference(self, world: World) -> Reference:
        """The statistics of the originals of all ranks. A collective."""
        originals = self.originals
        spatial = originals.spatial.merged(world).gaussian() if originals.spatial is not None else None
        features = originals.all_features(world) if originals.features is not None else None
        pool = originals.pool.merged(world).gaussian()
        return Reference(self.facts, pool, spatial, features)


class Examples(Accumulator[ReconstructedBatch]):
    """Evenly spread pairs for the report, uint8: `originals`, `reconstructions`, and their `numbers`."""

    def __init__(self, count: int) -> None:
        self.stride = max(1, count // NUM_EXAMPLES)
        self.parts: dict[str, list[torch.Tensor]] = {"originals": [], "reconstructions": [], "numbers": []}

    def update(self, batch: ReconstructedBatch) -> None:
        rows = [i for i, number in enumerate(batch.ids.tolist()) if number % self.stride == 0]
        if rows:
            self.parts["originals"].append(batch.originals_u8[rows].cpu())
            self.parts["reconstructions"].append(batch.reconstructions_u8[rows].cpu())
            self.parts["numbers"].append(batch.ids[rows])

    def result(self, world: World) -> Measurement:
        """Those of this rank, so that the main rank's are written."""
        arrays = {name: torch.cat(parts)[:NUM_EXAMPLES].numpy() for name, parts in self.parts.items() if parts}
        return Measurement(arrays=arrays)
