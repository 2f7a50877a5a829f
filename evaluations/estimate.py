"""Estimates what a recipe costs on GPUs that are not here: time, memory and communication, with every assumption named.

    python -m evaluations.estimate configs/vq/VQ_SS256.yaml --gpus 8,64,512 --device h100
    python -m evaluations.estimate configs/gpt/GPT_XXL256.yaml --gpus 8,32 --device a100 --network-gbit 200
    python -m evaluations.estimate configs/vq/VQ_XLXXL256.yaml --gpus 8,64,512 --device h100 loop.strategy=hsdp

The global batch stays that of the recipe, so that the result does too; micro-batches of a GPU are no larger than those
on the 8 GPUs of the recipe's own command. `--images-per-gpu N` lets the batch grow with the GPUs instead, over the same
number of images. `key=value` overrides any key of the recipe. Nothing is measured: docs/costs.md says what is assumed,
and how far estimates were from what was measured.
"""

from __future__ import annotations

import argparse

from engine.cli import entry_parser, positive, run_entry
from engine.gpus import GPUS
from engine.messages import UserError
from engine.preflight import Preflight, require
from engine.recipe_names import recipe_file
from evaluations.cost_model import NETWORK_GBIT
from evaluations.cost_report import RECIPE_GPUS, Machines, assumptions, cost_report
from evaluations.workload import workloads_of


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # What is trained, and on what.
    parser.add_argument("recipe", help="YAML file or name of a recipe that trains a tokenizer or a GPT")
    parser.add_argument(
        "--gpus", type=_counts, default=[8, 64, 512], help="numbers of GPUs, such as 8,64,512 (default)"
    )
    parser.add_argument("--device", default="h100", choices=GPUS, help="kind of GPU (default h100)")

    # How it is spread.
    parser.add_argument("--images-per-gpu", type=positive, help="let the global batch grow with the GPUs")
    parser.add_argument(
        "--network-gbit", type=positive, default=NETWORK_GBIT,
        help=f"Gbit/s of the network between machines, per GPU (default {NETWORK_GBIT})",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sets a key of the recipe")
    return parser.parse_intermixed_args()


def _counts(text: str) -> list[int]:
    """The argparse type of a list of counts."""
    return [positive(count) for count in text.split(",")]


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the recipe."""
    with preflight.collecting():
        preflight.file(recipe_file(args.recipe), "recipe")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    recipe = recipe_file(args.recipe)
    if not recipe.is_file():
        raise UserError(f"recipe={args.recipe} is not a file")
    workloads = workloads_of([recipe], args.overrides, RECIPE_GPUS)
    machines = Machines(args.device, args.images_per_gpu, args.network_gbit)
    print("\n\n".join(cost_report(workload, machines, args.gpus) for workload in workloads))
    print(assumptions(args.network_gbit))


if __name__ == "__main__":
    run_entry(main)
