"""A stage with stored answers is the stage with the teacher in its step, to float16's rounding."""

import io
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from clir_jax import config_files
from clir_jax.config import EncodeTeacher
from clir_jax.models.requests import Embeddings
from clir_jax.training import step
from clir_jax.training.loop import train

RECIPE = str(Path(__file__).with_name("tiny_recipe.py"))
KEYS = ("stages.teacher", "stages.distil")


def _run(stored):
    changes = [f"{key}.{value}" for key in KEYS for value in ("steps=4", "evaluate=None")]
    run = config_files.set_values(config_files.load(RECIPE), changes)
    teacher, distil = run.stages
    works = (EncodeTeacher("answers", "distil", "TokenAlignmentDistillation"),) if stored else ()
    return config_files.set_values(
        type(run)("r", (teacher, *works, distil)),
        ["stages.distil.tasks.TokenAlignmentDistillation.buckets=3"],
    )


def _losses(run, directory):
    train(run, directory, Console(file=io.StringIO()))
    (file,) = directory.glob("stages/*-distil/metrics.jsonl")
    return np.array([json.loads(line)["loss"] for line in file.read_text().splitlines()])


def test_losses_are_those_of_the_teacher_in_the_step_rounded_to_float16(tmp_path, monkeypatch):
    asked, answered = [], step.answer

    def rounded(graphdef, params, requests, key, chunking, layers):
        told = answered(graphdef, params, requests, key, chunking, layers)
        asked.append("student" if key is not None else "teacher")
        if key is not None:
            return told
        return {
            name: Embeddings(one.vectors.astype(jnp.float16).astype(jnp.float32), one.mask)
            for name, one in told.items()
        }

    monkeypatch.setattr(step, "answer", rounded)
    stored = _losses(_run(True), tmp_path / "stored")
    assert set(asked) == {"student"}
    assert (tmp_path / "stored/artifacts/answers/english").is_dir()
    np.testing.assert_allclose(stored, _losses(_run(False), tmp_path / "live"), rtol=3e-6)
    assert "teacher" in asked
