#!/bin/bash

# Parameters
#SBATCH --account=grounding
#SBATCH --cpus-per-task=10
#SBATCH --exclude='n[3,7]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=mres32m
#SBATCH --mem=480G
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/mres32m/submitit/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=2880

# setup
export SRUN_CPUS_PER_TASK=10

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/mres32m/submitit/%j_%t_log.out --cpus-per-task=10 --kill-on-bad-exit=1 --open-mode=append PYTHON -u -m submitit.core._submit /shared/runs/mres32m/submitit
