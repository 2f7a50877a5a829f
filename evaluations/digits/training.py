"""Training of the classifier of small images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import WeightSets
from engine.data.classes import Classes, count_problem, with_labels_of
from engine.data.config import DataConfig
from engine.data.identity import facts_of
from engine.data.images import to_float
from engine.data.samples import labeled_batch, training_item
from engine.data.sources import exact_pixel_problems, has_split, open_source
from engine.data.stream import stream_opener
from engine.devices import autocast
from engine.loop import Batch, LoopConfig, check_batch, fit, stop_problems
from engine.messages import ConfigError
from engine.optim import OptimConfig
from engine.preflight import Preflight
from engine.run_log import Run
from engine.seeds import torch_seed
from engine.trained_model import TrainedModel
from engine.validation import Problem, Section, raise_problems
from engine.world import World
from evaluations.digits.model import Classifier, ClassifierConfig, classify


@dataclass(kw_only=True, slots=True)
class ClassifierTrainConfig(Section):
    """Everything that defines a classifier run."""

    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components

    def problems(self) -> Iterator[Problem]:
        yield from stop_problems(self.loop, self.loop.steps)


def validate(config: ClassifierTrainConfig) -> None:
    """Raises ConfigError for what fits no classifier."""
    raise_problems(list(exact_pixel_problems(config.data)))


def shift_images(images: Tensor, max_shift: int) -> Tensor:
    """Moves each image of (B,C,H,W) by its own random offset of up to `max_shift` pixels.

    Edges are repeated.
    """
    if max_shift == 0:
        return images
    height, width = images.shape[-2:]
    padded = F.pad(images, [max_shift] * 4, mode="replicate")
    offsets = torch.randint(0, 2 * max_shift + 1, (len(images), 2)).tolist()
    shifted = [
        image[:, top : top + height, left : left + width] for image, (top, left) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(shifted)


class ClassifierTask:
    """See `engine.loop.Task`. `images_u8` and `labels` are held out."""

    def __init__(
        self,
        network: TrainedModel,
        images_u8: Tensor,
        labels: Tensor,
        max_shift: int,
        world: World,
        precision: str = "fp32",
    ) -> None:
        self.network = network
        self.images_u8 = images_u8
        self.labels = labels
        self.max_shift = max_shift
        self.world = world
        self.precision = precision

    def parts(self) -> Mapping[str, Any]:
        return {"classifier": self.network}

    def weights(self) -> WeightSets:
        return self.network.weights()

    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        """One update: cross entropy of shifted images, averaged over the micro-batches."""
        network = self.network.train_mode()
        count = len(micro_batches)
        total = torch.zeros((), device=self.world.device)
        for batch in self.network.micro_batches(micro_batches):
            images = shift_images(to_float(batch["images_u8"]), self.max_shift)
            with autocast(self.world.device, self.precision):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), batch["labels"])
            (loss / count).backward()
            total = total + loss.detach() / count
        return {"loss": total, **self.network.step(step, {"loss": total})}

    def inspect(self) -> dict[str, Tensor]:
        """Nothing more to record. Raises NonFiniteError where updates are skipped again and again."""
        self.network.require_progress()
        return {}

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """`val/accuracy` on all held-out images."""
        is_correct = classify(self.network.module, self.images_u8) == self.labels
        return {"val/accuracy": is_correct.double().mean().item()}


def training_needs(config: ClassifierTrainConfig, preflight: Preflight) -> None:
    """Looks for the images of both splits, and all that every training needs."""
    classes = Classes.of_survey(preflight.training_images(config.data))
    if classes is not None:
        problem = count_problem(classes, config.model.num_classes, "model.num_classes")
        if problem is not None:
            preflight.problem(problem)
    if not has_split(config.data, "val"):
        preflight.problem("data.val_root is empty: the classifier is measured on held-out images")
    preflight.training(config.loop, config.data.global_batch_size, checkpoint_bytes=0)


def train(config: ClassifierTrainConfig, world: World) -> None:
    """Trains the classifier to its end, or continues."""
    check_batch(config.data.global_batch_size, world, config.loop.grad_accum)

    # Images. Held-out ones stay in memory.
    source = open_source(config.data, "train")
    classes = Classes.of(source)
    problem = count_problem(classes, config.model.num_classes, "model.num_classes")
    if problem is not None:
        raise ConfigError(problem)
    held_out = with_labels_of(open_source(config.data, "val"), classes)
    images, labels = labeled_batch(held_out, config.data.image_size, range(len(held_out)), config.data.skip_broken)

    run = Run(config.loop.run_dir, config, world, config.loop.tracker_sections())
    with run:
        # The network, drawn with the seed.
        torch.manual_seed(torch_seed(config.loop.seed))
        network = TrainedModel(Classifier(config.model), config.optim, total_steps=config.loop.steps, world=world)
        task = ClassifierTask(network, images, labels, config.model.max_shift, world, config.loop.precision)

        # Training, from the newest checkpoint if there is one.
        store = CheckpointStore.for_run(
            run.dir,
            config.loop,
            world,
            config,
            stamp=classes.stamp(),
            data={"train": facts_of(source), "val": facts_of(held_out)},
            accept_changed_data=config.data.accept_changed,
        )
        item = training_item(source, config.data, config.loop.seed)
        stream = stream_opener(
            item, len(source), config.data, config.loop, world, source.where, order_version=lambda: store.order_version
        )
        fit(task, stream, config.loop, run, world, store)
