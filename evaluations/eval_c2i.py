"""Measures a trained GPT at one guidance scale, and its validation loss: the published script of this name.

    GPUS=8 VQ_CKPT=runs/VQ_SS256 GPT_CKPT=runs/GPT_B256 CFG_SCALE=1.75 bash scripts/eval_c2i.sh
    GPUS=8 VQ_CKPT=VQ_SS256_e100.pt TOK_CONFIG=configs/vq/VQ_SS256.yaml GPT_CKPT=GPT_B256_e300_VQ_SS.pt \\
        GPT_MODEL=GPT-B CFG_SCALE=1.75 bash scripts/eval_c2i.sh --dry-run       (stages and what is missing)
    bash scripts/eval_c2i.sh --scale tiny                                      (a rehearsal: minutes on a CPU)
    python -m evaluations.eval_c2i --scale tiny --run-dir runs/rehearsal

Stages: gFID and the other scores of 50,000 samples, the validation loss, the report. The same command continues a run
that was stopped. Before the first stage starts, everything that any stage needs is looked for. A published file of a
GPT needs its size in GPT_MODEL, or its YAML in LM_CONFIG. The published variables (CFG_SCHEDULE, TOP_K, ...) are listed
in docs/pipelines.md.
"""

from __future__ import annotations

import argparse

from engine.cli import entry_parser, run_entry
from evaluations.pipelines.published_scripts import eval_c2i
from evaluations.pipelines.requests import add_script_flags
from evaluations.pipelines.running import run_script


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_script_flags(parser)
    return parser.parse_intermixed_args()


def main() -> None:
    run_script(parse_args(), eval_c2i)


if __name__ == "__main__":
    run_entry(main)
