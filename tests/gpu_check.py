"""Runs all that needs a GPU, piece by piece, and writes one folder: `bash scripts/gpu_check.sh`.

    facts.json        device, driver, versions, commit
    PIECE.log         what a piece printed
    PIECE.xml         its tests, or PIECE.json its measurements
    summary.json      how each piece ended, its seconds, and how many tests passed, failed and were left out
    summary.md        the same for people

A piece takes less than 8 minutes on one GPU and is stopped after that. Pieces can be chosen, and a later call into the
same folder adds to its summary. No piece needs a network: pretrained networks are stand-ins with seeded weights.

Exit codes: 0 all pieces passed, 1 one did not, 2 no GPU can be used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]  # for the call as a script

import torch  # noqa: E402

from engine.devices import device_facts, device_problem, driver_version, gpu_names, nccl_version  # noqa: E402
from engine.installation import commit  # noqa: E402
from engine.run_record import library_versions  # noqa: E402

LIMIT = 480  # seconds of a piece
NO_GPU = 2  # exit code


@dataclass(frozen=True)
class Piece:
    """A part that runs in a process of its own: test files under `pytest`, or a module with its arguments."""

    tests: tuple[str, ...] = ()
    marker: str = "gpu"  # of the tests that run
    module: tuple[str, ...] = ()  # `{output}` stands for the folder
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, name: str, output: Path) -> list[str]:
        """What is run."""
        if self.module:
            return [sys.executable, "-m", *(word.format(output=output) for word in self.module)]
        pytest = [sys.executable, "-m", "pytest", "-m", self.marker, "-p", "no:cacheprovider", "--tb=short", "-v"]
        return [*pytest, f"--junitxml={output / name}.xml", *self.tests]


# Topics of the benchmark that compute on a GPU.
GPU_TOPICS = ("quantizers", "sampler", "evaluation", "numbers", "training", "memory", "growth")


def _benchmark(topic: str) -> Piece:
    """The rows of a topic; each topic has a file of its own."""
    flags = ("--device", "cuda", "--only", topic, "--output", f"{{output}}/benchmark_{topic}.json")
    return Piece(module=("evaluations.benchmarks", *flags))


def _parity(*tests: str) -> Piece:
    """Comparisons with goldens, with the networks on the GPU, without TF32."""
    return Piece(tests, "not slow and not gpu", environment={"PARITY_DEVICE": "cuda", "NVIDIA_TF32_OVERRIDE": "0"})


PIECES = {
    "parity_tokenizers": _parity("tests/parity/test_tokenizer.py", "tests/parity/test_wetok_tokenizer.py"),
    "parity_generators": _parity("tests/parity/test_gpt.py", "tests/parity/test_wetok_gpt.py"),
    "networks": Piece(("tests/gpu/test_gpu_networks.py",)),
    "training": Piece(("tests/gpu/test_gpu_training.py",)),
    "waiting": Piece(("tests/test_host_reads.py",)),
    "memory": Piece(("tests/gpu/test_gpu_memory.py",)),
    "processes": Piece(("tests/gpu/test_gpu_processes.py",)),
    "sampler": Piece(("tests/autoregressive",)),
    "engine": Piece(("tests/engine", "tests/tokenizer")),
    **{f"benchmark_{topic}": _benchmark(topic) for topic in GPU_TOPICS},
}


@dataclass(frozen=True)
class Ending:
    """How a piece ended."""

    piece: str
    outcome: str  # passed, failed, stopped (it took too long)
    seconds: float
    tests: dict[str, int]  # passed, failed, skipped; empty where the piece has no tests


def run_piece(name: str, piece: Piece, output: Path) -> Ending:
    """Runs a piece to its end, or to the limit; its log is in `output`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **piece.environment}
    start = time.perf_counter()
    with (output / f"{name}.log").open("w", encoding="utf-8") as log:
        command = piece.command(name, output)
        print(f"$ {' '.join(command)}", file=log, flush=True)
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=LIMIT, check=False
            )
            outcome = "passed" if done.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "stopped"
    return Ending(name, outcome, round(time.perf_counter() - start, 1), tests_of(output / f"{name}.xml"))


def tests_of(path: Path) -> dict[str, int]:
    """Counts of a JUnit file that pytest wrote; empty where there is none, as of a piece that was stopped."""
    if not path.is_file():
        return {}
    head = re.search(r"<testsuite [^>]*>", path.read_text(encoding="utf-8"))
    counts = dict(re.findall(r'(tests|failures|errors|skipped)="(\d+)"', head[0] if head else ""))
    total, failed, skipped = (
        int(counts.get("tests", 0)),
        int(counts.get("failures", 0)) + int(counts.get("errors", 0)),
        int(counts.get("skipped", 0)),
    )
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def write_summary(endings: list[Ending], output: Path) -> None:
    """Writes the endings of all pieces that were ever run into `output`, the newest of each."""
    path = output / "summary.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    newest = {row["piece"]: row for row in [*earlier, *map(asdict, endings)]}
    path.write_text(json.dumps(list(newest.values()), indent=1) + "\n", encoding="utf-8")

    lines = ["| piece | outcome | seconds | tests |", "|---|---|---|---|"]
    for row in newest.values():
        tests = ", ".join(f"{count} {kind}" for kind, count in row["tests"].items() if count) or "-"
        lines.append(f"| {row['piece']} | {row['outcome']} | {row['seconds']} | {tests} |")
    (output / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_facts(output: Path) -> None:
    """Device, driver, versions and commit."""
    facts = {
        "device": device_facts(torch.device("cuda", 0)),
        "gpus": gpu_names(),
        "driver": driver_version(),
        "nccl": nccl_version(),
        "versions": library_versions(),
        "commit": commit(),
    }
    (output / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", nargs="+", choices=sorted(PIECES), metavar="PIECE", help=", ".join(PIECES))
    parser.add_argument("--output", type=Path, default=Path("results/gpu_check"), help="folder (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    problem = device_problem("cuda")
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(NO_GPU)

    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    write_facts(output)
    endings = []
    for name in args.pieces or PIECES:
        endings.append(run_piece(name, PIECES[name], output))
        write_summary(endings, output)  # after each: what is known stays if this process is stopped
        print(f"{endings[-1].outcome:8s} {name}, {endings[-1].seconds:.0f} s", flush=True)
    print(f"see {args.output}/summary.md")
    raise SystemExit(any(ending.outcome != "passed" for ending in endings))


if __name__ == "__main__":
    main()
