"""An estimate of the GPU memory that a training needs: `--plan GPUS` of the training entries.

State (exact): 4 bytes per parameter for weights, 4 gradients, 8 AdamW, 4 EMA, divided by the number of shards. Sharded
runs add the parameters gathered at once: everything outside the blocks plus two blocks, with gradients.

Activations (estimate): bytes saved for backward, measured on fake tensors (which have shapes, but no storage) at batch
1 and 2 and extrapolated. 10 % of the memory is kept free for what the estimate does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.hooks import RemovableHandle

from engine.arithmetic import ceil_div
from engine.checkpoint.weights import num_parameters
from engine.config_merge import UnsetVariable, unset_lines
from engine.counts import counted
from engine.loop import TrainLoopConfig
from engine.parallel import parallel_blocks
from engine.peak_memory import PeakMemory
from engine.saved_tensors import SavedTensorsMeter, storage_of

Forward = Callable[[int], Any]  # batch size -> what the forward pass of a training step makes

GPU_BYTES = 80e9
BUDGET = 0.9 * GPU_BYTES  # bytes per GPU that a plan may use
GPUS_PER_MACHINE = 8  # hsdp shards inside one machine
STRATEGIES = ("ddp", "hsdp", "fsdp")


# ------------------------------------------------------------------------------------------------ activations
class SavedBytes(NamedTuple):
    """Bytes that one forward pass keeps for backward, without and with activation checkpointing."""

    plain: int
    checkpointed: int

    def under(self, checkpointing: bool) -> int:
        """The bytes with or without checkpointing."""
        return self.checkpointed if checkpointing else self.plain


class ActivationMeter(SavedTensorsMeter):
    """Records the tensors that a forward pass saves for backward, and in which block.

        with ActivationMeter(module) as meter:
            forward(batch)
        meter.saved_bytes()

    Tensors that share a storage count once, parameters not at all.

    Blocks are those of `parallel_blocks`; they do not contain each other. With activation checkpointing, torch keeps
    the inputs of all blocks and what is saved outside of them; in backward it recomputes one block at a time, so that
    the inside of the largest block comes on top.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._outside: dict[int, Tensor] = {}  # storage -> tensor saved outside of all blocks
        self._insides: list[dict[int, Tensor]] = []  # the same for the inside of each block
        self._inputs: dict[int, Tensor] = {}  # storage -> tensor that enters a block
        self._current = self._outside  # where the next saved tensor belongs

    def follow_modules(self) -> Iterator[RemovableHandle]:
        for block in parallel_blocks(self.module):
            yield block.register_forward_pre_hook(self._enter_block)
            yield block.register_forward_hook(self._leave_block)

    def _enter_block(self, block: nn.Module, inputs: tuple) -> None:
        self._inputs.update({storage_of(x): x for x in inputs if isinstance(x, Tensor)})
        self._current = {}
        self._insides.append(self._current)

    def _leave_block(self, *_: object) -> None:
        self._current = self._outside

    def count(self, tensor: Tensor) -> None:
        self._current[storage_of(tensor)] = tensor

    def saved_bytes(self) -> SavedBytes:
        """Sums up what has been saved so far."""
        parameters = {storage_of(p) for p in self.module.parameters()}

        def size(*groups: dict[int, Tensor]) -> int:
            tensors = {storage: tensor for group in groups for storage, tensor in group.items()}
            return sum(t.untyped_storage().nbytes() for storage, t in tensors.items() if storage not in parameters)

        largest_inside = max((size(inside) for inside in self._insides), default=0)
        return SavedBytes(
            plain=size(self._outside, *self._insides),
            checkpointed=size(self._outside, self._inputs) + largest_inside,
        )


def saved_bytes(module: nn.Module, forward: Forward, precision: str, batch: int) -> SavedBytes:
    """Measures what a forward pass of `batch` images saves for backward."""
    with ActivationMeter(module) as meter, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        forward(batch)
    return meter.saved_bytes()


