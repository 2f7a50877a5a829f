#!/usr/bin/env bash
# Reconstructs images, with --qualitative as pictures, else as numbers: bash scripts/reconstruction.sh --vq-ckpt FILE \
#     --model-config FILE --data-path FOLDER --sample-dir FOLDER --qualitative
set -euo pipefail
module=evaluations.reconstruction
for argument in "$@"; do
    if [ "$argument" = --qualitative ]; then module=tokenizer.reconstruct; fi
done
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m "$module" "$@"
