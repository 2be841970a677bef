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
from tests.launching import TPU, TRAIN, calls, free_port, launched, programs_in, stub, wait_until

LAUNCH = Path(__file__).parents[1] / "launch"
RECIPE = Path(__file__).with_name("processes_recipe.py")
SCRIPTS = {
    "local": ([], ["localhost:29500 --processes 2 --process 0", "--processes 2 --process 1"]),
    "gpu": (
        ["--gpus", "0,1"],
        [r"JAX_PLATFORMS=cuda\,cpu", r"CUDA_VISIBLE_DEVICES=0\,1", "--accelerator gpu"],
    ),
    "slurm": (
        [],
        ["srun --kill-on-bad-exit=1", "--coordinator auto --accelerator gpu", "scontrol requeue"],
    ),
    "tpu": (
        [*TPU, "--queued", "--spot"],
        [
            "gcloud storage cp - gs://ours/code/",
            "gcloud compute tpus queued-resources create mine --node-id mine --zone us-a "
            "--accelerator-type v5litepod-16 --runtime-version v2-alpha-tpuv5-lite --spot",
            "uv venv --quiet --python 3.12",
            "gcloud compute tpus tpu-vm ssh mine --zone us-a --worker=all --command",
            r"--coordinator\ auto\ --accelerator\ tpu",
            "gcloud compute tpus queued-resources delete mine",
        ],
    ),
}


@pytest.fixture
def programs(tmp_path):
    """A folder of programs that only note what they are asked."""
    return programs_in(tmp_path)


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
    train = "srun --kill-on-bad-exit=1 python -m clir_jax.train --coordinator auto"
    again = ["scontrol requeue 77"] if status == STATUS else []
    assert calls(programs) == [rf"{train} --accelerator gpu --config a\ b.py", *again]


def test_slurm_trains_on_cpus_only_where_it_is_told_to(programs):
    done = launched(programs, LAUNCH / "slurm.sh", "--dry-run", "--cpu", *TRAIN, PYTHON="python")
    train = "env JAX_PLATFORMS=cpu python -m clir_jax.train --coordinator auto"
    assert done.stdout.startswith(rf"srun --kill-on-bad-exit=1 {train} --config a\ b.py")


def test_gpu_is_no_slow_run_on_the_cpu(tmp_path):
    train = ["--", "--config", RECIPE, "--run-dir", tmp_path / "run"]
    hidden = {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(LAUNCH.parent),
    }
    done = launched(tmp_path, LAUNCH / "gpu.sh", *train, **hidden)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "error: --accelerator gpu: JAX finds cpu devices only; see that nvidia-smi lists one, that "
        "CUDA_VISIBLE_DEVICES does not hide it, and that this Python has clir_jax[cuda13] "
        "(clir_jax[cuda12] where nvidia-smi shows CUDA Version 12), or train without this option\n"
    )
    assert not (tmp_path / "run").exists()


def test_waiting_ends_with_what_is_waited_for_or_at_last_without():
    with subprocess.Popen(["sleep", "60"]) as sleeping, subprocess.Popen(["true"]) as ended:
        came = iter([False, True])
        assert wait_until(lambda: next(came), [sleeping])
        assert not wait_until(lambda: False, [sleeping], seconds=0.1)
        assert not wait_until(lambda: False, [sleeping, ended])
        sleeping.kill()


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
        wait_until(when, [process])
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
