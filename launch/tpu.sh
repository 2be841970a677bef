#!/usr/bin/env bash
# TPU VMs of any size: creates them, installs this checkout on every host, and trains until done.
#
#   launch/tpu.sh [--dry-run] [--queued] [--spot] [--project P] [--version V] [--poll 60] \
#     --name NAME --zone ZONE --type v5litepod-16 --bucket gs://BUCKET \
#     -- ARGUMENTS OF clir_jax.train, without --run-dir
#
# --queued asks for a queued resource and waits for it; --spot takes what may be preempted. The code
# (the commit, not what is uncommitted) goes to BUCKET/code, the run to BUCKET/runs/NAME, which
# every host mounts. A TPU of this name that is PREEMPTED, TERMINATED or STOPPED is deleted and made
# again, and the run goes on. Every --poll seconds its state is asked for, until it is READY. The TPU
# stays when all is done: its deletion is printed at the end. --version is the TPU software, where it
# is not to be the usual one of the type.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

name='' zone='' type='' bucket='' project='' version='' poll=60 dry='' queued='' spot=''
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
if [[ ! $version ]]; then
  case $type in
    v[234]-*) version='tpu-ubuntu2204-base' ;;
    v5litepod-*) version='v2-alpha-tpuv5-lite' ;;
    v5p-*) version='v2-alpha-tpuv5' ;;
    v6e-*) version='v2-alpha-tpuv6e' ;;
    *) fail "--type $type: it is not known here which TPU software this takes; write --version too" ;;
  esac
fi
[[ $# -gt 1 ]] || fail "there is nothing to train; write -- --config FILE"
shift
[[ " $* " != *" --run-dir"* ]] || fail "--run-dir is $bucket/runs/$name here; leave it out"

where=(--zone "$zone" ${project:+--project "$project"})
tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
code=$(dirname "$0")/..
commit=$(git -C "$code" rev-parse HEAD)
python=3.12

# Do a command, or print it.
go() {
  if [[ $dry ]]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

# Tell the state of what has this name in nodes or queuedResources, or ABSENT where nothing has. What
# else gcloud refuses to tell, it explains itself, and this script ends.
state() {
  local command=("${tpu[@]}" describe "$name" "${where[@]}" --quiet '--format=value(state)') told=''
  [[ $1 == nodes ]] ||
    command=("${queue[@]}" describe "$name" "${where[@]}" --quiet '--format=value(state.state)')
  { told=$("${command[@]}" 2>&1 >&3); } 3>&1 && return
  if [[ $told == *NOT_FOUND*"/$1/$name"* ]]; then
    echo ABSENT
  else
    echo "$told" >&2
    return 1
  fi
}

upload() {
  if [[ $dry ]]; then
    echo "git -C $code archive --format=tar.gz $commit | gcloud storage cp - $bucket/code/$commit.tar.gz"
  else
    git -C "$code" archive --format=tar.gz "$commit" | gcloud storage cp - "$bucket/code/$commit.tar.gz"
  fi
}

create() {
  if [[ $queued ]]; then
    go "${queue[@]}" create "$name" --node-id "$name" "${where[@]}" --accelerator-type "$type" \
      --runtime-version "$version" ${spot:+--spot}
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

# Tell the state of the request, as long as it has no TPU, and then that of the TPU.
look() {
  local told
  if [[ $queued ]]; then
    told=$(state queuedResources) || return
    if [[ $told != ACTIVE ]]; then
      echo "$told"
      return
    fi
  fi
  told=$(state nodes) || return
  # The request of a TPU that is gone still stands, and has to make room for another.
  [[ ! $queued || $told != ABSENT ]] || told=TERMINATED
  echo "$told"
}

# Wait for a TPU, which an earlier call may have asked for. One that does not come back is deleted and
# made anew, because the run is in the bucket; all others change by themselves.
make_ready() {
  local now before=READY
  if [[ $dry ]]; then
    create
    return
  fi
  while true; do
    now=$(look)
    [[ $now == "$before" ]] || echo "$name: ${now:-no state}; asked again every $poll s"
    before=$now
    case $now in
      READY) return ;;
      ABSENT) create ;;
      PREEMPTED | TERMINATED | STOPPED | SUSPENDED) delete; create ;;
      FAILED) fail "the queue has refused $name; gcloud compute tpus queued-resources describe $name ${where[*]} tells why, and delete --force makes room for another" ;;
    esac
    sleep "$poll"
  done
}

everywhere() {
  go "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all --command "$1"
}

# Several times is as good as once. What is trained where ssh was lost keeps its code until it ends.
# The Python of the images is too old, and uv needs no root for another. gcsfs reads gs:// data for
# etils; directories are renamed when they are whole, which gcsfuse does where it is allowed to. Hosts
# must see what others have written.
setup="set -eo pipefail
if ! command -v gcsfuse >/dev/null; then
  echo 'deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-jammy main' | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
fi
flock --nonblock ~/training.lock true || {
  echo 'an earlier training still runs on this host; waiting for its end'
  flock ~/training.lock true
}
rm -rf ~/code ~/venv && mkdir -p ~/bucket ~/code
mountpoint -q ~/bucket || gcsfuse --implicit-dirs --rename-dir-limit 100000 --metadata-cache-ttl-secs 0 ${bucket#gs://} ~/bucket
gcloud storage cp $bucket/code/$commit.tar.gz - | tar -xz -C ~/code
[ -x ~/.local/bin/uv ] || curl -fsSL https://astral.sh/uv/install.sh | sh
~/.local/bin/uv venv --quiet --python $python ~/venv || {
  echo 'error: uv has not installed Python $python, which clir_jax needs; give the hosts of $name a way to the internet' >&2
  exit 1
}
~/.local/bin/uv pip install --quiet --python ~/venv/bin/python ~/code'[tpu]' gcsfs"
train="cd ~/code && exec flock --no-fork ~/training.lock ~/venv/bin/python -m clir_jax.train --coordinator auto --accelerator tpu --run-dir ~/bucket/runs/$name$(printf ' %q' "$@")"

upload
unreached=0
while true; do
  make_ready
  status=0
  { everywhere "$setup" && everywhere "$train"; } || status=$?
  [[ $dry || $status -eq 0 ]] && break
  # A TPU that is being taken away still says READY for a while.
  sleep "$poll"
  now=$(look)
  if [[ $now != READY || $status -eq 143 ]]; then
    # Preempted, or told to end: the same command goes on where it was.
    unreached=0
  elif [[ $status -eq 255 && $unreached -lt 4 ]]; then
    # This is ssh's own status: it has not reached a host, or lost it.
    unreached=$((unreached + 1))
  else
    exit "$status"
  fi
done
echo "when it is not needed any more:"
dry=1
delete
