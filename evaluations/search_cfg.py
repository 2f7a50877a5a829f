"""Finds the best guidance scale, by the papers' zero-order search or from a list of scales.

    bash scripts/sample_c2i_search_cfg.sh --search --vq-ckpt runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 \\
        --gt-npz-path VIRTUAL_imagenet256_labeled.npz --cfg-schedule step --output results/search.json
    python -m evaluations.search_cfg --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt \\
        --num-fid-samples 200 --scales 1,1.5,2,3 --output runs/quickstart/evaluations/search.json

The best scale is the one with the smallest distance. From its start, the search moves to the better neighbor at
distance --step until both neighbors are worse; --coarse-step searches with a wider step first. Without --cfg-scale, the
search starts at the published starting scale for the size and schedule. Every scale that was measured is kept in
OUTPUT.partial.json with all settings, so that a killed search can continue. OUTPUT is written at the end and holds the
best scale, its metrics, and the curve. A finished search is not repeated: running the same command again leaves it as
it is.
"""

from __future__ import annotations

import argparse
import math

from engine.cli import entry_parser, run_entry
from engine.preflight import Preflight, require
from engine.world import World
from evaluations.cli import run_evaluation
from evaluations.jobs.search import SEARCH_NUMBERS, SearchJob, require_search
from evaluations.preset_flags import parse_with_preset
from evaluations.sample_stream import add_sampled_flags, sampled_needs


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_sampled_flags(parser)
    parser.add_argument(
        "--search", action="store_true", help="the mode of this command; accepted because published commands have it"
    )
    parser.add_argument("--step", type=float, default=0.25, help="distance between neighboring scales (default 0.25)")
    parser.add_argument("--coarse-step", type=float, help="search with this step first, and from there with --step")
    parser.add_argument("--max-scale", type=float, default=math.inf)
    parser.add_argument("--scales", help='measure exactly these scales instead, such as "1,1.5,2"')
    parser.set_defaults(cfg_scale=None)  # None: the published start
    parser.set_defaults(numbers=list(SEARCH_NUMBERS))
    return parse_with_preset(parser, "generation")


def search(args: argparse.Namespace, world: World) -> None:
    SearchJob.from_args(args, world).run(world)


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the networks, the reference, and flags that a search cannot have."""
    sampled_needs(args, "search", preflight)
    with preflight.collecting():
        require_search(args)


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    run_evaluation(args, search)


if __name__ == "__main__":
    run_entry(main)
