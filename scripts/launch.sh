#!/usr/bin/env bash
# Runs a Python module of this project on one process or many: the only place with a torchrun line.
#
#   bash scripts/launch.sh -m tokenizer.train --config configs/vq/VQ_BL256.yaml          one process, plain python
#   GPUS=8 bash scripts/launch.sh -m tokenizer.train --config ...                        8 processes on this machine
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 GPUS=8 bash scripts/launch.sh ...          on each machine, with its NODE_RANK
#
# Processes per machine: NPROC_PER_NODE, else gpus, else GPUS, else one per visible GPU (1 without GPUs, and for modules that
# cannot share their work). Python: see find_python in scripts/common.sh.
# An installed wheel has this file too, beside common.sh: `vt` and pipelines start their commands with it.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    --help | -h) usage && exit ;;
    "") usage >&2 && exit 2 ;;
esac

# modules that run on several processes: the work is shared among them
SHARE_THEIR_WORK="tokenizer.train tokenizer.reconstruct autoregressive.train autoregressive.extract_codes autoregressive.sample
    evaluations.classifier evaluations.generation evaluations.linear_probe evaluations.make_reference evaluations.measure
    evaluations.reconstruction evaluations.search_cfg evaluations.text_readback evaluations.text_reader
    evaluations.val_loss"
SHARE_THEIR_WORK=$(xargs <<<"$SHARE_THEIR_WORK")

if [ -f "$REPO_ROOT/set_env_vars.sh" ]; then . "$REPO_ROOT/set_env_vars.sh"; fi # a wheel has no defaults for paths
python=$(find_python)
unset PREFLIGHT_DONE # of another command: this one has not been looked at yet
if [ -z "${NPROC_PER_NODE:-${gpus:-${GPUS:-}}}" ]; then
    case " $SHARE_THEIR_WORK " in
        *" ${2:-} "*) NPROC_PER_NODE=$(count_processes) ;;
        *) NPROC_PER_NODE=1 ;;
    esac
    export NPROC_PER_NODE # a check looks for as many GPUs
fi
num_processes=${NPROC_PER_NODE:-${gpus:-$GPUS}}
num_nodes=${NNODES:-1}

for number in "$num_processes" "$num_nodes"; do
    case "$number" in
        *[!0-9]* | 0) die "NPROC_PER_NODE, gpus, GPUS and NNODES are whole numbers from 1, not '$number'" ;;
    esac
done

# what only prints something, and a check, needs a single process
only_prints=false
for argument in "${@:3}"; do
    case "$argument" in
        --help | -h | --check | --dry-run | --print-config | --plan | --plan=* | --help-config | --help-config=*)
            only_prints=true
            ;;
    esac
done

# a folder named `tokenizer` where the user stands must not hide ours: PYTHONPATH alone decides
export PYTHONSAFEPATH=1

share_cores "$num_processes"

# A process that is alone must not wait for others of whom a shell or an allocation still tells, nor a check count them.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE
: "${MASTER_ADDR:=127.0.0.1}" "${NODE_RANK:=0}"
if [ "$num_nodes" -eq 1 ]; then
    if [ "$MASTER_ADDR" != 127.0.0.1 ] || [ "$NODE_RANK" != 0 ]; then
        echo "note: MASTER_ADDR=$MASTER_ADDR and NODE_RANK=$NODE_RANK are for NNODES above 1, and not used" >&2
    fi
    MASTER_ADDR=127.0.0.1 NODE_RANK=0
fi

# `exec`, so that a signal reaches the training, which saves and exits cleanly
if $only_prints || { [ "$num_processes" -eq 1 ] && [ "$num_nodes" -eq 1 ]; }; then
    exec "$python" "$@"
fi

if [ -n "${PORT:-}" ]; then
    port=$PORT
elif [ "$num_nodes" -eq 1 ]; then
    # a free port, so that two runs on one machine do not meet
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
else
    port=29500 # all machines must agree
fi
if [ "$num_nodes" -gt 1 ] && [ "$MASTER_ADDR" = 127.0.0.1 ]; then
    echo "warning: NNODES=$num_nodes with MASTER_ADDR=127.0.0.1: other machines cannot reach that address" >&2
fi

# one message about all that is missing, before any process exists that could repeat it
case "$1 ${2:-}" in
    "-m tokenizer."* | "-m autoregressive."* | "-m evaluations."*)
        NPROC_PER_NODE=$num_processes "$python" "$@" --check >&2 || exit
        export PREFLIGHT_DONE=1
        ;;
esac

# torchrun, with time to save; a TORCH_RUN_PATH that is not this environment's own torchrun is run as it is, unless it
# belongs to another environment than the one that VT_PYTHON decided for
torchrun=("$python" -m engine.launcher)
if [ -n "${TORCH_RUN_PATH:-}" ] && [ "$TORCH_RUN_PATH" != "$(dirname -- "$python")/torchrun" ]; then
    if [ -z "${VT_PYTHON:-}" ] || [ ! -x "$(dirname -- "$TORCH_RUN_PATH")/python" ]; then torchrun=("$TORCH_RUN_PATH"); fi
fi
exec "${torchrun[@]}" --nnodes "$num_nodes" --node-rank "$NODE_RANK" --nproc-per-node "$num_processes" \
    --master-addr "$MASTER_ADDR" --master-port "$port" "$@"
