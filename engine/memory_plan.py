"""How a network is spread over processes, and an estimate of the memory that its training needs.

Exact, in bytes a parameter: weights 4, gradients 4, AdamW 8, averaged weights 4, over as many processes as share them.
Estimated: activations, as what forward passes of 1 and 2 images save for backward (of tensors without storage), and
what shards gather, as the part outside of the blocks and two blocks, with gradients. A tenth must stay free for the
rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.checkpoint.weights import num_parameters
from engine.loop import TrainLoopConfig
from engine.parallel import parallel_blocks

Forward = Callable[[int], Any]  # batch size -> what the forward pass of a training step makes


def saved_bytes(module: nn.Module, forward: Forward, precision: str, batch: int) -> tuple[int, int]:
    """Bytes saved for backward beside parameters: all; or inputs of blocks, the largest block, and what is outside."""
    rest, inputs = {}, {}  # storage -> tensor
    tables = [rest]  # the last one is for what is saved now

    def save(tensor: Tensor) -> Tensor:
        tables[-1][tensor.untyped_storage()._cdata] = tensor
        return tensor

    def enter(block: nn.Module, given: tuple) -> None:
        inputs.update({t.untyped_storage()._cdata: t for t in given if isinstance(t, Tensor)})
        tables.append({})

    hooks = [b.register_forward_pre_hook(enter) for b in parallel_blocks(module)]
    hooks += [b.register_forward_hook(lambda *_: tables.append(rest)) for b in parallel_blocks(module)]
    pack = torch.autograd.graph.saved_tensors_hooks(save, lambda t: t)
    with pack, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        _graph = forward(batch)  # holds all storages
    for hook in hooks:
        hook.remove()
    known = {p.untyped_storage()._cdata for p in module.parameters()}

    def size(*parts: dict[int, Tensor]) -> int:
        union = {key: t for part in parts for key, t in part.items() if key not in known}
        return sum(t.untyped_storage().nbytes() for t in union.values())

    return size(*tables), size(rest, inputs) + max((size(t) for t in tables if t is not rest), default=0)


def state_bytes(module: nn.Module, strategy: str, gpus: int, precision: str, ema: bool) -> int:
    """Bytes on one GPU without activations: weights, gradients, optimizer, averages, and what is gathered at a time."""
    shards = {"ddp": 1, "fsdp": gpus, "hsdp": min(gpus, 8)}[strategy]  # 8 GPUs in a machine
    blocks = [num_parameters(block) for block in parallel_blocks(module, "shard")]
    gathered = 8 * (num_parameters(module) - sum(blocks)) + 2 * (6 if precision == "bf16" else 8) * max(
        blocks, default=0
    )
    return (20 if ema else 16) * num_parameters(module) // shards + (gathered if shards > 1 else 0)


def plan(
    module: nn.Module, forward: Forward, loop: TrainLoopConfig, batch: int, gpus: int, *, ema: bool, beside: int = 0
) -> str:
    """What training `module` (on the meta device) with a global `batch` needs on `gpus` GPUs of 80 GB (10^9 bytes),
    whether that fits, and what to change. `beside` bytes of other networks are on every GPU.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device="cpu").train()
        one, two = (saved_bytes(module, forward, loop.precision, images) for images in (1, 2))
    cast = 2 * one[0] - two[0]  # saved for any batch: weights that autocast casts; shards are cast already

    def state(strategy: str) -> int:
        return state_bytes(module, strategy, gpus, loop.precision, ema) + beside + (cast if strategy == "ddp" else 0)

    def need(strategy: str, recompute: bool, accum: int) -> int:
        return state(strategy) + -(-batch // (gpus * accum)) * (two[recompute] - one[recompute])

    settings = [(strategy, recompute) for strategy in ("ddp", "hsdp", "fsdp") for recompute in (False, True)]
    own, limit = (loop.strategy, loop.activation_checkpointing, loop.grad_accum), 0.9 * 80e9
    lines = [f"{num_parameters(module):,} parameters, batch {batch}, {own[2]} part(s), {gpus} GPUs: GB a GPU"]
    for strategy, recompute in settings:
        whole, fixed = need(strategy, recompute, own[2]) / 1e9, state(strategy) / 1e9
        name = strategy + " activation_checkpointing" * recompute
        lines.append(f"  {name:30}{whole:7.1f} = state {fixed:.1f} + activations {whole - fixed:.1f}")
    fits = need(*own) <= limit
    lines.append(f"this recipe needs {need(*own) / 1e9:.1f} GB: it {'fits' if fits else 'does not fit'}")
    accums = [a for a in range(1, batch // gpus + 1) if batch % (gpus * a) == 0]
    better = [(*s, a) for a in accums for s in settings if need(*s, a) <= limit]
    change = "more GPUs, of a number that divides data.global_batch_size"
    for strategy, recompute, accum in better[:1]:
        change = f"loop.strategy={strategy} loop.activation_checkpointing={recompute} loop.grad_accum={accum}".lower()
    return "\n".join(lines if fits else [*lines, f"use {change}"])
