#!/usr/bin/env bash
# Validation loss of a GPT: GPUS=8 bash scripts/val_loss_c2i.sh --vq-ckpt FILE --gpt-ckpt FILE --val-path FOLDER --output FILE.json
set -euo pipefail
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m evaluations.val_loss "$@"
