"""Scripts that start runs: what they would do, what they call, and a run that one really starts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from clir_jax.training.preemption import STATUS
from tests.launching import calls, free_port, launched, stub

LAUNCH = Path(__file__).parents[1] / "launch"
RECIPE = Path(__file__).with_name("processes_recipe.py")
TPU = ["--name", "mine", "--zone", "us-a", "--type", "v5litepod-16", "--bucket", "gs://ours"]
TRAIN = ["--", "--config", "a b.py"]
SCRIPTS = {
    "local": ([], ["localhost:29500 --processes 2 --process 0", "--processes 2 --process 1"]),
    "gpu": (["--gpus", "0,1"], [r"JAX_PLATFORMS=cuda\,cpu", r"CUDA_VISIBLE_DEVICES=0\,1"]),
    "slurm": ([], ["srun --kill-on-bad-exit=1", "--coordinator auto", "scontrol requeue"]),
    "tpu": (
        [*TPU, "--queued", "--spot"],
        [
            "gcloud storage cp - gs://ours/code/",
            "gcloud compute tpus queued-resources create mine --node-id mine --zone us-a "
            "--accelerator-type v5litepod-16",
            "gcloud compute tpus tpu-vm ssh mine --zone us-a --worker=all --command",
            "gcloud compute tpus queued-resources delete mine",
        ],
    ),
}


@pytest.fixture
def programs(tmp_path):
    """A folder of programs that only note what they are asked."""
    for name in ("gcloud", "srun", "scontrol", "python"):
        stub(tmp_path, name)
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_everything_and_does_nothing(script, programs):
    options, wanted = SCRIPTS[script]
    done = launched(programs, LAUNCH / f"{script}.sh", "--dry-run", *options, *TRAIN)
    assert (done.returncode, done.stderr) == (0, "")
    # Quoted twice for a command that another machine's shell reads.
    for part in [*wanted, r"a\ b.py" if script != "tpu" else r"a\\\ b.py"]:
        assert part in done.stdout
    assert calls(programs) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    program = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([program, LAUNCH / f"{script}.sh"], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("local", ["--processes", "0", *TRAIN], "--processes 0: write a whole number above 0"),
        ("gpu", ["--gpus", "all", *TRAIN], "--gpus all: write their numbers, as in 0,1"),
        ("slurm", [*TRAIN], "this is no SLURM job; write sbatch before it, or --dry-run behind it"),
        ("tpu", [*TPU[2:], *TRAIN], "--name is missing"),
        ("tpu", [*TPU, *TRAIN, "--run-dir", "x"], "--run-dir is gs://ours/runs/mine here"),
        ("tpu", [*TPU[:-1], "ours", *TRAIN], "--bucket ours: write gs:// and its name"),
        *((name, [*SCRIPTS[name][0]], "there is nothing to train; write --") for name in SCRIPTS),
    ],
)
def test_a_mistake_is_one_sentence(script, arguments, sentence, programs):
    done = launched(programs, LAUNCH / f"{script}.sh", *arguments, SLURM_JOB_ID="")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert calls(programs) == []


@pytest.mark.parametrize("status", [0, 1, STATUS])
def test_slurm_queues_a_job_again_that_was_told_to_stop(status, programs):
    stub(programs, "srun", f"exit {status}")
    done = launched(programs, LAUNCH / "slurm.sh", *TRAIN, SLURM_JOB_ID="77", PYTHON="python")
    assert done.returncode == status, done.stderr
    train = r"srun --kill-on-bad-exit=1 python -m clir_jax.train --coordinator auto"
    again = ["scontrol requeue 77"] if status == STATUS else []
    assert calls(programs) == [rf"{train} --config a\ b.py", *again]


def _gcloud(folder, *states, ssh=(0,)):
    """Tells these states one after another, and ends what runs on the TPU with these statuses."""
    for name, values in (("states", states), ("statuses", ssh)):
        (folder / name).write_text("".join(f"{value}\n" for value in values))
    take = f"next() {{ head -1 {folder}/$1; sed -i 1d {folder}/$1; }}"
    stub(
        folder,
        "gcloud",
        f'{take}\ncase "$*" in *" cp - "*) cat >/dev/null ;; *queued*describe*) echo WAITING ;;\n'
        '*describe*) state=$(next states); [[ $state != ABSENT ]] || exit 1; echo "$state" ;;\n'
        '*clir_jax.train*) exit "$(next statuses)" ;; esac',
    )


def _done(folder):
    """What was done to the TPU, in order."""
    words = ("create", "delete", "clir_jax.train", "venv ")
    lines = [line for line in calls(folder) if "describe" not in line and " cp - " not in line]
    return [next(word for word in words if word in line) for line in lines]


def test_a_tpu_is_made_and_trains(programs):
    _gcloud(programs, "ABSENT")
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert _done(programs) == ["create", "venv ", "clir_jax.train"]
    assert "gcloud compute tpus tpu-vm delete mine --zone us-a --quiet" in done.stdout


def test_a_preempted_tpu_is_made_again_and_one_told_to_stop_goes_on(programs):
    # Preempted while it trains; then told to stop; then done.
    _gcloud(programs, "READY", "PREEMPTED", "PREEMPTED", "READY", ssh=(255, STATUS, 0))
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN)
    assert done.returncode == 0, done.stderr
    trained = ["venv ", "clir_jax.train"]
    assert _done(programs) == [*trained, "delete", "create", *trained, *trained]


def test_a_run_that_cannot_go_on_is_not_started_again(programs):
    _gcloud(programs, "READY", "READY", ssh=(2, 0))
    assert launched(programs, LAUNCH / "tpu.sh", *TPU, *TRAIN).returncode == 2
    assert _done(programs) == ["venv ", "clir_jax.train"]


def test_a_queued_tpu_is_waited_for(programs):
    _gcloud(programs, "ABSENT", "ABSENT", "READY")
    done = launched(programs, LAUNCH / "tpu.sh", *TPU, "--queued", "--poll", "0", *TRAIN)
    assert done.returncode == 0, done.stderr
    # WAITING: an earlier call has asked for it.
    assert _done(programs) == ["venv ", "clir_jax.train"]


def test_local_ends_all_when_one_fails(programs):
    stub(programs, "python", '[[ $* == *"--process 1"* ]] && exit 3; exec sleep 60')
    began = time.monotonic()
    done = launched(programs, LAUNCH / "local.sh", "--processes", "3", *TRAIN, PYTHON="python")
    assert done.returncode == 3
    assert time.monotonic() - began < 30


def _rows(run_dir):
    file = run_dir / "stages/01-train/metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture
def two(tmp_path):
    """Starts two processes, stops them when something is so, and gives what they have told."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("_count=8", "_count=1"),
    }

    def stopped(train, when):
        command = ["bash", LAUNCH / "local.sh", "--port", free_port(), "--", *train]
        out = tmp_path / "out"
        with out.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        until = time.monotonic() + 300
        while not when() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == STATUS, out.read_text()
        return out.read_text()

    return SimpleNamespace(environment=environment, stopped=stopped)


