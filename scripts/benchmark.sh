#!/usr/bin/env bash
# Measures what the entropy loss of sign codes costs in memory: bash scripts/benchmark.sh [--batch-size 1] [--output FILE.json]
set -euo pipefail
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m evaluations.memory "$@"
