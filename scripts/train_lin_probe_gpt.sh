#!/usr/bin/env bash
# Probes a GPT: GPUS=8 bash scripts/train_lin_probe_gpt.sh [FILE.yaml] network.gpt=runs/GPT_B256 loop.run_dir=runs/probe
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
config_arguments LM_PROBE_CONFIG "${LM_PROBE_CONFIG:-$REPO_ROOT/configs/eval/linear_probe_gpt.yaml}" "$@"
exec bash "$REPO_ROOT/scripts/launch.sh" -m evaluations.linear_probe "${arguments[@]}"
