"""Training of a tokenizer: an update of the tokenizer, one of its discriminator, validation on fixed images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.weights import Weights
from engine.data.images import to_float, to_uint8
from engine.devices import autocast
from engine.image_metrics import psnr
from engine.loop import Batch
from engine.trained_model import TrainedModel
from engine.world import World
from tokenizer.discriminators.registry import DiscriminatorConfig
from tokenizer.losses.gan import GENERATOR_LOSSES, LeCam, discriminator_hinge
from tokenizer.losses.semantic import semantic_loss
from tokenizer.losses.terms import Term, weighted_sum
from tokenizer.models.base import TokenizerOutput
from tokenizer.quantizers.usage import code_usage

GRID_IMAGES = 8  # originals above reconstructions in the image grid


@dataclass
class Validation:
    """The fixed held-out images of this run, the same on every rank, uint8 (n,3,H,W), and how many to use at a time."""

    images_u8: Tensor
    batch_size: int = 32


@dataclass
class FrozenNetworks:
    """The frozen networks of the loss.

    `teacher_cache` (num_images, cells, dim) holds the teacher's features by image index.
    """

    perceptual: nn.Module | None = None
    teacher: nn.Module | None = None
    teacher_cache: Tensor | None = None
    stamps: dict[str, str] = field(default_factory=dict)


class TokenizerTask:
    """The networks, the terms of the loss, and how they meet. See `engine.loop.Task`."""

    def __init__(
        self,
        tokenizer: TrainedModel,
        discriminator: TrainedModel | None,
        frozen: FrozenNetworks,
        terms: list[Term],
        *,
        world: World,
        precision: str,
        validation: Validation | None,
        grid: Any = None,
        game: DiscriminatorConfig | None = None,
        warmup_steps: int = 0,
    ) -> None:
        self.tokenizer, self.discriminator, self.frozen, self.terms = tokenizer, discriminator, frozen, terms
        self.world, self.precision, self.validation = world, precision, validation
        self.grid = grid  # callable (name, images, columns) that writes an image grid, or None
        self.skipped_images = torch.zeros((), device=world.device)  # replaced ones, on this rank, in this process
        self.warmup_steps = warmup_steps  # steps without quantization
        self.game = game or DiscriminatorConfig()
        self.lecam = LeCam(self.game.lecam_decay, world.device) if self.game.lecam_weight > 0 else None

    def parts(self) -> Mapping[str, Any]:
        parts = {"tokenizer": self.tokenizer}
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
        if self.lecam is not None:
            parts["lecam"] = self.lecam
        return parts

    def weights(self) -> Weights:
        return self.tokenizer.weights()

    # ------------------------------------------------------------------------------------------------ one update
    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        number = step + 1
        if self.warmup_steps and step == self.warmup_steps:
            self._init_codebook()
        adversarial = any(t.name == "adversarial" and t.active(number) for t in self.terms)
        metrics, pairs = self.update_tokenizer(micro_batches, step)
        if adversarial:
            metrics |= self.update_discriminator(pairs, step)
        return metrics

    def _init_codebook(self) -> None:
        """At the end of a warm-up: a codebook from the data where the config asks for it, also in the EMA."""
        quantizer = self.tokenizer.module.quantizer
        if getattr(quantizer.config, "init", "random") != "kmeans":
            return
        quantizer.init_from_latents()
        if self.tokenizer.ema is not None:
            self.tokenizer.ema.quantizer.codebook.copy_(quantizer.codebook.detach())

    def update_tokenizer(self, micro_batches: list[Batch], step: int) -> tuple[dict[str, Tensor], list[tuple]]:
        """Forward, weighted sum, backward over all micro-batches, update. Returns metrics and (real, made) pairs."""
        network = self.tokenizer.network.train()
        if self.discriminator is not None:
            self.discriminator.module.train().requires_grad_(False)
        sums: dict[str, Tensor] = {}
        pairs = []
        for i, batch in enumerate(micro_batches):
            images = to_float(batch["images_u8"])
            with self.tokenizer.accumulate(last=i + 1 == len(micro_batches)):
                with autocast(self.world.device, self.precision):
                    output = network(images, **self._request(step))
                    values = self.term_values(output, images, step, batch.get("index"))
                total = weighted_sum(self.terms, values, step + 1)
                (total / len(micro_batches)).backward()
            pairs.append((images, output.reconstructions.detach()))
            self.skipped_images += batch["skipped_images"].sum()
            values = {**values, "loss": total}
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / len(micro_batches)
        sums |= self.tokenizer.step(step, sums)
        sums["skipped_images"] = self.skipped_images * self.world.size  # its mean over ranks is the number of all
        quantizer = self.tokenizer.module.quantizer
        return sums | (quantizer.usage() if quantizer.training else {}), pairs  # a frozen one remembers nothing

    def update_discriminator(self, pairs: list[tuple[Tensor, Tensor]], step: int) -> dict[str, Tensor]:
        """One update on the images that the tokenizer saw and made in this step, before its update."""
        network = self.discriminator.network.train()
        self.discriminator.module.requires_grad_(True)
        weight = next(t.weight for t in self.terms if t.name == "adversarial") if self.game.weigh_own_loss else 1.0
        sums: dict[str, Tensor] = {}
        for i, (real, generated) in enumerate(pairs):
            with self.discriminator.accumulate(last=i + 1 == len(pairs)):
                with autocast(self.world.device, self.precision):
                    real_logits, fake_logits = network(real, generated)
                loss, extra = discriminator_hinge(real_logits, fake_logits), {}
                if self.lecam is not None:
                    extra["lecam"] = self.lecam(real_logits, fake_logits)
                    loss = loss + self.game.lecam_weight * extra["lecam"]
                (weight * loss / len(pairs)).backward()
            values = {"discriminator": loss, "logits_real": real_logits.mean(), "logits_generated": fake_logits.mean()}
            for name, value in (values | extra).items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / len(pairs)
        info = self.discriminator.step(step, {"discriminator": sums["discriminator"]})
        return sums | {"grad_norm_discriminator": info["grad_norm"]}

    # ------------------------------------------------------------------------------------------------ loss terms
    def _active(self, name: str, step: int) -> bool:
        return any(t.name == name and t.active(step + 1) for t in self.terms)

    def _request(self, step: int) -> dict[str, bool]:
        """What the network must compute for the terms that are active in this update."""
        return {
            "quantize": step >= self.warmup_steps,
            "entropy": self._active("entropy", step),
            "semantic": self._active("semantic", step),
            "shortcut": any(t.name in _DIRECT and t.active(step + 1) for t in self.terms),
        }

    def term_values(
        self, output: TokenizerOutput, images: Tensor, step: int, index: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The unweighted value of every active term; `index` finds cached teacher features of training images."""
        values = self._pixel_terms(output.reconstructions, images, "reconstruction_", "perceptual", step)
        if output.shortcut_reconstructions is not None:
            values |= self._pixel_terms(
                output.shortcut_reconstructions, images, "shortcut_", "shortcut_perceptual", step
            )
        if self._active("shortcut_feature", step):
            target = output.encoder_features.detach().float()
            values["shortcut_feature"] = (target - output.decoder_features.float()).square().mean()
        values |= output.quantized.losses
        if self._active("semantic", step):
            values["semantic"] = semantic_loss(output.semantic_features, self._targets(images, index))
        if self._active("adversarial", step):
            logits = self.discriminator.module.logits(output.reconstructions)
            values["adversarial"] = GENERATOR_LOSSES[self.game.generator_loss](logits)
        return values

    def _pixel_terms(self, made: Tensor, images: Tensor, prefix: str, perceptual: str, step: int) -> dict[str, Tensor]:
        made, values = made.float(), {}
        if self._active(f"{prefix}l2", step):
            values[f"{prefix}l2"] = (made - images).square().mean()
        if self._active(f"{prefix}l1", step):
            values[f"{prefix}l1"] = (made - images).abs().mean()
        if self._active(perceptual, step):
            values[perceptual] = self.frozen.perceptual(made, images)
        return values

    def _targets(self, images: Tensor, index: Tensor | None) -> Tensor:
        cache = self.frozen.teacher_cache
        if cache is not None and index is not None:
            return cache[index.cpu()].to(images.device)
        return self.frozen.teacher(images)

    # ------------------------------------------------------------------------------------------------ validation
    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Every loss term, PSNR and codebook usage on the held-out images, for the raw and the averaged weights.

        Only `entropy` depends on the size of the validation batches: the codebook entropy is one of a batch.
        """
        if self.validation is None:
            return {}
        metrics = self._evaluate(self.tokenizer.module, "val", step)
        if self.tokenizer.ema is not None:
            metrics |= self._evaluate(self.tokenizer.ema, "val_ema", step)
        return metrics

    def _evaluate(self, network: nn.Module, prefix: str, step: int) -> dict[str, float]:
        network.eval()
        if self.discriminator is not None:  # so that validation changes no statistics of a batch norm
            self.discriminator.module.eval()
        images_u8 = self.validation.images_u8
        mine = range(self.world.rank, len(images_u8), self.world.size)
        sums: dict[str, Tensor] = {}
        seen: Tensor | None = None  # the indices of all images
        for start in range(0, -(-len(images_u8) // self.world.size), self.validation.batch_size):
            rows = list(mine[start : start + self.validation.batch_size])
            weight, rows = len(rows), rows or [mine[0]]  # a sharded network is called by all, also with nothing left
            references = images_u8[rows].to(self.world.device)
            images = to_float(references)
            with autocast(self.world.device, self.precision):
                output = network(images, **self._request(step - 1))
                values = self.term_values(output, images, step - 1)
            indices = output.quantized.indices
            seen = indices.new_zeros(len(images_u8), *indices.shape[1:]) if seen is None else seen
            seen[rows] = indices
            values["psnr"] = psnr(to_uint8(output.reconstructions), references).clamp_max(100).mean()
            values["clipped_share"] = (output.reconstructions.abs() > 1.05).float().mean()  # lost when made uint8
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.double() * weight
        packed = {name: self.world.sum(value).item() / len(images_u8) for name, value in sorted(sums.items())}
        tokens = self.world.sum(seen).flatten(0, 1)
        usage = code_usage(tokens, network.quantizer.group_sizes)
        packed |= {name: value.item() for name, value in usage.items() if name.startswith("codebook_usage")}
        if network.quantizer.num_groups > 1:
            packed["distinct_codes"] = len(tokens.unique(dim=0))
        if self.grid is not None:  # on every rank: a sharded network is called by all
            self._write_grid(network, prefix, step)
        return {f"{prefix}/{name}": value for name, value in packed.items()}

    def _write_grid(self, network: nn.Module, prefix: str, step: int) -> None:
        stride = max(1, len(self.validation.images_u8) // GRID_IMAGES)
        images = to_float(self.validation.images_u8[::stride][:GRID_IMAGES].to(self.world.device))
        with autocast(self.world.device, self.precision):
            made = network(images, quantize=step - 1 >= self.warmup_steps).reconstructions
        self.grid(f"{prefix}_{step:08d}", torch.cat([images, made]), GRID_IMAGES)


_DIRECT = ("shortcut_l2", "shortcut_l1", "shortcut_perceptual")
