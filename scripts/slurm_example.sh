#!/usr/bin/env bash
# SLURM example: XL-XXL on 2 machines of 8 GPUs, sharded inside each machine. Adapt the lines #SBATCH, then from the root:
#
#   sbatch scripts/slurm_example.sh
#
# There is one task per machine; scripts/launch.sh starts one process per GPU. Five minutes before the end, SLURM sends
# SIGUSR1 to this script, which passes it on: the run saves and ends, and the job queues again and continues. A run that
# fails by itself does not queue again. Submitting the script again continues the run in any case.
#SBATCH --job-name=VQ_XLXXL256
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
set -euo pipefail
cd -- "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the root of the project}"

export GPUS=8 NNODES="$SLURM_NNODES" PORT=29500
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
# srun has not inherited --cpus-per-task since SLURM 22.05. A machine whose task fails ends the others.
# The inner script is expanded on each machine, hence the single quotes.
# shellcheck disable=SC2016
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    bash -c 'NODE_RANK=$SLURM_NODEID exec bash scripts/train_vq.sh "$@"' train_vq \
    configs/vq/VQ_XLXXL256.yaml loop.run_dir=runs/VQ_XLXXL256 \
    loop.strategy=hsdp loop.async_save=true "$@" &
step=$!

# srun hands SIGUSR1 on to its tasks. A preempted job gets SIGTERM, and is treated in the same way.
signals=0
trap 'signals=$((signals + 1)); kill -USR1 "$step" 2>/dev/null || true' USR1 TERM
seen=none
until [ "$seen" = "$signals" ]; do # a signal ends `wait` before the step has ended
    seen=$signals code=0
    wait "$step" || code=$?
done
if [ "$signals" -gt 0 ] && [ "$code" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
