#!/usr/bin/env bash
# Trains an AR model: GPUS=8 bash scripts/train_c2i.sh configs/gpt/GPT_B256.yaml loop.run_dir=runs/GPT_B256 (or LM_CONFIG=FILE)
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
config_arguments LM_CONFIG "${LM_CONFIG:-}" "$@"
exec bash "$REPO_ROOT/scripts/launch.sh" -m autoregressive.train "${arguments[@]}"
