#!/usr/bin/env bash
# SLURM example: XL-XXL on 2 machines of 8 GPUs, sharded inside each machine. Adapt the lines #SBATCH, then from the root:
#
#   sbatch scripts/slurm_example.sh
#
# Submitting it again continues the run. There is one task per machine; scripts/launch.sh starts one process per GPU.
#SBATCH --job-name=VQ_XLXXL256
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=%x_%j.log
set -euo pipefail
cd -- "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the root of the project}"

export GPUS=8 NNODES="$SLURM_NNODES" PORT=29500
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
# expanded on each machine, hence the single quotes
# shellcheck disable=SC2016
srun bash -c 'NODE_RANK=$SLURM_NODEID exec bash scripts/train_vq.sh "$@"' train_vq \
    configs/vq/VQ_XLXXL256.yaml loop.run_dir=runs/VQ_XLXXL256 \
    loop.strategy=hsdp loop.async_save=true "$@"
