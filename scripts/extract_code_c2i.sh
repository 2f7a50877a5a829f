#!/usr/bin/env bash
# Writes the codes of a data set: GPUS=8 bash scripts/extract_code_c2i.sh --vq-ckpt FILE --data-path FOLDER --code-path FOLDER
set -euo pipefail
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m autoregressive.extract_codes "$@"
