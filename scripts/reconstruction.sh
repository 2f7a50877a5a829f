#!/usr/bin/env bash
# Reconstructs images: gpus=1 bash scripts/reconstruction.sh --vq-ckpt FILE --model-config FILE --data-path FOLDER --sample-dir FOLDER
set -euo pipefail
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m tokenizer.reconstruct "$@"
