"""Seconds a step with the teacher's answers stored, and with the teacher in the step.

    python benchmarks/stored_teacher.py --run-dir RUN --steps 24 --buckets 1

RUN is a run of ``configs/bench/optical.py`` that has come to its last stage. Both forms of the
stage take the same steps in turn, so that what else the machine does falls on both; the first step
of every shape, which compiles, is not counted. Losses are compared as well.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from clir_jax.config import Stage
from clir_jax.config_files import load
from clir_jax.mesh import make_mesh, put_rows
from clir_jax.training.build import build_stage
from clir_jax.training.positions import Itinerary


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--buckets", type=int, help="of the tasks; each shape compiles twice")
    given = parser.parse_args()
    run = load(str(given.run_dir / "config.json"))
    itinerary = Itinerary(run, given.run_dir)
    position = itinerary.positions[-1]
    stage = itinerary.bound(position, position.item)
    assert isinstance(stage, Stage)
    if given.buckets:
        tasks = (dataclasses.replace(task, buckets=given.buckets) for task in stage.tasks)
        stage = dataclasses.replace(stage, tasks=tuple(tasks))
    stored = {name: itinerary.directory(at) for name, (at, _) in itinerary.stored(position).items()}
    mesh = make_mesh()
    seconds: dict[str, list[float]] = {"live": [], "stored": []}
    losses: dict[str, list[float]] = {"live": [], "stored": []}
    with jax.set_mesh(mesh):
        made = {
            form: build_stage(run, stage, mesh, answers)
            for form, answers in {"live": {}, "stored": stored}.items()
        }
        states = {form: begin() for form, (_, begin) in made.items()}
        parts = {form: part for form, (part, _) in made.items()}
        shapes = set()
        for step in range(given.steps):
            for form, part in parts.items():
                batches = {name: data[step] for name, data in part.datasets.items()}
                shape = form, str(jax.tree.map(np.shape, batches))
                placed = put_rows(batches, mesh)
                began = time.perf_counter()
                states[form], metrics = part.step(states[form], placed)
                losses[form].append(float(metrics["loss"]))
                if shape in shapes:
                    seconds[form].append(time.perf_counter() - began)
                shapes.add(shape)
    print(f"{len(seconds['live'])} steps, the mean and the median in milliseconds")
    for form, spent in seconds.items():
        print(f"{form:7} {1e3 * np.mean(spent):8.0f} {1e3 * np.median(spent):8.0f}")
    print(f"live / stored {np.sum(seconds['live']) / np.sum(seconds['stored']):.3f}")
    apart = np.abs(np.subtract(losses["live"], losses["stored"])) / np.abs(losses["live"])
    print(f"losses differ by at most {apart.max():.1e}, relative")


if __name__ == "__main__":
    main()
