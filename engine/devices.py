"""Devices and precision. With `engine.world` and `engine.parallel` the only modules that call `torch.cuda`.

Other modules ask here for a device, a precision region or a synchronization, and so run unchanged on a CPU.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from engine.counts import counted
from engine.installation import torch_hint
from engine.messages import ConfigError

DEVICES = ("auto", "cpu", "cuda")  # auto: a GPU where there is one
ON_CPU = "loop.device=cpu (or --device cpu)"  # how the user of a command says that it runs on the CPU all the same
FAKE_GPU_MEMORY = 80 * 2**30  # of a GPU that is not there
DRIVER_FILE = Path("/proc/driver/nvidia/version")
GPU_FILES = "/dev/nvidia[0-9]*"  # of the GPUs that a machine or a container has


def pick_device(name: str, local_rank: int = 0, tf32: bool = True) -> torch.device:
    """Returns the device that `auto`, `cpu` or `cuda` names; `auto` takes a GPU where there is one.

    On a GPU it also makes it the current one, and turns TF32 on or off for the whole process.

    Raises ConfigError with the reason (see `device_problem`) if the device cannot be used.
    """
    problem = device_problem(name, local_rank + 1)
    if problem is not None:
        raise ConfigError(problem)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")

    torch.cuda.set_device(local_rank)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    return torch.device("cuda", local_rank)


def usable_device(name: torch.device | str | int) -> torch.device:
    """The device that a caller from Python names: as PyTorch names it, or `auto`, which takes a GPU where there is one.

    Nothing of the process changes. Raises ConfigError with the reason if there is no such device, or it is not there.
    """
    on_cpu = 'device="cpu"'
    if isinstance(name, str) and name in DEVICES:
        problem = device_problem(name, on_cpu=on_cpu)
        if problem is not None:
            raise ConfigError(f"device={name!r}: {problem}")
        is_cpu = name == "cpu" or (name == "auto" and not torch.cuda.is_available())
        return torch.device("cpu" if is_cpu else "cuda")

    # Another spelling, or a device by its number.
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"device={name!r} is not known; accepted: {', '.join(DEVICES)}, cuda:1, ...") from error
    if device.type == "cuda":
        problem = device_problem("cuda", (device.index or 0) + 1, on_cpu=on_cpu)
    else:
        problem = None if device.type == "cpu" else _failure_on(device)
    if problem is not None:
        raise ConfigError(f"device={str(device)!r}: {problem}")
    return device


def _failure_on(device: torch.device) -> str | None:
    """Why nothing can be computed on a device of another kind than CPU and CUDA; None if it can."""
    if device.type == "meta":
        return "it holds no numbers"
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # whatever the backend raises that this build of torch does not have
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def device_problem(name: str, num_processes: int = 1, on_cpu: str = ON_CPU) -> str | None:
    """Why `num_processes` processes of this machine cannot run on the device `name`; None if they can.

    `on_cpu` is what the user can say to have the CPU instead.

    `cuda` needs a usable GPU for each process. `auto` takes the CPU where the machine has no GPU, or the user has
    hidden them all, but never where GPUs are there and do not work: a run that is a hundred times slower than meant
    would otherwise start without a word.
    """
    if name not in DEVICES:
        return f"device={name!r} is not known; choose one of: {', '.join(DEVICES)}"
    if name == "cpu":
        return None

    if not torch.cuda.is_available():
        are_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
        if name == "auto" and (are_hidden or not has_gpu_files()):
            return None
        return f"no GPU can be used: {gpu_failure()}. To run on the CPU all the same: {on_cpu}"

    visible = torch.cuda.device_count()
    if num_processes > visible:
        return (
            f"{num_processes} processes need {num_processes} GPUs, but {visible} are visible "
            "(GPUS, NPROC_PER_NODE, CUDA_VISIBLE_DEVICES); start as many processes as there are GPUs"
        )
    return None


def has_gpu_files() -> bool:
    """Whether this machine has GPUs, usable or not."""
    return any(Path("/").glob(GPU_FILES.removeprefix("/")))


def gpu_failure() -> str:
    """Why torch sees no GPU on this machine, for people."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build for CPUs; install one for GPUs ({torch_hint()})"
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides all of them"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
    else:
        reason = "torch says no more"
    hint = f"CUDA_VISIBLE_DEVICES={hidden}; " if hidden is not None else ""
    return f"{reason} ({hint}{torch_build()})"


def torch_build() -> str:
    """The version of torch and what it is built for."""
    if torch.version.cuda is not None:
        return f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
    built_for = f"ROCm {torch.version.hip}" if torch.version.hip is not None else "CPUs"
    return f"torch {torch.__version__}, built for {built_for}"


