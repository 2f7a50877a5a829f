"""What is measured over the batches of a generation; see `Accumulator`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autoregressive.codes import CodeStore
from engine.data.images import to_pil
from engine.finite import numbered, require_finite
from engine.outputs import OutputFolder
from engine.world import World
from evaluations.digits.model import classify
from evaluations.image_sets import NpzWriter
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.metrics.registry import Metric
from evaluations.metrics.sequences import fraction_distinct, memorized_sequences, noise_images
from evaluations.protocols.accumulators import Accumulator, Measurement, mean_of_images
from evaluations.protocols.distances import compute_metrics, pool_distance
from evaluations.protocols.reference import Reference


class GeneratedBatch(NamedTuple):
    """Some generated images, on the CPU."""

    ids: Tensor  # (B,) int64, numbers of the samples
    labels: Tensor  # (B,) int64, the classes asked for
    tokens: Tensor  # (B,N) or (B,N,k)
    images: Tensor  # uint8 (B,3,H,W)


class GenerationDistances(Accumulator[GeneratedBatch]):
    """Metrics of generated images against a reference; ADM's precision and recall of a published extractor only.

    `numbers` are groups of `evaluations.protocols.feature_numbers`.
    """

    def __init__(
        self,
        extractor: Extractor,
        reference: Reference,
        count: int,
        emulate_fp16: bool,
        device: torch.device,
        numbers: Sequence[str] = (),
        held_out: Tensor | None = None,
    ) -> None:
        self.extractor = extractor
        self.reference = reference
        self.emulate_fp16, self.device = emulate_fp16, device
        self.numbers = numbers
        self.held_out = held_out
        self.with_manifold = "published" in extractor.capabilities
        self.statistics = FeatureStatistics(extractor, count, keep_features=self.with_manifold or bool(numbers))

    def update(self, batch: GeneratedBatch) -> None:
        self.statistics.update(batch.ids, self.extractor(batch.images.to(self.device)))

    def result(self, world: World) -> Measurement:
        return compute_metrics(
            self.statistics,
            self.reference,
            world,
            "generation",
            numbers=self.numbers,
            with_manifold=self.with_manifold,
            emulate_fp16=self.emulate_fp16,
            held_out=self.held_out,
        )


class NoiseDistance(Accumulator[GeneratedBatch]):
    """The distance of as many images of uniform noise: the scale of a distance without published values."""

    def __init__(self, extractor: Extractor, reference: Reference, count: int, device: torch.device) -> None:
        self.extractor = extractor
        self.reference = reference
        self.device = device
        self.statistics = FeatureStatistics(extractor, count)

    def update(self, batch: GeneratedBatch) -> None:
        noise = noise_images(len(batch.ids), batch.images.shape[-1], seed=int(batch.ids[0]))
        self.statistics.update(batch.ids, self.extractor(noise.to(self.device)))

    def result(self, world: World) -> Measurement:
        distance = pool_distance(self.statistics, self.reference, world)
        return Measurement({f"{self.extractor.metric}_noise": distance})


class ImageScores(Accumulator[GeneratedBatch]):
    """Means of metrics of plug-ins over all images."""

    def __init__(self, metrics: Sequence[Metric], count: int, device: torch.device) -> None:
        self.metrics = metrics
        self.device = device
        self.table = torch.zeros(len(metrics), count, dtype=torch.float64)

    def update(self, batch: GeneratedBatch) -> None:
        images = batch.images.to(self.device)
        for row, metric in zip(self.table, self.metrics, strict=True):
            values = metric.images(images).double().cpu()
            with numbered("sample", batch.ids):
                require_finite(values, f"values of the metric {metric.name}")
            row[batch.ids] = values

    def result(self, world: World) -> Measurement:
        table = world.sum(self.table.to(world.device)).cpu()
        return mean_of_images([metric.name for metric in self.metrics], table)


class ClassAgreement(Accumulator[GeneratedBatch]):
    """`label_agreement`: the fraction of images that a classifier puts into the class they were asked for."""

    def __init__(self, classifier: nn.Module, count: int) -> None:
        self.classifier = classifier
        self.is_right = torch.zeros(count, dtype=torch.float64)

    def update(self, batch: GeneratedBatch) -> None:
        self.is_right[batch.ids] = (classify(self.classifier, batch.images) == batch.labels).double()

    def result(self, world: World) -> Measurement:
        is_right = world.sum(self.is_right.to(world.device)).cpu()
        return mean_of_images(["label_agreement"], is_right[None])


class CodeSequences(Accumulator[GeneratedBatch]):
    """`distinct` code sequences; with a store of training codes also those that are `memorized` from it."""

    def __init__(self, count: int, token_shape: tuple[int, ...], training_codes: CodeStore | None) -> None:
        self.tokens = torch.zeros(count, *token_shape, dtype=torch.long)
        self.training_codes = training_codes

    def update(self, batch: GeneratedBatch) -> None:
        self.tokens[batch.ids] = batch.tokens

    def result(self, world: World) -> Measurement:
        tokens = world.sum(self.tokens.to(world.device)).cpu().flatten(1).numpy()
        if not world.is_main:
            return Measurement()  # reading all training codes takes long; one rank does it
        measurement = Measurement({"distinct": fraction_distinct(tokens)})
        if self.training_codes is not None:
            is_memorized = torch.from_numpy(memorized_sequences(tokens, self._training_sequences()))
            measurement.add(mean_of_images(["memorized"], is_memorized[None].double()))
        return measurement

    def _training_sequences(self) -> np.ndarray:
        """The codes of the training images (images,views,n[,k]), of as many tokens as the samples have."""
        return self.training_codes.codes[:, :, : self.tokens.shape[1]]


class Checksums(Accumulator[GeneratedBatch]):
    """CRC-32 of every image (count,), by which `evaluations.compare` counts images that differ."""

    def __init__(self, count: int) -> None:
        self.checksums = torch.zeros(count, dtype=torch.long)

    def update(self, batch: GeneratedBatch) -> None:
        self.checksums[batch.ids] = torch.tensor([zlib.crc32(image.numpy().tobytes()) for image in batch.images])

    def result(self, world: World) -> Measurement:
        checksums = world.sum(self.checksums.to(world.device)).cpu()
        return Measurement(arrays={"checksums": checksums.numpy()})


# ------------------------------------------------------------------------------------------------ exports
class NpzExport(Accumulator[GeneratedBatch]):
    """Writes the images into `samples.npz` in ADM's layout."""

    def __init__(
        self, folder: Path, labels: Tensor, image_size: int, settings: Mapping[str, Any], world: World
    ) -> None:
        self.labels = labels
        self.writer = NpzWriter(folder / "samples.npz", len(labels), image_size, world)

    def update(self, batch: GeneratedBatch) -> None:
        self.writer.write(batch.ids, batch.images)

    def result(self, world: World) -> Measurement:
        self.writer.finish(labels=self.labels.numpy())
        return Measurement()


class PngExport(Accumulator[GeneratedBatch]):
    """Writes the images as PNG files, named by their numbers, into the folder `samples`."""

    def __init__(
        self, folder: Path, labels: Tensor, image_size: int, settings: Mapping[str, Any], world: World
    ) -> None:
        self.pictures = [self.file_name(number) for number in range(len(labels))]
        self.output = OutputFolder(folder / "samples", "--sample-dir: its", settings, world, self.pictures)

    @staticmethod
    def file_name(number: int) -> str:
        """The file of sample `number`."""
        return f"{number:06d}.png"

    def update(self, batch: GeneratedBatch) -> None:
        for number, image in zip(batch.ids.tolist(), batch.images, strict=True):
            to_pil(image).save(self.output.path / self.file_name(number))

    def result(self, world: World) -> Measurement:
        self.output.finish(self.pictures)
        return Measurement()


EXPORTS = {"npz": NpzExport, "png": PngExport}  # for --export
