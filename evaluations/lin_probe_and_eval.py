"""Trains and measures linear probes of a GPT, of a tokenizer, or of both: three published scripts.

    GPUS=8 VQ_CKPT=runs/VQ_SS256 GPT_CKPT=runs/GPT_B256 bash scripts/train_lm_lin_probe_and_eval.sh
    GPUS=8 VQ_CKPT=runs/VQ_SS256 bash scripts/train_tok_lin_probe_and_eval.sh network.source=decoder
    GPUS=8 VQ_CKPT=runs/VQ_SS256 GPT_CKPT=runs/GPT_B256 bash scripts/train_all_lin_probe_and_eval.sh --dry-run
    bash scripts/train_all_lin_probe_and_eval.sh --scale tiny                  (a rehearsal: minutes on a CPU)
    python -m evaluations.lin_probe_and_eval --probed tok --scale tiny --run-dir runs/rehearsal

The accuracy on held-out images is measured at the end of each training, and stands in its result.json. The same command
continues a run that was stopped. Before the first stage starts, everything that any stage needs is looked for. Where
one probe is trained, a recipe and `key=value` are for it. The published variables (LIN_BSZ, FIX_DIM, ...) are listed in
docs/pipelines.md.
"""

from __future__ import annotations

import argparse

from engine.cli import entry_parser, run_entry
from evaluations.pipelines.published_scripts import PROBES, lin_probe_and_eval
from evaluations.pipelines.requests import add_script_flags
from evaluations.pipelines.running import run_script


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_script_flags(parser)
    parser.add_argument(
        "--probed", default="all", choices=PROBES, help="lm: the GPT, tok: the tokenizer, all: both (default)"
    )
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    run_script(args, lambda request: lin_probe_and_eval(request, args.probed))


if __name__ == "__main__":
    run_entry(main)
