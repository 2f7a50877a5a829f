"""What a training step costs on GPUs that nobody has measured yet: a model of its time, with every assumption named.

A step of n GPUs does, for each of its micro-batches and once at its end:

    computing         operations / (assumed fraction of the peak), for each kind of operation, and the traffic of
                      activations / bandwidth of the memory; not less than what it takes to read the weights three times
    updating          traffic of weights, gradients, moments and averages / bandwidth of the memory
    communication     ddp     all-reduce of the gradients, once per step
                      fsdp    for each micro-batch: gather the weights twice, reduce-scatter the gradients
                      hsdp    the same inside a machine, and an all-reduce of the shards between machines, once per step
                      Of this, what does not fit beside the computing that it can overlap with is waited for.

In a ring of n, each sends 2 (n - 1) / n times the bytes for an all-reduce, and (n - 1) / n for a gather or a
reduce-scatter (Patarasu and Yuan, 2009). Loading data, validation, checkpoints, and latencies count as nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.arithmetic import ceil_div
from engine.flops import TRAINED, PartFlops
from engine.gpus import GPU
from engine.memory_plan import GPUS_PER_MACHINE

# Assumed, none of it measured here: fractions of a peak that large layers reach in PyTorch without compilation.
EFFICIENCY = {"matrix": 0.6, "convolution": 0.4}
FULL_PRECISION_EFFICIENCY = 0.6  # of the peak in float32 without TF32
BANDWIDTH_EFFICIENCY = 0.8  # of memory and of links
TRAFFIC = 4  # times that the bytes saved for backward pass through memory: written, read twice, and their gradients
NETWORK_GBIT = 400  # per second and GPU, between machines

# Bytes of memory traffic per parameter and step: clipping reads and writes gradients (12), AdamW reads four numbers and
# writes three (28); averages are read and written with the weights (12).
UPDATE_BYTES, AVERAGE_BYTES = 40, 12


@dataclass(frozen=True)
class Network:
    """What is trained, as far as its cost matters."""

    parameters: int
    block_parameters: int  # of them, in blocks that are sharded one by one
    other_parameters: int  # of trained networks beside it, which are never sharded
    has_average: bool
    precision: str  # fp32 | bf16

    @property
    def gathered_bytes(self) -> int:
        """Bytes of whole weights: blocks in the precision of the run, the rest in float32."""
        block_bytes = 2 if self.precision == "bf16" else 4
        return block_bytes * self.block_parameters + 4 * (self.parameters - self.block_parameters)


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step."""

    computing: float
    updating: float
    communication: float
    exposed: float  # of the communication, what is waited for

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.computing + self.updating + self.exposed


@dataclass(frozen=True)
class CostModel:
    """The time of a step on one kind of GPU."""

    gpu: GPU
    network: Network
    saved_bytes: int  # of one image for backward
    strategy: str  # ddp | fsdp | hsdp
    checkpointing: bool
    network_gbit: float = NETWORK_GBIT

    def step(self, parts: Sequence[PartFlops], images: int, gpus: int, grad_accum: int) -> StepCost:
        """A step of `images` images per GPU in `grad_accum` micro-batches."""
        micro_batch = images / grad_accum
        computing = max(micro_batch * self.image_seconds(parts), self._weights_seconds())
        per_micro_batch, per_step = self._communication(gpus)

        # FSDP's traffic runs beside all of a micro-batch, an all-reduce beside the last backward pass alone.
        backward = computing * (TRAINED - 1) / TRAINED
        exposed = grad_accum * max(0.0, per_micro_batch - computing) + max(0.0, per_step - backward)
        return StepCost(
            computing=grad_accum * computing,
            updating=self._updating(gpus),
            communication=grad_accum * per_micro_batch + per_step,
            exposed=exposed,
        )

    # ------------------------------------------------------------------------------------------------ one GPU
    @property
    def bandwidth(self) -> float:
        """Bytes of memory per second."""
        return BANDWIDTH_EFFICIENCY * self.gpu.bandwidth

    def image_seconds(self, parts: Sequence[PartFlops]) -> float:
        """Computing of one image: operations and the traffic of activations."""
        operations = sum(self._flops(part) / self._rate(part) for part in parts)
        return operations + TRAFFIC * self.saved_bytes / self.bandwidth

    def _flops(self, part: PartFlops) -> float:
        """With what activation checkpointing computes again: one forward pass of three."""
        return part.flops * (1 + 1 / TRAINED) if self.checkpointing and part.recomputed else part.flops

    def _rate(self, part: PartFlops) -> float:
        if part.full_precision:
            return FULL_PRECISION_EFFICIENCY * self.gpu.fp32
        return EFFICIENCY[part.kind] * self.gpu.peak(self.network.precision)

    def _weights_seconds(self) -> float:
        """Reading the weights for forward and for both gradients."""
        return TRAINED * self.network.gathered_bytes / self.bandwidth

    def _updating(self, gpus: int) -> float:
        bytes_per_parameter = UPDATE_BYTES + (AVERAGE_BYTES if self.network.has_average else 0)
        trained = self.network.parameters / self._num_shards(gpus) + self.network.other_parameters
        return bytes_per_parameter * trained / self.bandwidth

    # ------------------------------------------------------------------------------------------------ between GPUs
    def _num_shards(self, gpus: int) -> int:
        return {"ddp": 1, "fsdp": gpus, "hsdp": min(gpus, GPUS_PER_MACHINE)}[self.strategy]

    def link(self, gpus: int) -> float:
        """Bytes per second that each GPU of a ring sends: the links of a machine, or all network cards of one."""
        inside = BANDWIDTH_EFFICIENCY * self.gpu.link
        between = BANDWIDTH_EFFICIENCY * GPUS_PER_MACHINE * self.network_gbit * 1e9 / 8
        return inside if gpus <= GPUS_PER_MACHINE else min(inside, between)

    def _communication(self, gpus: int) -> tuple[float, float]:
        """(seconds per micro-batch, seconds per step)."""
        gradients = 4 * self.network.parameters
        beside = self._all_reduce(4 * self.network.other_parameters, gpus, self.link(gpus))
        if self.strategy == "ddp":
            return 0.0, beside + self._all_reduce(gradients, gpus, self.link(gpus))

        # Shards: two gathers and a reduction over those that share.
        num_shards = self._num_shards(gpus)
        share = (num_shards - 1) / num_shards
        per_micro_batch = share * (2 * self.network.gathered_bytes + gradients) / self.link(num_shards)

        # Copies of the shards in several machines, each GPU through a network card of its own.
        machines = ceil_div(gpus, num_shards)
        card = BANDWIDTH_EFFICIENCY * self.network_gbit * 1e9 / 8
        return per_micro_batch, beside + self._all_reduce(gradients // num_shards, machines, card)

    @staticmethod
    def _all_reduce(num_bytes: int, members: int, rate: float) -> float:
        return 2 * (members - 1) / members * num_bytes / rate
