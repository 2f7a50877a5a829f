"""The task of a linear probe: batch norm without parameters, linear layers, LARS."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checkpoint.weights import WeightSets
from engine.finite import deferred_checks
from engine.loop import Batch
from engine.messages import UserError
from engine.watchdog import sign_of_life
from engine.world import World
from evaluations.image_sets import rank_batches
from evaluations.metrics.blocks import NUM_BLOCKS, block_numbers
from evaluations.metrics.intervals import Estimate, of_fraction
from evaluations.probes.config import LinearProbeConfig
from evaluations.probes.features import ProbedNetwork
from evaluations.probes.lars import lars, lr_fraction

EVAL_BATCH = 256
HITS = ("top1", "top5")  # fractions of the held-out images
MEASURES = (*HITS, "val_loss")
TOP5_CLASSES = 10  # with fewer classes top-5 is not reported


def average_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Replaces all gradients by their mean over the ranks, in one exchange."""
    flat = world.sum(torch.cat([p.grad.flatten() for p in parameters])) / world.size
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view_as(p)


class ProbeTask:
    """See `engine.loop.Task`. One linear layer (a head) per base learning rate, on the same batches.

    `network` gives features of images, `held_out()` the records of `read_features`. Features need no gradient, so the
    batch norm's statistics can be those of the whole global batch, over all ranks and micro-batches (the released code
    takes those of each GPU's part).
    """

    def __init__(
        self,
        network: ProbedNetwork,
        held_out: Callable[[], np.ndarray],
        num_classes: int,
        config: LinearProbeConfig,
        world: World,
    ) -> None:
        self.network = network
        self.held_out = held_out
        self.config = config
        self.world = world

        # One head per base learning rate; all start alike.
        self.norm = nn.BatchNorm1d(network.dim, affine=False, eps=1e-6)
        first = nn.Linear(network.dim, num_classes)
        nn.init.trunc_normal_(first.weight, std=0.01)
        nn.init.zeros_(first.bias)
        heads = nn.ModuleList(copy.deepcopy(first) for _ in config.probe.base_lrs)
        self.module = nn.ModuleDict({"norm": self.norm, "heads": heads}).to(world.device)
        self.heads = dict(zip(config.probe.base_lrs, heads, strict=True))
        self.optimizer = lars(self.heads)
        self.nonfinite_batches = torch.zeros((), device=world.device)  # of this rank, in this process

    # ------------------------------------------------------------------------------------------------ state
    def parts(self) -> Mapping[str, Any]:
        return {"probe": self}

    def weights(self) -> WeightSets:
        return {"model": self.module.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """Heads, running statistics and momenta. Raises UserError where features of this process were not finite."""
        self._require_finite_features()
        momenta = {n: self.optimizer.state[p]["momentum_buffer"] for n, p in self.module.named_parameters()}
        return {"model": self.module.state_dict(), "momentum": momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["model"])
        for name, momentum in self.state_dict()["momentum"].items():
            momentum.copy_(state["momentum"][name])

    # ------------------------------------------------------------------------------------------------ training
    @torch.no_grad()
    def normalize(self, x: Tensor) -> Tensor:
        """Normalizes this rank's features (n,C) with the batch statistics of all ranks.

        Also updates the running statistics, as BatchNorm1d does.
        """
        # Mean and variance over all ranks, in double precision.
        count = len(x) * self.world.size
        mean, square = self.world.sum(torch.stack([x.double().sum(0), x.double().square().sum(0)])) / count
        variance = (square - mean.square()).clamp_min(0)

        # The running variance is the unbiased one.
        self.norm.running_mean.lerp_(mean.float(), self.norm.momentum)
        self.norm.running_var.lerp_((variance * count / (count - 1)).float(), self.norm.momentum)
        self.norm.num_batches_tracked += 1
        return ((x - mean) / (variance + self.norm.eps).sqrt()).float()

    def _features(self, batch: Batch) -> Tensor:
        """Takes cached features from a batch, or computes those of its images.

        Those that are not finite are counted on the device, and refused with the result.
        """
        if "features" in batch:
            return batch["features"]
        with deferred_checks() as checks:
            features = self.network(batch["images_u8"], training=True)
        self.nonfinite_batches += torch.stack([check.any() for check in checks]).any()
        return features

    def _set_learning_rates(self, step: int) -> float:
        """Sets the rates of a step, which scale with the batch; returns the fraction of their peak."""
        total = self.config.loop.steps
        steps_per_epoch = total // self.config.probe.epochs
        fraction = lr_fraction(step, total, steps_per_epoch * self.config.probe.warmup_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.config.data.global_batch_size / 256 * fraction
        return fraction

    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        """Updates all heads once.

        Returns `loss/<rate>` of each, and `lr_share`, the fraction of the peak learning rates.
        """
        # Features of all micro-batches at once, because the batch norm needs them together.
        x = self.normalize(torch.cat([self._features(batch) for batch in micro_batches]))
        labels = torch.cat([batch["labels"] for batch in micro_batches])

        # The heads share nothing, so one backward pass serves them all.
        losses = {f"loss/{rate:g}": F.cross_entropy(head(x), labels) for rate, head in self.heads.items()}
        sum(losses.values()).backward()
        average_gradients(list(self.module.parameters()), self.world)

        fraction = self._set_learning_rates(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        metrics = {name: loss.detach() for name, loss in losses.items()} | {"lr_share": torch.tensor(fraction)}
        return metrics | {"nonfinite_batches": self.nonfinite_batches * self.world.size}  # its mean over ranks is a sum

    def inspect(self) -> dict[str, Tensor]:
        """Nothing more to record. Features that are not finite are refused where the probe is saved or measured."""
        return {}

    # ------------------------------------------------------------------------------------------------ measurement
    def _require_finite_features(self) -> None:
        """Raises UserError where features were counted that are not finite: such a probe is neither saved nor measured.

        A collective.
        """
        if self.world.any(bool(self.nonfinite_batches > 0)):
            raise UserError(
                "latents or features of training images were not finite (nonfinite_batches in metrics.jsonl); are the "
                "weights of the probed network the right ones?"
            )

    def measure(self) -> dict[float, dict[str, float]]:
        """Measures all heads on all held-out images: {rate: {"top1", "top5", "val_loss"}}.

        The former are fractions, the latter is the mean cross entropy in nats.
        """
        return self._measured()[0]

    @torch.no_grad()
    def _measured(self) -> tuple[dict[float, dict[str, float]], dict[float, dict[str, Estimate]]]:
        """({rate: {measure: mean}} as in `measure`, {rate: {measure: its error}} of those that count hits)."""
        self._require_finite_features()
        records = self.held_out()
        device = self.world.device
        self.norm.eval()  # with its running statistics; training computes those of the batch itself

        # Sums of this rank's batches: one row per head, one column per measure; and the hits by block of images.
        sums = torch.zeros(len(self.heads), len(MEASURES), dtype=torch.float64, device=device)
        hits = torch.zeros(len(self.heads), NUM_BLOCKS, len(HITS), dtype=torch.float64, device=device)
        blocks = block_numbers(len(records))
        for ids in rank_batches(len(records), EVAL_BATCH, self.world):
            rows = records[ids.numpy()]
            x = torch.from_numpy(rows["features"].copy()).to(device)
            labels = torch.from_numpy(rows["label"].copy()).to(device)
            of_block = blocks[ids].to(device)
            for head_sums, head_hits, head in zip(sums, hits, self.heads.values(), strict=True):
                logits = head(self.norm(x))
                is_hit = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
                loss = F.cross_entropy(logits.double(), labels, reduction="sum")
                head_sums += torch.stack([is_hit[:, 0].sum(), is_hit.sum(), loss])
                head_hits.index_add_(0, of_block, torch.stack([is_hit[:, 0], is_hit.any(1)], 1).double())
            sign_of_life()

        # Of all ranks.
        means = (self.world.sum(sums) / len(records)).tolist()
        counts = torch.bincount(blocks, minlength=NUM_BLOCKS).tolist()
        measured = {rate: dict(zip(MEASURES, row, strict=True)) for rate, row in zip(self.heads, means, strict=True)}
        hits_by_rate = dict(zip(self.heads, self.world.sum(hits), strict=True))
        if len(records) < 2:  # which say nothing of an error
            return measured, {}
        errors = {
            rate: {name: of_fraction(column.tolist(), counts) for name, column in zip(HITS, of_head.T, strict=True)}
            for rate, of_head in hits_by_rate.items()
        }
        return measured, errors

    def evaluate(self, step: int) -> dict[str, float]:
        """`val/top1/<rate>` and `val/val_loss/<rate>` of each head."""
        measured = self.measure()
        return {
            f"val/{name}/{rate:g}": metrics[name] for rate, metrics in measured.items() for name in ("top1", "val_loss")
        }

    def result(self) -> tuple[dict[str, Any], dict[str, Estimate]]:
        """(the metrics of the head with the best top-1 among those that did not diverge, the errors of its accuracies).

        Raises UserError if all of them did.
        """
        measured, errors = self._measured()
        finite = [rate for rate, metrics in measured.items() if math.isfinite(metrics["val_loss"])]
        if not finite:
            raise UserError("all heads diverged, or the features are not finite; lower probe.base_lrs")

        best = max(finite, key=lambda rate: measured[rate]["top1"])
        top1_per_lr = {f"{rate:g}": metrics["top1"] for rate, metrics in measured.items()}
        metrics = measured[best] | {"best_base_lr": best, "top1_per_lr": top1_per_lr}
        if self.heads[best].out_features < TOP5_CLASSES:
            del metrics["top5"]
        return metrics, {name: error for name, error in errors.get(best, {}).items() if name in metrics}
