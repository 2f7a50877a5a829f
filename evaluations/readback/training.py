"""Training of the reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import WeightSets, num_parameters
from engine.data.stream import stream_opener
from engine.data.text_pictures import MIN_SIDE, font_facts
from engine.devices import autocast
from engine.loop import Batch, LoopConfig, check_batch, fit, stop_problems
from engine.optim import OptimConfig
from engine.preflight import Preflight, network_bytes
from engine.run_log import Run
from engine.seeds import torch_seed
from engine.trained_model import TrainedModel
from engine.validation import Problem, Section, at_least
from engine.watchdog import sign_of_life
from engine.world import World
from evaluations.readback.crops import standardized
from evaluations.readback.model import BLANK, NUM_STEPS, STAMP, Reader, ReaderConfig, read_words
from evaluations.readback.training_crops import LabeledCrops, draw_crops


@dataclass(kw_only=True, slots=True)
class CropsConfig(Section):
    """The words that a reader is trained on: crops of drawn pictures."""

    num_crops: int = 12_000  # for training; they are drawn before it begins, and held in memory
    num_held_out: int = 1_000  # undamaged crops of other pictures, on which it is measured
    picture_sizes: list[int] = field(default_factory=lambda: [256, 64])  # pixels; pictures of these sides take turns
    global_batch_size: int = 64  # crops per step, over all ranks and micro-batches
    num_workers: int = 0  # loader processes per rank; 0 = in the training process

    def problems(self) -> Iterator[Problem]:
        for name in ("num_crops", "num_held_out", "global_batch_size"):
            yield from at_least(self, name, 1)
        yield from at_least(self, "num_workers", 0)
        if not self.picture_sizes or min(self.picture_sizes) < MIN_SIDE:
            yield Problem("picture_sizes", self.picture_sizes, f"one or more sizes of {MIN_SIDE} px or more")


@dataclass(kw_only=True, slots=True)
class ReaderTrainConfig(Section):
    """Everything that defines the training of a reader."""

    model: ReaderConfig = field(default_factory=ReaderConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=4e-3, weight_decay=1e-2, max_grad_norm=5.0, warmup_steps=150)
    )
    data: CropsConfig = field(default_factory=CropsConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=750))
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components

    def problems(self) -> Iterator[Problem]:
        yield from stop_problems(self.loop, self.loop.steps)


def crop_item(crops: LabeledCrops) -> Callable[[int, int], Batch]:
    """Makes `item(index, position)` for `stream_opener` of crops that are drawn. The position makes no difference."""

    def item(index: int, position: int) -> Batch:
        return {
            "crops_u8": crops.crops.images[index],
            "sizes": crops.crops.sizes[index],
            "letters": crops.letters[index],
            "lengths": crops.lengths[index],
        }

    return item


class ReaderTask:
    """See `engine.loop.Task`. `held_out` are the crops that it is measured on."""

    def __init__(self, network: TrainedModel, held_out: LabeledCrops, world: World, precision: str = "fp32") -> None:
        self.network = network
        self.held_out = held_out
        self.world = world
        self.precision = precision

    def parts(self) -> Mapping[str, Any]:
        return {"reader": self.network}

    def weights(self) -> WeightSets:
        return self.network.weights()

    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        """One update: the CTC loss per letter, averaged over crops and micro-batches."""
        network = self.network.train_mode()
        count = len(micro_batches)
        total = torch.zeros((), device=self.world.device)
        for batch in self.network.micro_batches(micro_batches):
            crops = standardized(batch["crops_u8"], batch["sizes"])
            with autocast(self.world.device, self.precision):
                logits = network(crops)
            log_probs = logits.float().log_softmax(2).transpose(0, 1)  # (32,B,37), as ctc_loss takes it
            steps = torch.full_like(batch["lengths"], NUM_STEPS)
            loss = F.ctc_loss(log_probs, batch["letters"], steps, batch["lengths"], blank=BLANK)
            (loss / count).backward()
            total = total + loss.detach() / count
        return {"loss": total, **self.network.step(step, {"loss": total})}

    def inspect(self) -> dict[str, Tensor]:
        """Nothing more to record. Raises NonFiniteError where updates are skipped again and again."""
        self.network.require_progress()
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """`val/accuracy`: the fraction of all held-out words that are read exactly."""
        words = read_words(self.network.module.eval(), self.held_out.crops)
        sign_of_life()
        num_right = sum(word == truth for word, truth in zip(words, self.held_out.words, strict=True))
        return {"val/accuracy": num_right / len(words)}


def training_needs(config: ReaderTrainConfig, preflight: Preflight) -> None:
    """Looks for the font, and all that every training needs."""
    with preflight.collecting():
        facts = [font_facts(side) for side in config.data.picture_sizes]
        preflight.ready.append(f"drawn text: {facts[0]['font']} of Pillow {facts[0]['pillow']}")
    num_bytes = network_bytes(num_parameters(Reader(config.model)), ema=False)
    preflight.training(config.loop, config.data.global_batch_size, num_bytes)


def stamp_of(config: ReaderTrainConfig) -> dict[str, Any]:
    """What a result says of the training of its reader."""
    return {
        "seed": config.loop.seed,
        "steps": config.loop.steps,
        "batch_size": config.data.global_batch_size,
        "num_crops": config.data.num_crops,
        "picture_sizes": config.data.picture_sizes,
    }


def train(config: ReaderTrainConfig, world: World) -> None:
    """Trains the reader to its end, or continues."""
    data, loop = config.data, config.loop
    check_batch(data.global_batch_size, world, loop.grad_accum)

    run = Run(loop.run_dir, config, world, loop.tracker_sections())
    with run:
        # Words. The seed of the training is that of its pictures; held-out ones are of another purpose.
        crops = draw_crops("reader", loop.seed, data.num_crops, data.picture_sizes, world)
        held_out = draw_crops("val", loop.seed, data.num_held_out, data.picture_sizes, world, degrade=False)

        # The network, drawn with the seed.
        torch.manual_seed(torch_seed(loop.seed))
        network = TrainedModel(Reader(config.model), config.optim, total_steps=loop.steps, world=world)
        run.log(f"reader of {num_parameters(network.module):,} parameters; {len(crops):,} words; {loop.steps} steps")
        task = ReaderTask(network, held_out, world, loop.precision)

        # Training, from the newest checkpoint if there is one.
        store = CheckpointStore.for_run(run.dir, loop, world, config, stamp={STAMP: stamp_of(config)})
        stream = stream_opener(
            crop_item(crops), len(crops), data, loop, world, order_version=lambda: store.order_version
        )
        fit(task, stream, loop, run, world, store)
