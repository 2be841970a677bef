"""What a run may ask of this version, refused in one sentence before any work begins."""

from collections.abc import Mapping, Sequence

import jax

from clir_jax.config import FromStage, Generate, Mine, Run, Stage, Task
from clir_jax.config_files import ConfigError, naming
from clir_jax.objectives.base import Ask, ModelFacts
from clir_jax.training.kinds import GENERATOR, KINDS, RETRIEVER, Kind, kind_of
from clir_jax.training.towers import check_towers, passage_tower, refuse_towers, routed

# Rows of the summary and tokenizers go by these names, besides those of teachers.
_RESERVED = ("student", "student_before", "bm25")


def refuse_unsupported(run: Run, shards: int) -> None:
    """Refuse what would fail, or be ignored in silence, after hours of work.

    Args:
      run: the configuration.
      shards: parts into which the mesh splits a batch.

    Raises:
      ConfigError: naming the key and what to write instead.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ConfigError(
            f"the devices are those of {jax.process_count()} processes, which have not joined; "
            "start all of them with --coordinator auto"
        )
    for step in run.flat():
        if isinstance(step, Mine):
            _refuse_kinds(run, step, {"model": RETRIEVER})
        if isinstance(step, Generate):
            _refuse_kinds(run, step, {"model": GENERATOR, "round_trip": RETRIEVER})
    for stage in run.training_stages():
        where = f"stages.{stage.name}"
        refuse_towers(run, stage)
        _refuse_teachers(stage, where)
        for task in stage.tasks:
            if task.batch_size % shards:
                more = -(-task.batch_size // shards) * shards
                raise ConfigError(
                    f"{where}.tasks.{task.title}.batch_size is {task.batch_size}, which the mesh's "
                    f"{shards} row shards (data x fsdp) do not divide; set it to {more}"
                )


def check_tasks(
    stage: Stage,
    student: ModelFacts,
    teachers: Mapping[str, ModelFacts],
    apart: Sequence[str] = (),
) -> None:
    """Refuse models that cannot do what the tasks of a stage ask of them.

    Args:
      stage: the stage.
      student: what the model in training is.
      teachers: what each teacher is, and each tower for passages.
      apart: the names of the teachers that have one.

    Raises:
      ConfigError: naming the task and what to set instead.
    """
    check_towers(stage, student, teachers)
    for task, asking in zip(stage.tasks, routed(stage, apart).tasks, strict=True):
        own = {name: teachers[name] for name in (*task.teachers, *asking.teachers)}
        _check_task(stage, asking, student, own)


def _check_task(
    stage: Stage, task: Task, student: ModelFacts, teachers: Mapping[str, ModelFacts]
) -> None:
    objective = task.objective
    asks = [(ask, "the model in training", student) for ask in objective.student.values()]
    asks += [
        (ask, f"teacher {ask.model!r}", teachers[ask.model]) for ask in objective.teacher.values()
    ]
    with naming(f"stages.{stage.name}.tasks.{task.title}"):
        for ask, who, facts in asks:
            _refuse_kind(ask, who, facts)
        objective.check(student, teachers)
        for ask, _, facts in asks:
            longest = facts.max_length
            if ask.length is not None and longest is not None and ask.length > longest:
                raise ValueError(
                    f"its objective asks for texts of {ask.length} tokens, and the encoder has "
                    f"positions for {longest}; set its length to at most that"
                )


def _refuse_kind(ask: Ask, who: str, facts: ModelFacts) -> None:
    if ask.kind not in facts.answers:
        (wanted,) = (kind.name for kind in KINDS if ask.kind in kind.answers)
        raise ValueError(
            f"its objective asks {who} for {ask.kind.__name__}, which a {wanted} answers, and it "
            f"is a {facts.kind}; give a {wanted}, or an objective that asks a {facts.kind}"
        )


def _refuse_kinds(run: Run, work: Mine | Generate, wanted: Mapping[str, Kind]) -> None:
    kinds = {stage.name: kind_of(stage.model) for stage in run.training_stages()}
    for name, kind in wanted.items():
        model = getattr(work, name)
        if isinstance(model, FromStage) and kinds[model.stage] is not kind:
            lacks = "gives texts no vectors to search" if kind is RETRIEVER else "writes no text"
            raise ConfigError(
                f"stages.{work.name}.{name} is the {kinds[model.stage].name} of stage "
                f"{model.stage!r}, which {lacks}; name a {kind.name}"
            )


def _refuse_teachers(stage: Stage, where: str) -> None:
    # One name is one model: rows of the summary and tokenizers go by it.
    named: dict[str, tuple[str, str | FromStage]] = {}
    for task in stage.tasks:
        for name, model in task.teachers.items():
            if name in _RESERVED or name.endswith(passage_tower("")):
                raise ConfigError(
                    f"{where}.tasks.{task.title}.teachers: {name!r} is taken by what every stage "
                    "measures; let the objective ask a teacher of another name"
                )
            first, known = named.setdefault(name, (task.title, model))
            if known != model:
                raise ConfigError(
                    f"{where}: its tasks {first} and {task.title} both have a teacher {name!r}, "
                    f"and they are {known!r} and {model!r}; let the objective of one ask a teacher "
                    "of another name"
                )
