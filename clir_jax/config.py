"""The configuration of a run: frozen, strict, and the same in Python, in JSON and for ``--set``.

A run is a sequence of stages. A stage trains one model on one or more tasks; work writes an
artifact that later stages read; rounds repeat a group. Whatever is written here is checked when it
is made: an impossible value never reaches the devices.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from clir_jax.config_parts import (
    Artifact,
    Collection,
    Evaluate,
    FromStage,
    Group,
    Init,
    MeshShape,
    Model,
    OnPlateau,
    Optimizer,
    ReplaceVocabulary,
    Scratch,
    Source,
    Stop,
    TrainVocabulary,
    Vocabulary,
)
from clir_jax.config_types import Checked, named, require, require_name, walk
from clir_jax.config_works import EncodeTeacher, Generate, Mine, Score, Work
from clir_jax.data.collections import BitextPairs
from clir_jax.data.gold_alignment import GoldAlignment
from clir_jax.models.cross_encoder import CrossEncoder
from clir_jax.models.generator import Generator
from clir_jax.models.t5_config import T5Config
from clir_jax.objectives.base import Ask, Objective

__all__ = [
    "Artifact",
    "Collection",
    "EncodeTeacher",
    "Evaluate",
    "FromStage",
    "Generate",
    "Group",
    "Init",
    "MeshShape",
    "Mine",
    "Model",
    "OnPlateau",
    "Optimizer",
    "ReplaceVocabulary",
    "Rounds",
    "Run",
    "Score",
    "Scratch",
    "Source",
    "Stage",
    "Stop",
    "Task",
    "TrainVocabulary",
    "Vocabulary",
    "Work",
]


@dataclasses.dataclass(frozen=True)
class Task(Checked):
    """One objective with its data and teachers.

    Args:
      objective: what is minimised.
      sources: data by the names the objective reads ("bitext", "ranking", "text").
      teachers: who answers the objective's questions to a teacher, by name: an earlier stage, a hub
        name or a directory.
      weight: of this task's loss in the sum.
      batch_size: records a step, over all devices.
      passages: passages a ranking record brings: its positive and ``passages - 1`` negatives.
      buckets: shapes a batch may have, at most: records of like length meet in a batch, and the
        batch is as wide as its bucket. 1 pads every text to its full length. A step is compiled
        once for each combination of its tasks' shapes: two tasks of 4 buckets may take 16.
      name: in logs; empty takes the objective's class name.
    """

    objective: Objective
    sources: Mapping[str, Source]
    teachers: Mapping[str, str | FromStage] = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    batch_size: int = 32
    passages: int = 1
    buckets: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        label = self.title
        require_name(label, "task")
        for name in self.teachers:
            require_name(name, f"task {label}: a teacher")
        weight_fits = 0 <= self.weight < math.inf
        require(weight_fits, f"task {label}: weight", self.weight, "a finite number of at least 0")
        require(self.batch_size >= 1, f"task {label}: batch_size", self.batch_size, "at least 1")
        require(self.passages >= 1, f"task {label}: passages", self.passages, "at least 1")
        require(self.buckets >= 1, f"task {label}: buckets", self.buckets, "at least 1")
        least = self.objective.least_passages
        require(
            self.passages >= least, f"task {label}: passages", self.passages,
            f"at least {least}: without negatives its loss is 0",
        )  # fmt: skip
        asks = [*self.objective.student.values(), *self.objective.teacher.values()]
        needed = {text.split(".")[0] for ask in asks for text in ask.texts}
        if needed != set(self.sources):
            raise ValueError(
                f"task {label}: its objective reads the sources {named(needed)} but sources has "
                f"{named(self.sources)}; give exactly those it reads"
            )
        models = {ask.model for ask in self.objective.teacher.values()}
        if models != set(self.teachers):
            raise ValueError(
                f"task {label}: its objective asks the teachers {named(models)} but teachers has "
                f"{named(self.teachers)}; give exactly those it asks"
            )

    @property
    def title(self) -> str:
        """The task's name in logs."""
        return self.name or type(self.objective).__name__

    def asks(self, teacher: str) -> dict[str, Ask]:
        """What a teacher is asked, by name."""
        return {n: ask for n, ask in self.objective.teacher.items() if ask.model == teacher}

    def sources_of(self, teacher: str) -> dict[str, Source]:
        """The sources that a teacher is asked about, by name."""
        texts = (text for ask in self.asks(teacher).values() for text in ask.texts)
        return {name: self.sources[name] for name in sorted({t.split(".")[0] for t in texts})}


