"""Measures the memory that the entropy loss of sign codes needs: table 1 of WeTok, measured here on a CPU (Linux).

    python -m evaluations.memory --batch-size 1 --output results/memory.json
    python -m evaluations.memory --batch-size 4 --channels 8 16

Each cell is the peak memory that one forward and backward pass adds, measured in a process of its own. LFQ is one group
of all channels, BSQ has one channel per group, and GQ has groups of 8. `naive` stores the probability of every code for
every latent. Anything that does not fit into `--max-mb` is refused before it is allocated. Without the codebook
entropy, LFQ fits at any size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.atomic_file import write_atomic
from engine.cli import entry_parser, positive, run_entry
from engine.json_text import to_json
from engine.messages import ConfigError
from engine.preflight import Preflight, require
from evaluations.forked import CLEAR_REFS, added_here, in_fork
from tokenizer.quantizers.gq import GQConfig, GroupLFQ

GROUP = 8  # channels per group of GQ
NUM_LATENTS = 256  # per image: 16 x 16
METHODS = {"LFQ": lambda channels: 1, "BSQ": lambda channels: channels, "GQ": lambda channels: channels // GROUP}


@dataclass(frozen=True)
class Form:
    """A form of the entropy loss: how it is computed, and whether it has a codebook entropy."""

    name: str
    entropy_form: str = GQConfig().entropy_form
    codebook_entropy_weight: float = 1.0


NAIVE = Form("naive", entropy_form="naive")
FACTORIZED = Form(GQConfig().entropy_form)
SAMPLE_ENTROPY_ALONE = Form("sample entropy alone", codebook_entropy_weight=0.0)

# The rows of the table.
ROWS = [
    *((method, NAIVE) for method in METHODS),
    *((method, FACTORIZED) for method in METHODS),
    ("LFQ", SAMPLE_ENTROPY_ALONE),
]


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # The sizes that are measured.
    parser.add_argument(
        "--batch-size", type=positive, default=1, help="number of images, each with 16 x 16 latents (default 1)"
    )
    parser.add_argument(
        "--channels",
        type=positive,
        nargs="+",
        default=[8, 16, 24, 32, 40],
        help="numbers of channels, as multiples of 8",
    )

    # What is refused, and where the numbers go.
    parser.add_argument(
        "--max-mb", type=positive, default=1024, help="refuse what needs more MB than this (default 1024)"
    )
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------ one measurement
def measure(config: GQConfig, batch_size: int) -> dict[str, float | str]:
    """{"mb": MiB that one training pass adds to this process, a forked one}, or {"refused": why}."""
    quantizer = GroupLFQ(config).train()
    z = (torch.randn(batch_size, NUM_LATENTS, quantizer.codebook_dim) * 0.05).requires_grad_()
    try:
        return {"mb": added_here(lambda: quantizer.entropies(z)["entropy"].backward())}
    except ConfigError as error:
        return {"refused": str(error)}


def measure_cell(method: str, form: Form, channels: int, args: argparse.Namespace) -> dict:
    """Measures one cell in a process of its own."""
    num_groups = METHODS[method](channels)
    config = GQConfig(
        num_groups=num_groups,
        group_dim=channels // num_groups,
        entropy_form=form.entropy_form,
        codebook_entropy_weight=form.codebook_entropy_weight,
        max_entropy_mb=args.max_mb,
    )
    result = in_fork(lambda: measure(config, args.batch_size))
    return {"method": method, "form": form.name, "channels": channels, **result}


# ------------------------------------------------------------------------------------------------ the table
def table(rows: Sequence[Sequence[dict]], channels: Sequence[int]) -> str:
    """Formats the cells as Markdown: one row per method and form, one column per size."""
    lines = ["| | " + " | ".join(f"d = {c}" for c in channels) + " |", "|---" * (len(channels) + 1) + "|"]
    for cells in rows:
        texts = [f"{cell['mb']:.0f} MB" if "mb" in cell else "refused" for cell in cells]
        lines.append(f"| {cells[0]['method']}, {cells[0]['form']} | {' | '.join(texts)} |")
    return "\n".join(lines)


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for a place for the numbers."""
    if args.output:
        preflight.output_file(args.output, "--output")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    if not CLEAR_REFS.exists():
        raise ConfigError(
            f"there is no {CLEAR_REFS} on this system, and only Linux says what a process held at its peak"
        )
    if any(channels % GROUP for channels in args.channels):
        raise ConfigError(f"--channels {args.channels} must be multiples of {GROUP}, the size of a group of GQ")

    rows = [[measure_cell(method, form, channels, args) for channels in args.channels] for method, form in ROWS]
    print(table(rows, args.channels))

    # Why cells are refused, below the table.
    cells = [cell for row in rows for cell in row]
    for cell in cells:
        if "refused" in cell:
            print(f"{cell['method']}, {cell['form']}, d = {cell['channels']}: {cell['refused']}")

    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, to_json({"batch_size": args.batch_size, "cells": cells}, indent=1))


if __name__ == "__main__":
    run_entry(main)
