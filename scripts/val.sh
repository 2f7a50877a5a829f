#!/usr/bin/env bash
# Writes the reference statistics of held-out images: bash scripts/val.sh --data-path FOLDER --image-size 256 --output FILE.npz
set -euo pipefail
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m evaluations.make_reference "$@"
