"""A run from its first stage to its report: build, resume, train, evaluate, save.

``train`` reads top to bottom as what happens. Killed anywhere and called again, it goes on from the
last checkpoint to the same weights: batches, dropout and schedules are functions of the step, and
what evaluations have decided is in the checkpoint. Of several processes, all train and evaluate;
the first one carries out works and writes files.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from clir_jax.config import FromStage, Run, Stage
from clir_jax.config_types import walk
from clir_jax.evaluation.report import write_report
from clir_jax.files import copy_directory, read_json, write_json
from clir_jax.mesh import make_mesh, put_rows, row_shards
from clir_jax.objectives.base import Batch
from clir_jax.processes import anywhere, by_first
from clir_jax.training import alignments
from clir_jax.training.build import StageParts, Stored, build_stage
from clir_jax.training.checkpoint import Checkpoints
from clir_jax.training.claim import claim
from clir_jax.training.control import Control
from clir_jax.training.evaluation import StageEvaluation
from clir_jax.training.kinds import kind_of
from clir_jax.training.logging import StageLog
from clir_jax.training.positions import BEST, LAST, Itinerary, Position
from clir_jax.training.preemption import STATUS, Preemption
from clir_jax.training.step import TrainState
from clir_jax.training.supported import refuse_unsupported
from clir_jax.training.workplaces import Works
from clir_jax.tree import paths

_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


class TrainingError(RuntimeError):
    """Training cannot go on; its text is one sentence for a person."""


def train(run: Run, run_dir: str | Path, console: Console | None = None) -> list[dict[str, Any]]:
    """Carry out a run, or what is left of it.

    Args:
      run: what to do.
      run_dir: where everything goes; an earlier attempt with the same configuration is continued.
      console: where people read; None is standard output.

    Returns:
      The rows of ``summary.json``.

    Raises:
      ConfigError: if the directory holds another configuration, or the configuration does not fit
        the devices.
      TrainingError: if a loss is not finite.
      FileNotFoundError: if the model of a stage that has come to its end was removed.
      SystemExit: at SIGTERM, with ``preemption.STATUS``; what was trained is saved.
    """
    mesh = make_mesh(run.mesh.data, run.mesh.fsdp, run.mesh.tensor)
    refuse_unsupported(run, row_shards(mesh))
    console = console or Console(highlight=False, soft_wrap=True)
    console.quiet = jax.process_index() != 0
    itinerary = Itinerary(run, Path(run_dir))
    changed = claim(itinerary)
    if changed is not None:
        console.print(f"{changed} has changed since the last attempt", markup=False)
    own = mesh if jax.process_count() == 1 else make_mesh(devices=jax.local_devices())
    works = Works(itinerary, own, console)
    rows: list[dict[str, Any]] = []
    last: Path | None = None
    with Preemption() as preemption:
        for number, position in enumerate(itinerary.positions, start=1):
            title = f"stage {number}/{len(itinerary.positions)} {position.label}"
            if not isinstance(position.item, Stage):
                works.carry_out(position, title)
                continue
            with jax.set_mesh(mesh):
                rows += _carry_out(itinerary, position, works, mesh, title, console, preemption)
            last = itinerary.directory(position)
        if last is not None:
            model = last / BEST
            by_first(lambda: _publish(itinerary.run_dir, model, rows))
    return rows


def _publish(run_dir: Path, model: Path, rows: list[dict[str, Any]]) -> None:
    """Write what a finished run is looked at for."""
    if not model.is_dir():
        raise FileNotFoundError(
            f"{model}: the model of this finished stage is missing; restore it, or remove "
            f"{model.parent}/summary.json, and the stage is finished again from its last checkpoint"
        )
    copy_directory(model, run_dir / "model")
    write_json(run_dir / "summary.json", rows)
    write_report(run_dir, alignments.read(run_dir))


def _carry_out(
    itinerary: Itinerary,
    position: Position,
    works: Works,
    mesh: Mesh,
    title: str,
    console: Console,
    preemption: Preemption,
) -> list[dict[str, Any]]:
    """Train a stage, or read what it measured when it was trained."""
    done = itinerary.directory(position) / "summary.json"
    if anywhere(done.exists()):
        again = f"remove {done}, and the stage is finished again from its last checkpoint"
        rows: list[dict[str, Any]] = read_json(done, list, again)
        return rows
    works.check_unchanged(position)
    run = dataclasses.replace(itinerary.run, seed=itinerary.seed(position))
    stage = itinerary.bound(position, position.item)
    stored = {name: itinerary.directory(at) for name, (at, _) in itinerary.stored(position).items()}
    rows = _StageRun(
        run, stage, position.label, itinerary.directory(position), mesh, title, console, preemption
    ).train(stored, _keeps_last(itinerary.run, stage.name))
    if jax.process_index() == 0:
        write_json(done, rows)
    return rows


def _keeps_last(run: Run, name: str) -> bool:
    """Whether something asks for the last parameters of a stage, and not the best."""
    return any(node == FromStage(name, "last") for node in walk(run))


class _StageRun:
    """The training of one stage."""

    def __init__(
        self,
        run: Run,
        stage: Stage,
        label: str,
        directory: Path,
        mesh: Mesh,
        title: str,
        console: Console,
        preemption: Preemption,
    ) -> None:
        self.preemption = preemption
        self.run, self.stage, self.label, self.directory = run, stage, label, directory
        self.mesh, self.title, self.console = mesh, title, console

    def train(self, stored: Stored, keep_last: bool) -> list[dict[str, Any]]:
        """Train to the stage's end and return its rows of the summary."""
        stage = self.stage
        # Here, because what a caller's frame holds, ``del`` does not free.
        parts, begin = build_stage(self.run, stage, self.mesh, stored)
        with Checkpoints(self.directory / "checkpoints") as checkpoints:
            start, control = checkpoints.latest or 0, Control()
            if start:
                state, about = checkpoints.restore(start, parts.target)
                control = Control.from_json(about, f"{checkpoints.directory}/{start}")
            else:
                state = begin()
            del begin  # and with it the initial parameters
            with StageLog(self.directory, self.title, stage.steps, start, self.console) as log:
                for what, report in parts.reports.items():
                    log.opened(what, report)
                evaluation = StageEvaluation(
                    self.run, stage, self.label, self.directory, self.mesh, parts, log
                )
                if not start:
                    evaluation.baselines(state.result)
                log.begin()
                window: list[Mapping[str, jax.Array]] = []
                done, clock = start, _Clock(stage)
                with self.preemption.after_steps():
                    for number, batches in self._batches(parts, start):
                        if control.stopped:
                            break
                        state, metrics = parts.step(state, batches)
                        window.append(metrics)
                        done = number + 1
                        evaluating, saving, stopping = self._due(done, clock)
                        if done % stage.log_every == 0 or evaluating or saving:
                            self._log(log, done, window, checkpoints)
                            window = []
                        if not (evaluating or saving):
                            continue
                        self._check_state(done, state, metrics, checkpoints)
                        selection = None
                        if evaluating:
                            selection = evaluation.measure(done, state.result)
                            state, control = self._decide(done, state, control, selection, log)
                            clock.restart()
                        checkpoints.save(done, state, control.to_json(), selection)
                        if stopping:
                            self._leave(done, checkpoints, log)
                    checkpoints.wait()  # while SIGTERM is still waited for
            return self._finish(parts, checkpoints, evaluation, state, done, keep_last)

    def _batches(self, parts: StageParts, start: int) -> Iterator[tuple[int, dict[str, Batch]]]:
        """Step numbers and batches on the devices, read ahead by threads."""
        datasets = parts.datasets
        steps = grain.MapDataset.range(start, self.stage.steps).map(
            lambda step: (step, {name: dataset[step] for name, dataset in datasets.items()})
        )
        for step, batches in steps.to_iter_dataset(_READ_AHEAD):
            yield step, put_rows(batches, self.mesh)

    def _due(self, done: int, clock: "_Clock") -> tuple[bool, bool, bool]:
        """After ``done`` steps: whether to evaluate, to save for another reason, and to stop."""
        stage, evaluate = self.stage, self.stage.evaluate
        end = done == stage.steps
        saving = end or done % stage.checkpoint_every == 0
        # Several processes ask one another where they wait for the devices anyway.
        asking = jax.process_count() == 1 or saving or done % stage.log_every == 0
        now = evaluate is not None and (
            end
            or (evaluate.every > 0 and done % evaluate.every == 0)
            or (asking and evaluate.every_seconds is not None and anywhere(clock.rings()))
        )
        stopping = (asking or now) and self.preemption.reached()
        return now, saving or stopping, stopping

    def _leave(self, done: int, checkpoints: Checkpoints, log: StageLog) -> NoReturn:
        checkpoints.wait()
        told = f"SIGTERM: step {done} is saved, and the same command goes on from there"
        by_first(lambda: log.say(f"{self.title}: {told}"))
        raise SystemExit(STATUS)

    def _decide(
        self, done: int, state: TrainState, before: Control, selection: float, log: StageLog
    ) -> tuple[TrainState, Control]:
        """What an evaluation changes: the rate on a plateau, and whether to go on."""
        stage = self.stage
        control = before.after(selection, stage.stop, stage.on_plateau)
        if control.rate != before.rate:
            assert state.rate is not None  # The stage has on_plateau.
            rate = jax.device_put(jnp.float32(control.rate), state.rate.sharding)
            state = dataclasses.replace(state, rate=rate)
            log.say(f"{self.label}: the learning rate is x {control.rate:g} after step {done}")
        if control.stopped and done < stage.steps:
            log.say(
                f"{self.label}: stopped after step {done} of {stage.steps}: {control.stale} "
                f"evaluations were no better than {control.best:.4f}"
            )
        return state, control

    def _log(
        self,
        log: StageLog,
        done: int,
        window: list[Mapping[str, jax.Array]],
        checkpoints: Checkpoints,
    ) -> None:
        """Write the window's means; stop if a step of it went wrong."""
        rows = jax.device_get(window)
        for offset, row in enumerate(rows, start=done - len(rows) + 1):
            if not all(math.isfinite(value) for value in (row["loss"], row["grad_norm"])):
                self._stop(f"the loss of step {offset} or its gradient", row, checkpoints)
        count = len(rows)
        log.scalars(done, {name: sum(float(row[name]) for row in rows) / count for name in rows[0]})

    def _check_state(
        self,
        done: int,
        state: TrainState,
        metrics: Mapping[str, jax.Array],
        checkpoints: Checkpoints,
    ) -> None:
        """Stop before a state that is not finite is measured or saved.

        Finite gradients may still have made it so: the last update is in no loss yet.
        """
        finite = paths(jax.device_get(_finite(state)))
        for path, good in finite.items():
            if not good:
                self._stop(f"after step {done}, {path}", jax.device_get(metrics), checkpoints)

    def _stop(self, what: str, row: Mapping[str, Any], checkpoints: Checkpoints) -> NoReturn:
        checkpoints.wait()
        parts = ", ".join(
            f"{name} {float(value):.4g}"
            for name, value in row.items()
            if name in ("loss", "grad_norm") or name.endswith("/loss") or not math.isfinite(value)
        )
        good = "no checkpoint was saved before it"
        if checkpoints.latest is not None:
            good = f"the last good checkpoint is {checkpoints.directory}/{checkpoints.latest}"
        raise TrainingError(
            f"{self.title}: {what} is not finite ({parts}); {good}; start another --run-dir with a "
            "lower learning rate or a clip_norm, or look at the data of that step"
        )

    def _finish(
        self,
        parts: StageParts,
        checkpoints: Checkpoints,
        evaluation: StageEvaluation,
        state: TrainState,
        done: int,
        keep_last: bool,
    ) -> list[dict[str, Any]]:
        """Save the models that are wanted, and measure the best."""
        if keep_last:
            self._save_model(LAST, parts, state)
        best = checkpoints.best
        if best is not None and best != done:
            state, _ = checkpoints.restore(best, parts.target)
        self._save_model(BEST, parts, state)
        trained = dataclasses.replace(parts.student, params=state.result)
        folder = self.directory / "evaluation"
        alignments.draw(
            self.run, self.stage, self.label, folder, self.mesh, trained, parts.teachers
        )
        return evaluation.rows(best if best is not None else done)

    def _save_model(self, folder: str, parts: StageParts, state: TrainState) -> None:
        trained = dataclasses.replace(parts.student, params=state.result)
        kind_of(trained.spec).save(self.directory / folder, trained)


class _Clock:
    """Rings when it is time for an evaluation that goes by seconds."""

    def __init__(self, stage: Stage) -> None:
        self._seconds = None if stage.evaluate is None else stage.evaluate.every_seconds
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._began = time.monotonic()

    def rings(self) -> bool:
        """Whether the time has passed."""
        return self._seconds is not None and time.monotonic() - self._began >= self._seconds


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)
