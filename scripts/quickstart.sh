#!/usr/bin/env bash
# The main job, from images to a report: bash scripts/quickstart.sh [--data twemoji] [--fresh] [--short] [--runs-dir DIR]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
cd "$REPO_ROOT"

unset TORCH_RUN_PATH # everything runs in the environment that is installed into here
bash env_install.sh --env "$(install_target)" --extras quickstart
. ./set_env_vars.sh
exec "$(find_python)" -m evaluations.quickstart "$@"
