#!/usr/bin/env bash
# One machine with GPUs: one process trains with all of them, or with those that are named.
#
#   launch/gpu.sh [--dry-run] [--gpus 0,1] -- ARGUMENTS OF clir_jax.train
#
# Starts anew after status 143 (SIGTERM) are up to what sent it: systemd, Docker, Kubernetes.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

gpus='' dry=
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --dry-run) dry=1; shift ;;
    --gpus)
      [[ ${2-} =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--gpus ${2-}: write their numbers, as in 0,1"
      gpus=$2
      shift 2
      ;;
    *) fail "$1: write --dry-run, --gpus 0,1, or -- and the arguments of clir_jax.train" ;;
  esac
done
[[ $# -gt 1 ]] || fail "there is nothing to train; write -- --config FILE --run-dir DIRECTORY"
shift

# JAX passes over the platforms that it does not find here, as without a driver: --accelerator makes
# that an error. Memory is taken once: what is left is for the libraries of CUDA.
command=(env "JAX_PLATFORMS=cuda,cpu" XLA_PYTHON_CLIENT_MEM_FRACTION=0.92)
[[ ! $gpus ]] || command+=("CUDA_VISIBLE_DEVICES=$gpus")
command+=("${PYTHON:-python}" -m clir_jax.train --accelerator gpu "$@")
if [[ $dry ]]; then
  printf '%q ' "${command[@]}" && echo
  exit 0
fi
exec "${command[@]}"
