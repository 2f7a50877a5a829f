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

# Whether this python has what every command needs. Packages are only looked up: importing torch takes seconds.
has_packages() {
    "$1" - 2>/dev/null <<'PY'
import importlib.util as util
import sys

names = "torch torchvision omegaconf safetensors timm lpips torch_fidelity".split()
sys.exit(any(util.find_spec(name) is None for name in names))
PY
}

# Prints the python that runs this project: the one beside TORCH_RUN_PATH where that is set (so that it decides for one
# process as for many), else the active environment if the project is installed in it, else .venv.
find_python() {
    local python active
    active=$(active_env)
    if [ -n "${TORCH_RUN_PATH:-}" ]; then
        [ -x "$TORCH_RUN_PATH" ] || die "TORCH_RUN_PATH=$TORCH_RUN_PATH is not a program; unset it or set it to the path of a torchrun"
        python=$(dirname -- "$TORCH_RUN_PATH")/python
        if [ -x "$python" ]; then
            printf '%s\n' "$python"
            return
        fi
    fi
    for python in ${active:+"$active/bin/python"} "$REPO_ROOT/.venv/bin/python"; do
        if [ -x "$python" ] && has_packages "$python"; then
            printf '%s\n' "$python"
            return
        fi
    done
    die "no environment with torch, timm and the rest found (${active:+$active, }$REPO_ROOT/.venv); run: bash env_install.sh"
}

# Where to install what is missing: into the active environment if it has the rest, else into .venv. This is the same
# choice as that of find_python.
install_target() {
    local active
    active=$(active_env)
    if [ -n "$active" ] && has_packages "$active/bin/python"; then echo active; else echo venv; fi
}

# For the training scripts: turns `[FILE] [override ...]` into arguments of `python -m`, in the array `arguments`.
# $1 is the name and $2 the value of the variable that stands in for FILE. --help, --help-config and --config are handed
# through.
config_arguments() {
    local variable=$1 config=$2
    shift 2
    case "${1:-}" in
        --help | -h | --help-config | --help-config=* | --config | --config=*) arguments=("$@") && return ;;
        "" | -*) ;;
        # an override, unless it is the name of a file (a path may hold a `=`)
        *=*) if [ -f "$1" ]; then config=$1 && shift; fi ;;
        *) config=$1 && shift ;;
    esac
    [ -n "$config" ] || die "name a YAML file as first argument or in $variable. $(sed -n '2s/^# //p' "$0")"
    arguments=(--config "$config" "$@")
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
