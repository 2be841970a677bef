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
# Asked one by one: `wait -n` overlooks a process that has ended before it is called.
status=0
while ((${#children[@]})); do
  running=() failed=''
  for child in "${children[@]}"; do
    if kill -0 "$child" 2>/dev/null; then
      running+=("$child")
      continue
    fi
    code=0
    wait "$child" || code=$?
    [[ $status -ne 0 ]] || status=$code
    [[ $code -eq 0 || $code -eq 143 ]] || failed=yes
  done
  children=(${running[@]+"${running[@]}"})
  if ((${#children[@]})); then
    # The others would wait for the one that failed.
    [[ ! $failed ]] || kill -KILL "${children[@]}" 2>/dev/null || true
    sleep 0.1
  fi
done
exit "$status"
