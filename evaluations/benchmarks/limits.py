"""What the machine can do at best: reading memory, multiplying matrices, convolving. Measured, with the threads in use.

Every case is quoted as a share of the limit that binds it: the time that its least work would take at that rate, over
the time that it took.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.devices import is_gpu
from evaluations.benchmarks.timing import time_in_turns

READ_BYTES = 512 * 2**20  # far above any cache
GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
CONV_CHANNELS = 128
CONV_PIXELS = {"cpu": 128, "cuda": 256}
REPETITIONS = 5


@dataclass(frozen=True)
class Limits:
    """Rates of a machine."""

    read: float  # bytes of memory per second
    gemm: float  # float32 operations per second of a matrix product
    gemm_bf16: float
    convolution: float  # float32 operations per second of a 3x3 convolution, in its faster layout

    def seconds(self, kind: str, amount: float) -> float:
        """The least time of `amount` bytes or operations of a kind, which is the name of a field."""
        return amount / getattr(self, kind)


def measure_limits(device: torch.device) -> Limits:
    """Measures the rates of `device`; takes a few seconds."""
    kind = "cuda" if is_gpu(device) else "cpu"

    # Reading: the sum of a large vector, which is bound by memory alone.
    vector = torch.ones(READ_BYTES // 4, device=device)

    # Matrix products, in two precisions.
    size = GEMM_SIZE[kind]
    matrix = torch.randn(size, size, device=device)
    half = matrix.bfloat16()

    # A convolution, in two layouts.
    pixels = CONV_PIXELS[kind]
    image = torch.randn(1, CONV_CHANNELS, pixels, pixels, device=device)
    kernel = torch.randn(CONV_CHANNELS, CONV_CHANNELS, 3, 3, device=device)
    last_image, last_kernel = (x.to(memory_format=torch.channels_last) for x in (image, kernel))

    with torch.inference_mode():
        timings = time_in_turns(
            {
                "read": vector.sum,
                "gemm": lambda: matrix @ matrix,
                "gemm_bf16": lambda: half @ half,
                "convolution": lambda: F.conv2d(image, kernel, padding=1),
                "convolution, channels last": lambda: F.conv2d(last_image, last_kernel, padding=1),
            },
            REPETITIONS,
            device,
        )
    seconds = {name: timing.low for name, timing in timings.items()}
    conv_seconds = min(seconds["convolution"], seconds["convolution, channels last"])
    return Limits(
        read=READ_BYTES / seconds["read"],
        gemm=2 * size**3 / seconds["gemm"],
        gemm_bf16=2 * size**3 / seconds["gemm_bf16"],
        convolution=2 * 9 * CONV_CHANNELS**2 * pixels**2 / conv_seconds,
    )
