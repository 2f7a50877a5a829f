#!/usr/bin/env bash
# Installs what the tests need where it is missing, then runs them: bash scripts/test.sh [pytest arguments, e.g. tests/engine -x]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
asks_for_help "$@" && usage && exit

cd -- "$REPO_ROOT"
install_and_use quickstart,dev

# everything runs in a process per core, at most 4; what is named runs in one, whose output is easier to read. Files go
# out in their order: the other order ends with those of few tests, which are the long ones, and one process alone
[ $# -gt 0 ] || set -- --numprocesses "$(($(usable_cores) < 4 ? $(usable_cores) : 4))" --dist loadfile \
    --no-loadscope-reorder

# a test that looks for weights on a hub must fail at once, not after a minute of retries
export HF_HUB_OFFLINE=1
exec "$python" -m pytest "$@"