def gpu_names() -> list[str]:
    """The names of the GPUs that torch can use, by number."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def driver_version() -> str | None:
    """The version of the NVIDIA driver of this machine, or None."""
    if not DRIVER_FILE.is_file():
        return None
    first_line = DRIVER_FILE.read_text(encoding="utf-8").partition("\n")[0]
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", first_line)
    return match[0] if match else first_line


def nccl_version() -> str | None:
    """The version of NCCL in this build of torch, or None."""
    if torch.version.cuda is None or not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def device_line(device: torch.device, num_processes: int, precision: str, thread_reason: str = "") -> str:
    """What a run computes on, in one line: its first one. `thread_reason` says why it takes so many threads."""
    processes = counted(num_processes, "process", "processes")
    torch_version = f"torch {torch.__version__}"
    if not is_gpu(device):
        threads = f"{counted(torch.get_num_threads(), 'thread')} each"
        if thread_reason:
            threads += f" ({thread_reason})"
        return f"device: CPU, {processes}, {threads}; {torch_version}; precision {precision}"

    tf32 = " with TF32" if torch.backends.cuda.matmul.allow_tf32 else ""
    name = torch.cuda.get_device_name(device)
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    used = f"{min(local_processes, torch.cuda.device_count())} of {torch.cuda.device_count()} visible GPUs used"
    return f"device: {name}, {processes}, {used} on this machine; {torch_version}; precision {precision}{tf32}"


def is_gpu(device: torch.device) -> bool:
    """Whether `device` is a GPU."""
    return device.type == "cuda"


def device_facts(device: torch.device) -> dict[str, str | int]:
    """What a process computes on, for the record of a run's start."""
    if device.type == "cpu":
        return {
            "type": "cpu",
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }

    return {
        "type": "cuda",
        "name": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "visible": torch.cuda.device_count(),
    }


@contextmanager
def measured_convolutions(enabled: bool) -> Iterator[None]:
    """Lets cuDNN measure its algorithms at each new shape and take the fastest, if `enabled`: for fixed shapes."""
    was_measuring = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = was_measuring


@contextmanager
def reproducible_algorithms(enabled: bool) -> Iterator[None]:
    """Allows only algorithms that give the same bits in every run (docs/exactness.md), if `enabled`.

    Inside, torch raises RuntimeError for an operation that has no such algorithm.
    """
    # Not a word to torch without need: use_deterministic_algorithms imports its compiler, which takes a second.
    if not enabled:
        yield
        return

    were_deterministic = torch.are_deterministic_algorithms_enabled()
    was_cudnn_deterministic = torch.backends.cudnn.deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(were_deterministic)
        torch.backends.cudnn.deterministic = was_cudnn_deterministic


def synchronize(device: torch.device) -> None:
    """Blocks until pending GPU work is done, so that timings are meaningful."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def memory_of(device: torch.device) -> int:
    """The bytes of memory of a GPU, in use or not; where there is none (fake tensors), those of a common one."""
    return torch.cuda.get_device_properties(device).total_memory if torch.cuda.is_available() else FAKE_GPU_MEMORY


def start_peak_memory(device: torch.device) -> int:
    """Lets `peak_memory` count from now on; returns the bytes of a GPU that are held now, after its pending work."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes of a GPU that this process has held since `start_peak_memory`, or since its start."""
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def held_at_most(device: torch.device) -> int:
    """The most bytes that this process has held so far: of its GPU, else of the machine. Waits for nothing."""
    if is_gpu(device):
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def name_of_device(device: torch.device) -> str:
    """What torch calls a GPU; `this CPU` for any other device."""
    return torch.cuda.get_device_name(device) if is_gpu(device) else "this CPU"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast region of a precision: `fp32` (none) or `bf16`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switches autocast and TF32 off inside: an fp32 island in a bf16 training.

    Quantizers, entropies, perceptual and cosine losses, and statistics of evaluations run in it. A program that is
    exported is float32 throughout, and has no such region.
    """
    if torch.compiler.is_exporting():
        yield
        return

    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    allowed_before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, allowed_before, strict=True):
            backend.allow_tf32 = allowed


class DeviceClock:
    """How long pieces of work take on a device: on a CPU by the clock of the host, on a GPU by marks among its kernels.

    On a GPU nothing is waited for until the time is read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Begins anew, at 0 seconds."""
        self._on_host = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # begin and end of each piece on a GPU

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the work that is begun inside."""
        if not is_gpu(self._device):
            began = time.perf_counter()
            yield
            self._on_host += time.perf_counter() - began
            return

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._marks.append((begin, end))

    def seconds(self) -> float:
        """The time of all pieces so far; waits for the end of the last one."""
        if self._marks:
            self._marks[-1][1].synchronize()
        return self._on_host + sum(begin.elapsed_time(end) for begin, end in self._marks) / 1000  # ms


class RecordedFunction:
    """A function of tensors of fixed shapes on a GPU, recorded as a CUDA graph: a call replays all of its kernels at
    once, without their launches.

    The function is recorded where it is built, so its effects happen there too, several times. It must not wait for
    the device. The result of a call lies in memory that the next call overwrites; all other memory that the function
    uses, such as weights, must stay where it is.
    """

    WARM_UPS = 3  # runs in which libraries choose their kernels and take their memory

    def __init__(self, function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
        """Records `function(*inputs)`; later calls may have other values of `inputs`."""
        self.inputs = [value.clone() for value in inputs]

        # On a stream of its own, as recording demands.
        device = self.inputs[0].device
        current = torch.cuda.current_stream(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UPS):
                function(*self.inputs)
        current.wait_stream(stream)

        # Other threads, such as those that load data, may go on using the GPU meanwhile.
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.output = function(*self.inputs)

    def __call__(self, *values: torch.Tensor) -> torch.Tensor:
        """The result for `values`."""
        for held, value in zip(self.inputs, values, strict=True):
            held.copy_(value)
        self.graph.replay()
        return self.output
