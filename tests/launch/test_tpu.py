"""``launch/tpu.sh`` against a gcloud that stands in: what it makes, deletes, and does on a host."""

from pathlib import Path

import pytest

from clir_jax.training.preemption import STATUS
from tests.launching import TPU, TRAIN, calls, launched, programs_in, stub

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture
def programs(tmp_path):
    """A folder of programs that only note what they are asked."""
    return programs_in(tmp_path)


# As gcloud tells them: nothing of this name, and what is no reason to make one.
REFUSALS = {
    "ABSENT": "NOT_FOUND: Resource 'projects/p/locations/us-a/{}/mine' was not found.",
    "DENIED": "PERMISSION_DENIED: Permission 'tpu.{}.get' denied on 'mine' (or it may not exist).",
    "NOWHERE": "NOT_FOUND: Resource 'projects/p/locations/us-a' of {} was not found.",
}
GCLOUD = r"""
next() {{ head -1 {folder}/$1; sed -i 1d {folder}/$1; }}
tell() {{
  state=$(next $2)
  case $state in
    {refusals}
  esac
  echo "WARNING: there is a new version" >&2
  echo "$state"
}}
case "$*" in
  "storage cp - "*) cat >{folder}/code ;;
  "storage cp "*) cat {folder}/code ;;
  *queued*describe*) tell queuedResources queue ;;
  *describe*) tell nodes states ;;
  *--command*) {on_host} ;;
esac
"""
ENDS = '[[ $* != *clir_jax.train* ]] || exit "$(next statuses)"'


def _gcloud(folder, *states, queue=(), ssh=(0,), on_host=ENDS):
    """Tells these states one after another, and ends what runs on the TPU with these statuses."""
    for name, values in (("states", states), ("queue", queue), ("statuses", ssh)):
        (folder / name).write_text("".join(f"{value}\n" for value in values))
    refusals = "\n".join(
        f'{state}) echo "ERROR: (gcloud.describe) {text.format("$1")}" >&2; exit 1 ;;'
        for state, text in REFUSALS.items()
    )
    script = GCLOUD.format(folder=folder, refusals=refusals, on_host=on_host)
    stub(folder, "gcloud", script)


def _done(folder):
    """What was done to the TPU, in order."""
    words = ("create", "delete", "clir_jax.train", "uv venv")
    lines = [line.replace("\\", "") for line in calls(folder)]
    lines = [line for line in lines if "describe" not in line and " cp - " not in line]
    return [next(word for word in words if word in line) for line in lines]


TRAINED = ["uv venv", "clir_jax.train"]


def test_a_tpu_is_made_and_trains(programs):
    _gcloud(programs, "ABSENT")
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert _done(programs) == ["create", *TRAINED]
    assert "gcloud compute tpus tpu-vm delete mine --zone us-a --quiet" in done.stdout


def test_a_preempted_tpu_is_made_again_and_one_told_to_stop_goes_on(programs):
    # Preempted while it trains; then told to stop; then done.
    _gcloud(programs, "READY", "PREEMPTED", "PREEMPTED", "READY", ssh=(255, STATUS, 0))
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert _done(programs) == [*TRAINED, "delete", "create", *TRAINED, *TRAINED]


def test_a_run_that_cannot_go_on_is_not_started_again(programs):
    _gcloud(programs, "READY", "READY", ssh=(2, 0))
    assert launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN).returncode == 2
    assert _done(programs) == TRAINED


@pytest.mark.parametrize(
    ("queue", "states", "ssh", "done"),
    [
        # Asked for, and given.
        (["ABSENT", "WAITING_FOR_RESOURCES", "ACTIVE"], ["READY"], [0], ["create", *TRAINED]),
        # An earlier call has asked for it; the TPU is not up at once.
        (["PROVISIONING", "ACTIVE", "ACTIVE"], ["CREATING", "READY"], [0], TRAINED),
        # Taken away before this call, and while it waits.
        (
            ["SUSPENDED", "PROVISIONING", "SUSPENDING", "SUSPENDED", "ACTIVE"],
            ["READY"],
            [0],
            ["delete", "create", "delete", "create", *TRAINED],
        ),
        # Taken away while it trains: the node is gone, and the queue is about to tell so.
        (
            ["ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE"],
            ["READY", "ABSENT", "READY"],
            [255, 0],
            [*TRAINED, "delete", "create", *TRAINED],
        ),
        # The queue does not tell yet.
        (
            ["ACTIVE", "ACTIVE", "ACTIVE"],
            ["READY", "PREEMPTED", "PREEMPTED", "READY"],
            [255, 0],
            [*TRAINED, "delete", "create", *TRAINED],
        ),
    ],
    ids=["new", "waiting", "suspended", "preempted", "at once"],
)
def test_the_queue_is_asked_anew_for_what_it_has_taken_away(queue, states, ssh, done, programs):
    _gcloud(programs, *states, queue=queue, ssh=ssh)
    given = launched(programs, LAUNCH / "tpu.sh", *TPU, "--queued", "--poll", "0", *TRAIN)
    assert given.returncode == 0, given.stderr
    assert _done(programs) == done
    deletions = [line for line in calls(programs) if " delete " in line]
    delete = "gcloud compute tpus queued-resources delete mine --zone us-a --force --quiet"
    assert deletions == [delete] * done.count("delete")
    for name in ("states", "queue", "statuses"):
        assert (programs / name).read_text() == ""


