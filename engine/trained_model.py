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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from engine.buffers import BufferSnapshot, Place, buffer_places
from engine.messages import ConfigError
from engine.optim import OptimConfig
from engine.parallel import ParallelConfig, gradient_sync, is_sharded, local_part, parallelize, shard_like, whole
from engine.schedules import learning_rate, weight_decay
from engine.skipped_updates import NonFiniteError, SkippedUpdates
from engine.world import World

T = TypeVar("T")
# Called with the scalar `is_bad` once weights are updated; returns the rows (bool) of parameters that it has set anew.
AfterUpdate = Callable[[Tensor], Mapping[nn.Parameter, Tensor]]


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

        # A new module is in training mode in all of its parts, also in those that its `train` keeps in evaluation mode.
        self.wrapped.train()

        # The optimizer is built last, over the parameters as they are now: whole ones, or shards.
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(module, config),
            lr=config.lr,
            betas=tuple(config.betas),
            eps=config.eps,
            fused=True,  # on CPUs too; it also skips an update without asking the host
        )
        self._init_moments()
        self.skipped = SkippedUpdates(config.max_bad_steps, world.device)
        self._before_step: BufferSnapshot | None = None  # of the step under way

        # What every step looks at, found once: to walk through a deep network takes as long as a layer of it.
        self._parameters = list(module.parameters())
        self._averages = [] if self.ema is None else list(self.ema.parameters())
        self._average_of = dict(zip(self._parameters, self._averages, strict=False))  # empty without an EMA
        self._average_places = [] if self.ema is None else buffer_places(self.ema)
        self._places: dict[nn.Module, list[Place]] = {self.module: buffer_places(self.module)}

    def _init_moments(self) -> None:
        """Sets the moments to zero before the first update.

        Otherwise torch makes them by an empty update when a state is saved, which counts as a step, and leaves them
        out for a network that does not train yet.
        """
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                self.optimizer.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def train_mode(self) -> nn.Module:
        """The network to call in training, in training mode; nothing is walked through where it is in it already."""
        if not (self.module.training and self.wrapped.training):
            self.wrapped.train()
        return self.wrapped

    def micro_batches(self, batches: Sequence[T], beside: Sequence[nn.Module] = ()) -> Iterator[T]:
        """Yields each micro-batch of a step inside the context of its gradients.

        Forward *and* backward belong into the body of the loop. Gradients add up, and processes exchange them at the
        last micro-batch; see `engine.parallel.gradient_sync`. `beside` are other modules whose buffers the forward
        passes change: if `step` skips the update, theirs are put back too.
        """
        for network in beside:
            if network not in self._places:
                self._places[network] = buffer_places(network)
        networks = [self.module, *beside]
        self._before_step = BufferSnapshot(place for network in networks for place in self._places[network])
        for number, batch in enumerate(batches, start=1):
            with gradient_sync(self.wrapped, last=number == len(batches)):
                yield batch

    def step(
        self, step: int, terms: Mapping[str, Tensor], after_update: AfterUpdate | None = None
    ) -> dict[str, Tensor]:
        """Updates weights and EMA from the gradients that backward left, if they are finite.

        If they are not, the update is skipped and leaves no trace: buffers are as they were before `micro_batches`.
        The host does not wait for the device: what depends on the gradients is decided there, and too many skipped
        updates in a row are found by `require_progress`.

        `terms` are the values of the loss terms, to name a non-finite one. `after_update` may change buffers and rows
        of parameters before the EMA follows: such rows lose their moments, and become their own averages.

        Returns the learning rate, the gradient norm before clipping, and the number of updates skipped since the start
        of the run.
        """
        if not self.config.lr_after_step:
            self._set_lr(step)
        self._set_weight_decay(step)

        # The norm is equal on all ranks, because gradients are averaged already; so is the decision to skip.
        max_norm = self.config.max_grad_norm if self.config.max_grad_norm > 0 else math.inf
        grad_norm = whole(nn.utils.clip_grad_norm_(self._parameters, max_norm))
        is_bad = ~grad_norm.isfinite()

        # The optimizer leaves weights, moments and counts of steps alone where its `found_inf` is 1.
        self.optimizer.grad_scale, self.optimizer.found_inf = None, is_bad.float()
        self.optimizer.step()
        if self._before_step is not None:
            self._before_step.restore(is_bad)
            self._before_step = None
        new_rows = {} if after_update is None else after_update(is_bad)
        self._update_ema(is_bad)
        self._start_anew(new_rows)
        self.skipped.note(is_bad, step, terms)

        if self.config.lr_after_step:
            self._set_lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "lr": torch.tensor(self.optimizer.param_groups[0]["lr"]),
            "grad_norm": grad_norm.detach(),
            "skipped_steps": self.skipped.total.float(),
        }

    def require_progress(self) -> None:
        """Waits for the device. Raises NonFiniteError after `max_bad_steps` skipped updates in a row."""
        self.skipped.require_progress()

    def _set_lr(self, step: int) -> None:
        """Gives all groups the learning rate of `step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.total_steps, self.config)

    def _set_weight_decay(self, step: int) -> None:
        """Gives the parameters that decay, which are the first group, the weight decay of `step`, if it changes."""
        start, end = self.config.weight_decay, self.config.end_weight_decay
        if end is not None:
            self.optimizer.param_groups[0]["weight_decay"] = weight_decay(step, self.total_steps, start, end)

    @torch.no_grad()
    def _update_ema(self, is_bad: Tensor) -> None:
        """ema = decay * ema + (1 - decay) * weights; buffers, such as batch statistics, are copied."""
        if self.ema is None:
            return
        # Both networks are sharded alike: every process averages its own shards.
        averages = [local_part(parameter) for parameter in self._averages]
        weights = [local_part(parameter) for parameter in self._parameters]
        _move_averages(averages, weights, 1 - self.ema_decay, is_bad)
        for averaged, current in zip(self._average_places, self._places[self.module], strict=True):
            if current.tensor is not None:
                averaged.tensor.copy_(current.tensor)

    @torch.no_grad()
    def _start_anew(self, new_rows: Mapping[nn.Parameter, Tensor]) -> None:
        """Forgets the moments of rows that no gradient has set, and copies these rows into the EMA."""
        for parameter, is_new in new_rows.items():
            # This process may hold some of the rows only.
            of_values = is_new.to(parameter.dtype).view(-1, *[1] * (parameter.ndim - 1)).expand(parameter.shape)
            is_new_here = local_part(shard_like(of_values.contiguous(), parameter)) > 0

            moments = self.optimizer.state.get(parameter, {})
            for name in moments.keys() & {"exp_avg", "exp_avg_sq"}:
                local_part(moments[name]).masked_fill_(is_new_here, 0.0)
            if parameter in self._average_of:
                average = local_part(self._average_of[parameter])
                average.copy_(torch.where(is_new_here, local_part(parameter), average))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, under the same names for any number of processes."""
        from torch.distributed.checkpoint import state_dict as torch_state  # here, because it is slow to import

        state: dict[str, Any] = {
            "model": torch_state.get_model_state_dict(self.wrapped),
            "optimizer": torch_state.get_optimizer_state_dict(self.wrapped, self.optimizer),
            "counters": self.skipped.state(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Weight decay, betas and eps stay those of the config, also where it changed since the state was saved. The
        kernel of the optimizer is the present one.
        """
        from torch.distributed.checkpoint import state_dict as torch_state  # here, because it is slow to import

        torch_state.set_model_state_dict(self.wrapped, state["model"])

        # The loaded groups carry the options of the saved run: put those of the config back.
        option_names = ("weight_decay", "betas", "eps", "fused", "foreach")
        configured = [{name: group[name] for name in option_names} for group in self.optimizer.param_groups]
        torch_state.set_optimizer_state_dict(self.wrapped, self.optimizer, state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(options)

        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.skipped.load(state["counters"])
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
        finite, or too many updates in a row were skipped, so that no such checkpoint takes the place of a good one.
        """
        from torch.distributed.checkpoint import state_dict as torch_state  # here, because it is slow to import

        self.require_progress()
        self._require_finite("nothing was saved; lower optim.lr and resume from the newest checkpoint")
        networks = {"model": self.module}
        if self.ema is not None:
            networks["ema"] = self.ema
        options = torch_state.StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {name: torch_state.get_model_state_dict(network, options=options) for name, network in networks.items()}


def _move_averages(averages: list[Tensor], weights: list[Tensor], share: float, is_bad: Tensor) -> None:
    """average += share * (weight - average) for all pairs, unless the scalar `is_bad` is true.

    That is a step of SGD from the average down the gradient `average - weight`, with the rate `share`: the fused kernel
    of SGD takes `-weight` as the gradient and adds the average as its decay. It needs no other memory, and it can skip
    on the device. The bits are those of `torch._foreach_lerp_` where `share` is below 0.5.
    """
    torch._fused_sgd_(
        averages,
        weights,
        [],  # no momentum
        lr=share,
        maximize=True,  # the gradient's sign
        weight_decay=1.0,
        momentum=0.0,
        dampening=0.0,
        nesterov=False,
        is_first_step=False,
        grad_scale=None,
        found_inf=is_bad.float(),
    )


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
