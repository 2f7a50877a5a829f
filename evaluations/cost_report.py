"""What a training costs on GPUs that are not here, as a table for people: see `evaluations.cost_model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.arithmetic import ceil_div
from engine.flops import PartFlops
from engine.gpus import GPUS
from engine.memory_plan import Setting
from evaluations.cost_model import (
    BANDWIDTH_EFFICIENCY,
    EFFICIENCY,
    FULL_PRECISION_EFFICIENCY,
    NETWORK_GBIT,
    TRAFFIC,
    CostModel,
    StepCost,
)
from evaluations.workload import Workload

RECIPE_GPUS = 8  # of the command in the header of every recipe
FREE_MEMORY = 0.1  # of a GPU, as in `--plan`
DAY = 86400  # seconds


@dataclass(frozen=True)
class Machines:
    """The GPUs that a cost is estimated for."""

    device: str = "h100"  # a name in `engine.gpus.GPUS`
    images_per_gpu: int | None = None  # lets the global batch grow with the GPUs
    network_gbit: float = NETWORK_GBIT  # per second and GPU, between machines


# ------------------------------------------------------------------------------------------------ one row
@dataclass(frozen=True)
class Row:
    """A training on a number of GPUs."""

    gpus: int
    images: int  # per GPU and step
    grad_accum: int
    gigabytes: float  # per GPU
    fits: bool
    step: StepCost  # mean over all steps
    mfu: float
    seconds: float  # of all steps

    def cells(self) -> list[str]:
        """The row of the table."""
        parts = f"{self.images // self.grad_accum} x {self.grad_accum}"
        milliseconds = [f"{1e3 * value:.0f}" for value in (self.step.total, self.step.computing, self.step.updating)]
        network = f"{1e3 * self.step.exposed:.0f} of {1e3 * self.step.communication:.0f}"
        days = self.seconds / DAY
        memory = f"{self.gigabytes:.1f}{'' if self.fits else ' TOO MUCH'}"
        hours = f"{24 * days * self.gpus:,.0f}"
        return [f"{self.gpus}", parts, memory, *milliseconds, network, f"{self.mfu:.0%}", f"{days:.2f}", hours]


HEAD = ["GPUs", "images", "GB", "step ms", "computing", "updating", "network", "MFU", "days", "GPU hours"]


def row_of(workload: Workload, machines: Machines, gpus: int) -> Row | str:
    """One training on `gpus` GPUs, or why there is none."""
    gpu = GPUS[machines.device]
    batch = gpus * machines.images_per_gpu if machines.images_per_gpu else workload.batch
    if batch % gpus != 0:
        return f"{gpus} GPUs: the batch of {batch} images cannot be divided among them"
    images = batch // gpus
    grad_accum = _micro_batches(workload, images)

    # Memory.
    loop = workload.loop
    setting = Setting(loop.strategy, loop.activation_checkpointing, grad_accum)
    needed = replace(workload.memory, gpus=gpus, batch=batch).total(setting)

    # Time, stage by stage. An MFU counts the operations of the model, not what is computed again.
    saved = workload.memory.image.under(loop.activation_checkpointing)
    shape = (loop.strategy, loop.activation_checkpointing, machines.network_gbit)
    model = CostModel(gpu, workload.network, saved, *shape)
    costs = [(stage, model.step(stage.parts, images, gpus, grad_accum)) for stage in workload.stages]
    seconds = sum(stage.steps * cost.total for stage, cost in costs)
    operations = images * sum(stage.steps * _flops(stage.parts) for stage in workload.stages)
    return Row(
        gpus,
        images,
        grad_accum,
        gigabytes=needed / 1e9,
        fits=needed <= (1 - FREE_MEMORY) * gpu.memory,
        step=_mean([(stage.steps, cost) for stage, cost in costs]),
        mfu=operations / seconds / gpu.peak(workload.network.precision),
        seconds=seconds * workload.batch / batch,
    )


def _micro_batches(workload: Workload, images: int) -> int:
    """The fewest micro-batches of equal size that are no larger than those of the recipe on its own GPUs."""
    largest = max(1, workload.batch // (RECIPE_GPUS * workload.loop.grad_accum))
    fewest = ceil_div(images, largest)
    return next(count for count in range(fewest, images + 1) if images % count == 0)


def _flops(parts: tuple[PartFlops, ...]) -> int:
    return sum(part.flops for part in parts)


def _mean(costs: list[tuple[int, StepCost]]) -> StepCost:
    """The mean cost of a step, weighted by numbers of steps."""
    total = sum(steps for steps, _ in costs)
    names = ("computing", "updating", "communication", "exposed")
    return StepCost(**{name: sum(steps * getattr(cost, name) for steps, cost in costs) / total for name in names})


# ------------------------------------------------------------------------------------------------ the report
def cost_report(workload: Workload, machines: Machines, gpus: Sequence[int]) -> str:
    """The operations of a training, and a row per number of GPUs, for people."""
    network, loop = workload.network, workload.loop
    spread = loop.strategy + (" with activation checkpointing" if loop.activation_checkpointing else "")
    lines = [
        f"{workload.title} on {GPUS[machines.device].title}, {network.precision}, {spread}",
        f"{network.parameters:,} parameters; {workload.steps:,} steps of {workload.batch} images",
    ]

    # Operations of each stage.
    for stage in workload.stages:
        parts = ", ".join(f"{part.name} {part.flops / 1e9:,.1f}" for part in stage.parts if part.flops > 0)
        lines.append(f"{stage.steps:,} steps, 10^9 operations per image: {_flops(stage.parts) / 1e9:,.0f} = {parts}")

    # The table.
    rows = [row_of(workload, machines, count) for count in gpus]
    table = [HEAD, *(row.cells() for row in rows if isinstance(row, Row))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]
    return "\n".join([*lines, *(row for row in rows if isinstance(row, str))])


def assumptions(network_gbit: float) -> str:
    """What the numbers rest on, in two lines."""
    kinds = ", ".join(f"{kind} operations {share:.0%}" for kind, share in EFFICIENCY.items())
    return (
        f"assumed: {kinds}, float32 {FULL_PRECISION_EFFICIENCY:.0%} of the peak; memory and links "
        f"{BANDWIDTH_EFFICIENCY:.0%} of theirs;\n{TRAFFIC} x the saved activations pass through memory; "
        f"{network_gbit:g} Gbit/s per GPU between machines; see docs/costs.md"
    )
