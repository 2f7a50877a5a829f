#!/usr/bin/env bash
# Measures generated images at one guidance scale, with --search at the best one: bash scripts/sample_c2i_search_cfg.sh \
#     --search --vq-ckpt FILE --gpt-ckpt FILE --gt-npz-path VIRTUAL_imagenet256_labeled.npz --output FILE.json
set -euo pipefail
module=evaluations.generation
for argument in "$@"; do
    if [ "$argument" = --search ]; then module=evaluations.search_cfg; fi
done
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m "$module" "$@"
