#!/bin/bash
# Features of a large data set on a Slurm cluster: one array task per shard, then one job that merges them.
#
#   sbatch --array=0-15 examples/cluster/slurm.sh RECIPE.toml
#   sbatch --dependency=singleton --job-name=candlewick-features examples/cluster/slurm.sh RECIPE.toml merge
#
# A task that is killed, requeued or sent again goes on where it stopped. To send some of the array again, say how many
# shards there were: SHARDS=16 sbatch --array=3,7 ... RECIPE, data, weights (HF_HOME) and
# CANDLEWICK_FEATURES must lie on a file system that all nodes share.
#SBATCH --job-name=candlewick-features
#SBATCH --cpus-per-task=8
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=features-%A_%a.log
set -euo pipefail

recipe=$1
export CANDLEWICK_FEATURES=${CANDLEWICK_FEATURES:-$PWD/features}
# Weights are fetched once, before the array: candlewick backbones pull NAME
export HF_HUB_OFFLINE=1

if [[ ${2:-} == merge ]]; then
    candlewick features merge "$CANDLEWICK_FEATURES"/*.shard-*-of-*.features
    # Computes what a failed task has left out, or says that nothing is.
    candlewick features "$recipe" --threads "${SLURM_CPUS_PER_TASK:-8}"
else
    candlewick features "$recipe" \
        --shard "$SLURM_ARRAY_TASK_ID/${SHARDS:-$SLURM_ARRAY_TASK_COUNT}" \
        --threads "${SLURM_CPUS_PER_TASK:-8}"
fi