def test_what_the_queue_refuses_is_an_error(programs):
    _gcloud(programs, queue=["PROVISIONING", "FAILED"])
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, "--queued", "--poll", "0", *TRAIN)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "error: the queue has refused mine; gcloud compute tpus queued-resources describe mine "
        "--zone us-a tells why, and delete --force makes room for another\n"
    )
    assert _done(programs) == []


@pytest.mark.parametrize("why", ["DENIED", "NOWHERE"])
@pytest.mark.parametrize("queued", [True, False])
def test_what_gcloud_refuses_to_tell_is_not_taken_for_nothing(why, queued, programs):
    _gcloud(programs, why, queue=[why])
    options = ["--queued", "--poll", "0"] if queued else []
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, *options, *TRAIN)
    assert done.returncode == 1
    told = REFUSALS[why].format("queuedResources" if queued else "nodes")
    assert done.stderr.endswith(f"ERROR: (gcloud.describe) {told}\n")
    assert _done(programs) == []


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v3-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-4", "v2-alpha-tpuv6e"),
        ("v9x-4", None),
    ],
)
def test_the_software_is_that_of_the_type(kind, version, programs):
    options = [*TPU[:4], "--type", kind, *TPU[6:]]
    done = launched(programs, LAUNCH / "tpu.sh", "--dry-run", *options, *TRAIN)
    assert (f"--version {version} " in done.stdout) == (version is not None)
    assert done.returncode == (0 if version else 2)
    assert version or done.stderr == (
        "error: --type v9x-4: it is not known here which TPU software this takes; write --version "
        "too\n"
    )


@pytest.fixture
def host(programs, tmp_path_factory):
    """A host of a TPU, where ``gcloud ssh`` brings this machine's bash; gives its home."""
    home = tmp_path_factory.mktemp("home")
    _gcloud(programs, "READY", "READY", on_host='bash -c "${@: -1}"')
    for name in ("gcsfuse", "mountpoint"):
        stub(programs, name)
    stub(
        programs,
        "uv",
        f"[[ $1 == venv ]] || exit 0\n[[ ! -e {programs}/offline ]] || exit 2\n"
        f"mkdir -p ${{@: -1}}/bin && cp {programs}/python ${{@: -1}}/bin",
    )
    stub(programs, "curl", f"echo 'mkdir -p ~/.local/bin && cp {programs}/uv ~/.local/bin'")
    stub(programs, "python", f"pwd >{programs}/where")
    return home


def test_what_a_host_of_a_tpu_is_told_to_do(host, programs):
    """The commands that the dry run prints, really run where programs stand in for the network."""
    (host / "venv").mkdir()
    (host / "venv/of-another-python").touch()
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN, HOME=str(host))
    assert done.returncode == 0, done.stderr
    assert [line for line in calls(programs) if not line.startswith("gcloud")] == [
        f"mountpoint -q {host}/bucket",
        "curl -fsSL https://astral.sh/uv/install.sh",
        f"uv venv --quiet --python 3.12 {host}/venv",
        rf"uv pip install --quiet --python {host}/venv/bin/python {host}/code\[tpu\] gcsfs",
        "python -m clir_jax.train --coordinator auto --accelerator tpu "
        rf"--run-dir {host}/bucket/runs/mine --config a\ b.py",
    ]
    assert (programs / "where").read_text() == f"{host}/code\n"
    assert (host / "code/clir_jax/train.py").is_file()
    assert not (host / "venv/of-another-python").exists()


def test_a_host_of_a_tpu_without_a_python(host, programs):
    (programs / "offline").touch()
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN, HOME=str(host))
    assert done.returncode == 1
    assert done.stderr == (
        "error: uv has not installed Python 3.12, which clir_jax needs; give the hosts of mine a "
        "way to the internet\n"
    )
    assert not (programs / "where").exists()
