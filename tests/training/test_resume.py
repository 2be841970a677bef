"""Kill -9 and the same command end where an undisturbed run ends, to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = Path(__file__).with_name("tiny_recipe.py")
ROUNDS = Path(__file__).with_name("rounds_recipe.py")
TEACHER, DISTIL = "stages/01-teacher", "stages/02-distil"


def _start(run_dir, cache, recipe=RECIPE):
    """The command itself, on one device. JAX's compilation cache only saves the tests' time."""
    one_device = os.environ["XLA_FLAGS"].replace("_count=8", "_count=1")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": one_device,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, "-m", "clir_jax.train", "--config", recipe, "--run-dir", run_dir]
    with (run_dir.parent / f"{run_dir.name}.out").open("ab") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)


def _finish(run_dir, cache, recipe=RECIPE):
    process = _start(run_dir, cache, recipe)
    told = process.wait(timeout=300), (run_dir.parent / f"{run_dir.name}.out").read_text()
    assert told[0] == 0, told[1]


def _kill_when(seen, run_dir, cache, recipe=RECIPE):
    """Start, and SIGKILL as soon as ``seen()``; it must not have come to its end before."""
    process = _start(run_dir, cache, recipe)
    until = time.monotonic() + 300
    while not seen() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    out = (run_dir.parent / f"{run_dir.name}.out").read_text()
    assert process.wait() == -signal.SIGKILL, out


def _logged(stage, step):
    """Whether a stage has logged ``step`` (whole lines only)."""
    file = stage / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return any(line.endswith("\n") and json.loads(line)["step"] >= step for line in lines)


def _complete(stage, step):
    return (stage / "checkpoints" / str(step)).is_dir()


def _saving(stage, step):
    """Whether a checkpoint is being written, and not complete."""
    folder = stage / "checkpoints"
    return folder.is_dir() and any(p.name.startswith(f"{step}.") for p in folder.iterdir())


def _attempts(stage):
    """Every attempt that came to train the stage left one event file."""
    return len(list((stage / "tensorboard").iterdir()))


def _compare(disturbed, undisturbed):
    """Every file that people or libraries read is equal, byte by byte."""
    names = [
        "summary.json",
        "config.json",
        "model/model.safetensors",
        "model/1_Dense/model.safetensors",
        "model/tokenizer.json",
        f"{TEACHER}/last/model.safetensors",
    ]
    for stage in (TEACHER, DISTIL):
        names += [f"{stage}/metrics.jsonl", f"{stage}/summary.json"]
        names += [f"{stage}/model/model.safetensors"]
        evaluations = sorted(p.name for p in (undisturbed / stage / "evaluation").iterdir())
        assert evaluations == sorted(p.name for p in (disturbed / stage / "evaluation").iterdir())
        names += [f"{stage}/evaluation/{name}" for name in evaluations]
    assert len(names) > 20
    for name in names:
        assert (disturbed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    for stage in (TEACHER, DISTIL):
        rows = (disturbed / stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [2, 3, 4, 6, 6, 8, 9, 10, 12, 12]
    assert not _left_over(disturbed)


def _left_over(run_dir):
    """What a kill left half written, and the next attempt should have removed."""
    left = [p for p in run_dir.rglob("*") if p.name.endswith((".part", ".tmp", ".old"))]
    return left + [p for p in run_dir.rglob("*tmp*") if p.is_dir()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run and the compilation cache."""
    folder = tmp_path_factory.mktemp("undisturbed")
    _finish(folder / "run", folder / "cache")
    return folder / "run", folder / "cache"


