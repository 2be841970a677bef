#!/usr/bin/env bash
# Several processes on the CPU of this machine train one run: what hosts do together, to try it out.
#
#   launch/local.sh [--dry-run] [--processes 2] [--port 29500] -- ARGUMENTS OF clir_jax.train
#
# SIGTERM is handed on; all of them save and end, and so does this script, with status 143.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

processes=2 port=29500 dry=
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --dry-run) dry=1; shift ;;
    --processes | --port)
      [[ ${2-} =~ ^[1-9][0-9]*$ ]] || fail "$1 ${2-}: write a whole number above 0"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    *) fail "$1: write --dry-run, --processes N, --port P, or -- and the arguments of clir_jax.train" ;;
  esac
done
[[ $# -gt 1 ]] || fail "there is nothing to train; write -- --config FILE --run-dir DIRECTORY"
shift

children=()
for ((process = 0; process < processes; process++)); do
  command=(env JAX_PLATFORMS=cpu "${PYTHON:-python}" -m clir_jax.train --coordinator "localhost:$port"
    --processes "$processes" --process "$process" "$@")
  if [[ $dry ]]; then
    printf '%q ' "${command[@]}" && echo
  else
    "${command[@]}" &
    children+=($!)
  fi
done
[[ ! $dry ]] || exit 0

trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT
status=0
for ((left = processes; left > 0; )); do
  finished='' code=0
  wait -n -p finished "${children[@]}" || code=$?
  [[ ${finished-} ]] || continue # a signal came in between, and is handed on
  left=$((left - 1))
  remaining=()
  for child in "${children[@]}"; do
    [[ $child == "$finished" ]] || remaining+=("$child")
  done
  children=(${remaining[@]+"${remaining[@]}"})
  [[ $status -ne 0 ]] || status=$code
  if [[ $code -ne 0 && $code -ne 143 && $left -gt 0 ]]; then
    kill -KILL "${children[@]}" 2>/dev/null || true # they would wait for the one that failed
  fi
done
exit "$status"
