#!/usr/bin/env bash
# Probes a GPT: GPUS=8 VQ_CKPT=runs/VQ_SS256 GPT_CKPT=runs/GPT_B256 bash scripts/train_lm_lin_probe_and_eval.sh [--dry-run]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
run_pipeline evaluations.lin_probe_and_eval "$@" --probed lm
