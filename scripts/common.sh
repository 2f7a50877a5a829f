# Sourced by the other scripts: the one place that answers "which folder" and "which python".
# It sets no shell options, because set_env_vars.sh brings it into shells that are not ours.

REPO_ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]:-$0}")/.." && pwd)

die() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

# Prints the comment at the head of the script that runs.
usage() { sed -n '2,/^set/{/^#/p;}' "$0" | cut -c 3-; }

# Whether --help is among the arguments.
asks_for_help() { case " $* " in *" --help "* | *" -h "*) ;; *) return 1 ;; esac; }

# The folder of the active virtual environment, else of the active conda environment, else nothing.
active_env() {
    printf '%s\n' "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
}

# Prints what this python lacks of pyproject.toml and of its optional groups $2 (comma separated), one requirement a line,
# with the version that is there. Packages are only looked up, with their versions: importing torch takes seconds.
unmet_requirements() {
    "$1" - "$REPO_ROOT/pyproject.toml" "${2:-}" 2>/dev/null <<'PY' || { echo "Python 3.11 or newer with pip" && return 1; }
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

pyproject, extras = sys.argv[1:]
project = tomllib.loads(Path(pyproject).read_text())["project"]
asked = [extra for extra in extras.split(",") if extra]
lines = project["dependencies"] + [line for extra in asked for line in project["optional-dependencies"][extra]]
for requirement in map(Requirement, lines):
    if requirement.marker is not None and not requirement.marker.evaluate():
        continue
    try:
        there = version(requirement.name)
    except PackageNotFoundError:
        print(f"{requirement} (not there)")
        continue
    if not requirement.specifier.contains(there, prereleases=True):
        print(f"{requirement} (there is {there})")
PY
}

# Whether this python has what every command needs, and the optional groups $2.
has_packages() { [ -x "$1" ] && [ -z "$(unmet_requirements "$@")" ]; }

# Prints the python that runs this project: VT_PYTHON, which `vt` and pipelines set to the one that runs them; else the one
# beside TORCH_RUN_PATH where that is set (so that it decides for one process as for many), else the active environment if
# it has all packages in the right versions, else .venv. $1 may name optional groups that are needed too.
find_python() {
    local python active
    active=$(active_env)
    if [ -n "${VT_PYTHON:-}" ]; then
        [ -x "$VT_PYTHON" ] || die "VT_PYTHON=$VT_PYTHON is not a program; unset it"
        printf '%s\n' "$VT_PYTHON"
        return
    fi
    if [ -n "${TORCH_RUN_PATH:-}" ]; then
        [ -x "$TORCH_RUN_PATH" ] || die "TORCH_RUN_PATH=$TORCH_RUN_PATH is not a program; unset it or set it to the path of a torchrun"
        python=$(dirname -- "$TORCH_RUN_PATH")/python
        if [ -x "$python" ]; then
            printf '%s\n' "$python"
            return
        fi
    fi
    local unmet lacks=
    for python in ${active:+"$active/bin/python"} "$REPO_ROOT/.venv/bin/python"; do
        [ -x "$python" ] || continue
        unmet=$(unmet_requirements "$python" "${1:-}") || true # a python that cannot say it is told as what is missing
        if [ -z "$unmet" ]; then
            printf '%s\n' "$python"
            return
        fi
        lacks="$lacks
  $python lacks $(paste -s -d ';' <<<"$unmet" | sed 's/;/; /g')"
    done
    die "no environment has the packages of pyproject.toml (${active:+$active, }$REPO_ROOT/.venv); run: bash env_install.sh$lacks"
}

# Installs the optional groups $1, and what they need, and makes everything that follows run there; sets `python`. The active
# environment is taken only if it has all of that already: nothing is ever installed into an environment that was not named. (To have
# it there: bash env_install.sh --env active.)
install_and_use() {
    local extras=$1 active target=venv torchrun
    active=$(active_env)
    if [ -n "$active" ] && has_packages "$active/bin/python" "$extras"; then target=active; fi
    unset TORCH_RUN_PATH
    bash "$REPO_ROOT/env_install.sh" --env "$target" --extras "$extras" || return
    python=$(find_python "$extras") || return
    torchrun=$(dirname -- "$python")/torchrun
    if [ -x "$torchrun" ]; then export TORCH_RUN_PATH=$torchrun; fi
}

# The cores that this process may use, by affinity and by the quota of its control group (containers, SLURM).
usable_cores() {
    local cores quota period
    cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1)
    read -r quota period 2>/dev/null <"$(control_group)/cpu.max" || {
        read -r quota 2>/dev/null </sys/fs/cgroup/cpu/cpu.cfs_quota_us || quota=max
        read -r period 2>/dev/null </sys/fs/cgroup/cpu/cpu.cfs_period_us || period=100000
    }
    case "$quota" in
        max | -* | *[!0-9]*) ;;
        *)
            quota=$(((quota + period - 1) / period)) # a part of a core counts as one
            if [ "$quota" -lt "$cores" ]; then cores=$quota; fi
            ;;
    esac
    echo "$cores"
}

# The folder of this process's control group; CONTROL_GROUP names another one.
control_group() { echo "${CONTROL_GROUP:-/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup 2>/dev/null | head -n 1)}"; }