@dataclasses.dataclass(frozen=True)
class Stage(Checked):
    """Train one model.

    Args:
      name: of its directory and of its rows in the summary.
      model: what it is.
      init: where its weights start: hub name, directory, an earlier stage, or from scratch.
      tasks: all of them in every step.
      steps: batches.
      vocabulary: another tokenizer than that of ``init``.
      optimizer: how it learns.
      evaluate: what is measured; None measures nothing and keeps the last checkpoint.
      stop, on_plateau: what evaluations decide.
      tokens_per_chunk: tokens encoded at once on each device; None encodes a batch at once.
      encode: see ``clir_jax.training.step.Chunking``.
      dtype: of the encoder's arithmetic; parameters are always float32.
      checkpoint_every: steps between checkpoints.
      log_every: steps between lines of the log.
      passage_encoder: ``"student"`` also encodes passages; ``"teacher"`` keeps the English index of
        the frozen teacher and trains queries only.
    """

    name: str
    model: Model
    init: Init
    tasks: tuple[Task, ...]
    steps: int
    vocabulary: Vocabulary | None = None
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    evaluate: Evaluate | None = None
    stop: Stop | None = None
    on_plateau: OnPlateau | None = None
    tokens_per_chunk: int | None = None
    encode: Literal["gather_once", "per_layer"] = "gather_once"
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 1000
    log_every: int = 10
    passage_encoder: Literal["student", "teacher"] = "student"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name(self.name, "stage")
        for name in ("steps", "checkpoint_every", "log_every", "tokens_per_chunk"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"stage {self.name}: {name}", value, "at least 1")
        titles = [task.title for task in self.tasks]
        if not titles or len(set(titles)) < len(titles):
            raise ValueError(
                f"stage {self.name}: its tasks are called {named(titles)}; it needs at least one, "
                "and a different name= for each"
            )
        if isinstance(self.init, Scratch) != isinstance(self.vocabulary, TrainVocabulary):
            raise ValueError(
                f"stage {self.name}: init=Scratch(...) and vocabulary=TrainVocabulary(...) go "
                "together, and it has one of them; a pretrained model takes ReplaceVocabulary(...)"
            )
        self._check_generator()
        self._check_evaluations()

    def _check_generator(self) -> None:
        generator = isinstance(self.model, Generator)
        if isinstance(self.init, Scratch) and generator != isinstance(self.init.encoder, T5Config):
            wanted = "a T5Config" if generator else "an EncoderConfig"
            raise ValueError(
                f"stage {self.name}: init is Scratch of {type(self.init.encoder).__name__}, and "
                f"its model is {type(self.model).__name__}; give it {wanted}"
            )
        if generator and isinstance(self.vocabulary, ReplaceVocabulary):
            raise ValueError(
                f"stage {self.name}: vocabulary is ReplaceVocabulary, and a generator writes with "
                "the vocabulary that it was trained with; leave it out"
            )

    def _check_evaluations(self) -> None:
        evaluate = self.evaluate
        for name in ("stop", "on_plateau"):
            if getattr(self, name) is not None and (evaluate is None or not evaluate.repeats):
                raise ValueError(
                    f"stage {self.name}: {name} counts evaluations, and there are none while it "
                    "trains; set evaluate with every= above 0"
                )
        taught = any(task.teachers for task in self.tasks)
        if evaluate is not None and "teacher" in evaluate.baselines and not taught:
            raise ValueError(
                f"stage {self.name}: evaluate.baselines has 'teacher' and no task has a teacher; "
                "leave it out"
            )
        embedded = [
            name
            for name, collection in (evaluate.collections if evaluate is not None else {}).items()
            if isinstance(collection, BitextPairs | GoldAlignment)
        ]
        if isinstance(self.model, CrossEncoder | Generator) and embedded:
            what = "cross-encoder" if isinstance(self.model, CrossEncoder) else "generator"
            raise ValueError(
                f"stage {self.name}: evaluate.collections has {named(embedded)}, which compares "
                f"vectors, and a {what} makes none; leave it out"
            )


