"""Training of a tokenizer: an update of the tokenizer, one of its discriminator, validation on fixed images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.arithmetic import ceil_div
from engine.checkpoint.weights import WeightSets
from engine.data.grids import GridWriter
from engine.data.images import to_float, to_uint8
from engine.devices import autocast
from engine.finite import finite_rows
from engine.flops import ImageWork
from engine.image_anchors import ANCHORS, anchor_psnrs
from engine.image_metrics import psnr
from engine.loop import Batch
from engine.trained_model import TrainedModel
from engine.watchdog import sign_of_life
from engine.world import World
from tokenizer.discriminators.gan_losses import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, LeCam
from tokenizer.discriminators.registry import DiscriminatorConfig
from tokenizer.losses.semantic import semantic_loss
from tokenizer.losses.terms import Term, active_terms, outputs_needed, weighted_sum
from tokenizer.models.base import Tokenizer, TokenizerOutput
from tokenizer.quantizers.usage import code_usage, usage_by_scale
from tokenizer.training.flops import step_flops
from tokenizer.training.frozen_networks import FrozenNetworks

GRID_IMAGES = 8  # originals above reconstructions in the image grid
MAX_PSNR = 100  # dB; identical images would give infinity
CLIPPED_ABOVE = 1.05  # pixels beyond this magnitude count as clipped when they become uint8

RealAndFake = tuple[Tensor, Tensor]  # images of one micro-batch, and their reconstructions, detached
Scalars = dict[str, Tensor]


@dataclass
class Validation:
    """The fixed held-out images of a run, the same on every rank: uint8 (n,3,H,W)."""

    images_u8: Tensor
    batch_size: int
    source_facts: dict[str, Any] = field(default_factory=dict)  # the set they are from; see engine.data.identity


class TokenizerTask:
    """The networks, the terms of the loss, and how they meet. See `engine.loop.Task`.

    `save_grid` writes an image grid, or is None. For `warmup_steps` steps latents pass through
    the quantizer. `seed` is that of the run. Steps are counted from 0.
    """

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
        save_grid: GridWriter | None = None,
        discriminator_config: DiscriminatorConfig | None = None,
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.discriminator = discriminator
        self.frozen = frozen
        self.terms = terms
        self.world = world
        self.precision = precision
        self.validation = validation
        self.save_grid = save_grid
        self.warmup_steps = warmup_steps
        self.seed = seed
        self.skipped_images = torch.zeros((), device=world.device)  # replaced ones, on this rank, in this process

        self._works: dict[frozenset[str], ImageWork] = {}  # names of active terms -> what their step does
        self.discriminator_config = discriminator_config or DiscriminatorConfig()
        self.lecam = None
        if self.discriminator_config.lecam_weight > 0:
            self.lecam = LeCam(self.discriminator_config.lecam_decay, world.device)

    def parts(self) -> Mapping[str, Any]:
        parts: dict[str, Any] = {"tokenizer": self.tokenizer}
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
        if self.lecam is not None:
            parts["lecam"] = self.lecam
        return parts

    def weights(self) -> WeightSets:
        return self.tokenizer.weights()

    def work(self, step: int) -> ImageWork:
        """What update `step`, counted from 0, does for one image."""
        if self.discriminator_config.is_warmup(step):
            return ImageWork(self.tokenizer.module.num_tokens, None)  # a rate of these few updates would tell nothing
        active = active_terms(self.terms, step)
        if active not in self._works:
            network: Tokenizer = self.tokenizer.module
            discriminator = None if self.discriminator is None else self.discriminator.module
            teacher = self.frozen.teacher if self.frozen.teacher_cache is None else None
            beside = (self.frozen.perceptual, teacher, discriminator)
            parts = step_flops(network, *beside, active, network.image_size)
            self._works[active] = ImageWork(network.num_tokens, parts)
        return self._works[active]

    @property
    def takes_random_bits(self) -> bool:
        """Whether training batches need an entry `random_bits`; see `engine.data.samples.with_random_bits`."""
        return self.tokenizer.module.takes_random_bits

    # ------------------------------------------------------------------------------------------------ one update
    def train_step(self, micro_batches: list[Batch], step: int) -> Scalars:
        if self.warmup_steps > 0 and step == self.warmup_steps:
            self._finish_warmup()
        if self.discriminator_config.is_warmup(step):
            return self.warm_up_discriminator(micro_batches, step)
        metrics, pairs = self.update_tokenizer(micro_batches, step)
        if "adversarial" in active_terms(self.terms, step):
            metrics |= self.update_discriminator(pairs, step)
        return metrics

    def inspect(self) -> Scalars:
        """The codebook's usage by recent tokens. Raises NonFiniteError where updates are skipped again and again."""
        self.tokenizer.require_progress()
        if self.discriminator is not None:
            self.discriminator.require_progress()
        quantizer = self.tokenizer.module.quantizer
        return quantizer.usage() if quantizer.training else {}  # a frozen one remembers nothing

    @torch.no_grad()
    def _finish_warmup(self) -> None:
        """Tells the quantizer that quantization begins; what it changes in itself is also changed in the EMA."""
        quantizer = self.tokenizer.module.quantizer
        has_changed = quantizer.finish_warmup()
        if has_changed and self.tokenizer.ema is not None:
            ema_parameters = self.tokenizer.ema.quantizer.parameters()
            for averaged, current in zip(ema_parameters, quantizer.parameters(), strict=True):
                averaged.copy_(current.detach())

    def update_tokenizer(self, micro_batches: list[Batch], step: int) -> tuple[Scalars, list[RealAndFake]]:
        """One update of the tokenizer: forward, weighted sum and backward of all micro-batches, then the optimizer.

        Returns the metrics, and pairs of images for the discriminator.
        """
        # The discriminator judges, and does not learn.
        network = self.tokenizer.train_mode()
        if self.discriminator is not None:
            self.discriminator.train_mode()
            self.discriminator.module.requires_grad_(False)

        # Gradients of all micro-batches. The total is summed outside autocast, in float32.
        metrics: Scalars = {}
        pairs: list[RealAndFake] = []
        count = len(micro_batches)
        judges = [] if self.discriminator is None else [self.discriminator.module]
        for batch in self.tokenizer.micro_batches(micro_batches, beside=judges):
            images = to_float(batch["images_u8"])
            with autocast(self.world.device, self.precision):
                output = network(images, **self.requested_outputs(step), **self._random_bits(batch))
                values = self.term_values(output, images, step, batch.get("index"))
            total = weighted_sum(self.terms, values, step)
            (total / count).backward()
            pairs.append((images, output.reconstructions.detach()))
            self.skipped_images += batch["skipped_images"].sum()
            for name, value in {**values, "loss": total}.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach() / count

        # The update, and what describes it. A rank's count times the world size: its mean over ranks is the sum.
        after_update = partial(self.tokenizer.module.quantizer.after_update, step, self.seed)
        metrics |= self.tokenizer.step(step, metrics, after_update)
        metrics["skipped_images"] = self.skipped_images * self.world.size
        return metrics, pairs

    def warm_up_discriminator(self, micro_batches: list[Batch], step: int) -> Scalars:
        """One update of the discriminator alone, so that a trained tokenizer does not meet an untrained judge.

        The tokenizer reconstructs in evaluation mode. Nothing in it changes: weights, moments, averages, windows.
        """
        network = self.tokenizer.module.eval()
        quantize = self.requested_outputs(step)["quantize"]
        pairs: list[RealAndFake] = []
        for batch in micro_batches:
            images = to_float(batch["images_u8"])
            with torch.no_grad(), autocast(self.world.device, self.precision):
                pairs.append((images, network(images, quantize=quantize).reconstructions))
            self.skipped_images += batch["skipped_images"].sum()
        metrics = self.update_discriminator(pairs, step)
        return metrics | {"skipped_images": self.skipped_images * self.world.size}

    def update_discriminator(self, pairs: list[RealAndFake], step: int) -> Scalars:
        """One update of the discriminator on the images that the tokenizer saw and reconstructed in this step."""
        network = self.discriminator.train_mode()
        self.discriminator.module.requires_grad_(True)
        discriminator_loss = DISCRIMINATOR_LOSSES[self.discriminator_config.discriminator_loss]
        weight = 1.0
        if self.discriminator_config.weigh_own_loss:
            weight = next(term.weight for term in self.terms if term.name == "adversarial")

        metrics: Scalars = {}
        count = len(pairs)
        averages = [] if self.lecam is None else [self.lecam]
        for real, generated in self.discriminator.micro_batches(pairs, beside=averages):
            with autocast(self.world.device, self.precision):
                real_logits, fake_logits = network(real, generated)
            loss = discriminator_loss(real_logits, fake_logits)
            values = {"logits_real": real_logits.mean(), "logits_generated": fake_logits.mean()}
            if self.lecam is not None:
                values["lecam"] = self.lecam(real_logits, fake_logits)
                loss = loss + self.discriminator_config.lecam_weight * values["lecam"]
            (weight * loss / count).backward()
            for name, value in {"discriminator": loss, **values}.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach().float() / count

        info = self.discriminator.step(step, {"discriminator": metrics["discriminator"]})
        return metrics | {"grad_norm_discriminator": info["grad_norm"]}

    def _random_bits(self, batch: Batch) -> dict[str, Tensor]:
        """The argument with the random bits of a training batch, where the network takes them."""
        return {"random_bits": batch["random_bits"]} if self.takes_random_bits else {}

    # ------------------------------------------------------------------------------------------------ loss terms
    def requested_outputs(self, step: int) -> dict[str, bool]:
        """What the network must compute for the terms that are active in this step."""
        return {"quantize": step >= self.warmup_steps, **outputs_needed(active_terms(self.terms, step))}

    def term_values(self, output: TokenizerOutput, images: Tensor, step: int, index: Tensor | None = None) -> Scalars:
        """The unweighted value of every active term; `index` finds cached teacher features of training images."""
        active = active_terms(self.terms, step)

        # Pixels and perception, of the reconstruction and of the shortcut around transformer and quantizer. Both are
        # compared with the same features of the originals.
        features = None
        if active & {"perceptual", "prefix_perceptual", "shortcut_perceptual"}:
            features = self.frozen.perceptual.features(images)
        originals = (images, features)
        values = self._picture_terms(output.reconstructions, originals, "reconstruction_", "perceptual", active)
        if output.prefix_reconstructions is not None:
            prefix = output.prefix_reconstructions
            values |= self._picture_terms(prefix, originals, "prefix_", "prefix_perceptual", active)
        if output.shortcut_reconstructions is not None:
            shortcut = output.shortcut_reconstructions
            values |= self._picture_terms(shortcut, originals, "shortcut_", "shortcut_perceptual", active)
        if "shortcut_feature" in active:
            target = output.encoder_features.detach().float()
            values["shortcut_feature"] = (target - output.decoder_features.float()).square().mean()

        # What the quantizer and the network computed themselves.
        values |= output.quantized.losses
        values |= output.losses

        # Networks beside the tokenizer.
        if "semantic" in active:
            targets = self.frozen.teacher_features(images, index)
            values["semantic"] = semantic_loss(output.semantic_features, targets, output.semantic_weights)
        if "adversarial" in active:
            logits = self.discriminator.module.logits(output.reconstructions)
            values["adversarial"] = GENERATOR_LOSSES[self.discriminator_config.generator_loss](logits)
        return values

    def _picture_terms(
        self,
        reconstructions: Tensor,
        originals: tuple[Tensor, Any],
        prefix: str,
        perceptual: str,
        active: frozenset[str],
    ) -> Scalars:
        """Compares reconstructions with originals: the active ones of `<prefix>l2`, `<prefix>l1` and `perceptual`.

        `originals` are images and their perceptual features.
        """
        values: Scalars = {}
        images, features = originals
        reconstructions = reconstructions.float()
        if f"{prefix}l2" in active:
            values[f"{prefix}l2"] = (reconstructions - images).square().mean()
        if f"{prefix}l1" in active:
            values[f"{prefix}l1"] = (reconstructions - images).abs().mean()
        if perceptual in active:
            values[perceptual] = self.frozen.perceptual.distance(reconstructions, features)
        return values

    # ------------------------------------------------------------------------------------------------ validation
    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Every loss term, PSNR and codebook usage on the held-out images, for the raw weights and the EMA.

        The PSNRs of `engine.image_anchors` stand beside them: the same numbers in every validation.
        `step` is the number of updates that are done; terms are those of the last one. Only `entropy` depends on the
        size of the validation batches: the codebook entropy is one of a batch.
        """
        if self.validation is None:
            return {}
        metrics = self._evaluate(self.tokenizer.module, "val", step)
        if self.tokenizer.ema is not None:
            metrics |= self._evaluate(self.tokenizer.ema, "val_ema", step)
        return metrics | self._anchor_metrics

    @cached_property
    def _anchor_metrics(self) -> dict[str, float]:
        """Mean PSNRs of the anchors over all held-out images, which stay the same. The first read is a collective."""
        images_u8 = self.validation.images_u8
        rank_images = images_u8[self.world.rank :: self.world.size]
        sums = torch.zeros(len(ANCHORS), dtype=torch.float64, device=self.world.device)
        for batch in rank_images.split(self.validation.batch_size):
            psnrs = anchor_psnrs(batch.to(self.world.device), self.tokenizer.module.num_tokens)
            sums += torch.stack([psnrs[name].sum() for name in ANCHORS])
        means = self.world.sum(sums) / len(images_u8)
        return {f"val/{name}": mean for name, mean in zip(ANCHORS, means.tolist(), strict=True)}

    def _evaluate(self, network: nn.Module, prefix: str, step: int) -> dict[str, float]:
        """Measures one network, with names that begin with `prefix`, and writes its image grid."""
        # Evaluation mode, so that validation changes no statistics of a batch norm.
        network.eval()
        if self.discriminator is not None:
            self.discriminator.module.eval()

        # This rank's images, batch by batch. A sharded network is called by all ranks, also by one with no image left:
        # such a call counts with weight 0.
        last_step = step - 1
        images_u8 = self.validation.images_u8
        rank_rows = range(self.world.rank, len(images_u8), self.world.size)
        rows_per_rank = ceil_div(len(images_u8), self.world.size)
        sums: Scalars = {}
        all_indices: Tensor | None = None
        for start in range(0, rows_per_rank, self.validation.batch_size):
            rows = list(rank_rows[start : start + self.validation.batch_size])
            weight = len(rows)
            rows = rows or [rank_rows[0]]

            # Every term, as in training.
            originals = images_u8[rows].to(self.world.device)
            images = to_float(originals)
            with autocast(self.world.device, self.precision):
                output = network(images, **self.requested_outputs(last_step))
                values = self.term_values(output, images, last_step)

            # What is measured beside the terms.
            values["psnr"] = _mean_psnr(output.reconstructions, originals)
            if by_length := self._psnr_by_length(network, images, originals, last_step):
                values |= {**by_length, f"psnr_tokens_{network.num_tokens}": values["psnr"]}
            values["clipped_share"] = (output.reconstructions.abs() > CLIPPED_ABOVE).float().mean()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.double() * weight

            indices = output.quantized.indices
            if all_indices is None:
                all_indices = indices.new_zeros(len(images_u8), *indices.shape[1:])
            all_indices[rows] = indices
            sign_of_life()

        # Means over all images, and the codes that they use.
        metrics = {name: self.world.sum(value).item() / len(images_u8) for name, value in sorted(sums.items())}
        metrics |= self._code_metrics(network, all_indices)
        if self.save_grid is not None:
            self._write_grid(network, prefix, step)
        return {f"{prefix}/{name}": value for name, value in metrics.items()}

    def _psnr_by_length(self, network: nn.Module, images: Tensor, originals: Tensor, step: int) -> Scalars:
        """The PSNR of images decoded from their first k tokens, `psnr_tokens_<k>`, where lengths are flexible.

        That of all tokens, the PSNR of the validation, is the caller's.
        """
        values: Scalars = {}
        for length in self.tokenizer.module.shown_lengths:
            quantize = self.requested_outputs(step)["quantize"]
            with autocast(self.world.device, self.precision):
                prefix = network(images, quantize=quantize, num_tokens=length).reconstructions
            values[f"psnr_tokens_{length}"] = _mean_psnr(prefix, originals)
        return values

    def _code_metrics(self, network: nn.Module, rank_indices: Tensor) -> dict[str, float]:
        """Usage of the codebook by all images, also by scale; indices of other ranks' images are 0 in `rank_indices`.

        Where lengths are flexible, also of the tokens from one of the lengths to the next: those of the lengths 8 and
        16 are `codebook_usage_from_token_9`.
        """
        indices = self.world.sum(rank_indices)
        tokens = indices.flatten(0, 1)
        usage = code_usage(tokens, network.quantizer.group_sizes)
        metrics = {name: value.item() for name, value in usage.items() if name.startswith("codebook_usage")}
        if network.quantizer.num_groups > 1:
            metrics["distinct_codes"] = len(tokens.unique(dim=0))
        if network.quantizer.scales:
            by_scale = usage_by_scale(indices, network.quantizer.codebook_size, network.quantizer.scales)
            metrics |= {name: value.item() for name, value in by_scale.items()}
        lengths = self.tokenizer.module.shown_lengths
        for start, end in itertools.pairwise([0, *lengths, indices.shape[1]] if lengths else []):
            of_tokens = code_usage(indices[:, start:end].flatten(0, 1), network.quantizer.group_sizes)
            metrics[f"codebook_usage_from_token_{start + 1}"] = of_tokens["codebook_usage"].item()
        return metrics

    def _write_grid(self, network: nn.Module, prefix: str, step: int) -> None:
        """Originals above reconstructions, where lengths are flexible also those of fewer tokens.

        On every rank: a sharded network is called by all.
        """
        stride = max(1, len(self.validation.images_u8) // GRID_IMAGES)
        images_u8 = self.validation.images_u8[::stride][:GRID_IMAGES]
        images = to_float(images_u8.to(self.world.device))
        quantize = self.requested_outputs(step - 1)["quantize"]
        lengths = self.tokenizer.module.shown_lengths
        with autocast(self.world.device, self.precision):
            rows = [network(images, quantize=quantize, num_tokens=k).reconstructions for k in lengths]
            rows.append(network(images, quantize=quantize).reconstructions)
        row_names = ["original", *(f"from {k} token{'s' if k > 1 else ''}" for k in lengths), "reconstruction"]
        pictures = torch.cat([images, *rows])
        name = f"{prefix}_{step:08d}"
        caption = f"Held-out images, not selected, and their reconstructions at step {step:,} ({prefix})."
        self.save_grid(name, pictures, len(images), row_names=row_names, caption=caption)


def _mean_psnr(reconstructions: Tensor, originals: Tensor) -> Tensor:
    """The mean PSNR of reconstructions, rounded to uint8, to the originals uint8 (B,3,H,W): a scalar in dB.

    Pixels that are not finite have no PSNR: NaN, as the losses then have.
    """
    is_finite = finite_rows(reconstructions)
    rounded = to_uint8(reconstructions.nan_to_num(posinf=0.0, neginf=0.0))
    psnrs = psnr(rounded, originals).clamp_max(MAX_PSNR)
    return psnrs.where(is_finite, math.nan).mean()