@pytest.mark.slow
def test_killed_at_every_delicate_moment_ends_bitwise_equal(undisturbed, tmp_path):
    reference, cache = undisturbed
    run_dir = tmp_path / "run"
    teacher, distil = run_dir / TEACHER, run_dir / DISTIL
    moments = {
        "the configuration is written": lambda: (run_dir / "config.json").exists(),
        "nothing is saved yet": lambda: _logged(teacher, 2),
        "the first checkpoint is being written": lambda: _saving(teacher, 3),
        "a checkpoint with a metric is being written": lambda: _saving(teacher, 6),
        "the last step is logged": lambda: _logged(teacher, 12),
        "the last checkpoint is complete": lambda: _complete(teacher, 12),
        "a model is being saved": lambda: any(teacher.glob(".*.tmp")),
        "a stage is done": lambda: (teacher / "summary.json").exists(),
        "baselines are measured": lambda: (distil / "metrics.jsonl").exists(),
        "in the middle of the second stage": lambda: _logged(distil, 8),
        "the second stage is done": lambda: (distil / "summary.json").exists(),
    }
    for seen in moments.values():
        _kill_when(seen, run_dir, cache)
    _finish(run_dir, cache)
    _compare(run_dir, reference)


def _begun_and_not_done(artifact, file):
    """Whether a work has written a part of its artifact."""
    about = artifact / "about.json"
    try:
        begun = any(p.stat().st_size for p in artifact.rglob(file))
    except FileNotFoundError:  # moved or removed meanwhile
        return False
    return begun and about.exists() and "content" not in json.loads(about.read_text())


def _same_files(disturbed, undisturbed):
    """Every file but the logs of attempts is equal, byte by byte."""

    def files(run_dir):
        found = {str(p.relative_to(run_dir)): p for p in run_dir.rglob("*") if p.is_file()}
        told = ("/checkpoints/", "/tensorboard/")
        return {n: p for n, p in found.items() if not any(part in n for part in told)}

    one, other = files(disturbed), files(undisturbed)
    assert one.keys() == other.keys()
    # The report and the stages' inputs among them; absolute paths are nowhere.
    assert len(one) > 60
    for name, path in one.items():
        if name != "report.html":
            assert path.read_bytes() == other[name].read_bytes(), name


@pytest.mark.parametrize(
    "kills",
    [
        ("in training", "in EncodeTeacher"),
        pytest.param(
            ("in mining", "in training", "in EncodeTeacher", "in the student"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=len,
)
def test_killed_in_rounds_of_work_and_training_a_run_ends_bitwise_equal(kills, tmp_path):
    cache, reference, run_dir = tmp_path / "cache", tmp_path / "undisturbed", tmp_path / "run"
    _finish(reference, cache, ROUNDS)
    stages, artifacts = reference / "stages", reference / "artifacts"
    # What is tested is there: data that depend on the model, a lower rate, a stage that stopped.
    first, second = (artifacts / f"mined.{n}/records.jsonl" for n in (1, 2))
    assert first.read_bytes() != second.read_bytes()
    told = (tmp_path / "undisturbed.out").read_text()
    assert "ranker.2: the learning rate is x 1e-06 after step" in told
    assert "ranker.2: stopped after step" in told
    last = max(int(p.name) for p in (stages / "03-ranker.2/checkpoints").iterdir())
    assert 4 < last < 24
    assert (stages / "03-ranker.2/last/model.safetensors").is_file()
    ranker, mined = run_dir / "stages/03-ranker.2", run_dir / "artifacts/mined.2"
    answers, distil = run_dir / "artifacts/answers", run_dir / "stages/05-distil"
    moments = {
        "in mining": lambda: _begun_and_not_done(mined, "records.jsonl"),
        "in training": lambda: _logged(ranker, last - 2),
        "in EncodeTeacher": lambda: _begun_and_not_done(answers, "*"),
        "in the student": lambda: _complete(distil, 2) and _logged(distil, 4),
    }
    for kill in kills:
        _kill_when(moments[kill], run_dir, cache, ROUNDS)
    _finish(run_dir, cache, ROUNDS)
    _same_files(run_dir, reference)
    assert not _left_over(run_dir)
    attempts = {stage.name: _attempts(stage) for stage in (run_dir / "stages").iterdir()}
    once = {"01-warm": 1, "03-ranker.1": 1}  # what has come to its end is not begun again
    assert attempts == once | {"03-ranker.2": 2, "05-distil": 1 + ("in the student" in kills)}
