#!/usr/bin/env bash
# Installs what the tests need where it is missing, then runs them: bash scripts/test.sh [pytest arguments, e.g. tests/engine -x]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
asks_for_help "$@" && usage && exit

cd -- "$REPO_ROOT"
unset TORCH_RUN_PATH # the tests run in the environment that is installed into here

bash env_install.sh --env "$(install_target)" --extras quickstart,dev

# a test that looks for weights on a hub must fail at once, not after a minute of retries
export HF_HUB_OFFLINE=1
python=$(find_python)
exec "$python" -m pytest "$@"
