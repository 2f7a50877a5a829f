#!/usr/bin/env bash
# Measures a trained GPT: GPUS=8 VQ_CKPT=runs/VQ_SS256 GPT_CKPT=runs/GPT_B256 CFG_SCALE=1.75 bash scripts/eval_c2i.sh [--dry-run]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
run_pipeline evaluations.eval_c2i "$@"
