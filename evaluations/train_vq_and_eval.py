"""Trains a tokenizer, measures its reconstructions, and probes it with a GPT: the published script of this name.

    GPUS=8 TOK_CONFIG=configs/vq/VQ_SS256.yaml bash scripts/train_vq_and_eval.sh
    GPUS=8 bash scripts/train_vq_and_eval.sh configs/vq/VQ_SS256.yaml --dry-run     (stages, what is missing, the cost)
    bash scripts/train_vq_and_eval.sh configs/vq/VQ_SS256.yaml --scale tiny         (a rehearsal: minutes on a CPU)
    python -m evaluations.train_vq_and_eval configs/vq/VQ_SS256.yaml --scale tiny --run-dir runs/rehearsal

Stages: the training; rFID, PSNR, SSIM and LPIPS; codes, GPT-B, guidance search and validation loss of AR
probing; the report. The same command continues a run that was stopped, at the stage and the step where it was. Before
the first stage starts, everything that any stage needs is looked for. `key=value` sets a key of the tokenizer's
training. The published variables (TOK_CONFIG, TOK_EPOCH, LM_BSZ, ...) are listed in docs/pipelines.md.
"""

from __future__ import annotations

import argparse

from engine.cli import entry_parser, run_entry
from evaluations.pipelines.published_scripts import train_vq_and_eval
from evaluations.pipelines.requests import add_script_flags
from evaluations.pipelines.running import run_script


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_script_flags(parser)
    return parser.parse_intermixed_args()


def main() -> None:
    run_script(parse_args(), train_vq_and_eval)


if __name__ == "__main__":
    run_entry(main)
