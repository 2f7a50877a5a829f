#!/usr/bin/env bash
# Checks that the project works with other versions of PyTorch and Python: bash scripts/check_versions.sh 2.7.0 2.10.0
#
#   bash scripts/check_versions.sh                                     every version of scripts/torch_builds.tsv
#   bash scripts/check_versions.sh --python python3.13 2.15.0          with another Python
#   bash scripts/check_versions.sh --folder /scratch --keep 2.8.0      environments elsewhere, and left there
#
# For each version: installs it into a new environment (about 7 GB, deleted afterwards), runs the short quick start on one
# process and on two, and the tests in tests/engine and tests/tokenizer. Prints one line per version, and ends with 1 if
# any of them failed. What each step printed is in FOLDER/torch-VERSION/*.log, which stay. Takes half an hour per version.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

python=python3
folder=${TMPDIR:-/tmp}/visual-tokenizers-versions
keep=
versions=()
while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h) usage && exit ;;
        --python | --folder)
            [ $# -ge 2 ] || die "$1 needs a value; see: bash scripts/check_versions.sh --help"
            if [ "$1" = --python ]; then python=$2; else folder=$2; fi
            shift 2
            ;;
        --keep) keep=1 && shift ;;
        -*) die "unknown option '$1'; see: bash scripts/check_versions.sh --help" ;;
        *) versions+=("$1") && shift ;;
    esac
done
command -v -- "$python" >/dev/null || die "--python '$python' is not a program"
known=$(awk 'NR > 1 { print $1 }' "$REPO_ROOT/scripts/torch_builds.tsv")
if [ ${#versions[@]} -eq 0 ]; then read -r -d '' -a versions <<<"$known" || true; fi

# a name that is not known is told before anything is installed
for version in "${versions[@]}"; do
    grep -qx -- "$version" <<<"$known" || die "torch $version is not in scripts/torch_builds.tsv; choose from: $(xargs <<<"$known")"
done

# nothing of the shell that calls this decides which environment is used
unset CONDA_PREFIX TORCH_RUN_PATH CONSTRAINTS NPROC_PER_NODE gpus GPUS NNODES
export HF_HUB_OFFLINE=1 PYTHONPATH=

# Runs a step, whose output goes to a file; prints ok or FAILED and returns 1 where it failed.
step() {
    local log=$1
    shift
    if "$@" >"$log" 2>&1; then printf ' ok'; else printf ' FAILED(%s)' "$log" && return 1; fi
}

# Deletes the environment and the runs of a version, which this script has made.
forget() { rm -rf -- "$1/env" "$1/runs_1" "$1/runs_2"; }

# One version: makes its environment, runs all steps, and says in one line what came of them.
check() {
    local version=$1 place=$folder/torch-$1 vision
    vision=$(awk -v version="$version" '$1 == version { print $2 }' "$REPO_ROOT/scripts/torch_builds.tsv")
    if [ -e "$place" ] && [ ! -f "$place/constraints.txt" ]; then die "$place is there and not of this script"; fi
    forget "$place"
    mkdir -p -- "$place"
    printf 'torch==%s\ntorchvision==%s\n' "$version" "$vision" >"$place/constraints.txt"
    "$python" -m venv "$place/env"
    export VIRTUAL_ENV=$place/env

    local failed=0
    printf 'torch %s, Python %s: install' "$version" "$("$place/env/bin/python" -c 'import platform; print(platform.python_version())')"
    export PIP_CONSTRAINT=$place/constraints.txt
    if ! step "$place/install.log" bash "$REPO_ROOT/env_install.sh" --env active --extras quickstart,dev \
        --constraints "$place/constraints.txt"; then
        echo
        return 1
    fi
    printf ', quick start'
    step "$place/quickstart_1.log" bash "$REPO_ROOT/scripts/quickstart.sh" --short --runs-dir "$place/runs_1" || failed=1
    printf ', on two processes'
    NPROC_PER_NODE=2 step "$place/quickstart_2.log" bash "$REPO_ROOT/scripts/quickstart.sh" --short \
        --runs-dir "$place/runs_2" || failed=1
    printf ', tests'
    step "$place/tests.log" "$place/env/bin/python" -m pytest "$REPO_ROOT/tests/engine" "$REPO_ROOT/tests/tokenizer" \
        -p no:cacheprovider -v || failed=1
    echo
    return "$failed"
}

cd -- "$REPO_ROOT"
any_failed=0
for version in "${versions[@]}"; do
    check "$version" || any_failed=1
    if [ -z "$keep" ]; then forget "$folder/torch-$version"; fi
done
exit "$any_failed"
