#!/usr/bin/env bash
# Generates images of classes: bash scripts/sample_c2i_visualization.sh --vq-ckpt FILE --gpt-ckpt FILE --class-idx "22,388" --cfg-scale 4.0
set -euo pipefail
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m autoregressive.sample "$@"
