"""Trains a small image classifier on real images, to check whether generated images show the class they were asked for.

    python -m evaluations.classifier --config configs/quickstart/classifier.yaml loop.run_dir=runs/quickstart/classifier

A plain convolutional network for small images such as digits; not a benchmark of anything else. The same command
continues a run that was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import WeightSets
from engine.cli import parse_cli, run_entry
from engine.data.config import DataConfig
from engine.data.images import to_float
from engine.data.samples import center_batch, training_item
from engine.data.sources import open_source
from engine.data.stream import open_stream
from engine.loop import Batch, LoopConfig, check_batch, fit
from engine.optim import OptimConfig
from engine.run_log import Run
from engine.trained_model import TrainedModel
from engine.world import World, distributed_world
from evaluations.digits.model import Classifier, ClassifierConfig, classify


@dataclass(kw_only=True, slots=True)
class ClassifierTrainConfig:
    """Everything that defines a classifier run."""

    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components


def shifted(images: Tensor, max_shift: int) -> Tensor:
    """Every image moved by its own random offset, edges repeated."""
    if max_shift == 0:
        return images
    height, width = images.shape[-2:]
    padded = F.pad(images, [max_shift] * 4, mode="replicate")
    offsets = torch.randint(0, 2 * max_shift + 1, (len(images), 2)).tolist()
    return torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets, strict=True)])


class ClassifierTask:
    """See `engine.loop.Task`."""

    def __init__(self, network: TrainedModel, images_u8: Tensor, labels: Tensor, max_shift: int, world: World) -> None:
        self.network, self.max_shift, self.world = network, max_shift, world
        self.images_u8, self.labels = images_u8, labels  # held out

    def parts(self) -> Mapping[str, Any]:
        return {"classifier": self.network}

    def weights(self) -> WeightSets:
        return self.network.weights()

    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        self.network.wrapped.train()
        total = torch.zeros((), device=self.world.device)
        for i, batch in enumerate(micro_batches):
            with self.network.accumulate(last=i + 1 == len(micro_batches)):
                logits = self.network.wrapped(shifted(to_float(batch["images_u8"]), self.max_shift))
                loss = F.cross_entropy(logits, batch["labels"])
                (loss / len(micro_batches)).backward()
            total = total + loss.detach() / len(micro_batches)
        return {"loss": total, **self.network.step(step, {"loss": total})}

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """`val/accuracy` on all held-out images."""
        return {"val/accuracy": (classify(self.network.module, self.images_u8) == self.labels).double().mean().item()}


def train(config: ClassifierTrainConfig, world: World) -> None:
    check_batch(config.data.global_batch_size, world, config.loop.grad_accum)
    source, held_out = open_source(config.data, "train"), open_source(config.data, "val")
    images = center_batch(held_out, config.data.image_size, range(len(held_out)))
    run = Run(config.loop.run_dir, config, world, config.loop.wandb_project)
    try:
        torch.manual_seed(config.loop.seed)
        network = TrainedModel(Classifier(config.model), config.optim, total_steps=config.loop.steps, world=world)
        task = ClassifierTask(network, images, torch.from_numpy(held_out.labels), config.model.max_shift, world)

        item = training_item(source, config.data, config.loop.seed)
        stream = open_stream(item, len(source), config.data, config.loop, world)
        fit(task, stream, config.loop, run, world, CheckpointStore(run.dir, world, config))
    finally:
        run.close()


def main() -> None:
    config, args = parse_cli(ClassifierTrainConfig, __doc__)
    if args.dry_run:
        print("the config is valid")
        return
    with distributed_world(config.loop.device, config.loop.deterministic) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
