"""What older versions of PyTorch need: the only module that knows them. docs/versions.md says which ones are tested.

Each function says which version it serves, and can go when `pyproject.toml` no longer admits that version. A function
asks for the feature itself where it can, so that versions in between need not be known.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree


def show_dataclasses_to_fsdp(module: nn.Module) -> None:
    """Lets FSDP2 find the tensors inside dataclasses that `module` returns. Call it before `fully_shard`.

    FSDP gathers the parameters for the backward pass when a gradient reaches an output. PyTorch 2.7 and 2.8 look for
    outputs in pytrees, to which dataclasses must be introduced; newer versions look into dataclasses themselves.
    Without this, the backward pass ends with "data is not allocated yet".
    """
    module.register_forward_hook(lambda module, inputs, output: _register_dataclasses(output))


def _register_dataclasses(value: Any) -> None:
    """Introduces the classes of all dataclasses in nested containers to torch's pytrees."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        names = [field.name for field in dataclasses.fields(kind)]

        # The class itself, then what its fields hold.
        if kind not in _pytree.SUPPORTED_NODES:
            _pytree.register_pytree_node(
                kind,
                lambda instance: ([getattr(instance, name) for name in names], None),
                lambda values, _: kind(**dict(zip(names, values, strict=True))),
            )
        for name in names:
            _register_dataclasses(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            _register_dataclasses(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _register_dataclasses(item)


def release_root_after_forward(module: nn.Module) -> None:
    """Makes the root of FSDP2 give back what it has gathered after every forward pass. Call it once values are loaded.

    PyTorch 2.7 keeps the parameters outside of the blocks gathered, whatever `reshard_after_forward` says: they go
    stale where a forward pass has no backward pass, as in a validation.
    """
    if hasattr(module, "set_reshard_after_forward"):  # new in 2.8, which does as it is told
        return
    state = module._get_fsdp_state()
    group = state._fsdp_param_group
    how_to_release = group.post_forward_mesh_info
    state._lazy_init()
    group.post_forward_mesh_info = how_to_release


def average_gradients_on_cpu(module: nn.Module, device: torch.device) -> None:
    """Makes FSDP2 average gradients over processes on CPUs. Call it after `fully_shard`, on all ranks together.

    It asks the process group for the average. In PyTorch 2.7 and 2.8, gloo answers with the sum, without a word: every
    gradient would be too large by the number of processes. Where that is so, FSDP2 is told to divide by itself.
    """
    if device.type != "cpu" or _gloo_averages():
        return
    if hasattr(module, "set_force_sum_reduction_for_comms"):
        for part in module.modules():
            if hasattr(part, "set_force_sum_reduction_for_comms"):  # the blocks that are sharded
                part.set_force_sum_reduction_for_comms(True)
        return

    # PyTorch 2.7 has no such setting. It divides by itself before and after the sum where it is told two factors. Its
    # streams of the CPU also give no events, which HSDP expects.
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    def divide_factors(shards: Any, machines: Any, *_: Any) -> tuple[float, float]:
        return 1.0, float(shards.size() * (1 if machines is None else machines.size()))

    _fsdp_collectives._get_gradient_divide_factors = divide_factors
    torch.cpu.Stream.record_event = lambda self, event=None: event or torch.cpu.Event()


def _gloo_averages() -> bool:
    """Whether a reduce-scatter with the average gives the average."""
    average = torch.empty(1)
    reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
    reduce_scatter(average, torch.ones(dist.get_world_size()), op=dist.ReduceOp.AVG)
    return average.item() == 1.0


def unsynced_buffers() -> dict[str, bool]:
    """The option of DDP that keeps the buffers of each process its own during training.

    PyTorch 2.13 renamed it, and warns of the old name. The new one still copies the buffers of the first process when
    the network is wrapped, where those of all processes are equal.
    """
    options = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers": False}


def all_gather_rows(output: Tensor, rows: Tensor) -> None:
    """Fills `output` with the `rows` of all processes, one below the other. PyTorch 2.14 warns of the old name."""
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    gather(output, rows)
