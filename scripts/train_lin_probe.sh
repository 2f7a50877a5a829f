#!/usr/bin/env bash
# Probes a tokenizer: GPUS=8 bash scripts/train_lin_probe.sh [FILE.yaml] network.tokenizer=runs/VQ_SS256 loop.run_dir=runs/probe
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
config_arguments TOK_PROBE_CONFIG "${TOK_PROBE_CONFIG:-$REPO_ROOT/configs/eval/linear_probe_tokenizer.yaml}" "$@"
exec bash "$REPO_ROOT/scripts/launch.sh" -m evaluations.linear_probe "${arguments[@]}"
