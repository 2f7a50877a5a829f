"""Measures how fast and how small each part is, against the plain formulation and the limits of the machine.

    bash scripts/benchmark.sh                                       (about a quarter of an hour on 2 cores)
    bash scripts/benchmark.sh --quick                               (below 3 minutes)
    bash scripts/benchmark.sh --long --page docs/benchmarks.md      (for the documentation: up to an hour and a half)
    bash scripts/benchmark.sh --only quantizers journey
    bash scripts/benchmark.sh --compare results/old.json            (names what got slower, and ends with 1)

The table is printed and written as JSON; `--page` also writes it as a page. Forms of the same work run in turns, so
that other programs on the machine slow all of them alike; an idle machine gives the best numbers all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from engine.atomic_file import write_atomic
from engine.cli import add_device_flag, entry_parser, positive, run_entry
from engine.devices import device_facts, device_line, pick_device
from engine.installation import commit
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from engine.run_record import library_versions
from evaluations.benchmarks.cases import Measurable, Row
from evaluations.benchmarks.changes import slower_rows
from evaluations.benchmarks.limits import Limits, measure_limits
from evaluations.benchmarks.page import page_of, verdict
from evaluations.benchmarks.topics import REPETITIONS, TOPICS

SLOWER = 1  # exit code: something got slower, or a row failed


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_device_flag(parser)

    # What is measured.
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="fewer and smaller rows")
    size.add_argument("--long", dest="size", action="store_const", const="long", help="rows of the published sizes too")
    parser.set_defaults(size="default")
    parser.add_argument("--only", nargs="+", choices=sorted(TOPICS), metavar="TOPIC", help=", ".join(TOPICS))
    parser.add_argument("--threads", type=positive, help="threads of a CPU (default: as torch chooses)")

    # Where it goes, and what it is compared with.
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks.json"), help="(default %(default)s)")
    parser.add_argument("--page", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="name what got slower since that result")
    return parser.parse_args()


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the earlier result, and for places for the new one."""
    preflight.output_file(args.output, "--output")
    if args.page:
        preflight.output_file(args.page, "--page")
    if args.compare:
        preflight.file(args.compare, "--compare")


# ------------------------------------------------------------------------------------------------ measuring
def measure_row(case: Measurable, repetitions: int, limits: Limits, device: torch.device) -> Row:
    """The row of a case; where it fails, what it failed with."""
    start = time.perf_counter()
    try:
        row = case.measure(repetitions, limits, device)
    except (RuntimeError, MemoryError, UserError) as error:
        row = {"name": case.name, "error": f"{type(error).__name__}: {error}"}
    logger.info("%7.1f s  %-8s %s", time.perf_counter() - start, verdict(row), case.name)
    return row


def measure_all(names: list[str], size: str, device: torch.device) -> dict[str, Any]:
    """Measures all topics `names`; returns the result for JSON and the page."""
    # The machine, before the benchmark adds to its load.
    start = time.perf_counter()
    load = os.getloadavg()[0]
    limits = measure_limits(device)

    # The rows of each topic.
    repetitions = REPETITIONS[size]
    topics = {}
    for number, name in enumerate(names, start=1):
        topic = TOPICS[name]
        minutes = (time.perf_counter() - start) / 60
        logger.info("%s (topic %d of %d, %.1f minutes so far)", topic.title, number, len(names), minutes)
        topics[topic.title] = [measure_row(case, repetitions, limits, device) for case in topic.cases(size, device)]

    # With what they depend on.
    return {
        "size": size,
        "device": device.type,
        "machine": machine_line(device),
        "device_facts": device_facts(device),
        "versions": library_versions(),
        "commit": commit(),
        "load": load,
        "repetitions": repetitions,
        "minutes": (time.perf_counter() - start) / 60,
        "limits": asdict(limits),
        "topics": topics,
    }


def machine_line(device: torch.device) -> str:
    """What the benchmark ran on, for people."""
    line = device_line(device, 1, "fp32").removeprefix("device: ")
    return f"{line}; {cpu_name()}, {os.cpu_count()} cores"


def cpu_name() -> str:
    """The model of the processor, as Linux tells it, with what decides the speed of products."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    units = [name for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("amx_bf16", "AMX")) if flag in flags]
    return f"{fields.get('model name', 'unknown processor').strip()} ({', '.join(units) or 'no vector units known'})"


# ------------------------------------------------------------------------------------------------ the entry
def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device, tf32=False)
    old = read_result(args.compare) if args.compare else None

    result = measure_all(args.only or list(TOPICS), args.size, device)

    # Written first: a long measurement must not be lost by what follows.
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.output, to_json(result, indent=1))
    text = page_of(result)
    print(text)
    if args.page:
        write_atomic(args.page, text)

    failed = [row["name"] for rows in result["topics"].values() for row in rows if "error" in row]
    slower = [] if old is None else list(slower_rows(old, result))
    for line in slower:
        print(f"slower: {line}")
    if old is not None and not slower:
        print(f"nothing got slower than in {args.compare}")
    if slower or failed:
        raise SystemExit(SLOWER)


def read_result(path: Path) -> dict[str, Any]:
    """An earlier result. Raises UserError where the file is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--compare {path} cannot be read: {error}") from error
    if not isinstance(result, dict) or not {"size", "device", "topics"} <= result.keys():
        raise UserError(f"--compare {path} is no result of this benchmark")
    return result


if __name__ == "__main__":
    run_entry(main)
