"""One forward and backward pass of a tokenizer's training, with all networks of its loss, on random images.

It stands for the step of a recipe: every term that is active late in the training, and both updates. The optimizers are
not run; weights, gradients and moments are there all the same, so that what a pass adds are activations and temporary
buffers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.config import load_config
from engine.flops import ImageWork
from engine.trained_model import TrainedModel
from engine.world import World
from evaluations.doctor.recipes import CONFIGS
from tokenizer.discriminators.gan_losses import DISCRIMINATOR_LOSSES
from tokenizer.discriminators.registry import build_discriminator
from tokenizer.losses.terms import weighted_sum
from tokenizer.models.registry import build_tokenizer
from tokenizer.training.checks import network_on_meta, terms_of
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.frozen_networks import build_frozen_networks
from tokenizer.training.task import TokenizerTask

SETTINGS = ["loop.device=cpu", "loop.precision=fp32", "assets.random_stand_in=true"]


def training_config(recipe: str, overrides: Sequence[str]) -> TokenizerTrainConfig:
    """The config of a recipe below configs/, in float32 and with random weights in the networks of its loss."""
    return load_config(TokenizerTrainConfig, [CONFIGS / recipe], [*SETTINGS, *overrides], unset=[])


def least_work(work: ImageWork, images: int) -> dict[str, float]:
    """The operations of so many images, by the limit of the machine that binds them."""
    amounts = {"gemm": 0.0, "convolution": 0.0}
    for part in work.parts:
        amounts["gemm" if part.kind == "matrix" else "convolution"] += part.flops * images
    return amounts


class TrainingPass:
    """See the module docstring. A copy with other settings of the loop has the same weights."""

    def __init__(
        self, config: TokenizerTrainConfig, batch: int, device: torch.device, world: World | None = None
    ) -> None:
        """`batch` images per process; without `world` there is one process."""
        self.config = config
        self.world = world or World(0, 1, 0, device)
        self.step = config.loop.steps - 1
        generator = torch.Generator().manual_seed(1)
        size = (batch, 3, config.data.image_size, config.data.image_size)
        self.images = (2 * torch.rand(size, generator=generator) - 1).to(device)

        # Networks with random weights, and what is never trained.
        torch.manual_seed(0)
        meta_network = network_on_meta(config)
        self.terms = terms_of(config, meta_network)
        self.network = build_tokenizer(config.model, config.data.image_size)
        self.discriminator = None
        if config.loss.discriminator.enabled:
            self.discriminator = build_discriminator(config.loss.discriminator, config.assets)
        self.frozen = build_frozen_networks(config, meta_network, self.world)

    def task(self, *, checkpointing: bool) -> TokenizerTask:
        """The task on a copy of the networks, with gradients of 0."""
        # The trained networks.
        loop = replace(self.config.loop, activation_checkpointing=checkpointing)
        options = {"total_steps": self.config.loop.steps, "world": self.world}
        trained = TrainedModel(copy.deepcopy(self.network), self.config.optim, parallel=loop, **options)
        judge = None
        if self.discriminator is not None:
            judge = TrainedModel(copy.deepcopy(self.discriminator), self.config.optim, **options)

        # Gradients, which a pass adds to.
        for model in (trained, judge):
            for parameter in model.module.parameters() if model is not None else ():
                parameter.grad = torch.zeros_like(parameter)
        return TokenizerTask(
            trained,
            judge,
            self.frozen,
            self.terms,
            world=self.world,
            precision="fp32",
            validation=None,
            discriminator_config=self.config.loss.discriminator,
        )

    def run(self, task: TokenizerTask) -> Tensor:
        """The pass; returns the loss of the tokenizer. Gradients are added to those that are there."""
        # The tokenizer, which the discriminator judges without learning.
        network = task.tokenizer.wrapped.train()
        if task.discriminator is not None:
            task.discriminator.module.train().requires_grad_(False)
        output = network(self.images, **task.requested_outputs(self.step))
        total = weighted_sum(self.terms, task.term_values(output, self.images, self.step), self.step)
        total.backward()

        # The discriminator.
        if task.discriminator is not None:
            task.discriminator.module.requires_grad_(True)
            logits = task.discriminator.wrapped(self.images, output.reconstructions.detach())
            DISCRIMINATOR_LOSSES[task.discriminator_config.discriminator_loss](*logits).backward()
        return total.detach()
