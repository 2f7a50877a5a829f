#!/usr/bin/env bash
# train_vq_and_eval.sh with sharded networks: GPUS=8 bash scripts/train_vq_and_eval_fsdp.sh FILE.yaml [--dry-run]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
export DATA_PARALLEL="${DATA_PARALLEL:-fsdp}"
run_pipeline evaluations.train_vq_and_eval "$@"
