#!/usr/bin/env bash
# train_c2i.sh with a sharded GPT: GPUS=8 bash scripts/train_c2i_fsdp.sh configs/gpt/GPT_XXL256.yaml loop.run_dir=runs/GPT_XXL256
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
config_arguments LM_CONFIG "${LM_CONFIG:-}" loop.strategy=fsdp "$@"
exec bash "$REPO_ROOT/scripts/launch.sh" -m autoregressive.train "${arguments[@]}"
