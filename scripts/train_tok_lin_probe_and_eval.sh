#!/usr/bin/env bash
# Probes a tokenizer: GPUS=8 VQ_CKPT=runs/VQ_SS256 bash scripts/train_tok_lin_probe_and_eval.sh [--dry-run]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
run_pipeline evaluations.lin_probe_and_eval "$@" --probed tok
