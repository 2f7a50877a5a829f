#!/usr/bin/env bash
# Checks extracted codes from end to end: bash scripts/check_code_c2i.sh --code-path FOLDER [--vq-ckpt FILE --num-images 256]
set -euo pipefail
exec env NPROC_PER_NODE=1 bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m autoregressive.check_codes "$@"
