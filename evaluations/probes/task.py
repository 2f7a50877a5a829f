"""Training of a linear probe."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checkpoint.weights import WeightSets
from engine.config import check_all
from engine.data.config import DataConfig
from engine.data.sources import has_split
from engine.loop import Batch, LoopConfig
from engine.messages import ConfigError, UserError
from engine.world import World
from evaluations.image_sets import rank_batches
from evaluations.probes.features import NetworkConfig, ProbedNetwork, network_problems
from evaluations.probes.lars import lars, lr_share

EVAL_BATCH = 256


TOP5_CLASSES = 10  # from this many classes on, top-5 is reported too


# config keys that a resume may not change, beside the network
FROZEN = ("probe", "loop.seed", "data.name", "data.global_batch_size", "data.random_crop", "data.flip_prob")


@dataclass(kw_only=True, slots=True)
class ProbeConfig:
    """How the head is trained."""

    features: Literal["augmented", "cached"] = "augmented"  # crops and flips of `data`, or centre crops read once
    base_lrs: list[float] = field(default_factory=lambda: [0.1])  # peak rates for a batch of 256; one head each
    epochs: int = 90  # of floor(images / data.global_batch_size) updates; loop.steps follows from it
    warmup_epochs: int = 10
    read_batch_size: int = 50  # images at a time where features are read once; held-out ones always are

    def __post_init__(self) -> None:
        if not self.base_lrs or len(set(self.base_lrs)) < len(self.base_lrs) or not all(r > 0 for r in self.base_lrs):
            raise ConfigError(f"probe.base_lrs={self.base_lrs} must be different rates above 0, at least one")
        if not 0 <= self.warmup_epochs < self.epochs or self.read_batch_size < 1:
            raise ConfigError("probe.warmup_epochs must be 0..probe.epochs - 1, probe.read_batch_size 1 or more")


@dataclass(kw_only=True, slots=True)
class LinearProbeConfig:
    """Everything that defines a probe."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components


def validate(config: LinearProbeConfig) -> None:
    """One error that lists everything that does not fit together."""
    problems = network_problems(config.network)
    if config.network.gpt_dropout and config.probe.features == "cached":
        problems.append("network.gpt_dropout needs probe.features=augmented: cached features are read only once")
    if not has_split(config.data, "val"):
        problems.append("data.val_root is empty: the probe is measured on held-out images")
    if config.data.global_batch_size < 2:
        problems.append("data.global_batch_size must be 2 or more: batch norm needs a variance")
    check_all(problems)


class ProbeTask:
    """See `engine.loop.Task`. `network` gives features of images; `held_out()` the records of `read_features`.

    Features need no gradient, so the batch norm's statistics can be those of the whole global batch, over all ranks and
    micro-batches (the released code takes those of each GPU's share).
    """

    def __init__(
        self, network: ProbedNetwork, held_out: Callable, num_classes: int, config: LinearProbeConfig, world: World
    ) -> None:
        self.network, self.held_out, self.config, self.world = network, held_out, config, world
        self.norm = nn.BatchNorm1d(network.dim, affine=False, eps=1e-6)
        first = nn.Linear(network.dim, num_classes)
        nn.init.trunc_normal_(first.weight, std=0.01)
        nn.init.zeros_(first.bias)
        heads = nn.ModuleList(copy.deepcopy(first) for _ in config.probe.base_lrs)  # all start alike
        self.module = nn.ModuleDict({"norm": self.norm, "heads": heads}).to(world.device)
        self.heads = dict(zip(config.probe.base_lrs, heads, strict=True))
        self.optimizer = lars(self.heads)

    def parts(self) -> Mapping[str, Any]:
        return {"probe": self}

    def weights(self) -> WeightSets:
        return {"model": self.module.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        momenta = {n: self.optimizer.state[p]["momentum_buffer"] for n, p in self.module.named_parameters()}
        return {"model": self.module.state_dict(), "momentum": momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["model"])
        for name, own in self.state_dict()["momentum"].items():
            own.copy_(state["momentum"][name])

    @torch.no_grad()
    def _normalised(self, x: Tensor) -> Tensor:
        """Batch norm of this rank's features (n,C) with the statistics of all ranks; also averages those (BatchNorm1d's
        rule).
        """
        count = len(x) * self.world.size
        mean, square = self.world.sum(torch.stack([x.double().sum(0), x.double().square().sum(0)])) / count
        variance = (square - mean.square()).clamp_min(0)
        self.norm.running_mean.lerp_(mean.float(), self.norm.momentum)
        self.norm.running_var.lerp_((variance * count / (count - 1)).float(), self.norm.momentum)
        self.norm.num_batches_tracked += 1
        return ((x - mean) / (variance + self.norm.eps).sqrt()).float()

    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        read = [b["features"] if "features" in b else self.network(b["images_u8"], True) for b in micro_batches]
        x, labels = self._normalised(torch.cat(read)), torch.cat([b["labels"] for b in micro_batches])
        losses = {f"loss/{rate:g}": F.cross_entropy(head(x), labels) for rate, head in self.heads.items()}
        sum(losses.values()).backward()  # heads share nothing
        parameters = list(self.module.parameters())
        gradients = self.world.sum(torch.cat([p.grad.flatten() for p in parameters])) / self.world.size
        for p, gradient in zip(parameters, gradients.split([p.numel() for p in parameters]), strict=True):
            p.grad = gradient.view_as(p)
        probe, total = self.config.probe, self.config.loop.steps
        share = lr_share(step, total, total // probe.epochs * probe.warmup_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.config.data.global_batch_size / 256 * share
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: loss.detach() for name, loss in losses.items()} | {"lr_share": torch.tensor(share)}

    @torch.no_grad()
    def measure(self) -> dict[float, dict[str, float]]:
        """Of each rate: shares `top1` and `top5`, and the mean cross entropy in nats, over all held-out images."""
        records, norm, device = self.held_out(), self.norm.eval(), self.world.device
        sums = torch.zeros(len(self.heads), 3, dtype=torch.float64, device=device)
        for ids in rank_batches(len(records), EVAL_BATCH, self.world):
            rows = records[ids.numpy()]
            x, labels = (torch.from_numpy(rows[name].copy()).to(device) for name in ("features", "label"))
            for own, head in zip(sums, self.heads.values(), strict=True):
                logits = head(norm(x))
                hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
                loss = F.cross_entropy(logits.double(), labels, reduction="sum")
                own += torch.stack([hits[:, 0].sum(), hits.sum(), loss])
        means = zip(self.heads, (self.world.sum(sums) / len(records)).tolist(), strict=True)
        return {rate: dict(zip(("top1", "top5", "val_loss"), row, strict=True)) for rate, row in means}

    def evaluate(self, step: int) -> dict[str, float]:
        return {f"val/{k}/{rate:g}": own[k] for rate, own in self.measure().items() for k in ("top1", "val_loss")}

    def result(self) -> dict[str, Any]:
        """The metrics of the head with the best top-1 among those that did not diverge."""
        found = self.measure()
        finite = [rate for rate, own in found.items() if math.isfinite(own["val_loss"])]
        if not finite:
            raise UserError("all heads diverged, or the features are not finite; lower probe.base_lrs")
        best = max(finite, key=lambda rate: found[rate]["top1"])
        per_lr = {f"{rate:g}": own["top1"] for rate, own in found.items()}
        metrics = found[best] | {"best_base_lr": best, "top1_per_lr": per_lr}
        if self.heads[best].out_features < TOP5_CLASSES:
            del metrics["top5"]
        return metrics
