#!/usr/bin/env bash
# Installs what the tests need where it is missing, then runs them: bash scripts/test.sh [pytest arguments, e.g. tests/engine -x]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
asks_for_help "$@" && usage && exit

cd -- "$REPO_ROOT"
install_and_use quickstart,dev

# a test that looks for weights on a hub must fail at once, not after a minute of retries
export HF_HUB_OFFLINE=1
exec "$python" -m pytest "$@"
