"""Two towers: who answers what, where queries and passages have encoders of their own.

A stage with ``passage_encoder="teacher"`` trains an encoder of queries; its passages are the frozen
teacher's. A teacher may itself be a model with two towers. Both come down to the same: some asks of
an objective are answered by another model than the one it names, and the objective does not notice.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clir_jax.config import FromStage, Run, Stage, Task
from clir_jax.config_files import ConfigError
from clir_jax.config_types import named
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.requests import EncodePassage, Output
from clir_jax.models.retriever import RetrieverSpec
from clir_jax.objectives.base import Ask, Batch, ModelFacts, Objective
from clir_jax.objectives.sentences import ThreeTermTransfer
from clir_jax.training.kinds import LoadedModel


@dataclasses.dataclass(frozen=True)
class Routed:
    """An objective whose asks for passages go to other models.

    Args:
      objective: what computes the loss.
      frozen: the model that answers for the student, without gradient; empty leaves the student its
        asks.
      apart: teachers that have another tower for passages, which goes by ``passage_tower``.
    """

    objective: Objective
    frozen: str = ""
    apart: tuple[str, ...] = ()

    @property
    def student(self) -> Mapping[str, Ask]:
        """What is left to the student."""
        moved = self._moved()
        return {name: ask for name, ask in self.objective.student.items() if name not in moved}

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """The teachers' own asks, and those of the student, where no ask of theirs is the same."""
        moved = self._moved()
        return self._own() | {moved[name]: ask for name, ask in self._asked_of_frozen().items()}

    @property
    def changes(self) -> bool:
        """Whether any ask has moved."""
        return bool(self._moved()) or self._own() != dict(self.objective.teacher)

    @property
    def token_labels(self) -> Sequence[str]:
        """The objective's, by the names that the asks have here."""
        return tuple(dict.fromkeys(self._label(name) for name in self.objective.token_labels))

    @property
    def least_passages(self) -> int:
        """The objective's."""
        return self.objective.least_passages

    def check(self, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
        """Refuse what the objective refuses."""
        self.objective.check(student, teachers)

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Any, dict[str, Any]]:
        """The objective's, with every answer under the name it was asked by."""
        answered = {name: teacher[place] for name, place in self._moved().items()}
        own = {name: teacher[name] for name in self.objective.teacher}
        labels = {name: batch.labels[self._label(name)] for name in self.objective.token_labels}
        batch = dataclasses.replace(batch, labels={**batch.labels, **labels})
        return self.objective.loss({**student, **answered}, own, batch)

    def _own(self) -> dict[str, Ask]:
        asks = dict(self.objective.teacher)
        for name, ask in asks.items():
            if ask.kind is EncodePassage and ask.model in self.apart:
                asks[name] = dataclasses.replace(ask, model=passage_tower(ask.model))
        return asks

    def _asked_of_frozen(self) -> dict[str, Ask]:
        return {
            name: dataclasses.replace(ask, model=self.frozen)
            for name, ask in self.objective.student.items()
            if self.frozen and ask.kind is EncodePassage
        }

    def _moved(self) -> dict[str, str]:
        """By the name of the student's ask: that of the teachers' ask which answers it."""
        same = {ask: name for name, ask in self._own().items()}
        return {
            name: same.get(ask, f"student_{name}") for name, ask in self._asked_of_frozen().items()
        }

    def _label(self, label: str) -> str:
        side, _, rest = label.partition(".")
        name, _, kind = rest.rpartition(".")
        moved = self._moved() if side == "student" else {}
        return f"teacher.{moved[name]}.{kind}" if name in moved else label


def routed(stage: Stage, apart: Sequence[str] = ()) -> Stage:
    """The stage with every ask at the model that answers it.

    Args:
      stage: as it is configured.
      apart: the names of its teachers that have two towers.

    Returns:
      The stage; a task of which some ask has moved has a ``Routed`` objective, and its teachers are
      those that are asked now.
    """
    frozen = frozen_teacher(stage)
    frozen = passage_tower(frozen) if frozen in apart else frozen
    models = {name: model for task in stage.tasks for name, model in task.teachers.items()}
    models |= {passage_tower(name): models[name] for name in apart}

    def route(task: Task) -> Task:
        objective = Routed(task.objective, frozen, tuple(apart))
        asked = {ask.model: models[ask.model] for ask in objective.teacher.values()}
        if not objective.changes:
            return task
        return dataclasses.replace(task, objective=objective, teachers=asked, name=task.title)

    return dataclasses.replace(stage, tasks=tuple(route(task) for task in stage.tasks))


