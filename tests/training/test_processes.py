"""Two processes are one: the same loss and gradient, rankings and checkpoints, and one outcome."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clir_jax import mesh as module
from clir_jax.mesh import make_mesh, row_share
from clir_jax.processes import join
from clir_jax.training import preemption
from clir_jax.training.checkpoint import Checkpoints
from clir_jax.training.preemption import STATUS, Preemption
from tests.launching import free_port, wait_until
from tests.training import two_processes
from tests.training.workshop import RANKINGS, write_data

ROOT = Path(__file__).parents[2]
TOLD = "stopped by SIGTERM; the same command goes on from there\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes of two devices each have written, and what they read."""
    folder = tmp_path_factory.mktemp("processes")
    write_data(folder)
    with Checkpoints(folder / "of-one") as checkpoints:
        one = make_mesh(devices=jax.devices()[:1])
        checkpoints.save(3, two_processes.state(one, two_processes.KERNEL), {"n": 1}, None)
    command = [sys.executable, "-m", "tests.training.two_processes", free_port()]
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    started = [
        subprocess.Popen(
            [*command, str(index), folder],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        working = wait_until((folder / two_processes.WORKING).exists, started)
        for process in started:
            process.terminate()
        told = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    # Outside of training they end at once, the one that works and the one that waits for it: by the
    # signal itself, for which shells and srun tell 143.
    assert working, "".join(told)
    for process, text in zip(started, told, strict=True):
        assert process.returncode == -signal.SIGTERM, text
    # Of what they agreed on before, after the last step, the first one tells.
    assert [text.count(TOLD) for text in told] == [1, 0]
    return folder


@pytest.fixture(scope="module")
def told(folder):
    """The same, by process."""
    return [dict(np.load(folder / f"{index}.npz")) for index in range(2)]


@pytest.fixture(scope="module")
def one(folder):
    """What one process of one device comes to."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return two_processes.gradient(mesh, folder) | two_processes.search(mesh)


def test_their_shares_together_are_the_data(folder, told, one):
    rows = np.concatenate([told[0]["ids"], told[1]["ids"]], axis=1)
    np.testing.assert_array_equal(rows, one["ids"])
    records = RANKINGS.open(str(folder))
    epoch = sorted(record.query_id for record in (records[n] for n in range(len(records))))
    assert sorted(rows.reshape(-1)[: len(records)].tolist()) == epoch


@pytest.mark.parametrize(("dtype", "share"), [("float64", 1e-10), ("float32", 1e-5)])
def test_loss_and_gradient_are_those_of_one_process(told, one, dtype, share):
    names = [name for name in one if name.startswith(f"{dtype} gradient ")]
    assert len(names) > 10
    assert {one[name].dtype for name in [*names, f"{dtype} loss"]} == {np.dtype(dtype)}

    def norm_of(gradient):
        return np.sqrt(sum((gradient(name).astype(np.float64) ** 2).sum() for name in names))

    norm = norm_of(lambda name: one[name])
    assert norm > 0.01
    for process in told:
        np.testing.assert_allclose(process[f"{dtype} loss"], one[f"{dtype} loss"], rtol=share)
        assert norm_of(lambda name, process=process: process[name] - one[name]) < share * norm


def test_every_process_finds_what_one_finds(told, one):
    for process in told:
        np.testing.assert_array_equal(process["places"], one["places"])
        np.testing.assert_allclose(process["scores"], one["scores"], rtol=1e-5)


def test_checkpoints_of_two_are_read_by_one_and_of_one_by_two(folder, told):
    for process in told:
        np.testing.assert_array_equal(process["restored"], two_processes.KERNEL)
        assert process["about"] == 1
    mesh = make_mesh(fsdp=8)
    with Checkpoints(folder / "of-two") as checkpoints:
        state, about = checkpoints.restore(3, two_processes.state(mesh, None))
    np.testing.assert_array_equal(state.params["kernel"], two_processes.KERNEL + 1)
    assert (about, int(state.step)) == ({"n": 2}, 3)


def test_they_agree_and_the_first_alone_acts(told):
    for process in told:
        assert (bool(process["anywhere"]), bool(process["nowhere"])) == (True, False)
        assert process["written"] == "0"
        # One was told to stop; both know after the same step.
        assert (bool(process["before"]), bool(process["reached"])) == (False, True)
    assert [str(process["failed"]) for process in told] == ["ValueError", "SystemExit 1"]
    # At the end of the steps all leave, if any was told.
    assert [int(process["status"]) for process in told] == [STATUS, STATUS]


@pytest.mark.parametrize("processes", [1, 2])
def test_who_hears_sigterm_when(processes, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(preemption, "anywhere", lambda flag: flag)
    before = signal.getsignal(signal.SIGTERM)
    heard = []
    with Preemption() as stops:
        heard.append(signal.getsignal(signal.SIGTERM))
        with stops.after_steps():
            heard.append(signal.getsignal(signal.SIGTERM))
        heard.append(signal.getsignal(signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) == before
    # Of several, the system ends each outside of training.
    assert [call == signal.SIG_DFL for call in heard] == [processes == 2, False, processes == 2]


ALONE = """
import signal, weakref
from clir_jax.training.preemption import Preemption

class Watched:
    pass

with Preemption():
    watched = Watched()
    # In a callback, of which Python overlooks exceptions.
    kept = weakref.ref(watched, lambda _: signal.raise_signal(signal.SIGTERM))
    del watched
    print("went on")
"""


def test_one_process_ends_at_once_wherever_it_is():
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (STATUS, "", TOLD)


def test_one_that_is_told_to_stop_behind_its_last_step_says_so(capfd):
    with pytest.raises(SystemExit) as stopped, Preemption() as stops, stops.after_steps():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == STATUS
    assert capfd.readouterr() == ("", TOLD)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            (None, 2, 0),
            "--processes and --process go with --coordinator HOST:PORT; write that too, or leave "
            "them out",
        ),
        (
            ("localhost", 2, 0),
            "--coordinator localhost: write HOST:PORT of process 0, as in localhost:29500, or auto",
        ),
        (
            ("localhost:1", 2, 2),
            "--coordinator localhost:1 comes with --processes 2 and --process 2; write how many "
            "there are, and which this is, from 0 to one less",
        ),
        (
            ("auto", None, None),
            "--coordinator auto: neither a TPU VM nor SLURM nor MPI tells here which processes "
            "there are; write --coordinator HOST:PORT --processes N --process I",
        ),
    ],
    ids=lambda given: str(given)[:20],
)
def test_joining_with_a_mistake(given, sentence, monkeypatch):
    def nothing_told(**given):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing_told)
    with pytest.raises(ValueError) as error:
        join(*given)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("variable", "program"), [("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")]
)
def test_tasks_that_would_each_train_alone(variable, program, monkeypatch):
    monkeypatch.setenv(variable, "1")
    join()
    monkeypatch.setenv(variable, "4")
    with pytest.raises(ValueError) as error:
        join()
    assert str(error.value) == (
        f"{program} started 4 tasks of this command, which would each train alone in one "
        "--run-dir; add --coordinator auto, or start one task"
    )


@pytest.mark.parametrize(
    ("owners", "tensor", "shares"),
    [
        ([0, 0, 1, 1], 1, [(0, 2), (1, 2)]),
        ([0, 0, 1, 1], 2, [(0, 2), (1, 2)]),
        ([0, 0, 1, 1], 4, [(0, 1), (0, 1)]),
        ([0, 1, 2, 3], 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([0, 0, 0, 1, 1, 1], 2, None),
    ],
)
def test_the_share_of_each_process(owners, tensor, shares, monkeypatch):
    devices = np.asarray([SimpleNamespace(process_index=owner) for owner in owners], object)
    grid = devices.reshape(-1, 1, tensor)
    mesh = SimpleNamespace(devices=grid, shape={"data": len(grid), "fsdp": 1, "tensor": tensor})
    share = getattr(row_share, "__wrapped__", row_share)  # no Mesh of such devices can be made
    found = []
    for process in sorted(set(owners)):
        monkeypatch.setattr(module.jax, "process_index", lambda process=process: process)
        if shares is None:
            with pytest.raises(ValueError, match="tensor 2 splits the devices of a process"):
                share(mesh)
        else:
            found.append(share(mesh))
    assert shares is None or found == shares


@pytest.mark.slow
def test_a_whole_run_by_two_is_that_of_one(tmp_path):
    """Rounds, works, evaluations: the same rankings are mined, and the same values measured."""
    recipe = f"{Path(__file__).parents[1] / 'processes_recipe.py'}:rounds=2"
    options = ["--config", recipe, "--set", "stages.train.steps=4"]
    two = ["bash", ROOT / "launch/local.sh", "--port", free_port(), "--"]
    for name, devices, command in (
        ("one", 2, [sys.executable, "-m", "clir_jax.train"]),
        ("two", 1, two),
    ):
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
        done = subprocess.run(
            [*command, *options, "--run-dir", tmp_path / name],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (_told(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    # Four stages log, two rounds mine, a teacher answers, and there is a summary.
    assert len(one) == 4 + 2 + 1 + 1
    for name, rows in one.items():
        assert len(rows) == len(two[name]) > 0
        if "artifacts" in name:
            assert rows == two[name], name
            continue
        for row, other in zip(rows, two[name], strict=True):
            assert row == pytest.approx(other, rel=1e-5), name
    first, second = (one[f"artifacts/mined.{n}/records.jsonl"] for n in (1, 2))
    assert first != second


def _told(run_dir):
    """What a run has logged, mined and measured, and how many texts a teacher has answered."""
    files = [*run_dir.rglob("metrics.jsonl"), *run_dir.rglob("records.jsonl")]
    told = {
        str(file.relative_to(run_dir)): [json.loads(line) for line in file.read_text().splitlines()]
        for file in files
    }
    answers = json.loads((run_dir / "artifacts/answers/about.json").read_text())
    told["artifacts/answers"] = [answers["facts"]]
    summary = json.loads((run_dir / "summary.json").read_text())
    told["summary"] = [{f"{row['stage']} {row['metric']}": row["value"]} for row in summary]
    return told
