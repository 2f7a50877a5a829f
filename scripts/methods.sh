#!/usr/bin/env bash
# Systems of the quick start with several seeds each, side by side (docs/methods.md): bash scripts/methods.sh [--systems NAME ...] [--seeds N]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
run_pipeline evaluations.methods "$@"
