"""What the entropy loss of sign codes costs in memory: table 1 of WeTok, measured here on a CPU (Linux).

    bash scripts/benchmark.sh --batch-size 1 --output results/memory.json
    python -m evaluations.memory --batch-size 4 --channels 8 16

Each cell is the peak that one forward and backward pass adds to a process of its own. LFQ is one group of all channels,
BSQ one channel a group, GQ groups of 8. `naive` holds every code of every latent; what does not fit `--max-mb` is
refused before it is allocated. Without the codebook entropy LFQ fits at any size.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from engine.checkpoint.manifest import write_atomic
from engine.cli import entry_parser, positive, run_entry
from engine.messages import ConfigError
from tokenizer.quantizers.gq import GQConfig, GroupLFQ

METHODS = {"LFQ": lambda channels: 1, "BSQ": lambda channels: channels, "GQ": lambda channels: channels // 8}
ALONE = "sample entropy alone"


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("--batch-size", type=positive, default=1, help="images of 16 x 16 latents (default 1)")
    parser.add_argument("--channels", type=positive, nargs="+", default=[8, 16, 24, 32, 40], help="multiples of 8")
    parser.add_argument("--max-mb", type=positive, default=1024, help="what needs more is refused (default 1024)")
    parser.add_argument("--output", type=Path, help="also writes the numbers as JSON")
    return parser.parse_args()


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(config: GQConfig, batch_size: int, answer: Connection) -> None:
    """Sends {"mb"} of one training pass, or {"refused": why}."""
    torch.set_num_threads(1)
    quantizer = GroupLFQ(config).train()
    z = (torch.randn(batch_size, 256, quantizer.codebook_dim) * 0.05).requires_grad_()
    torch.ones(1, requires_grad=True).exp().backward()  # what autograd needs for itself
    before = peak_mb()
    try:
        quantizer.entropies(z)["entropy"].backward()
        answer.send({"mb": max(0.0, peak_mb() - before)})
    except ConfigError as error:
        answer.send({"refused": str(error)})


def cell(method: str, channels: int, form: str, args: argparse.Namespace) -> dict:
    """One measurement, in a process of its own."""
    groups = METHODS[method](channels)
    config = GQConfig(
        num_groups=groups,
        group_dim=channels // groups,
        entropy_form="naive" if form == "naive" else "factorized",
        codebook_entropy_weight=0.0 if form == ALONE else 1.0,
        max_entropy_mb=args.max_mb,
    )
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=measure, args=(config, args.batch_size, there))
    process.start()
    result = here.recv()
    process.join()
    return {"method": method, "form": form, "channels": channels, **result}


def table(rows: list[list[dict]], channels: list[int]) -> str:
    """Markdown: methods down, channels across."""
    lines = ["| | " + " | ".join(f"d = {c}" for c in channels) + " |", "|---" * (len(channels) + 1) + "|"]
    for row in rows:
        shown = " | ".join(f"{c['mb']:.0f} MB" if "mb" in c else "refused" for c in row)
        lines.append(f"| {row[0]['method']}, {row[0]['form']} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    if any(c % 8 for c in args.channels):
        raise ConfigError(f"--channels {args.channels} must be multiples of 8, the size of a group of GQ")
    order = [*((method, form) for form in ("naive", "factorised") for method in METHODS), ("LFQ", ALONE)]
    rows = [[cell(method, c, form, args) for c in args.channels] for method, form in order]
    print(table(rows, args.channels))
    cells = [c for row in rows for c in row]
    for refused in (c for c in cells if "refused" in c):
        print(f"{refused['method']}, {refused['form']}, d = {refused['channels']}: {refused['refused']}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, json.dumps({"batch_size": args.batch_size, "cells": cells}, indent=1))


if __name__ == "__main__":
    run_entry(main)
