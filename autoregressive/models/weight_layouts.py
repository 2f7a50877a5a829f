"""How the weights of linear layers lie in memory while a generator samples on a CPU.

A decode step multiplies a few rows with every weight once, so reading the weights takes most of its time; which layout
is read fastest depends on the machine and on the number of rows.

    plain         as they are trained: `F.linear`, the reference
    transposed    for several rows multiplied as (W x^T)^T, for one row stored the other way around, as x (W^T)
    packed        a copy in the blocks that oneDNN chooses
    bf16          packed, rounded to bfloat16; inputs too, sums in float32
    int8          weight-only: whole numbers in -127..127 times one scale per output channel, inputs in bfloat16

The first three give the same products up to the order of sums. The last two are other numbers, and so they are other
networks: `autoregressive.sampling_weights` measures how far from the trained one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.devices import is_gpu
from engine.messages import ConfigError

PLAIN = "plain"
INT8_MAX = 127
INT8_VECTOR = 64  # a multiple of the numbers that any instruction set multiplies at once
BLOCK = 1024  # inputs of one product (W x^T): libraries read longer rows of W more slowly

Product = Callable[[Tensor], Tensor]  # x (rows, in) float32 -> x W^T (rows, out) float32


def _transposed(weight: Tensor, rows: int) -> Product:
    if rows == 1:
        turned = weight.T.contiguous()
        return lambda x: x @ turned

    blocks = [block.contiguous() for block in weight.split(BLOCK, dim=1)]

    def product(x: Tensor) -> Tensor:
        # Rows that lie side by side in memory, as libraries are far slower where x^T does.
        first, *others = x.contiguous().T.split(BLOCK)
        out = blocks[0] @ first
        for block, part in zip(blocks[1:], others, strict=True):
            out.addmm_(block, part)
        return out.T.contiguous()

    return product


def _packed(weight: Tensor, rows: int) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _bf16(weight: Tensor, rows: int) -> Product:
    product = _packed(weight.bfloat16(), rows)
    return lambda x: product(x.bfloat16()).float()


def _int8(weight: Tensor, rows: int) -> Product:
    whole, scales = quantized_int8(weight)
    scales = scales.bfloat16()

    # The kernel reads whole vectors, also beyond the end of a row: zeros fill the last one.
    missing = -weight.shape[1] % INT8_VECTOR
    if missing == 0:
        return lambda x: torch._weight_int8pack_mm(x.bfloat16(), whole, scales).float()
    whole = F.pad(whole, (0, missing))
    return lambda x: torch._weight_int8pack_mm(F.pad(x, (0, missing)).bfloat16(), whole, scales).float()


def quantized_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(whole numbers (out,in) int8 in -127..127, scales (out,) float32) whose product is nearest to `weight` (out,in).

    The scales are rounded to bfloat16 first, as the product reads them.
    """
    scales = (weight.abs().amax(1) / INT8_MAX).clamp_min(torch.finfo(torch.float32).tiny).bfloat16().float()
    return (weight / scales[:, None]).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales


@dataclass(frozen=True)
class WeightLayout:
    """One layout; `product` lays out a weight (out,in) for inputs of about `rows` rows."""

    product: Callable[[Tensor, int], Product]
    is_exact: bool  # the same products up to the order of sums
    needs_onednn: bool = False


WEIGHT_LAYOUTS = {
    "transposed": WeightLayout(_transposed, is_exact=True),
    "packed": WeightLayout(_packed, is_exact=True, needs_onednn=True),
    "bf16": WeightLayout(_bf16, is_exact=False, needs_onednn=True),
    "int8": WeightLayout(_int8, is_exact=False),
}


def usable_layouts() -> list[str]:
    """The layouts besides `PLAIN` that this build of torch can compute."""
    return [name for name, layout in WEIGHT_LAYOUTS.items() if _has_library(layout)]


def exact_layouts() -> list[str]:
    """Those of them that give the same products."""
    return [name for name in usable_layouts() if WEIGHT_LAYOUTS[name].is_exact]


def laid_out(linear: nn.Linear, name: str, rows: int) -> Product:
    """The forward function of a layer with its weight in the layout `name`: x (..., in) -> (..., out)."""
    product = WEIGHT_LAYOUTS[name].product(linear.weight.detach(), rows)
    bias = linear.bias

    def forward(x: Tensor) -> Tensor:
        out = product(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
        return out if bias is None else out + bias

    return forward


def require_layout(layers: Sequence[nn.Linear], name: str) -> None:
    """Raises ConfigError where the weights of `layers` cannot be laid out as `name` says."""
    if name == PLAIN:
        return
    if not layers:
        raise ConfigError(f"--weight-layout {name}: this generator names no layers for it; choose {PLAIN}")
    if any(is_gpu(layer.weight.device) for layer in layers):
        raise ConfigError(
            f"--weight-layout {name} is for a CPU; on a GPU choose {PLAIN}, and --precision bf16 for speed"
        )
    if not _has_library(WEIGHT_LAYOUTS[name]):
        usable = ", ".join([PLAIN, *usable_layouts()])
        raise ConfigError(f"--weight-layout {name} needs oneDNN, which this build of torch lacks; it has: {usable}")


@torch.no_grad()
def lay_out(layers: Sequence[nn.Linear], name: str, rows: int) -> None:
    """Lays out the weights of layers in evaluation mode, for about `rows` rows at a time.

    From then on they can only be used, neither trained nor saved: the plain weights are gone.
    """
    if name == PLAIN:
        return
    for layer in layers:
        layer.forward = laid_out(layer, name, rows)
        # Frees the plain weight where the layout holds a copy; device and precision can still be asked for.
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)


def _has_library(layout: WeightLayout) -> bool:
    return torch.backends.mkldnn.is_available() or not layout.needs_onednn
