"""``launch/tpu.sh`` against a gcloud that stands in: what it makes, deletes, and does on a host."""

import shutil
import subprocess
from pathlib import Path

import pytest

from clir_jax.training.preemption import STATUS
from tests.launching import TPU, TRAIN, calls, launched, programs_in, stub

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture
def programs(tmp_path):
    """A folder of programs that only note what they are asked; none really sleeps."""
    stub(tmp_path, "sleep")
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
  [[ -s {folder}/$2 ]] || {{ echo "asked for more $2 than there are" >&2; exit 9; }}
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
ENDS = 'exit "$(next statuses)"'
"""What was told to a host: to install, and then to train."""


def _gcloud(folder, *states, queue=(), ssh=(0, 0), on_host=ENDS):
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
    words = ("create", "delete", "clir_jax.train", "uv venv", "sleep")
    lines = [line.replace("\\", "") for line in calls(folder)]
    lines = [line for line in lines if "describe" not in line and " cp - " not in line]
    return [next(word for word in words if word in line) for line in lines]


TRAINED = ["uv venv", "clir_jax.train"]
MADE = ["create", "sleep"]
ANEW = ["delete", *MADE]


def test_a_tpu_is_made_and_trains(programs):
    _gcloud(programs, "ABSENT", "READY")
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert _done(programs) == [*MADE, *TRAINED]
    assert "gcloud compute tpus tpu-vm delete mine --zone us-a --quiet" in done.stdout


@pytest.mark.parametrize(
    ("states", "ssh", "done"),
    [
        # Preempted while it trains.
        (["READY", *["PREEMPTED"] * 2, "READY"], [0, 255, 0, 0], [*TRAINED, "sleep", *ANEW]),
        # Told to stop.
        (["READY"] * 3, [0, STATUS, 0, 0], [*TRAINED, "sleep"]),
        # The TPU ends the training, cannot be reached any more, and only then tells why.
        (
            [*["READY"] * 5, *["PREEMPTED"] * 2, "READY"],
            [0, STATUS, 255, 255, 0, 0],
            [*TRAINED, "sleep", "uv venv", "sleep", "uv venv", "sleep", *ANEW],
        ),
        # It tells at last, after a pause, why the training has failed.
        (["READY", *["STOPPING"] * 2, "READY"], [0, 1, 0, 0], [*TRAINED, "sleep", "sleep"]),
        # The connection breaks, and comes back.
        (["READY"] * 9, [*[255] * 4, 0, 0], ["uv venv", "sleep"] * 4),
        # That it could not be reached before the preemption does not count after it.
        (
            [*["READY"] * 9, *["PREEMPTED"] * 2, *["READY"] * 9],
            [*[255] * 5, *[255] * 4, 0, 0],
            [*["uv venv", "sleep"] * 5, *ANEW, *["uv venv", "sleep"] * 4],
        ),
    ],
    ids=["preempted", "told to stop", "both", "failing", "unreachable", "unreachable twice"],
)
def test_a_run_goes_on_on_a_tpu_that_stands_or_another(states, ssh, done, programs):
    _gcloud(programs, *states, ssh=ssh)
    given = launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN)
    assert given.returncode == 0, given.stderr
    assert _done(programs) == [*done, *TRAINED]
    assert {line for line in calls(programs) if "sleep" in line} == {"sleep 60"}
    assert [(programs / name).read_text() for name in ("states", "statuses")] == ["", ""]


def test_a_run_that_cannot_go_on_is_not_started_again(programs):
    _gcloud(programs, "READY", "READY", ssh=(0, 2))
    assert launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN).returncode == 2
    assert _done(programs) == [*TRAINED, "sleep"]


def test_a_tpu_that_is_not_reached_is_given_up(programs):
    _gcloud(programs, *["READY"] * 10, ssh=[255] * 5)
    assert launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN).returncode == 255
    assert _done(programs) == ["uv venv", "sleep"] * 5


@pytest.mark.parametrize("queued", [True, False])
@pytest.mark.parametrize(
    ("state", "done"),
    [
        *((state, ANEW) for state in ("PREEMPTED", "TERMINATED", "STOPPED")),
        *((state, ["sleep"]) for state in ("CREATING", "STARTING", "RESTARTING", "REIMAGING")),
        *((state, ["sleep"]) for state in ("REPAIRING", "STOPPING", "DELETING", "UNKNOWN", "")),
    ],
)
def test_a_tpu_is_deleted_only_where_it_does_not_come_back(state, done, queued, programs):
    _gcloud(programs, state, "READY", queue=["ACTIVE"] * 2)
    given = launched(programs, LAUNCH / "tpu.sh", *TPU, *["--queued"] * queued, *TRAIN)
    assert given.returncode == 0, given.stderr
    assert _done(programs) == [*done, *TRAINED]
    assert given.stdout.splitlines()[0] == (f"mine: {state or 'no state'}; asked again every 60 s")


