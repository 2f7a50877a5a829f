#!/usr/bin/env bash
# Measures the memory of the entropy loss of sign codes (docs/memory.md): bash scripts/benchmark.sh [--batch-size 1] [--output FILE.json]
set -euo pipefail
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m evaluations.memory "$@"
