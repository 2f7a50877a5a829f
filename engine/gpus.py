"""What GPUs can do at best, by name: rates of dense matrix products, memory, and links between GPUs.

The numbers are those of NVIDIA's data sheets, without sparsity (a sheet that gives numbers "with sparsity" is halved),
at the boost clock of the whole chip: a card with a lower limit of power does not reach them.

    H100, H200, GH200    "NVIDIA H100/H200 Tensor Core GPU" and "GH200 Grace Hopper Superchip" data sheets
    H800, H20, A800      the chips for export: H800 and A800 compute as H100 and A100 over a slower NVLink
    A100, A30, A10, A40  "NVIDIA A100 / A30 / A10 / A40 Tensor Core GPU" data sheets
    L40S, L40, L4        "NVIDIA L40S / L40 / L4" data sheets
    B200                 "NVIDIA DGX B200" data sheet, an eighth of it
    RTX                  whitepapers "NVIDIA Ampere GA102" and "Ada GPU Architecture", with float32 accumulation
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """Peaks of one GPU. Rates are operations per second, two for a multiplication with its addition."""

    title: str
    name: re.Pattern[str]  # what torch calls it
    bf16: float
    tf32: float
    fp32: float  # without TF32
    memory: float  # bytes
    bandwidth: float  # bytes of memory per second
    link: float  # bytes per second in one direction to the other GPUs of its machine

    def peak(self, precision: str) -> float:
        """Operations per second in training of `precision` (fp32 | bf16), in which fp32 has TF32."""
        return self.bf16 if precision == "bf16" else self.tf32


def _gpu(title: str, name: str, *, tera: tuple[float, float, float], memory_gb: float, gbs: float, link: float) -> GPU:
    """A row of the table: `tera` are 10^12 operations per second in bf16, TF32 and fp32; GB are 10^9 bytes."""
    bf16, tf32, fp32 = (1e12 * rate for rate in tera)
    return GPU(title, re.compile(name, re.IGNORECASE), bf16, tf32, fp32, 1e9 * memory_gb, 1e9 * gbs, 1e9 * link)


# The first row whose pattern is in a name counts: variants stand before their family.
GPUS: dict[str, GPU] = {
    "b200": _gpu("B200", r"\bB200\b", tera=(2250, 1100, 75), memory_gb=180, gbs=8000, link=900),
    "h200": _gpu("H200", r"\bH200\b", tera=(989.4, 494.7, 66.9), memory_gb=141, gbs=4800, link=450),
    "gh200": _gpu("GH200", r"\bGH200\b", tera=(989.4, 494.7, 66.9), memory_gb=96, gbs=4000, link=450),
    "h20": _gpu("H20", r"\bH20\b", tera=(148, 74, 44), memory_gb=96, gbs=4000, link=450),
    "h800": _gpu("H800", r"\bH800\b", tera=(989.4, 494.7, 66.9), memory_gb=80, gbs=3350, link=200),
    "h100-pcie": _gpu("H100 PCIe", r"\bH100 PCIe\b", tera=(756, 378, 51), memory_gb=80, gbs=2000, link=64),
    "h100-nvl": _gpu("H100 NVL", r"\bH100 NVL\b", tera=(835, 417.5, 60), memory_gb=94, gbs=3900, link=64),
    "h100": _gpu("H100 SXM", r"\bH100\b", tera=(989.4, 494.7, 66.9), memory_gb=80, gbs=3350, link=450),
    "a800": _gpu("A800", r"\bA800\b", tera=(312, 156, 19.5), memory_gb=80, gbs=2039, link=200),
    "a100-40gb": _gpu("A100 40 GB", r"\bA100.*40GB", tera=(312, 156, 19.5), memory_gb=40, gbs=1555, link=300),
    "a100": _gpu("A100 80 GB", r"\bA100\b", tera=(312, 156, 19.5), memory_gb=80, gbs=2039, link=300),
    "a40": _gpu("A40", r"\bA40\b", tera=(149.7, 74.8, 37.4), memory_gb=48, gbs=696, link=32),
    "a30": _gpu("A30", r"\bA30\b", tera=(165, 82, 10.3), memory_gb=24, gbs=933, link=32),
    "a10": _gpu("A10", r"\bA10\b", tera=(125, 62.5, 31.2), memory_gb=24, gbs=600, link=32),
    "l40s": _gpu("L40S", r"\bL40S\b", tera=(362, 183, 91.6), memory_gb=48, gbs=864, link=32),
    "l40": _gpu("L40", r"\bL40\b", tera=(181, 90.5, 90.5), memory_gb=48, gbs=864, link=32),
    "l4": _gpu("L4", r"\bL4\b", tera=(121, 60, 30.3), memory_gb=24, gbs=300, link=32),
    "rtx4090": _gpu("RTX 4090", r"\bRTX 4090$", tera=(165.2, 82.6, 82.6), memory_gb=24, gbs=1008, link=32),
    "rtx3090": _gpu("RTX 3090", r"\bRTX 3090$", tera=(71, 35.6, 35.6), memory_gb=24, gbs=936, link=32),
}


def gpu_of(device_name: str) -> GPU | None:
    """The row of a GPU that torch calls `device_name`; None where it is not in the table."""
    return next((gpu for gpu in GPUS.values() if gpu.name.search(device_name)), None)
