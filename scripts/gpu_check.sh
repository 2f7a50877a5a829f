#!/usr/bin/env bash
# Runs the tests and benchmarks that need a GPU, in pieces, into one folder: bash scripts/gpu_check.sh [--pieces NAME ...] [--output DIR]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
cd -- "$REPO_ROOT"
export PYTHONPATH="$PWD:$PWD/tests"
python=$(find_python)
exec "$python" tests/gpu_check.py "$@"
