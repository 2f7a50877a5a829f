#!/usr/bin/env bash
# Everything in one go, from images to a report: bash scripts/quickstart.sh [--data twemoji] [--fresh] [--short] [--runs-dir DIR]
# Installs what is missing first; once that is done, --help lists all options.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

if ! asks_for_help "$@"; then
    install_and_use quickstart
else
    python=$(find_python 2>/dev/null) || { usage && exit; }
fi
cd "$REPO_ROOT"
. ./set_env_vars.sh
exec "$python" -m evaluations.quickstart "$@"
