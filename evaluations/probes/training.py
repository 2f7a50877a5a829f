"""Training of a linear probe: data, task, checkpoints, and the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from engine.checkpoint.store import CheckpointStore
from engine.counts import counted
from engine.data.classes import Classes, with_labels_of
from engine.data.identity import facts_of
from engine.data.samples import training_item
from engine.data.sources import ImageSource, open_source
from engine.data.stream import stream_opener
from engine.loop import Batch, LoopConfig, check_batch, fit, stop_problems
from engine.messages import ConfigError
from engine.run_log import Run
from engine.seeds import torch_seed
from engine.validation import raise_problems
from engine.world import World
from evaluations.image_sets import CENTER_CROP, numbered_ids
from evaluations.probes.cache import read_features
from evaluations.probes.config import FROZEN, FROZEN_STAMPS, LinearProbeConfig
from evaluations.probes.features import ProbedNetwork
from evaluations.probes.task import ProbeTask
from evaluations.results import write_result


def open_images(config: LinearProbeConfig) -> tuple[ImageSource, ImageSource]:
    """Opens the training and the held-out images, which get the labels of the former.

    Raises UserError if held-out images are of other classes.
    """
    source = open_source(config.data, "train")
    return source, with_labels_of(open_source(config.data, "val"), Classes.of(source))


def steps_of(config: LinearProbeConfig, num_images: int) -> int:
    """Counts the steps of all epochs.

    Raises ConfigError if there is none, or the config names another number.
    """
    total = num_images // config.data.global_batch_size * config.probe.epochs
    if total == 0:
        raise ConfigError(
            f"data.global_batch_size={config.data.global_batch_size} is more than the data have: "
            f"{counted(num_images, 'training image')}"
        )
    if config.loop.steps not in (LoopConfig().steps, total):
        raise ConfigError(
            f"loop.steps={config.loop.steps}: leave it out; probe.epochs={config.probe.epochs} are {total} steps"
        )
    return total


def cached_item(rows: np.ndarray) -> Callable[[int, int], Batch]:
    """Makes `item(index, position)` for `stream_opener` from the records of `read_features`.

    The position makes no difference.
    """

    def item(index: int, position: int) -> Batch:
        row = rows[index]
        return {"features": torch.from_numpy(row["features"].copy()), "labels": torch.tensor(int(row["label"]))}

    return item


def protocol_of(
    config: LinearProbeConfig, network: ProbedNetwork, source: ImageSource, held_out: ImageSource
) -> dict[str, Any]:
    """Collects what the result says about how it was measured. `source` are the training images."""
    augmentation = {"random_crop": config.data.random_crop, "flip_prob": config.data.flip_prob}
    return {
        "kind": "linear_probe",
        # Images.
        "num_images": len(held_out),
        "num_train_images": len(source),
        "data": held_out.name,
        "content": held_out.identity(),
        "train_content": source.identity(),
        "skip_broken": config.data.skip_broken,
        "train_data": source.name,
        "image_size": config.data.image_size,
        "crop": CENTER_CROP,
        "train_crop": augmentation if config.probe.features == "augmented" else CENTER_CROP,
        # Training.
        "batch_size": config.data.global_batch_size,
        "steps": config.loop.steps,
        "seed": config.loop.seed,
        **asdict(config.probe),
        # Networks.
        **network.facts,
        **network.provenance,
    }


def train(config: LinearProbeConfig, world: World) -> None:
    """Trains the probe to its end, or continues, and writes the result."""
    # Images, and the number of steps that follows from it.
    data = config.data
    check_batch(data.global_batch_size, world, config.loop.grad_accum)
    source, held_out = open_images(config)
    loop = replace(config.loop, steps=steps_of(config, len(source)))
    config = replace(config, loop=loop)
    raise_problems([problem.text("") for problem in stop_problems(loop, loop.steps)])

    # The frozen network.
    network = ProbedNetwork(config.network, loop.seed, loop.precision, world.device)
    if data.image_size != network.image_size:
        raise ConfigError(f"data.image_size={data.image_size}, but the tokenizer is for {network.image_size}")

    run = Run(loop.run_dir, config, world, loop.tracker_sections())

    @lru_cache
    def features_of(split: str) -> np.ndarray:
        """The features of the center crops of a split, read when they are first needed."""
        images = {"train": source, "val": held_out}[split]
        return read_features(network, images, data, split, run.dir, config.probe.read_batch_size, world)

    with run:
        # The heads, drawn with the seed.
        torch.manual_seed(torch_seed(loop.seed))
        task = ProbeTask(network, lambda: features_of("val"), len(source.class_names), config, world)
        run.log(
            f"probe of {network.facts}: {network.dim} features; {counted(len(source), 'training image')}; "
            f"{counted(loop.steps, 'step')}"
        )

        # Checkpoints, which belong to these features.
        stamp: dict[str, Any] = {"features": network.identity | {"num_train_images": len(source)}}
        if config.network.random_weights:
            stamp["weights"] = "random"
        store = CheckpointStore.for_run(
            run.dir,
            loop,
            world,
            config,
            frozen_sections=FROZEN,
            stamp=stamp,
            frozen_stamps=FROZEN_STAMPS,
            data={"train": facts_of(source), "val": facts_of(held_out)},
            accept_changed_data=data.accept_changed,
        )

        def stream(start_step: int) -> Iterator[Batch]:
            """Opened once it is certain that the run goes on: reading features may take hours."""
            is_cached = config.probe.features == "cached"
            item = cached_item(features_of("train")) if is_cached else training_item(source, data, loop.seed)
            return stream_opener(
                item, len(source), data, loop, world, source.where, order_version=lambda: store.order_version
            )(start_step)

        fit(task, stream, loop, run, world, store)

        # A probe that ends early has no result: published ones are of all epochs.
        if loop.is_stopped_early:
            return
        metrics, errors = task.result()
        if world.is_main:
            protocol = protocol_of(config, network, source, held_out)
            write_result(run.dir / "result.json", metrics, protocol, errors, numbered_ids(len(held_out)))
