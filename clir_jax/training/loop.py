"""A run, stage by stage: build, resume, train, evaluate, save.

``train`` reads top to bottom as what happens. Killed anywhere and called again, it goes on from the
last checkpoint to the same weights: batches, dropout and schedules are functions of the step.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import grain
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from clir_jax import config_files
from clir_jax.config import FromStage, Run, Stage
from clir_jax.config_files import ConfigError
from clir_jax.data.pipeline import task_dataset
from clir_jax.data.reading import Report
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.evaluation.report import write_report
from clir_jax.mesh import make_mesh, put_rows, row_shards, shardings
from clir_jax.models.formats import LoadedRetriever, save_retriever
from clir_jax.objectives.base import Batch, facts_of
from clir_jax.training import alignments
from clir_jax.training.checkpoint import Checkpoints
from clir_jax.training.evaluation import StageEvaluation
from clir_jax.training.initial import BEST, LAST, initial_retriever, load_teacher, stage_directory
from clir_jax.training.logging import StageLog
from clir_jax.training.optimizer import make_optimizer
from clir_jax.training.step import Chunking, StepTask, TrainState, make_train_step
from clir_jax.training.supported import refuse_unsupported
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
    """
    mesh = make_mesh(run.mesh.data, run.mesh.fsdp, run.mesh.tensor)
    refuse_unsupported(run, row_shards(mesh))
    directory = Path(run_dir)
    _claim(run, directory)
    stages = run.training_stages()
    rows: list[dict[str, Any]] = []
    for number, stage in enumerate(stages, start=1):
        done = stage_directory(run, directory, stage.name) / "summary.json"
        if done.exists():
            rows += json.loads(done.read_text(encoding="utf-8"))
            continue
        title = f"stage {number}/{len(stages)} {stage.name}"
        with jax.set_mesh(mesh):
            own = _StageRun(run, stage, directory, mesh, title, console).train()
        _write(done, _json(own))
        rows += own
    if jax.process_index() == 0:
        last = stage_directory(run, directory, stages[-1].name)
        _copy_directory(last / BEST, directory / "model")
        _write(directory / "summary.json", _json(rows))
        write_report(directory, alignments.read(directory))
    return rows


