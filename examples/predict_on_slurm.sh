#!/usr/bin/env bash
# The same without Ray: an array job whose tasks share the photos by --shard; sbatch --array=1-16 examples/predict_on_slurm.sh
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --requeue
set -euo pipefail
plures predict runs/first photos.txt --out found/ --workers 8 --precision bfloat16 --resume \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
