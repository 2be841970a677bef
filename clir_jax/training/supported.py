"""What a run may ask of this version, refused in one sentence before any work begins."""

import jax

from clir_jax.config import FromStage, Generate, Run, Stage
from clir_jax.config_files import ConfigError

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
    if jax.process_count() > 1:
        raise ConfigError(
            f"this run has {jax.process_count()} processes, and this version evaluates on one; "
            "start one process with all devices of the host"
        )
    for step in run.flat():
        if isinstance(step, Generate):
            raise ConfigError(
                f"stages.{step.name} is Generate, and this version has no query generators; write "
                "questions of another origin to a file, and read it with RankingJSONL"
            )
    for stage in run.training_stages():
        where = f"stages.{stage.name}"
        if stage.passage_encoder == "teacher":
            raise ConfigError(
                f"{where}.passage_encoder is 'teacher', which this version does not carry out yet; "
                "set it to 'student'"
            )
        _refuse_teachers(stage, where)
        for task in stage.tasks:
            if task.batch_size % shards:
                more = -(-task.batch_size // shards) * shards
                raise ConfigError(
                    f"{where}.tasks.{task.title}.batch_size is {task.batch_size}, which the mesh's "
                    f"{shards} row shards (data x fsdp) do not divide; set it to {more}"
                )


def _refuse_teachers(stage: Stage, where: str) -> None:
    # One name is one model: rows of the summary and tokenizers go by it.
    named: dict[str, tuple[str, str | FromStage]] = {}
    for task in stage.tasks:
        for name, model in task.teachers.items():
            if name in _RESERVED:
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
