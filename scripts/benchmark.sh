#!/usr/bin/env bash
# Measures speed and memory against plain formulations (docs/benchmarks.md): bash scripts/benchmark.sh [--quick | --long] [--compare OLD.json]
set -euo pipefail
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh" -m evaluations.benchmarks "$@"
