#!/usr/bin/env bash
# Trains a tokenizer, measures it and probes it with a GPT: GPUS=8 bash scripts/train_vq_and_eval.sh FILE.yaml [--dry-run] (or TOK_CONFIG=FILE)
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
run_pipeline evaluations.train_vq_and_eval "$@"
