"""The training that a model card tells of: stages, their data, who taught them, what they began as.

All of it is read from a run's directory: a card can be written where the data are not.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clir_jax.config import (
    Artifact,
    EncodeTeacher,
    FromStage,
    ReplaceVocabulary,
    Run,
    Scratch,
    Source,
    Stage,
    Task,
    Vocabulary,
    Work,
)
from clir_jax.config_files import ConfigError, from_json
from clir_jax.config_types import walk
from clir_jax.data.hub_datasets import HubDataset
from clir_jax.data.tfds import TFDS
from clir_jax.files import read_json
from clir_jax.models.model_card import Training, shown
from clir_jax.training.positions import BEST, Itinerary, Position

# How a source is read, not what; the same of a collection.
_READING = (
    *("on_bad_record", "columns", "kind", "mix", "negatives", "use", "relevant"),
    *("query_field", "passage_field", "weights", "temperature"),
)
# How much of it is read.
_AMOUNTS = ("hold_out", "limit", "sample", "share")


def training_of(model: str) -> Training | None:
    """Tell how a model of a run was trained.

    Args:
      model: a run, or the directory of one of its stages; or ``model/`` in either.

    Returns:
      What its card says; None for any other directory or name.

    Raises:
      ValueError: if a file of the run is damaged.
    """
    place = Path(os.path.abspath(model))
    place = place.parent if place.name == BEST else place
    run_dir, label = place, ""
    if place.parent.name == "stages":
        run_dir, label = place.parent.parent, place.name.partition("-")[2]
    config, summary = run_dir / "config.json", run_dir / "summary.json"
    if not (place / BEST).is_dir() or not config.is_file():
        return None
    if read_json(config, dict).get("type") != Run.__name__:
        return None
    title = f"{run_dir.name}, stage {label}" if label else run_dir.name
    rows = read_json(summary, list) if summary.is_file() else []
    try:
        run = from_json(config.read_text(encoding="utf-8"), config.name)
    except ConfigError as error:
        # It names what is not installed here: an objective of one's own, for instance.
        told = f"How it was trained cannot be told, because its configuration is not read: {error}."
        return Training(title, told, label or (str(rows[-1].get("stage")) if rows else ""), rows)
    itinerary = Itinerary(run, run_dir)
    until = _until(itinerary, label)
    return Training(
        title=title,
        told=_told(until),
        stage=until[-1].label,
        rows=rows,
        languages=[x for at in _behind(itinerary, until[-1]) for x in _languages(at)],
        bases=[_began_as(itinerary, until[-1], passages) for passages in (False, True)],
    )


def _until(itinerary: Itinerary, label: str) -> list[Position]:
    """What is carried out until a model is there; the last is the stage that trained it."""
    positions = itinerary.positions
    fitting = [
        i
        for i, position in enumerate(positions)
        if isinstance(position.item, Stage) and label in ("", position.label)
    ]
    if not fitting:
        raise ValueError(f"config.json: no stage {label!r} trains; restore the file of the run")
    return positions[: fitting[-1] + 1]


def _began_as(itinerary: Itinerary, position: Position, passages: bool) -> str:
    """Follow a model back to what its weights began as; ``""`` for random weights.

    Args:
      itinerary: of the run.
      position: where it was trained.
      passages: follow the tower for passages, where it has one of its own.
    """
    while True:
        stage = position.item
        assert isinstance(stage, Stage)
        # What encodes passages with the teacher's encoder has one that was trained where that was.
        passages = passages and stage.passage_encoder == "teacher"
        model = next(_teachers(stage)) if passages else stage.init
        if isinstance(model, Scratch):
            return ""
        found = itinerary.meant(position, model)
        if isinstance(found, str):
            return found
        position, _ = found


def _behind(itinerary: Itinerary, position: Position) -> list[Position]:
    """The stages and works that made a model: its ancestors, teachers, and what they read."""
    found: list[Position] = []
    ahead = [position]
    while ahead:
        here = ahead.pop()
        if here in found:
            continue
        found.append(here)
        ahead += itinerary.reads(here)
        if isinstance(here.item, Stage):
            models = [here.item.init, *_teachers(here.item)]
            meant = [itinerary.meant(here, m) for m in models if not isinstance(m, Scratch)]
            ahead += [trained[0] for trained in meant if not isinstance(trained, str)]
    return found


def _teachers(stage: Stage) -> Iterator[str | FromStage]:
    return (teacher for task in stage.tasks for teacher in task.teachers.values())


def _languages(position: Position) -> Iterator[str]:
    """Those of the texts that a stage learns from, or that a work writes."""
    item: Any = position.item
    parts: list[Any] = [getattr(item, name, None) for name in ("source", "corpus")]
    if isinstance(item, Stage):
        parts = [source for task in item.tasks for source in task.sources.values()]
        if any("bitext" in task.sources for task in item.tasks):
            yield "en"  # the other side
    yield from getattr(item, "languages", ())
    # The language of a collection is that of its questions, and works read its passages.
    for node in (node for part in parts if isinstance(part, Source) for node in walk(part)):
        for name in ("language", "query_language"):
            yield from filter(None, [getattr(node, name, None)])
        for name in ("translations", "corpora"):
            yield from getattr(node, name, ())


def _told(until: list[Position]) -> str:
    """A numbered list: a stage or a work each, and its tasks in it."""
    turns = Counter(position.item.name for position in until)
    first: set[str] = set()
    told: list[str] = []
    for position in until:
        item = position.item
        # A teacher's answers are the same, ahead of time or not.
        if item.name in first or isinstance(item, EncodeTeacher):
            continue
        start = position.group.start if position.group else {}
        say = _Models({k: v for k, v in start.items() if k not in first}, turns[item.name])
        first.add(item.name)
        often = f" ({say.turns} rounds, each in turn with others)" if say.turns > 1 else ""
        head = f"{len(first)}. **{item.name}**{often}: "
        told += _stage(head, item, say) if isinstance(item, Stage) else [_work(head, item, say)]
    return "\n".join(told)


@dataclasses.dataclass(frozen=True)
class _Models:
    """What models are called at a place.

    Args:
      begun: the models in the place of stages that have not been trained.
      turns: rounds.
    """

    begun: Mapping[str, str | FromStage]
    turns: int

    def __call__(self, model: str | FromStage | Scratch) -> str:
        if isinstance(model, FromStage):
            stage = f"stage `{model.stage}`"
            if model.stage not in self.begun:
                return stage
            begun = _Models({}, 1)(self.begun[model.stage])
            return begun if self.turns == 1 else f"{begun} (later {stage})"
        return shown(model) if isinstance(model, str) else "random weights"


def _stage(head: str, stage: Stage, say: _Models) -> list[str]:
    told = f"{head}{type(stage.model).__name__}, {stage.steps:,} steps"
    told += f", beginning with {say(stage.init)}.{_vocabulary(stage.vocabulary)}"
    if stage.passage_encoder == "teacher":
        told += " Passages have the encoder of the teacher."
    return [told, *(f"    * {_task(task, say)}" for task in stage.tasks)]


def _vocabulary(vocabulary: Vocabulary | None) -> str:
    if vocabulary is None:
        return ""
    if not isinstance(vocabulary, ReplaceVocabulary):
        return f" The vocabulary is made of {_listed(vocabulary.sources)}."
    told = f" The vocabulary becomes that of `{vocabulary.tokenizer}`"
    if vocabulary.trim_to:
        told += f", as far as it is used by {_listed(vocabulary.trim_to)}"
    return f"{told}."


def _task(task: Task, say: _Models) -> str:
    _, *parts = walk(task.objective)
    told = type(task.objective).__name__
    told += f" ({', '.join(type(part).__name__ for part in parts)})" if parts else ""
    told = f"{task.name}: {told}" if task.name else told
    told += f", {task.batch_size} records a step"
    if task.weight != 1.0:
        told += f", weight {task.weight:g}"
    if task.teachers:
        told += f", taught by {' and '.join(map(say, task.teachers.values()))}"
    named = (f"{name} of {_listed([source])}" for name, source in task.sources.items())
    return f"{told}: {'; '.join(named)}"


def _work(head: str, work: Work, say: _Models) -> str:
    """What writes an artifact: its models, data and languages."""
    told = []
    for key, value in _fields(work):
        if key in ("model", "judge", "round_trip") and value is not None:
            told.append(f"{key.replace('_', ' ')} {say(value)}")
        elif key in ("source", "corpus"):
            told.append(f"{key} {_listed([value])}")
        elif key == "languages":
            told.append(f"languages {', '.join(value)}")
    return f"{head}{type(work).__name__}, {', '.join(told)}."


def _listed(sources: Iterable[Any]) -> str:
    # As code: the stars of patterns would be Markdown.
    return ", ".join(f"`{_data(source)}`" for source in sources)


def _data(source: Any) -> str:
    """A source or collection: its files, names and languages, however deep they are in it."""
    if isinstance(source, Artifact):
        return f"artifact {source.name}"
    # The name of these is that of the data; that of others is for tables of figures.
    left_out = _READING if isinstance(source, HubDataset | TFDS) else (*_READING, "name")
    words = []
    for key, value in _fields(source):
        if key in _AMOUNTS and value not in (None, 0, 1):
            words.append(f"{key}={value}")
        words += _words(value) if key not in left_out else []
    return f"{type(source).__name__}({', '.join(words)})"


def _words(value: Any) -> list[str]:
    if dataclasses.is_dataclass(value):
        return [_data(value)]
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, tuple):
        return [word for part in value for word in _words(part)]
    if isinstance(value, Mapping):
        return [f"{key}: {'column ' * isinstance(v, int)}{v}" for key, v in value.items()]
    return []


def _fields(node: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass and their values, in order."""
    return ((field.name, getattr(node, field.name)) for field in dataclasses.fields(node))
