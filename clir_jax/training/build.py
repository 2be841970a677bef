"""What a stage is made of: models, data, optimizer and the compiled step."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clir_jax.config import Run, Stage, Task
from clir_jax.config_files import naming
from clir_jax.data.answers import Answers
from clir_jax.data.opened import MixedRecords
from clir_jax.data.pipeline import task_dataset
from clir_jax.data.reading import Report
from clir_jax.data.records import Ranking, Records
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.files import read_json
from clir_jax.mesh import row_share, shardings
from clir_jax.models import hub
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.generator_files import FILE, LoadedGenerator, is_generator
from clir_jax.models.requests import Likelihood
from clir_jax.objectives.base import Batch
from clir_jax.training.control import moving_average
from clir_jax.training.initial import initial_model, load_teacher
from clir_jax.training.kinds import LoadedModel, backbone_of, facts, on_mesh, reader_of
from clir_jax.training.optimizer import make_optimizer
from clir_jax.training.step import Chunking, StepTask, TrainState, make_train_step
from clir_jax.training.supported import check_tasks
from clir_jax.training.towers import frozen_teacher, passage_of, routed, split

# By task and teacher: the directory of that teacher's stored answers.
Stored = Mapping[tuple[str, str], Path]


@dataclasses.dataclass(frozen=True, eq=False)
class StageParts:
    """A stage ready to train.

    Args:
      student: the model; its parameters are abstract, because the state holds them. Those of its
        tower for passages, if it has one, are the teacher's.
      teachers: by name, their parameters on the mesh.
      datasets: each task's batches by step.
      reports: what came of opening each source.
      target: the train state without its arrays: shapes, dtypes and places on the mesh.
      step: ``(state, batches) -> (state, metrics)``, compiled once for each shape of the batches.
    """

    student: LoadedModel
    teachers: Mapping[str, LoadedModel]
    datasets: Mapping[str, grain.MapDataset[Batch]]
    reports: Mapping[str, Report]
    target: TrainState
    step: Callable[[TrainState, Mapping[str, Batch]], tuple[TrainState, Mapping[str, jax.Array]]]


def build_stage(
    run: Run, stage: Stage, mesh: Mesh, stored: Stored
) -> tuple[StageParts, Callable[[], TrainState]]:
    """Load and open everything a stage names.

    Args:
      run: seed and data root.
      stage: the stage, bound: it names no other stage and no artifact.
      mesh: the mesh.
      stored: answers that are read instead of asking the teacher.

    Returns:
      The parts, and what makes the train state before the first step. It holds the initial
      parameters: drop it once the stage has a state.

    Raises:
      ConfigError: if a model cannot be loaded, or an objective cannot do with these models.
      DataError: if a source cannot be opened.
    """
    with naming(f"stages.{stage.name}"):
        student = initial_model(run, stage)
        named = {name: str(n) for task in stage.tasks for name, n in task.teachers.items()}
        teachers = {name: on_mesh(load_teacher(stage, n), mesh) for name, n in named.items()}
    answers = {task.title: _answers(task, stored) for task in stage.tasks}
    frozen, towers = frozen_teacher(stage), split(teachers)
    apart = [name for name, model in teachers.items() if passage_of(model) is not None]
    models = {"student": student, **towers}
    described = {n: facts(m.spec, backbone_of(m), _vocabulary(m)) for n, m in models.items()}
    check_tasks(stage, described.pop("student"), described, apart)
    stage = routed(stage, apart)
    datasets, reports, written = _open_data(run, stage, student, towers, answers, mesh)
    student = _taught(stage, student, written)
    asked = {
        name
        for task in stage.tasks
        for own, ask in task.objective.teacher.items()
        if own not in answers[task.title]
        for name in [ask.model]
    }
    with naming(f"stages.{stage.name}"):
        optimizer = make_optimizer(stage.optimizer, stage.steps, student.params)
    target = _target(stage, optimizer, student.params, mesh)
    live = {name: tower for name, tower in towers.items() if name in asked}
    if frozen:
        teacher = teachers[frozen]
        assert isinstance(student, LoadedRetriever)  # as towers.refuse_towers and check_towers saw
        assert isinstance(teacher, LoadedRetriever)
        student = dataclasses.replace(student, passage=teacher.of_passages)
    parts = StageParts(
        dataclasses.replace(student, params=target.params),
        teachers,
        datasets,
        reports,
        target,
        _compiled(run, stage, student.graphdef, live, optimizer, target, mesh),
    )
    return parts, functools.partial(_begin, optimizer, student.params, target)


def _vocabulary(model: LoadedModel) -> str:
    """A print of how a model cuts text into tokens, and of those whose vectors it leaves out."""
    read = reader_of(model)
    skipped = sorted(read.skiplist) if isinstance(read, RequestTokenizer) else []
    content = model.tokenizer.backend.to_str() + repr(skipped)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _answers(task: Task, stored: Stored) -> dict[str, Answers]:
    """The stored answers of a task, by the name of the ask."""
    return {
        name: Answers.open(stored[task.title, ask.model] / name)
        for name, ask in task.objective.teacher.items()
        if (task.title, ask.model) in stored
    }


def _open_data(
    run: Run,
    stage: Stage,
    student: LoadedModel,
    teachers: Mapping[str, LoadedModel],
    answers: Mapping[str, Mapping[str, Answers]],
    mesh: Mesh,
) -> tuple[dict[str, grain.MapDataset[Batch]], dict[str, Report], list[str]]:
    """Batches by task, reports by source, and the languages that a generator learns to write."""
    tokenizers = {
        name: reader_of(model) for name, model in {"student": student, **teachers}.items()
    }
    datasets, reports = {}, {}
    written: list[str] = []
    rank, world = row_share(mesh)
    for place, task in enumerate(stage.tasks):
        sources = {name: source.open(run.data_root) for name, source in task.sources.items()}
        for name, records in sources.items():
            reports[f"{stage.name}: {task.title}: {name}"] = records.report
        for ask in task.objective.student.values():
            if ask.kind is Likelihood:
                name, _, field = ask.texts[2].partition(".language.")
                written += _languages(sources[name], field)
        with naming(f"stages.{stage.name}.tasks.{task.title}"):
            datasets[task.title] = task_dataset(
                task.objective.student,
                task.objective.teacher,
                sources,
                tokenizers,
                batch_size=task.batch_size,
                seed=run.seed + place,
                rank=rank,
                world=world,
                passages=task.passages,
                token_labels=task.objective.token_labels,
                buckets=task.buckets,
                answers=answers[task.title],
            ).map(lambda members: Batch(**members))
    return datasets, reports, list(dict.fromkeys(written))


def _languages(records: Records, field: str) -> Sequence[str]:
    """The languages that a field of records is in: ``"query"``, ``"query.en"``, ``"other"``."""
    if isinstance(records, MixedRecords):
        return [language for part in records.parts for language in _languages(part, field)]
    if field == "english":
        return ["en"]
    if "." in field:
        return [field.partition(".")[2]]
    first = records[0]
    return (first.asked if isinstance(first, Ranking) else ()) or records.languages


def _taught(stage: Stage, student: LoadedModel, written: Sequence[str]) -> LoadedModel:
    """A generator that names no languages, with those that it was and is trained to write in."""
    if not isinstance(student, LoadedGenerator) or student.spec.languages:
        return student
    before: Sequence[str] = ()
    if isinstance(stage.init, str) and is_generator(directory := hub.locate(stage.init)):
        before = read_json(directory / FILE, dict)["generator"].get("languages", ())
        if not before:  # Nobody knows what it can write.
            return student
    languages = tuple(dict.fromkeys([*before, *written]))
    return dataclasses.replace(student, spec=dataclasses.replace(student.spec, languages=languages))


def _target(
    stage: Stage, optimizer: optax.GradientTransformation, params: Any, mesh: Mesh
) -> TrainState:
    def begin(params: Any) -> TrainState:
        return TrainState(
            params,
            optimizer.init(params),
            jnp.zeros((), jnp.int32),
            None if stage.optimizer.ema is None else params,
            None if stage.on_plateau is None else jnp.ones((), jnp.float32),
        )

    abstract = jax.eval_shape(begin, params)
    target: TrainState = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        shardings(abstract, mesh),
    )
    return target


def _begin(optimizer: optax.GradientTransformation, params: Any, target: TrainState) -> TrainState:
    places = jax.tree.map(lambda leaf: leaf.sharding, target)
    params = jax.device_put(params, places.params)
    opt = jax.jit(optimizer.init, out_shardings=places.opt)(params)
    return TrainState(
        params,
        opt,
        jax.device_put(jnp.zeros((), jnp.int32), places.step),
        # A copy: the step takes over the arrays of its state, and no array twice.
        None if target.average is None else jax.tree.map(jnp.copy, params),
        None if target.rate is None else jax.device_put(jnp.ones((), jnp.float32), places.rate),
    )


def _compiled(
    run: Run,
    stage: Stage,
    graphdef: Any,
    teachers: Mapping[str, LoadedModel],
    optimizer: optax.GradientTransformation,
    target: TrainState,
    mesh: Mesh,
) -> Callable[..., Any]:
    ema = stage.optimizer.ema
    step = make_train_step(
        graphdef,
        {name: teacher.graphdef for name, teacher in teachers.items()},
        {task.title: StepTask(task.objective, task.weight) for task in stage.tasks},
        optimizer,
        seed=run.seed,
        chunking=Chunking(stage.tokens_per_chunk, stage.encode),
        average=None if ema is None else moving_average(ema, stage.optimizer.accumulate),
    )
    # Pinned: left to itself the compiler returns other shardings than it took, and the second step
    # compiles again.
    places = jax.tree.map(lambda leaf: leaf.sharding, target)
    whole = NamedSharding(mesh, P())
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(places, whole))
    params = {name: teacher.params for name, teacher in teachers.items()}
    return lambda state, batches: compiled(state, params, batches)
