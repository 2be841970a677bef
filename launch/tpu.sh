#!/usr/bin/env bash
# TPU VMs of any size: creates them, installs this checkout on every host, and trains until done.
#
#   launch/tpu.sh [--dry-run] [--queued] [--spot] [--project P] [--version V] [--poll 60] \
#     --name NAME --zone ZONE --type v5litepod-16 --bucket gs://BUCKET \
#     -- ARGUMENTS OF clir_jax.train, without --run-dir
#
# --queued asks for a queued resource and waits for it; --spot takes what may be preempted. The code
# (the commit, not what is uncommitted) goes to BUCKET/code, the run to BUCKET/runs/NAME, which
# every host mounts. Preempted TPUs are made again, and the run goes on. The TPU stays when all is
# done: its deletion is printed at the end.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

name='' zone='' type='' bucket='' project='' version=v2-alpha-tpuv5-lite poll=60 dry='' queued='' spot=''
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --dry-run) dry=1; shift ;;
    --queued) queued=1; shift ;;
    --spot) spot=1; shift ;;
    --name | --zone | --type | --bucket | --project | --version | --poll)
      [[ ${2-} && $2 != --* ]] || fail "$1 has no value; write it behind"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    *) fail "$1: there is no such option; the first lines of $0 tell which there are" ;;
  esac
done
for option in name zone type bucket; do
  [[ ${!option} ]] || fail "--$option is missing; the first lines of $0 tell what to write"
done
[[ $bucket =~ ^gs://[^/]+$ ]] || fail "--bucket $bucket: write gs:// and its name, without a folder"
[[ $# -gt 1 ]] || fail "there is nothing to train; write -- --config FILE"
shift
[[ " $* " != *" --run-dir"* ]] || fail "--run-dir is $bucket/runs/$name here; leave it out"

where=(--zone "$zone" ${project:+--project "$project"})
tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
commit=$(git rev-parse HEAD)

# Do a command, or print it.
go() {
  if [[ $dry ]]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

state() {
  "${tpu[@]}" describe "$name" "${where[@]}" --format='value(state)' 2>/dev/null || echo ABSENT
}

queue_state() {
  "${queue[@]}" describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo ABSENT
}

upload() {
  if [[ $dry ]]; then
    echo "git archive --format=tar.gz $commit | gcloud storage cp - $bucket/code/$commit.tar.gz"
  else
    git archive --format=tar.gz "$commit" | gcloud storage cp - "$bucket/code/$commit.tar.gz"
  fi
}

create() {
  if [[ $queued ]]; then
    # One that an earlier call asked for may still be in the queue.
    if [[ $dry || $(queue_state) == ABSENT ]]; then
      go "${queue[@]}" create "$name" --node-id "$name" "${where[@]}" --accelerator-type "$type" \
        --runtime-version "$version" ${spot:+--spot}
    fi
    [[ $dry ]] || until [[ $(state) == READY ]]; do
      case $(queue_state) in
        FAILED | SUSPENDED) fail "the queue does not give $name; delete it (gcloud compute tpus queued-resources delete)" ;;
        *) sleep "$poll" ;;
      esac
    done
  else
    go "${tpu[@]}" create "$name" "${where[@]}" --accelerator-type "$type" --version "$version" \
      ${spot:+--spot}
  fi
}

delete() {
  if [[ $queued ]]; then
    go "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
  else
    go "${tpu[@]}" delete "$name" "${where[@]}" --quiet
  fi
}

everywhere() {
  go "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all --command "$1"
}

# Several times is as good as once. gcsfs reads gs:// data for etils; directories are renamed when
# they are whole, which gcsfuse does where it is allowed to. Hosts must see what others have written.
setup="set -e
if ! command -v gcsfuse >/dev/null; then
  echo 'deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-jammy main' | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse python3-venv
fi
rm -rf ~/code && mkdir -p ~/bucket ~/code
mountpoint -q ~/bucket || gcsfuse --implicit-dirs --rename-dir-limit 100000 --metadata-cache-ttl-secs 0 ${bucket#gs://} ~/bucket
gcloud storage cp $bucket/code/$commit.tar.gz - | tar -xz -C ~/code
python3 -m venv ~/venv
~/venv/bin/pip install -q ~/code'[tpu]' gcsfs"
train="cd ~/code && exec ~/venv/bin/python -m clir_jax.train --coordinator auto --run-dir ~/bucket/runs/$name$(printf ' %q' "$@")"

upload
while true; do
  if [[ $dry ]]; then
    create
  else
    case $(state) in
      READY) ;;
      ABSENT) create ;;
      *) delete && create ;;
    esac
  fi
  status=0
  { everywhere "$setup" && everywhere "$train"; } || status=$?
  [[ $dry || $status -eq 0 ]] && break
  # Preempted, or told to end: the same command goes on where it was.
  [[ $status -eq 143 || $(state) != READY ]] || exit "$status"
done
echo "when it is not needed any more:"
dry=1
delete