def peak_bytes(compute: Forward, batch: int) -> int:
    """Measures what a computation without gradients on `batch` images holds at a time."""
    with torch.no_grad(), PeakMemory() as peak:
        compute(batch)
    return peak.bytes


# ------------------------------------------------------------------------------------------------ state
def state_bytes(module: nn.Module, strategy: str, gpus: int, precision: str, ema: bool) -> int:
    """Bytes per GPU without activations: weights, gradients, AdamW, EMA, and what shards gather at a time."""
    num_shards = {"ddp": 1, "fsdp": gpus, "hsdp": min(gpus, GPUS_PER_MACHINE)}[strategy]
    bytes_per_parameter = 20 if ema else 16
    shard = bytes_per_parameter * num_parameters(module) // num_shards
    if num_shards == 1:
        return shard

    # Gathered: weights and gradients of all that is outside of blocks, and of two blocks (one is prefetched).
    blocks = [num_parameters(block) for block in parallel_blocks(module, "shard")]
    bytes_per_gathered = 6 if precision == "bf16" else 8  # weights in bf16 or fp32, gradients in fp32
    gathered_blocks = 2 * bytes_per_gathered * max(blocks, default=0)
    gathered_rest = 8 * (num_parameters(module) - sum(blocks))
    return shard + gathered_rest + gathered_blocks


# ------------------------------------------------------------------------------------------------ the plan
@dataclass(frozen=True)
class Setting:
    """What a user can change so that a training fits."""

    strategy: str
    checkpointing: bool
    grad_accum: int

    @property
    def title(self) -> str:
        """The setting in the table of a report."""
        return f"{self.strategy} activation_checkpointing" if self.checkpointing else self.strategy

    def overrides(self) -> str:
        """The setting as `key=value` for the command line."""
        return (
            f"loop.strategy={self.strategy} loop.activation_checkpointing={str(self.checkpointing).lower()} "
            f"loop.grad_accum={self.grad_accum}"
        )


@dataclass(frozen=True)
class MemoryModel:
    """The bytes that one of `gpus` GPUs needs, as a function of the setting."""

    state_of: Callable[[str, int], int]  # (strategy, GPUs) -> bytes without activations
    image: SavedBytes  # bytes of activations per image
    batch: int  # images per step, on all GPUs
    gpus: int
    image_before: int = 0  # bytes per image that are held before the forward pass, and are gone when it begins

    @classmethod
    def measure(
        cls,
        module: nn.Module,
        forward: Forward,
        precision: str,
        batch: int,
        gpus: int,
        *,
        ema: bool,
        beside: int,
        others: Sequence[nn.Module] = (),
        before: tuple[nn.Module, Forward] | None = None,
    ) -> MemoryModel:
        """Measures `module`, which is on the meta device; `beside` bytes of other networks are on every GPU.

        `others` are those of them that take part in the forward pass. `before` is one, and what it computes without
        gradients before a forward pass. Networks on the meta device are fake ones afterwards.
        """
        image_before = 0
        with FakeTensorMode(allow_non_fake_inputs=True):
            module.to_empty(device="cpu").train()
            for other in others:
                _give_storage(other)
            one = saved_bytes(module, forward, precision, 1)
            two = saved_bytes(module, forward, precision, 2)
            if before is not None:
                network, compute = before
                network.to_empty(device="cpu")
                image_before = peak_bytes(compute, 2) - peak_bytes(compute, 1)
        image = SavedBytes(two.plain - one.plain, two.checkpointed - one.checkpointed)

        # What does not grow with the batch are the weights that autocast has cast. Shards are cast already.
        cast_weights = one.plain - image.plain

        def state_of(strategy: str, num_gpus: int) -> int:
            cast = cast_weights if strategy == "ddp" else 0
            return state_bytes(module, strategy, num_gpus, precision, ema) + beside + cast

        return cls(state_of, image, batch, gpus, image_before)

    def state(self, setting: Setting) -> int:
        """Bytes per GPU that do not depend on the batch."""
        return self.state_of(setting.strategy, self.gpus)

    def activations(self, setting: Setting) -> int:
        """Bytes per GPU that one micro-batch saves for backward, or that are held before it if those are more."""
        images_at_a_time = ceil_div(self.batch, self.gpus * setting.grad_accum)
        return images_at_a_time * max(self.image.under(setting.checkpointing), self.image_before)

    def total(self, setting: Setting) -> int:
        """Bytes per GPU."""
        return self.state(setting) + self.activations(setting)

    def first_fitting(self) -> Setting | None:
        """The fitting setting with the fewest micro-batches, then the simplest strategy; or None."""
        for grad_accum in range(1, self.batch // self.gpus + 1):
            if self.batch % (self.gpus * grad_accum) != 0:
                continue
            for setting in _settings(grad_accum):
                if self.total(setting) <= BUDGET:
                    return setting
        return None


def _give_storage(network: nn.Module) -> None:
    """Puts tensors of the CPU in the place of those on the meta device; in the mode of fake tensors, fake ones.

    `to_empty` does not do for a network whose tensors somebody else holds too, as libraries do.
    """
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device="cpu")
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _settings(grad_accum: int) -> list[Setting]:
    """All strategies, each without and with activation checkpointing, the simplest first."""
    return [Setting(strategy, checkpointing, grad_accum) for strategy in STRATEGIES for checkpointing in (False, True)]


