#!/usr/bin/env bash
# Measures generated images at one guidance scale, with --search at the best one: bash scripts/sample_c2i_search_cfg.sh \
#     --search --vq-ckpt FILE --gpt-ckpt FILE --gt-npz-path VIRTUAL_imagenet256_labeled.npz --output FILE.json
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
launch_by_flag --search evaluations.search_cfg evaluations.generation "$@"
