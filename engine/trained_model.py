"""One trained network with its optimizer, clipping, EMA and non-finite guard."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from engine.messages import ConfigError, UserError
from engine.parallel import gradient_sync, is_sharded, parallelize
from engine.world import World

if TYPE_CHECKING:
    from engine.loop import TrainLoopConfig
from engine.optim import OptimConfig
from engine.schedules import learning_rate


class NonFiniteError(UserError):
    """Too many updates in a row had a non-finite loss or gradient."""


class TrainedModel:
    """One trained network.

    `module` is the plain network, `network` the one to call in training (wrapped for data parallelism), `ema` its
    averaged copy or None. Where `scale` shards them, all ranks must call them together. `step` sets the learning
    rate, clips, updates and averages; a non-finite gradient skips the update.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        *,
        total_steps: int,
        world: World,
        ema_decay: float = 0.0,
        find_unused: bool = False,
        scale: TrainLoopConfig | None = None,
    ) -> None:
        if not 0 <= ema_decay < 1:
            raise ConfigError(f"ema_decay={ema_decay} must lie in [0, 1); 0 = no averaged weights")
        self.config, self.total_steps, self.world, self.ema_decay = config, total_steps, world, ema_decay
        self.module = module if is_sharded(world, scale) else module.to(world.device)  # shards move one by one
        self.ema = copy.deepcopy(self.module).eval().requires_grad_(False) if ema_decay > 0 else None
        self.wrapped = parallelize(self.module, self.ema, world, scale, find_unused)
        trained = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim >= 2 or config.decay_params == "all"]
        vectors = [p for p in trained if p.ndim < 2 and config.decay_params == "matrices"]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}]
        if vectors:
            groups.append({"params": vectors, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=tuple(config.betas), eps=config.eps, fused=world.device.type == "cuda"
        )
        self._init_moments()
        self.num_skipped = 0  # updates skipped since the start of the run
        self.bad_in_a_row = 0

    def _init_moments(self) -> None:
        """Zero moments at update 0. Else torch makes them by an empty update when a state is saved, which counts, and
        leaves them out for a network that does not train yet.
        """
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                step = torch.zeros((), device=p.device if self.world.device.type == "cuda" else "cpu")
                moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.optimizer.state[p] = {"step": step, **moments}

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Surrounds forward *and* backward of one micro-batch: gradients are exchanged where `exchange` says."""
        return gradient_sync(self.wrapped, last)

    def step(self, step: int, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One update from the gradients that backward left. `terms` are the loss terms, to name a non-finite one.

        Returns the learning rate, the gradient norm before clipping and the number of skipped updates so far.
        """
        if not self.config.lr_after_step:
            self._set_lr(step)
        limit = self.config.max_grad_norm if self.config.max_grad_norm > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if torch.isfinite(norm):  # equal on all ranks: gradients are already averaged
            self.bad_in_a_row = 0
            self.optimizer.step()
            self._average()
        else:
            self._skip(step, terms)
        if self.config.lr_after_step:
            self._set_lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        lr = torch.tensor(self.optimizer.param_groups[0]["lr"])
        return {"lr": lr, "grad_norm": norm.detach(), "skipped_steps": torch.tensor(float(self.num_skipped))}

    def _set_lr(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.total_steps, self.config)

    def _skip(self, step: int, terms: Mapping[str, Tensor]) -> None:
        self.num_skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= self.config.max_bad_steps:
            bad = [name for name, value in terms.items() if not torch.isfinite(torch.as_tensor(value)).all()]
            raise NonFiniteError(
                f"step {step}: {self.bad_in_a_row} updates in a row had a non-finite gradient (optim.max_bad_steps); "
                f"first non-finite loss term: {bad[0] if bad else 'none, the gradient itself overflows'}. "
                "Lower optim.lr, or resume from an older checkpoint"
            )

    @torch.no_grad()
    def _average(self) -> None:
        if self.ema is None:
            return
        averaged, current = list(self.ema.parameters()), list(self.module.parameters())
        torch._foreach_lerp_(averaged, current, 1 - self.ema_decay)
        for target, source in zip(self.ema.buffers(), self.module.buffers(), strict=True):
            target.copy_(source)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, with names that do not depend on the number of processes."""
        state: dict[str, Any] = {
            "model": get_model_state_dict(self.wrapped),
            "optimizer": get_optimizer_state_dict(self.wrapped, self.optimizer),
            "counters": torch.tensor([self.num_skipped, self.bad_in_a_row]),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_model_state_dict(self.wrapped, state["model"])
        names = ("weight_decay", "betas", "eps")
        options = [{name: group[name] for name in names} for group in self.optimizer.param_groups]
        set_optimizer_state_dict(self.wrapped, self.optimizer, state["optimizer"])
        for group, configured in zip(self.optimizer.param_groups, options, strict=True):
            group.update(configured)  # decay, betas and eps are those of the config, also where it changed
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.num_skipped, self.bad_in_a_row = (int(v) for v in state["counters"])

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """{"model": state dict, "ema": state dict} of whole tensors on the CPU, to be shared. All ranks call it, the
        main process gets them.
        """
        networks = {"model": self.module} | ({"ema": self.ema} if self.ema is not None else {})
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {name: get_model_state_dict(network, options=options) for name, network in networks.items()}
