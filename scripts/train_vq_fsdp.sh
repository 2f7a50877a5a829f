#!/usr/bin/env bash
# train_vq.sh with sharded networks: GPUS=8 bash scripts/train_vq_fsdp.sh configs/vq/VQ_XLXXL256.yaml loop.run_dir=runs/VQ_XLXXL256
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
config_arguments TOK_CONFIG "${TOK_CONFIG:-}" loop.strategy=fsdp "$@"
exec bash "$REPO_ROOT/scripts/launch.sh" -m tokenizer.train "${arguments[@]}"
