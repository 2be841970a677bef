#!/usr/bin/env bash
#SBATCH --job-name=clir_jax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# SLURM: a process for each GPU, on any number of nodes, which train one run.
#
#   sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 launch/slurm.sh -- ARGUMENTS OF clir_jax.train
#   sbatch --nodes 4 --ntasks-per-node 1 launch/slurm.sh --cpu -- ARGUMENTS OF clir_jax.train
#   launch/slurm.sh --dry-run -- ARGUMENTS OF clir_jax.train
#
# JAX gives every task the GPU of its number on the node: as many tasks as GPUs, and no
# --gpus-per-task, which hides the others. A task without a GPU is an error, except with --cpu.
# Two minutes before the time is up, and when the job is preempted, the tasks save and end with 143,
# and the job goes back to the queue.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

dry='' cpu=''
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --dry-run) dry=1; shift ;;
    --cpu) cpu=1; shift ;;
    *) fail "$1: write --dry-run, --cpu, or -- and the arguments of clir_jax.train" ;;
  esac
done
[[ $# -gt 1 ]] || fail "there is nothing to train; write -- --config FILE --run-dir DIRECTORY"
shift

train=(srun --kill-on-bad-exit=1)
[[ ! $cpu ]] || train+=(env JAX_PLATFORMS=cpu)
train+=("${PYTHON:-python}" -m clir_jax.train --coordinator auto)
[[ $cpu ]] || train+=(--accelerator gpu)
train+=("$@")
if [[ $dry ]]; then
  printf '%q ' "${train[@]}" && echo
  # shellcheck disable=SC2016 # the job's number is not known yet
  echo 'after status 143: scontrol requeue $SLURM_JOB_ID'
  exit 0
fi
[[ ${SLURM_JOB_ID-} ]] || fail "this is no SLURM job; write sbatch before it, or --dry-run behind it"
status=0
"${train[@]}" || status=$?
[[ $status -ne 143 ]] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