@pytest.mark.parametrize(
    ("queue", "states", "ssh", "done"),
    [
        # Asked for, and given.
        (
            ["ABSENT", "WAITING_FOR_RESOURCES", "ACTIVE"],
            ["READY"],
            [0, 0],
            [*MADE, "sleep", *TRAINED],
        ),
        # An earlier call has asked for it; the TPU is not up at once.
        (
            ["PROVISIONING", "ACTIVE", "ACTIVE"],
            ["CREATING", "READY"],
            [0, 0],
            ["sleep", "sleep", *TRAINED],
        ),
        # Taken away before this call, and while it waits.
        (
            ["SUSPENDED", "PROVISIONING", "SUSPENDING", "SUSPENDED", "ACTIVE"],
            ["READY"],
            [0, 0],
            [*ANEW, "sleep", "sleep", *ANEW, *TRAINED],
        ),
        # Taken away while it trains: the queue is about to tell so.
        (
            ["ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE"],
            ["READY", "READY"],
            [0, 255, 0, 0],
            [*TRAINED, "sleep", *ANEW, *TRAINED],
        ),
        # The queue does not tell yet, and the node is preempted, or gone.
        *(
            (
                ["ACTIVE"] * 4,
                ["READY", state, state, "READY"],
                [0, 255, 0, 0],
                [*TRAINED, "sleep", *ANEW, *TRAINED],
            )
            for state in ("PREEMPTED", "ABSENT")
        ),
    ],
    ids=["new", "waiting", "suspended", "told by the queue", "preempted", "gone"],
)
def test_the_queue_is_asked_anew_for_what_it_has_taken_away(queue, states, ssh, done, programs):
    _gcloud(programs, *states, queue=queue, ssh=ssh)
    given = launched(programs, LAUNCH / "tpu.sh", *TPU, "--queued", *TRAIN)
    assert given.returncode == 0, given.stderr
    assert _done(programs) == done
    deletions = [line for line in calls(programs) if " delete " in line]
    delete = "gcloud compute tpus queued-resources delete mine --zone us-a --force --quiet"
    assert deletions == [delete] * done.count("delete")
    for name in ("states", "queue", "statuses"):
        assert (programs / name).read_text() == ""


def test_what_the_queue_refuses_is_an_error(programs):
    _gcloud(programs, queue=["PROVISIONING", "FAILED"])
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, "--queued", "--poll", "7", *TRAIN)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "error: the queue has refused mine; gcloud compute tpus queued-resources describe mine "
        "--zone us-a tells why, and delete --force makes room for another\n"
    )
    assert calls(programs)[-2] == "sleep 7"
    assert _done(programs) == ["sleep"]


@pytest.mark.parametrize("why", ["DENIED", "NOWHERE"])
@pytest.mark.parametrize("queued", [True, False])
def test_what_gcloud_refuses_to_tell_is_not_taken_for_nothing(why, queued, programs):
    _gcloud(programs, why, queue=[why])
    options = ["--queued"] if queued else []
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


def test_what_still_trains_on_a_host_keeps_its_code(host, programs):
    """As where gcloud has lost the connection: the host is installed again after its end."""
    flock = shutil.which("flock")
    stub(programs, "flock", f'exec {flock} "$@"')
    (host / "code").mkdir()
    (host / "code/old.py").touch()
    # Ends when it is waited for, and tells whether its code was there until then.
    waited = f"grep -qs '^flock {host}/training.lock true' {programs}/calls"
    ends = f"until {waited}; do sleep 0.02; done; ls {host}/code >{programs}/until-its-end"
    trains = ["bash", "-c", f"touch {host}/held; {ends}"]
    earlier = subprocess.Popen([flock, "--no-fork", host / "training.lock", *trains])
    try:
        while not (host / "held").exists():
            assert earlier.poll() is None
        done = launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN, HOME=str(host))
        assert done.returncode == 0, done.stderr
        assert earlier.wait(timeout=10) == 0
    finally:
        earlier.kill()
        earlier.wait()
    assert (programs / "until-its-end").read_text() == "old.py\n"
    assert "an earlier training still runs on this host; waiting for its end\n" in done.stdout
    # And what trains now is waited for in the same way.
    (line,) = [line for line in calls(programs) if line.startswith("flock --no-fork ")]
    assert line.startswith(
        f"flock --no-fork {host}/training.lock {host}/venv/bin/python -m clir_jax"
    )
