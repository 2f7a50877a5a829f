"""Samples of a generator at several guidance scales: the same random numbers, so that only guidance differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings, sample_images
from autoregressive.loading import classes_of
from engine.data.packaged import ArraySource
from engine.progress import image_bar
from engine.world import World
from evaluations.atlas.subject import Subject

IMAGE_SCALE = 2.0  # guidance of samples that take the place of images


@dataclass(frozen=True)
class GuidedSamples:
    """`images` uint8 (scales, classes, samples per class, 3, H, W), with the names of scales and classes."""

    scales: list[float]
    class_names: list[str]
    images: Tensor

    @property
    def pictures(self) -> Tensor:
        """All images in one row, scale by scale, then class by class (K,3,H,W)."""
        return self.images.flatten(0, 2)


def chosen_labels(num_classes: int, count: int) -> list[int]:
    """`count` classes, spread evenly over all; all of them where there are fewer."""
    return torch.linspace(0, num_classes - 1, min(count, num_classes)).round().long().unique().tolist()


def drawn_images(subject: Subject, count: int, seed: int, batch_size: int, world: World) -> ArraySource:
    """`count` samples of a generator, in the order of their classes, as a set of images."""
    generator = subject.generator
    labels = torch.arange(count) % generator.num_classes
    labels = labels.sort().values
    settings = SamplerSettings(guidance=Guidance(scale=IMAGE_SCALE), seed=seed)
    images = []
    with image_bar(count, "images", world) as bar:
        batches = sample_images(generator, subject.tokenizer, labels, torch.arange(count), settings, batch_size)
        for _, batch in batches:
            images += [image.permute(1, 2, 0).numpy() for image in batch]
            bar.update(len(batch))
    known = classes_of(generator)
    names = [known.shown_name(label) for label in range(len(known))]
    where = [f"sample {number}" for number in range(count)]
    return ArraySource("samples", images, labels.numpy(), names, where)


def sample_scales(
    subject: Subject,
    settings: Sequence[SamplerSettings],
    num_classes: int,
    per_class: int,
    batch_size: int,
    world: World,
) -> GuidedSamples:
    """Draws the same samples with each of the settings, which differ in their guidance scale."""
    generator, tokenizer = subject.generator, subject.tokenizer
    chosen = chosen_labels(generator.num_classes, num_classes)
    labels = torch.tensor(chosen).repeat_interleave(per_class)
    sample_ids = torch.arange(len(labels))

    images = []
    with image_bar(len(settings) * len(labels), "samples", world) as bar:
        for setting in settings:
            for _, batch in sample_images(generator, tokenizer, labels, sample_ids, setting, batch_size):
                images.append(batch)
                bar.update(len(batch))
    known = classes_of(generator)
    return GuidedSamples(
        scales=[setting.guidance.scale for setting in settings],
        class_names=[known.shown_name(label) for label in chosen],
        images=torch.cat(images).unflatten(0, (len(settings), len(chosen), per_class)),
    )