class Plan(NamedTuple):
    """What a training needs per GPU, as a table for people, and whether that fits."""

    text: str
    fits: bool

    def with_lines(self, *, before: str = "", after: str = "") -> Plan:
        """The plan with a beginning of its first line, and with a last line."""
        return Plan(f"{before}{self.text}" + (f"\n{after}" if after else ""), self.fits)


def plan(
    module: nn.Module, forward: Forward, loop: TrainLoopConfig, batch: int, gpus: int, *, ema: bool, beside: int = 0
) -> Plan:
    """Reports what training `module` needs per GPU, whether that fits, and what to change.

    `module` is on the meta device; `batch` is the global batch size in images, on `gpus` GPUs of 80 GB (10^9 bytes).
    `beside` bytes of other networks are on every GPU.
    """
    memory = MemoryModel.measure(module, forward, loop.precision, batch, gpus, ema=ema, beside=beside)
    return report(memory, loop, num_parameters(module))


def report(memory: MemoryModel, loop: TrainLoopConfig, num_weights: int) -> Plan:
    """`plan` of a training whose memory is measured; `num_weights` is the number of its parameters."""
    recipe = Setting(loop.strategy, loop.activation_checkpointing, loop.grad_accum)

    # One line for each alternative at the recipe's number of micro-batches.
    parts, gpus = counted(recipe.grad_accum, "part"), counted(memory.gpus, "GPU")
    lines = [f"{num_weights:,} parameters, batch {memory.batch}, {parts}, {gpus}: GB per GPU"]
    for setting in _settings(recipe.grad_accum):
        total, state = memory.total(setting) / 1e9, memory.state(setting) / 1e9
        lines.append(f"  {setting.title:30}{total:7.1f} = state {state:.1f} + activations {total - state:.1f}")

    # The recipe itself, and where it does not fit what would.
    needed = memory.total(recipe)
    fits = needed <= BUDGET
    lines.append(f"this recipe needs {needed / 1e9:.1f} GB: it {'fits' if fits else 'does not fit'}")
    if not fits:
        fitting = memory.first_fitting()
        alternative = fitting.overrides() if fitting else "more GPUs, of a number that divides data.global_batch_size"
        lines.append(f"use {alternative}")
    return Plan("\n".join(lines), fits)


def tell_plans(plans: Sequence[Plan], unset: Sequence[UnsetVariable]) -> NoReturn:
    """Prints the plans of a training, one per phase, and the variables that its config lacks on this machine.

    Raises SystemExit: 0 where all plans fit, otherwise 2, as a check that finds a problem does.
    """
    for plan in plans:
        print(plan.text)
    if unset:
        print("\n".join(f"on this machine: {line}" for line in unset_lines(unset)))
    raise SystemExit(0 if all(plan.fits for plan in plans) else 2)
