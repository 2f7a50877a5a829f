#!/usr/bin/env bash
# Everything in one go, from images to a report: bash scripts/quickstart.sh [--data twemoji] [--fresh] [--short] [--runs-dir DIR]
# Installs what is missing first; once that is done, --help lists all options.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

unset TORCH_RUN_PATH # everything runs in the environment that is installed into here
if ! asks_for_help "$@"; then
    bash "$REPO_ROOT/env_install.sh" --env "$(install_target)" --extras quickstart
elif ! (find_python) >/dev/null 2>&1; then
    usage && exit
fi
cd "$REPO_ROOT"
. ./set_env_vars.sh
python=$(find_python)
exec "$python" -m evaluations.quickstart "$@"
