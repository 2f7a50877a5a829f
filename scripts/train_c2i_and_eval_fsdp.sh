#!/usr/bin/env bash
# train_c2i_and_eval.sh with a sharded GPT: GPUS=8 VQ_CKPT=runs/VQ_SS256 bash scripts/train_c2i_and_eval_fsdp.sh FILE.yaml [--dry-run]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
export DATA_PARALLEL="${DATA_PARALLEL:-fsdp}"
run_pipeline evaluations.train_c2i_and_eval "$@"
