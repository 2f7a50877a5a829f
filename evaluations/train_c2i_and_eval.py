"""Trains a GPT on the codes of a tokenizer and measures what it generates: the published script of this name.

    GPUS=8 GPT_MODEL=GPT-B VQ_CKPT=runs/VQ_SS256 bash scripts/train_c2i_and_eval.sh
    GPUS=8 VQ_CKPT=VQ_SS256_e100.pt TOK_CONFIG=configs/vq/VQ_SS256.yaml bash scripts/train_c2i_and_eval.sh \\
        configs/gpt/GPT_B256.yaml --dry-run                                     (stages, what is missing, the cost)
    bash scripts/train_c2i_and_eval.sh configs/gpt/GPT_B256.yaml --scale tiny      (a rehearsal: minutes on a CPU)
    python -m evaluations.train_c2i_and_eval configs/gpt/GPT_B256.yaml --scale tiny --run-dir runs/rehearsal

Stages: the codes of the tokenizer VQ_CKPT (a published file is converted first), the training, the guidance search, the
validation loss, the report. The same command continues a run that was stopped, at the stage and the step where it was.
Before the first stage starts, everything that any stage needs is looked for. `key=value` sets a key of the GPT's
training. The published variables (LM_EPOCH, WARM_ITER, CFG_SCHEDULE, ...) are listed in docs/pipelines.md.
"""

from __future__ import annotations

import argparse

from engine.cli import entry_parser, run_entry
from evaluations.pipelines.published_scripts import train_c2i_and_eval
from evaluations.pipelines.requests import add_script_flags
from evaluations.pipelines.running import run_script


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_script_flags(parser)
    return parser.parse_intermixed_args()


def main() -> None:
    run_script(parse_args(), train_c2i_and_eval)


if __name__ == "__main__":
    run_entry(main)