# For $1 processes: threads that fit the cores, and that give a core back while they wait. Values of the user win.
#
# A thread that waits for others spins for milliseconds by default (GNU) or 200 ms (Intel, LLVM). With more threads than
# free cores, it spins in the place of the thread that it waits for, and a training becomes many times slower. 5,000 turns
# cost nothing on idle cores, and are still short beside a program or four per core (docs/costs.md).
share_cores() {
    local cores
    cores=$(usable_cores)
    if [ "$1" -gt 1 ] || [ "$cores" -lt "$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1)" ]; then
        cores=$((cores / $1))
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))}"
    fi
    if [ -z "${OMP_WAIT_POLICY:-}" ]; then
        export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-5000}" KMP_BLOCKTIME="${KMP_BLOCKTIME:-0}"
    fi
}

# The processes per machine: NPROC_PER_NODE, else gpus, else GPUS, else one per visible GPU, which is said; 1 without GPUs.
count_processes() {
    local asked=${NPROC_PER_NODE:-${gpus:-${GPUS:-}}} visible
    if [ -z "$asked" ]; then
        visible=$(visible_gpus)
        asked=$((visible > 0 ? visible : 1))
        if [ "$visible" -gt 0 ]; then
            echo "note: GPUS is not set: one process per visible GPU, of which there are $visible; GPUS=1 starts a single one" >&2
        fi
    fi
    echo "$asked"
}

# The number of GPUs that a process started here would see: those of CUDA_VISIBLE_DEVICES, else all that the driver lists.
visible_gpus() {
    local listed=${CUDA_VISIBLE_DEVICES-unset} names
    case "$listed" in
        "" | -1) echo 0 ;;
        unset)
            command -v nvidia-smi >/dev/null || { echo 0 && return; }
            names=$(nvidia-smi --list-gpus 2>/dev/null) || names=
            grep -c '^GPU ' <<<"$names" || true
            ;;
        *) awk -F , '{ for (i = 1; i <= NF && $i != "-1"; i++) count++ } END { print count + 0 }' <<<"$listed" ;;
    esac
}

# Runs the module $1 in a single process, whose stages start as many as there are GPUs.
run_pipeline() {
    . "$REPO_ROOT/set_env_vars.sh"
    local python
    python=$(find_python) || exit
    if [ "$(visible_gpus)" -gt 0 ]; then
        NPROC_PER_NODE=$(count_processes)
        export NPROC_PER_NODE
    fi
    export PYTHONSAFEPATH=1
    unset PREFLIGHT_DONE RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE
    exec "$python" -m "$@"
}

# Prints the driver of the NVIDIA GPUs of this machine, such as 535.104.05; nothing where there is none.
nvidia_driver() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n 1p
}

# The newest tested build of torch that the driver $1 can run, as `torch torchvision cuda driver` with the lowest driver
# of that build; for `newest` the newest one of all. Prints nothing where every build needs a newer driver.
torch_build() {
    awk -v driver="$1" '
        # a driver is major.minor.patch: 525.125 is newer than 525.60
        function runs(needed) {
            split(driver, have, ".")
            split(needed, need, ".")
            return have[1] + 0 > need[1] + 0 || (have[1] + 0 == need[1] + 0 && have[2] + 0 >= need[2] + 0)
        }
        NR > 1 && (driver == "newest" || runs($4)) { build = $1 " " $2 " " $3 " " $4 }
        END { if (build) print build }
    ' "$REPO_ROOT/scripts/torch_builds.tsv"
}

# For the training scripts: turns `[FILE] [flag or override ...]`, in any order, into arguments of `python -m`, in the array
# `arguments`. $1 is the name and $2 the value of the variable that stands in for FILE. Without FILE, --help, --help-config
# and --config are handed through.
config_arguments() {
    local variable=$1 config=$2 file= passes=false before= argument
    shift 2
    arguments=()
    for argument in "$@"; do
        case "$argument" in
            --help | -h | --help-config | --help-config=* | --config | --config=*) passes=true ;;
        esac
        case "$before" in
            --config | --plugin | --plan | --help-config) ;; # the value of a flag
            *) if [ -z "$file" ] && is_config_file "$argument"; then file=$argument before= && continue; fi ;;
        esac
        arguments+=("$argument")
        before=$argument
    done
    if [ -z "$file" ] && $passes; then return; fi
    config=${file:-$config}
    [ -n "$config" ] || die "name a YAML file as first argument or in $variable. $(sed -n '2s/^# //p' "$0")"
    arguments=(--config "$config" "${arguments[@]}")
}

# Whether an argument names a config: no flag, and no override unless that is the name of a file (a path may hold a `=`).
is_config_file() {
    case "$1" in
        "" | -*) return 1 ;;
        *=*) [ -f "$1" ] ;;
    esac
}

# For a script of two modes: runs the module $2 if the flag $1 is among the arguments that follow, else the module $3.
launch_by_flag() {
    local flag=$1 with_flag=$2 module=$3 argument
    shift 3
    for argument in "$@"; do
        if [ "$argument" = "$flag" ]; then module=$with_flag; fi
    done
    exec bash "$REPO_ROOT/scripts/launch.sh" -m "$module" "$@"
}
