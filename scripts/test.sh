#!/usr/bin/env bash
# Installs what the tests need where it is missing, then runs them: bash scripts/test.sh [pytest arguments, e.g. tests/engine -x]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
asks_for_help "$@" && usage && exit

cd -- "$REPO_ROOT"
install_and_use quickstart,dev

# everything runs in a process per core, at most 4; what is named runs in one, whose output is easier to read
[ $# -gt 0 ] || set -- --numprocesses "$(($(usable_cores) < 4 ? $(usable_cores) : 4))" --dist loadfile

# a test that looks for weights on a hub must fail at once, not after a minute of retries
export HF_HUB_OFFLINE=1
exec "$python" -m pytest "$@"
