#!/usr/bin/env bash
# Trains a GPT and measures its images: GPUS=8 VQ_CKPT=runs/VQ_SS256 bash scripts/train_c2i_and_eval.sh FILE.yaml [--dry-run] (or GPT_MODEL=GPT-B)
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
run_pipeline evaluations.train_c2i_and_eval "$@"