def test_two_processes_are_told_to_stop_and_one_goes_on(two, tmp_path):
    run_dir = tmp_path / "run"
    train = ["--config", RECIPE, "--run-dir", run_dir]
    told = two.stopped(train, lambda: len(_rows(run_dir)) >= 2)
    told = re.findall(
        r"stage 1/1 train: SIGTERM: step (\d+) is saved, and the same command goes on from there",
        told,
    )
    (step,) = map(int, told)
    assert 2 <= step < 60
    saved = run_dir / "stages/01-train/checkpoints"
    assert [p.name for p in saved.iterdir() if p.name.isdecimal()] == [str(step)]
    assert len(_rows(run_dir)) == step
    command = [sys.executable, "-m", "clir_jax.train", *train]
    done = subprocess.run(command, env=two.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = _rows(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 61))
    first, last = (sum(row["loss"] for row in part) for part in (rows[:10], rows[-10:]))
    assert last < first
    assert (run_dir / "model/model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_end_at_once_in_a_work(two, tmp_path):
    """One mines and the other waits for it."""
    run_dir, told_at = tmp_path / "run", []

    def mining():
        told_at.append(time.monotonic())
        return (run_dir / "artifacts").exists()

    options = ["--config", f"{RECIPE}:rounds=1", "--set", "stages.train.steps=1"]
    text = two.stopped([*options, "--run-dir", run_dir], mining)
    assert time.monotonic() - told_at[-1] < 10
    assert mining()
    assert "stage 1/5 train  1/1" in text
    for fault in ("Traceback", "Exception", "Check failure"):
        assert fault not in text
    assert not (run_dir / "summary.json").exists()
