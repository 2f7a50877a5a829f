#!/usr/bin/env bash
# Kills tiny training runs at random times and checks that they resume bit for bit: bash scripts/torture.sh [--kills N] [--seed S] [--runs-dir DIR]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
cd -- "$REPO_ROOT"
export PYTHONPATH="$PWD:$PWD/tests" OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
python=$(find_python)
exec "$python" tests/torture.py "$@"
