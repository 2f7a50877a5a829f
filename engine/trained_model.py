"""One trained network with its optimizer, gradient clipping, EMA and non-finite guard.

A task owns one `TrainedModel` per network and calls it once per step:

    for batch in model.micro_batches(batches):
        loss = model.wrapped(batch).mean()
        loss.backward()
    metrics = model.step(step, {"loss": loss})
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from engine.buffers import BufferSnapshot
from engine.devices import is_gpu
from engine.messages import ConfigError, UserError
from engine.optim import OptimConfig
from engine.parallel import ParallelConfig, gradient_sync, is_sharded, local_part, parallelize, whole
from engine.schedules import learning_rate
from engine.world import World

T = TypeVar("T")


class NonFiniteError(UserError):
    """Too many steps in a row had a non-finite loss or gradient."""


class TrainedModel:
    """One trained network and everything that its next update depends on.

    `module` is the plain network, `wrapped` the one to call in training (DDP-wrapped, where that is the strategy), and
    `ema` the exponential moving average of its weights, or None. Where `parallel` shards the network, all ranks call
    `module`, `wrapped` and `ema` together.

    `find_unused` tells DDP that some parameters get no gradient in some steps.

    Raises ConfigError unless `ema_decay` (per step; 0 = no EMA) lies in [0, 1).
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
        parallel: ParallelConfig | None = None,
    ) -> None:
        if not 0 <= ema_decay < 1:
            raise ConfigError(f"ema_decay={ema_decay} must lie in [0, 1); 0 = no EMA")
        self.config = config
        self.total_steps = total_steps
        self.world = world
        self.ema_decay = ema_decay

        # The EMA is copied before the network is wrapped: a sharded module cannot be copied. A module to be sharded
        # stays where it was built, because its shards move to the device one by one.
        self.module = module if is_sharded(world, parallel) else module.to(world.device)
        self.ema = copy.deepcopy(self.module).eval().requires_grad_(False) if ema_decay > 0 else None
        self.wrapped = parallelize(self.module, self.ema, world, parallel, find_unused)

        # The optimizer is built last, over the parameters as they are now: whole ones, or shards.
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(module, config),
            lr=config.lr,
            betas=tuple(config.betas),
            eps=config.eps,
            fused=is_gpu(world.device),
        )
        self._init_moments()
        self.num_skipped = 0  # updates skipped since the start of the run
        self.bad_in_a_row = 0  # of them, those since the last good one
        self._before_step: BufferSnapshot | None = None  # of the step under way

    def _init_moments(self) -> None:
        """Sets the moments to zero before the first update.

        Otherwise torch makes them by an empty update when a state is saved, which counts as a step, and leaves them
        out for a network that does not train yet.
        """
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                # A fused optimizer keeps its step count on the GPU.
                count_device = parameter.device if is_gpu(self.world.device) else "cpu"
                self.optimizer.state[parameter] = {
                    "step": torch.zeros((), device=count_device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def micro_batches(self, batches: Sequence[T], beside: Sequence[nn.Module] = ()) -> Iterator[T]:
        """Yields each micro-batch of a step inside the context of its gradients.

        Forward *and* backward belong into the body of the loop. Gradients add up, and processes exchange them at the
        last micro-batch; see `engine.parallel.gradient_sync`. `beside` are other modules whose buffers the forward
        passes change: if `step` skips the update, theirs are put back too.
        """
        self._before_step = BufferSnapshot([self.module, *beside])
        for number, batch in enumerate(batches, start=1):
            with gradient_sync(self.wrapped, last=number == len(batches)):
                yield batch

    def step(self, step: int, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Updates weights and EMA from the gradients that backward left, if they are finite.

        If they are not, the update is skipped and leaves no trace: buffers are as they were before `micro_batches`.
        `terms` are the values of the loss terms, to name a non-finite one. Returns the learning rate, the gradient norm
        before clipping, and the number of updates skipped since the start of the run.

        Raises NonFiniteError after `max_bad_steps` skipped updates in a row.
        """
        if not self.config.lr_after_step:
            self._set_lr(step)

        # The norm is equal on all ranks, because gradients are averaged already; so is the decision to skip.
        max_norm = self.config.max_grad_norm if self.config.max_grad_norm > 0 else math.inf
        grad_norm = whole(nn.utils.clip_grad_norm_(self.module.parameters(), max_norm))
        if torch.isfinite(grad_norm):
            self.bad_in_a_row = 0
            self.optimizer.step()
            self._update_ema()
        else:
            self._skip(step, terms)
        self._before_step = None

        if self.config.lr_after_step:
            self._set_lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "lr": torch.tensor(self.optimizer.param_groups[0]["lr"]),
            "grad_norm": grad_norm.detach(),
            "skipped_steps": torch.tensor(float(self.num_skipped)),
        }

    def _set_lr(self, step: int) -> None:
        """Gives all groups the learning rate of `step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.total_steps, self.config)

    def _skip(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Puts buffers back and counts a skipped update. Raises NonFiniteError if there were too many in a row."""
        if self._before_step is not None:
            self._before_step.restore()
        self.num_skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row < self.config.max_bad_steps:
            return
        bad_terms = [name for name, value in terms.items() if not torch.isfinite(torch.as_tensor(value)).all()]
        raise NonFiniteError(
            f"step {step}: {self.bad_in_a_row} updates in a row had a non-finite gradient (optim.max_bad_steps); "
            f"first non-finite loss term: {bad_terms[0] if bad_terms else 'none, the gradient itself overflows'}. "
            "Lower optim.lr, or resume from an older checkpoint"
        )

    @torch.no_grad()
    def _update_ema(self) -> None:
        """ema = decay * ema + (1 - decay) * weights; buffers, such as batch statistics, are copied."""
        if self.ema is None:
            return
        # Both networks are sharded alike: every process averages its own shards.
        averages = [local_part(parameter) for parameter in self.ema.parameters()]
        weights = [local_part(parameter) for parameter in self.module.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - self.ema_decay)
        for averaged, current in zip(self.ema.buffers(), self.module.buffers(), strict=True):
            averaged.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, under the same names for any number of processes."""
        from torch.distributed.checkpoint import state_dict as torch_state  # here, because it is slow to import

        state: dict[str, Any] = {
            "model": torch_state.get_model_state_dict(self.wrapped),
            "optimizer": torch_state.get_optimizer_state_dict(self.wrapped, self.optimizer),
            "counters": torch.tensor([self.num_skipped, self.bad_in_a_row]),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Weight decay, betas and eps stay those of the config, also where it changed since the state was saved.
        """
        from torch.distributed.checkpoint import state_dict as torch_state  # here, because it is slow to import

        torch_state.set_model_state_dict(self.wrapped, state["model"])

        # The loaded groups carry the options of the saved run: put those of the config back.
        option_names = ("weight_decay", "betas", "eps")
        configured = [{name: group[name] for name in option_names} for group in self.optimizer.param_groups]
        torch_state.set_optimizer_state_dict(self.wrapped, self.optimizer, state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(options)

        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.num_skipped, self.bad_in_a_row = (int(v) for v in state["counters"])
        self._require_finite("resume from an older checkpoint: remove this one")

    @torch.no_grad()
    def _require_finite(self, advice: str) -> None:
        """Raises NonFiniteError on all ranks where a parameter of the network or its EMA is not finite."""
        networks = {"": self.module}
        if self.ema is not None:
            networks["ema."] = self.ema
        names: list[str] = []
        flags: list[Tensor] = []
        for prefix, network in networks.items():
            for name, parameter in network.named_parameters():
                names.append(prefix + name)
                flags.append(torch.isfinite(local_part(parameter)).all())

        # One wait for the device, and one decision for all ranks.
        num_bad_ranks = self.world.sum((~torch.stack(flags)).float()).tolist()
        bad = [name for name, count in zip(names, num_bad_ranks, strict=True) if count > 0]
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise NonFiniteError(f"the parameter {bad[0]}{more} is not finite (NaN or infinity); {advice}")

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Gathers {"model": state dict, "ema": state dict} of whole tensors on the CPU, to be shared.

        All ranks call it together; the main process gets the tensors. Raises NonFiniteError where a parameter is not
        finite, so that no such checkpoint takes the place of a good one.
        """
        from torch.distributed.checkpoint import state_dict as torch_state  # here, because it is slow to import

        self._require_finite("nothing was saved; lower optim.lr and resume from the newest checkpoint")
        networks = {"model": self.module}
        if self.ema is not None:
            networks["ema"] = self.ema
        options = torch_state.StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {name: torch_state.get_model_state_dict(network, options=options) for name, network in networks.items()}


def _parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The parameter groups of the optimizer: parameters that decay, and those that do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if config.decay_params == "all":
        return [{"params": trained, "weight_decay": config.weight_decay}]

    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    return groups
