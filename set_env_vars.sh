# Paths and settings of this project; source it:   . set_env_vars.sh
#
# It works as it is. A value that is already set is kept, so set yours before sourcing or edit below. The scripts in scripts/
# source it themselves.

# This folder. Set anew each time: a value left from another checkout would run that one's code.
PROJECT_ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]:-$0}")" && pwd)
export PROJECT_ROOT

# Makes `python -m tokenizer.train` work from any folder.
case ":${PYTHONPATH:-}:" in
    ":$PROJECT_ROOT:"*) ;;
    *) PYTHONPATH=$PROJECT_ROOT${PYTHONPATH:+:$PYTHONPATH} ;;
esac
export PYTHONPATH

# --- programs ---

# torchrun of the environment to use; it also decides which python the scripts take. Default: that of the active
# environment if the project is installed there, else of .venv. Without either it stays unset (first: bash env_install.sh).
if [ -z "${TORCH_RUN_PATH:-}" ]; then
    TORCH_RUN_PATH=$(. "$PROJECT_ROOT/scripts/common.sh" && find_python 2>/dev/null) || true
    TORCH_RUN_PATH=${TORCH_RUN_PATH%/python}/torchrun
    if [ -x "$TORCH_RUN_PATH" ]; then export TORCH_RUN_PATH; else unset TORCH_RUN_PATH; fi
fi

# Python for --eval-python-path of documented commands. Metrics are computed in PyTorch, so it is the same python.
if [ -z "${EVAL_PYTHON_PATH:-}" ] && [ -n "${TORCH_RUN_PATH:-}" ]; then
    export EVAL_PYTHON_PATH="$(dirname -- "$TORCH_RUN_PATH")/python"
fi

# --- data ---

# Folder that holds ILSVRC2012_img_train and ILSVRC2012_img_val, each with one folder per class.
export IMGNET_ROOT="${IMGNET_ROOT:-$PROJECT_ROOT/data/imagenet}"

# The validation images.
export VAL_PATH="${VAL_PATH:-$IMGNET_ROOT/ILSVRC2012_img_val}"

# Folder of pretrained networks (VGG16 of LPIPS, DINOv2, Inception, ...).
export PRETRAINED_DIR="${PRETRAINED_DIR:-$PROJECT_ROOT/pretrained}"

# Reference statistics of gFID: the training set.
export GT_NPZ_PATH="${GT_NPZ_PATH:-$PRETRAINED_DIR/VIRTUAL_imagenet256_labeled.npz}"

# Reference of rFID: the validation images, cropped to 256 pixels.
export GT_VAL_NPZ_PATH="${GT_VAL_NPZ_PATH:-$PRETRAINED_DIR/val_imagenet.npz}"

# 1 lets libraries download pretrained networks that are missing; 0 makes that an error that names the file.
export ALLOW_DOWNLOAD="${ALLOW_DOWNLOAD:-0}"

# --- results: folders for runs, as in `bash scripts/train_vq.sh FILE.yaml loop.run_dir=$VQ_EXP_DIR/VQ_BL256` ---

# Tokenizers.
export VQ_EXP_DIR="${VQ_EXP_DIR:-$PROJECT_ROOT/runs/vq}"

# AR models.
export LM_EXP_DIR="${LM_EXP_DIR:-$PROJECT_ROOT/runs/gpt}"

# Linear probes of tokenizers.
export TOK_LIN_EXP_DIR="${TOK_LIN_EXP_DIR:-$PROJECT_ROOT/runs/vq_linear_probe}"

# Linear probes of AR models.
export LM_LIN_EXP_DIR="${LM_LIN_EXP_DIR:-$PROJECT_ROOT/runs/gpt_linear_probe}"

# Key for Weights & Biases. Needed for online logging only, and never set here.
# export WANDB_API_KEY=...

# --- processes ---

# Number of machines, rank of this one, and address of the one with rank 0.
export NNODES="${NNODES:-1}"
export NODE_RANK="${NODE_RANK:-0}"
export MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"

# These have no default here, so that the short form `gpus=8 PORT=11086 bash scripts/...` always counts.
# Processes per machine: NPROC_PER_NODE, else gpus, else GPUS; unset = one per visible GPU, and 1 without GPUs.
# export GPUS=8
# Port of MASTER_ADDR; unset = a free one on a single machine, 29500 on several.
# export PORT=29500
