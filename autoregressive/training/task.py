"""Training of a generator on codes, stored ones or those that a step makes of images, and validation on fixed ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from autoregressive.models.base import Generator
from autoregressive.tokenized import Tokenization
from engine.arithmetic import ceil_div
from engine.checkpoint.weights import WeightSets
from engine.data.samples import fixed_choice
from engine.devices import DeviceClock, autocast
from engine.flops import ImageWork
from engine.loop import Batch
from engine.trained_model import TrainedModel
from engine.watchdog import sign_of_life
from engine.world import World

Preview = Callable[[Generator, str], None]  # (network, name): writes a grid of samples
LATENTS = "latents of the tokenizer"  # the term that is named where they are not finite


class HeldOut(Protocol):
    """Codes of held-out images with their labels."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Numbers of images (B,) -> tokens (B, *token_shape) and labels (B,), on any device."""


class GroupLosses:
    """The mean losses of groups of samples in one step, over micro-batches and ranks; see `Generator.loss_groups`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # name -> (sum of losses, number of samples)

    @torch.no_grad()
    def add(self, generator: Generator, outputs: Any, tokens: Tensor, groups: Mapping[str, Tensor]) -> None:
        """Adds the samples of a micro-batch. Without groups nothing is computed."""
        if not groups:
            return
        losses = generator.sample_losses(outputs, tokens)
        for name, members in groups.items():
            found = torch.stack([torch.where(members, losses, 0).sum(), members.sum()])
            self.sums[name] = self.sums.get(name, 0) + found

    def means(self, world: World) -> dict[str, Tensor]:
        """`loss_<name>` of each group, NaN where it has no sample. A collective where there are groups."""
        if not self.sums:
            return {}
        totals = world.sum(torch.stack(list(self.sums.values())))
        return {f"loss_{name}": total / count for name, (total, count) in zip(self.sums, totals, strict=True)}


class GeneratorTask:
    """Trains and validates one generator; see `engine.loop.Task`.

    `name` is the part's name in checkpoints. Without `validation` there is no held-out loss, without `preview` no grid.
    Batches that have `images_u8` and no `tokens` need a `tokenization`.
    """

    def __init__(
        self,
        trained: TrainedModel,
        *,
        name: str,
        world: World,
        precision: str,
        validation: HeldOut | None,
        num_validation: int,
        batch_size: int,
        preview: Preview | None = None,
        tokenization: Tokenization | None = None,
    ) -> None:
        self.trained = trained
        self.name = name
        self.world = world
        self.precision = precision
        self.validation = validation
        self.batch_size = batch_size
        self.preview = preview
        self.tokenization = tokenization
        self.skipped_images = torch.zeros((), device=world.device)  # replaced ones, on this rank, in this process

        # What a step does for one image, and what of it is timed.
        generator: Generator = trained.module
        parts = generator.training_flops()
        self.clocks: dict[str, DeviceClock] = {}
        if tokenization is not None:
            encoding = tokenization.tokenizer.encoding_flops()
            parts = None if parts is None or encoding is None else (*encoding, *parts)
            self.clocks["tokenize_share"] = tokenization.clock
        self._work = ImageWork(generator.num_tokens, parts)

        # The held-out images, which are the same in every run.
        self.rows = np.zeros(0, dtype=np.int64)
        if validation is not None:
            self.rows = fixed_choice(len(validation), num_validation)

    def parts(self) -> Mapping[str, Any]:
        return {self.name: self.trained}

    def weights(self) -> WeightSets:
        return self.trained.weights()

    def work(self, step: int) -> ImageWork:
        """What a step does for one image; all steps do the same."""
        return self._work

    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        network = self.trained.train_mode()
        generator: Generator = self.trained.module
        total = torch.zeros((), device=self.world.device)
        progress = step / self.trained.total_steps
        groups = GroupLosses()

        # Gradients add up over the micro-batches; processes exchange them at the last one. A loss of tokens of latents
        # that were not finite is NaN, so that the update is skipped.
        terms: dict[str, Tensor] = {}
        for batch in self.trained.micro_batches(micro_batches):
            tokens = batch["tokens"] if self.tokenization is None else self._tokenize(batch, terms)
            inputs = generator.training_inputs(batch, progress)
            with autocast(self.world.device, self.precision):
                outputs = network(batch["labels"], tokens, batch["drop"], **inputs)
            loss = generator.loss(outputs, tokens)
            groups.add(generator, outputs, tokens, generator.loss_groups(batch, progress))
            if LATENTS in terms:
                loss = loss * terms[LATENTS]
            (loss / len(micro_batches)).backward()
            total = total + loss.detach() / len(micro_batches)

        metrics = {"loss": total, **self.trained.step(step, {**terms, "loss": total}), **groups.means(self.world)}
        if self.tokenization is not None:  # a rank's count times the world size: its mean over ranks is the sum
            metrics["skipped_images"] = self.skipped_images * self.world.size
        return metrics

    def _tokenize(self, batch: Batch, terms: dict[str, Tensor]) -> Tensor:
        """The tokens of a batch of images; notes in `terms`, as NaN, that latents of this step were not finite."""
        tokens, one_or_nan = self.tokenization(batch["images_u8"])
        terms[LATENTS] = terms.get(LATENTS, 1.0) * one_or_nan
        self.skipped_images += batch["skipped_images"].sum()
        return tokens

    def inspect(self) -> dict[str, Tensor]:
        """Nothing more to record. Raises NonFiniteError where updates are skipped again and again."""
        self.trained.require_progress()
        return {}

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """`val/loss` in nats per token: true classes, center view, mean over images; `val_ema/loss` of the EMA.

        A generator whose held-out loss is of another kind has another name for it (`Generator.held_out_loss`).
        """
        networks: dict[str, Generator] = {"val": self.trained.module}
        if self.trained.ema is not None:
            networks["val_ema"] = self.trained.ema

        metrics = {}
        for prefix, network in networks.items():
            network.eval()
            if self.validation is not None:
                metrics[f"{prefix}/{network.held_out_loss}"] = self._validation_loss(network)
            if self.preview is not None:  # on every rank: a sharded network is called by all
                with autocast(self.world.device, self.precision):
                    self.preview(network, f"{prefix}_{step:08d}")
                sign_of_life()
        return metrics

    def _validation_loss(self, network: Generator) -> float:
        """Mean loss over the chosen held-out images of all ranks."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        rank_rows = self.rows[self.world.rank :: self.world.size]
        rows_of_the_longest = ceil_div(len(self.rows), self.world.size)
        for start in range(0, rows_of_the_longest, self.batch_size):
            # A rank without images left still takes part, with weight 0: a sharded network is called by all.
            rows = rank_rows[start : start + self.batch_size]
            weight = len(rows)
            if weight == 0:
                rows = self.rows[:1]

            tokens, labels = (values.to(self.world.device) for values in self.validation.read(rows))
            passes = network.held_out_inputs(tokens)
            for inputs in passes:
                with autocast(self.world.device, self.precision):
                    outputs = network(labels, tokens, **inputs)
                total += network.loss(outputs, tokens).double() * weight / len(passes)
            sign_of_life()
        return self.world.sum(total).item() / len(self.rows)