class _StageRun:
    """One stage of a run: what ``train`` needs is built here, once."""

    def __init__(
        self, run: Run, stage: Stage, run_dir: Path, mesh: Mesh, title: str, console: Console | None
    ) -> None:
        self.run, self.stage, self.run_dir, self.mesh = run, stage, run_dir, mesh
        self.title, self.console = title, console
        self.directory = stage_directory(run, run_dir, stage.name)
        self.student = initial_retriever(run, stage, run_dir)
        named = {name: n for task in stage.tasks for name, n in task.teachers.items()}
        self.teachers = {name: self._teacher(n) for name, n in named.items()}
        self._check_tasks()
        self.reports: dict[str, Report] = {}
        self.datasets = self._open_data()

    def train(self) -> list[dict[str, Any]]:
        """Train to the stage's last step and return its rows of the summary."""
        stage, params = self.stage, self.student.params
        optimizer = make_optimizer(stage.optimizer, stage.steps, params)
        target = self._target(optimizer)
        # From here on the parameters are the state's, whose arrays each step takes over.
        self.student = dataclasses.replace(self.student, params=target.params)
        step = self._compiled(optimizer, target)
        teachers = {name: teacher.params for name, teacher in self.teachers.items()}
        with Checkpoints(self.directory / "checkpoints") as checkpoints:
            start = checkpoints.latest or 0
            if start:
                state, _ = checkpoints.restore(start, target)
            else:
                state = self._begin(optimizer, params, target)
            del params
            with StageLog(self.directory, self.title, stage.steps, start, self.console) as log:
                for what, report in self.reports.items():
                    log.opened(what, report)
                evaluation = StageEvaluation(
                    self.run, stage, self.directory, self.mesh, self.student, self.teachers, log
                )
                # Nothing was trained yet, or it was and the baselines are on file.
                evaluation.baselines(state.params)
                log.begin()
                window: list[Mapping[str, jax.Array]] = []
                for number, batches in self._batches(start):
                    state, metrics = step(state, teachers, batches)
                    window.append(metrics)
                    done = number + 1
                    due = self._due(done)
                    if done % stage.log_every == 0 or any(due):
                        self._log(log, done, window, checkpoints)
                        window = []
                    if any(due):
                        self._check_state(done, state, metrics, checkpoints)
                    selection = evaluation.measure(done, state.params) if due[0] else None
                    if any(due):
                        checkpoints.save(done, state, {}, selection)
            return self._finish(checkpoints, evaluation, state, target)

    def _teacher(self, name: str | FromStage) -> LoadedRetriever:
        loaded = load_teacher(self.run, self.stage, name, self.run_dir)
        places = shardings(loaded.params, self.mesh)
        return dataclasses.replace(loaded, params=jax.device_put(loaded.params, places))

    def _target(self, optimizer: optax.GradientTransformation) -> TrainState:
        """The train state without its arrays: shapes, dtypes and places on the mesh."""

        def begin(params: Any) -> TrainState:
            return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

        abstract = jax.eval_shape(begin, self.student.params)
        target: TrainState = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract,
            shardings(abstract, self.mesh),
        )
        return target

    def _begin(
        self, optimizer: optax.GradientTransformation, params: Any, target: TrainState
    ) -> TrainState:
        """The train state before the first step."""
        places = jax.tree.map(lambda leaf: leaf.sharding, target)
        params = jax.device_put(params, places.params)
        opt = jax.jit(optimizer.init, out_shardings=places.opt)(params)
        return TrainState(params, opt, jax.device_put(jnp.zeros((), jnp.int32), places.step))

    def _compiled(self, optimizer: optax.GradientTransformation, target: TrainState) -> Any:
        """The step, compiled when it is first called, and only then."""
        stage = self.stage
        step = make_train_step(
            self.student.graphdef,
            {name: teacher.graphdef for name, teacher in self.teachers.items()},
            {task.title: StepTask(task.objective, task.weight) for task in stage.tasks},
            optimizer,
            seed=self.run.seed,
            chunking=Chunking(stage.tokens_per_chunk, stage.encode),
        )
        # Pinned: left to itself the compiler returns other shardings than it took, and the second
        # step compiles again.
        places = jax.tree.map(lambda leaf: leaf.sharding, target)
        whole = NamedSharding(self.mesh, P())
        return jax.jit(step, donate_argnums=0, out_shardings=(places, whole))

    def _check_tasks(self) -> None:
        facts = {
            name: facts_of(model.spec, model.encoder_config)
            for name, model in {"student": self.student, **self.teachers}.items()
        }
        for task in self.stage.tasks:
            try:
                task.objective.check(
                    facts["student"], {name: facts[name] for name in task.teachers}
                )
            except ValueError as error:
                where = f"stages.{self.stage.name}.tasks.{task.title}"
                raise ConfigError(f"{where}: {error}") from error

    def _open_data(self) -> dict[str, grain.MapDataset[Batch]]:
        """Each task's batches by step."""
        tokenizers = {
            name: RequestTokenizer(model.tokenizer, model.spec, skiplist=model.skiplist)
            for name, model in {"student": self.student, **self.teachers}.items()
        }
        datasets = {}
        for place, task in enumerate(self.stage.tasks):
            sources = {
                name: source.open(self.run.data_root) for name, source in task.sources.items()
            }
            for name, records in sources.items():
                self.reports[f"{self.stage.name}: {task.title}: {name}"] = records.report
            datasets[task.title] = task_dataset(
                task.objective.student,
                task.objective.teacher,
                sources,
                tokenizers,
                batch_size=task.batch_size,
                seed=self.run.seed + place,
                rank=jax.process_index(),
                world=jax.process_count(),
                passages=task.passages,
                token_labels=task.objective.token_labels,
            ).map(lambda members: Batch(**members))
        return datasets

    def _batches(self, start: int) -> Any:
        """Step numbers and batches on the devices, read ahead by threads."""
        steps = grain.MapDataset.range(start, self.stage.steps).map(
            lambda step: (step, {name: dataset[step] for name, dataset in self.datasets.items()})
        )
        for step, batches in steps.to_iter_dataset(_READ_AHEAD):
            yield step, put_rows(batches, self.mesh)

    def _due(self, done: int) -> tuple[bool, bool]:
        """Whether to evaluate, and whether to save for another reason, after ``done`` steps."""
        evaluate, end = self.stage.evaluate, done == self.stage.steps
        now = evaluate is not None and (end or (evaluate.every > 0 and done % evaluate.every == 0))
        return now, end or done % self.stage.checkpoint_every == 0

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
        checkpoints: Checkpoints,
        evaluation: StageEvaluation,
        state: TrainState,
        target: TrainState,
    ) -> list[dict[str, Any]]:
        """Save the models that are wanted, and measure the best."""
        checkpoints.wait()
        if FromStage(self.stage.name, "last") in self._wanted():
            self._save_model(LAST, state.params)
        best = checkpoints.best
        if best is not None and best != self.stage.steps:
            state, _ = checkpoints.restore(best, target)
        self._save_model(BEST, state.params)
        trained = dataclasses.replace(self.student, params=state.params)
        folder = self.directory / "evaluation"
        alignments.draw(self.run, self.stage, folder, self.mesh, trained, self.teachers)
        return evaluation.rows(best if best is not None else self.stage.steps)

    def _wanted(self) -> list[Any]:
        stages = self.run.training_stages()
        return [
            n for s in stages for n in (s.init, *(t for k in s.tasks for t in k.teachers.values()))
        ]

    def _save_model(self, folder: str, params: Any) -> None:
        model = self.student
        save_retriever(
            self.directory / folder,
            model.spec,
            model.encoder_config,
            params,
            model.tokenizer,
            model.skiplist,
        )


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def _claim(run: Run, directory: Path) -> None:
    """Make the run directory, or refuse one that holds another configuration."""
    file, text = directory / "config.json", config_files.to_json(run)
    if file.exists():
        there = file.read_text(encoding="utf-8")
        if there != text:
            key = config_files.first_difference(json.loads(there), json.loads(text))
            raise ConfigError(
                f"--run-dir {directory}: it holds a run with another {key}; choose another "
                "directory, or give the configuration that it was started with"
            )
        return
    # Of another process, or of a kill before the file was complete.
    ours = {file, _part(file)}
    if directory.is_dir() and not ours.issuperset(directory.iterdir()):
        raise ConfigError(
            f"--run-dir {directory}: it holds files but no config.json, so it is no run; choose "
            "another directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    _write(file, text)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all; the first process does."""
    if jax.process_index() == 0:
        part = _part(path)
        part.write_text(text, encoding="utf-8")
        part.replace(path)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _copy_directory(source: Path, target: Path) -> None:
    part = _part(target)
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