def split(teachers: Mapping[str, LoadedModel]) -> dict[str, LoadedModel]:
    """Every tower of the teachers by the name that ``routed`` asks it by."""
    towers: dict[str, LoadedModel] = dict(teachers)
    for name, model in teachers.items():
        if isinstance(model, LoadedRetriever) and model.passage is not None:
            towers[name] = dataclasses.replace(model, passage=None)
            towers[passage_tower(name)] = model.passage
    return towers


def passage_of(model: LoadedModel) -> LoadedRetriever | None:
    """A retriever's tower of its own for passages; None where there is none."""
    return model.passage if isinstance(model, LoadedRetriever) else None


def passage_tower(name: str) -> str:
    """What the tower for passages of a teacher is called."""
    return f"{name}.passage"


def frozen_teacher(stage: Stage) -> str:
    """The teacher whose passages are kept; empty where the student encodes its own.

    Raises:
      ConfigError: if the tasks do not name exactly one model that teaches.
    """
    if stage.passage_encoder == "student":
        return ""
    models = {name: model for task in stage.tasks for name, model in task.teachers.items()}
    if len(set(models.values())) != 1:
        raise ConfigError(
            f"stages.{stage.name}.passage_encoder is 'teacher', and the teachers of its tasks are "
            f"{named(models)}; it keeps the passages of one, so name one model in all tasks, or "
            "set passage_encoder to 'student'"
        )
    return next(iter(models))


def refuse_towers(run: Run, stage: Stage) -> None:
    """Refuse what two towers cannot do, before any work begins.

    Raises:
      ConfigError: if a stage trains one tower out of two, or an objective wants the student to
        learn to encode passages that the teacher encodes.
    """
    where, init = f"stages.{stage.name}", stage.init
    if stage.passage_encoder == "student":
        apart = {s.name for s in run.training_stages() if s.passage_encoder == "teacher"}
        if isinstance(init, FromStage) and init.stage in apart:
            raise ConfigError(
                f"{where}.init is stage {init.stage!r}, which has two towers, and this stage "
                "trains one; set passage_encoder='teacher', or start from a stage before that"
            )
        return
    if not isinstance(stage.model, RetrieverSpec):
        raise ConfigError(
            f"{where}.passage_encoder is 'teacher', and its model is a "
            f"{type(stage.model).__name__}, which encodes no passages by themselves; set "
            "passage_encoder to 'student'"
        )
    frozen_teacher(stage)
    for task in stage.tasks:
        objective = task.objective
        if isinstance(objective, ThreeTermTransfer) and objective.passage_weight > 0:
            raise ConfigError(
                f"{where}.tasks.{task.title}: its passage_weight is {objective.passage_weight}, of "
                "the student's passages against the teacher's, which are the same with "
                "passage_encoder='teacher'; set passage_weight to 0"
            )
        for name, ask in objective.student.items():
            # Of rankings, passages are what questions are compared with: whose they are is all the
            # same to the loss. Any other text is there for the student to learn how to encode it.
            if ask.kind is EncodePassage and any(t.split(".")[1] != "passages" for t in ask.texts):
                raise ConfigError(
                    f"{where}.tasks.{task.title}: its objective trains the student to encode "
                    f"{named(ask.texts)} as passages ({name!r}), and passage_encoder='teacher' "
                    "keeps the teacher's; leave this part of the objective out, or set "
                    "passage_encoder='student'"
                )


def check_towers(stage: Stage, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
    """Refuse a student whose queries cannot be compared with the teacher's passages.

    Args:
      stage: the stage.
      student: what the model in training is.
      teachers: what each teacher is.

    Raises:
      ConfigError: if they differ in kind or embedding size.
    """
    if stage.passage_encoder == "student":
        return
    teacher = teachers[frozen_teacher(stage)]
    ours, theirs = (f"{_form(x)} of {x.embedding_size} numbers" for x in (student, teacher))
    if ours != theirs:
        raise ConfigError(
            f"stages.{stage.name}.passage_encoder is 'teacher', and its queries are {ours} where "
            f"the teacher's passages are {theirs}; give the model the teacher's kind and embedding "
            "size"
        )


def _form(facts: ModelFacts) -> str:
    if facts.kind != "retriever":
        return facts.kind
    return "late interaction" if facts.late_interaction else "dense"