@dataclasses.dataclass(frozen=True)
class Rounds(Checked):
    """Repeat a group of stages.

    A stage or work of the group may take the model of any stage of the group. Until that stage has
    been trained, in the first round, ``start`` stands for it; afterwards it is the newest.

    Args:
      name: of the group.
      count: rounds.
      stages: the group, in order.
      start: by the name of a stage: the model in its place until the group has trained it.
    """

    name: str
    count: int
    stages: tuple[Stage | Work, ...]
    start: Mapping[str, str | FromStage] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name(self.name, "rounds")
        require(self.count >= 1, f"rounds {self.name}: count", self.count, "at least 1")
        trained = [stage.name for stage in self.stages if isinstance(stage, Stage)]
        if not trained:
            raise ValueError(
                f"rounds {self.name}: no stage of it trains; repeat at least one Stage"
            )
        for name in self.start:
            if name not in trained:
                raise ValueError(
                    f"rounds {self.name}: start names {name!r}, and the group trains "
                    f"{named(trained)}; name one of these"
                )


@dataclasses.dataclass(frozen=True)
class Run(Checked):
    """Everything that decides a result.

    Args:
      name: of the run.
      stages: in order.
      seed: of parameters, data order and dropout.
      data_root: directory (or ``gs://`` path) that every data path is relative to.
      mesh: how devices are arranged.
    """

    name: str
    stages: tuple[Stage | Work | Rounds, ...]
    seed: int = 0
    data_root: str = "."
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name(self.name, "run")
        require(0 <= self.seed < 2**31, "run: seed", self.seed, "from 0 to 2147483647")
        if not self.training_stages():
            raise ValueError(f"run {self.name}: no stage of it trains; add at least one Stage")
        groups = [step for step in self.stages if isinstance(step, Rounds)]
        names = [step.name for step in (*self.flat(), *groups)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"run {self.name}: two stages are called {name!r}; rename one")
        before: list[Stage | Work] = []
        for step in self.stages:
            group = step if isinstance(step, Rounds) else None
            if group is not None:
                _check_models(group.start, f"rounds {group.name}", before)
            for inner in (step,) if not isinstance(step, Rounds) else step.stages:
                _check_models(inner, f"stage {inner.name}", before, group)
                _check_artifacts(inner, f"stage {inner.name}", before)
                if isinstance(inner, EncodeTeacher):
                    self._check_encoding(inner, before, group)
                before.append(inner)

    def flat(self) -> list[Stage | Work]:
        """Stages and work in order, each group of rounds once."""
        steps: list[Stage | Work] = []
        for step in self.stages:
            steps.extend(step.stages if isinstance(step, Rounds) else (step,))
        return steps

    def training_stages(self) -> list[Stage]:
        """The stages that train."""
        return [step for step in self.flat() if isinstance(step, Stage)]

    def encoded_for(self, work: EncodeTeacher) -> tuple[Stage, Task]:
        """The stage and the task that will read a work's answers."""
        (stage,) = (stage for stage in self.training_stages() if stage.name == work.stage)
        (task,) = (task for task in stage.tasks if task.title == work.task)
        return stage, task

    def _check_encoding(
        self, work: EncodeTeacher, before: Sequence[Stage | Work], group: Rounds | None
    ) -> None:
        label = f"stage {work.name}"
        tasks = {
            (stage.name, task.title, name): task
            for stage in self.training_stages()
            if stage.name not in {step.name for step in before}
            for task in stage.tasks
            for name in task.teachers
        }
        wanted = (work.stage, work.task, work.teacher)
        if wanted not in tasks:
            raise ValueError(
                f"{label}: it encodes for {'.'.join(wanted)}, and the teachers after it "
                f"(stage.task.teacher) are {named(map('.'.join, tasks))}; name one of these"
            )
        task = tasks[wanted]
        _check_models({"": task.teachers[work.teacher]}, label, before, group)
        _check_artifacts(task.sources_of(work.teacher), label, before)


def _check_models(
    node: object, label: str, before: Sequence[Stage | Work], group: Rounds | None = None
) -> None:
    """Refuse a model of a stage that has not been trained ``before``."""
    trained = [step.name for step in before if isinstance(step, Stage)]
    start = group.start if group is not None else {}
    for model in walk(node):
        if isinstance(model, FromStage) and model.stage not in (*trained, *start):
            hint = f", or give rounds {group.name} a start for it" if group is not None else ""
            raise ValueError(
                f"{label}: it takes the model of stage {model.stage!r}, and those trained before "
                f"it are {named([*trained, *start])}; name one of these{hint}"
            )


def _check_artifacts(node: object, label: str, before: Sequence[Stage | Work]) -> None:
    """Refuse an artifact that nothing has written ``before``."""
    written = [other.name for other in before if isinstance(other, Mine | Score | Generate)]
    for artifact in walk(node):
        if isinstance(artifact, Artifact) and artifact.name not in written:
            raise ValueError(
                f"{label}: it reads the artifact {artifact.name!r}, and those written before it "
                f"are {named(written)}; name one of these"
            )
