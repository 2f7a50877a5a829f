#!/usr/bin/env bash
# Trains a tokenizer: GPUS=8 bash scripts/train_vq.sh configs/vq/VQ_BL256.yaml loop.run_dir=runs/VQ_BL256 (or TOK_CONFIG=FILE)
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
config_arguments TOK_CONFIG "${TOK_CONFIG:-}" "$@"
exec bash "$REPO_ROOT/scripts/launch.sh" -m tokenizer.train "${arguments[@]}"
