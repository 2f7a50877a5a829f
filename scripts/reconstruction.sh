#!/usr/bin/env bash
# Reconstructs images, with --qualitative as pictures, else as numbers: bash scripts/reconstruction.sh --vq-ckpt FILE \
#     --model-config FILE --data-path FOLDER --sample-dir FOLDER --qualitative
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
launch_by_flag --qualitative tokenizer.reconstruct evaluations.reconstruction "$@"
