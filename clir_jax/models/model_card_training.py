"""The training that a model card tells of: stages, their data, who taught them, what they began as.

All of it is read from a run's ``config.json``: a card can be written where the data are not.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clir_jax.models.hub import KNOWN_ARCHITECTURES

Json = Mapping[str, Any]
# The first models of the hub had no owner.
_OWNERS = ("google-bert", "FacebookAI")
# How a source is read, not what; the same of a collection.
_READING = (
    *("on_bad_record", "columns", "kind", "mix", "negatives", "use", "relevant"),
    *("query_field", "passage_field", "weights", "temperature"),
)
# How much of it is read.
_AMOUNTS = ("hold_out", "limit", "sample", "share")
# The name of these is that of the data; that of others is for tables of figures.
_NAMED = ("HubDataset", "TFDS")


@dataclasses.dataclass(frozen=True)
class Trained:
    """Where a model is from.

    Args:
      run: the directory of its run.
      stage: as ``summary.json`` calls it: ``"distil"``, or ``"distil.2"`` in the second round of a
        group; empty for the last stage that trains.
    """

    run: Path
    stage: str = ""

    @property
    def title(self) -> str:
        """What to call the model."""
        return f"{self.run.name}, stage {self.stage}" if self.stage else self.run.name


@dataclasses.dataclass(frozen=True)
class Place:
    """A stage or work where it is carried out in a run.

    Args:
      label: as ``summary.json`` calls it.
      step: what ``config.json`` says of it.
      start: of its group of rounds: the models in the place of stages that have not been trained.
    """

    label: str
    step: Json
    start: Json

    @property
    def trains(self) -> bool:
        """Whether it is a stage."""
        return self.step.get("type") == "Stage"


def history(config: Json, stage: str = "") -> list[Place]:
    """List what is carried out until a model is there, round by round.

    Args:
      config: of the run.
      stage: which trains the model, as ``Trained`` has it.

    Returns:
      Stages and works in order; the last is the stage.

    Raises:
      ValueError: if the run has no such stage.
    """
    places = list(_places(config))
    fitting = [i for i, p in enumerate(places) if p.trains and stage in ("", p.label)]
    if not fitting:
        raise ValueError(f"config.json: no stage {stage!r} trains; restore the file of the run")
    return places[: fitting[-1] + 1]


def _places(config: Json) -> Iterator[Place]:
    for item in config.get("stages", []):
        if item.get("type") == "Rounds":
            for turn in range(1, item["count"] + 1):
                for step in item["stages"]:
                    yield Place(f"{step['name']}.{turn}", step, item.get("start", {}))
        else:
            yield Place(item["name"], item, {})


def began_as(places: Sequence[Place], passages: bool = False) -> str:
    """Follow a model back to what its weights began as.

    Args:
      places: its history.
      passages: follow the tower for passages, where it has one of its own.

    Returns:
      The name of a model on the hub or in a package, or a directory; ``""`` for random weights.
    """
    place, before = places[-1], places[:-1]
    while True:
        # What encodes passages with the teacher's encoder has one that was trained where that was.
        passages = passages and place.step.get("passage_encoder") == "teacher"
        model: Any = place.step.get("init")
        if passages:
            model = next(t for task in place.step["tasks"] for t in task["teachers"].values())
        earlier = None
        while earlier is None:
            if not _is(model, "FromStage"):
                return model if isinstance(model, str) else ""
            trained = [i for i, p in enumerate(before) if p.step["name"] == model["stage"]]
            earlier = trained[-1] if trained else None
            if earlier is None:
                model = place.start.get(model["stage"])
        place, before = before[earlier], before[:earlier]


def hub_name(model: str) -> str:
    """The name of a model on the hub, with its owner; ``""`` for a package or a directory."""
    if Path(model).exists() or model.startswith((".", "~")):
        return ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return model
    owned = (f"{owner}/{model}" for owner in _OWNERS)
    return next((name for name in owned if name in KNOWN_ARCHITECTURES), "")


def training(places: Sequence[Place]) -> str:
    """Tell in Markdown how a model was trained.

    Args:
      places: its history.

    Returns:
      A numbered list: a stage or a work each, and its tasks in it.
    """
    turns = Counter(place.step["name"] for place in places)
    first: dict[str, Place] = {}
    told: list[str] = []
    for place in places:
        name, kind = place.step["name"], place.step.get("type")
        # A teacher's answers are the same, ahead of time or not.
        if name in first or kind == "EncodeTeacher":
            continue
        begun = {stage: model for stage, model in place.start.items() if stage not in first}
        first[name] = place
        say = _Models(begun, turns[name])
        often = f" ({turns[name]} rounds, each in turn with others)" if turns[name] > 1 else ""
        head = f"{len(first)}. **{name}**{often}: {kind if kind != 'Stage' else ''}"
        told += _stage(head, place.step, say) if place.trains else [_work(head, place.step, say)]
    return "\n".join(told)


@dataclasses.dataclass(frozen=True)
class _Models:
    """What models are called at a place.

    Args:
      begun: the models in the place of stages that have not been trained.
      turns: rounds.
    """

    begun: Json
    turns: int

    def __call__(self, model: Any) -> str:
        if _is(model, "FromStage"):
            stage = f"stage `{model['stage']}`"
            if model["stage"] not in self.begun:
                return stage
            begun = _Models({}, 1)(self.begun[model["stage"]])
            return begun if self.turns == 1 else f"{begun} (later {stage})"
        return shown(model) if isinstance(model, str) else "random weights"


def shown(model: str) -> str:
    """A model's name as code; of a directory on somebody's machine, its last part."""
    return f"`{Path(model).name if model.startswith(('/', '~')) else model}`"


def _stage(head: str, stage: Json, say: _Models) -> list[str]:
    told = f"{head}{stage.get('model', {}).get('type', 'a model')}, {stage.get('steps'):,} steps"
    told += f", beginning with {say(stage.get('init'))}.{_vocabulary(stage.get('vocabulary'))}"
    if stage.get("passage_encoder") == "teacher":
        told += " Passages have the encoder of the teacher."
    return [told, *(f"    * {_task(task, say)}" for task in stage.get("tasks", []))]


def _vocabulary(vocabulary: Json | None) -> str:
    if not vocabulary:
        return ""
    if _is(vocabulary, "TrainVocabulary"):
        return f" The vocabulary is made of {_listed(vocabulary['sources'])}."
    told = f" The vocabulary becomes that of `{vocabulary['tokenizer']}`"
    if vocabulary.get("trim_to"):
        told += f", as far as it is used by {_listed(vocabulary['trim_to'])}"
    return f"{told}."


def _task(task: Json, say: _Models) -> str:
    objective = task.get("objective", {})
    parts = [value["type"] for value in objective.values() if _is(value)]
    told = str(objective.get("type")) + (f" ({', '.join(parts)})" if parts else "")
    told = f"{task['name']}: {told}" if task.get("name") else told
    told += f", {task.get('batch_size')} records a step"
    if task.get("weight", 1.0) != 1.0:
        told += f", weight {task['weight']:g}"
    taught = [say(teacher) for teacher in task.get("teachers", {}).values()]
    if taught:
        told += f", taught by {' and '.join(taught)}"
    named = (f"{name} of {_listed([s])}" for name, s in task.get("sources", {}).items())
    return f"{told}: {'; '.join(named)}"


def _work(head: str, work: Json, say: _Models) -> str:
    """What writes an artifact: its models, data and languages."""
    told = []
    for key, value in work.items():
        if key in ("model", "judge", "round_trip") and value is not None:
            told.append(f"{key.replace('_', ' ')} {say(value)}")
        elif _is(value) and key in ("source", "corpus"):
            told.append(f"{key} {_listed([value])}")
        elif key == "languages":
            told.append(f"languages {', '.join(value)}")
    return f"{head}, {', '.join(told)}."


def _listed(sources: Iterable[Any]) -> str:
    # As code: the stars of patterns would be Markdown.
    return ", ".join(f"`{_data(source)}`" for source in sources)


def _data(source: Json) -> str:
    """A source or collection: its files, names and languages, however deep they are in it."""
    if _is(source, "Artifact"):
        return f"artifact {source['name']}"
    kind, words = source["type"], []
    for key, value in source.items():
        if key == "type" or key in _READING or (key == "name" and kind not in _NAMED):
            continue
        if key in _AMOUNTS and value not in (None, 0, 1):
            words.append(f"{key}={value}")
        words += _words(value)
    return f"{kind}({', '.join(words)})"


def _words(value: Any) -> list[str]:
    if _is(value):
        return [_data(value)]
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list):
        return [word for part in value for word in _words(part)]
    if isinstance(value, Mapping):
        return [f"{key}: {'column ' * isinstance(v, int)}{v}" for key, v in value.items()]
    return []


def _is(value: Any, kind: str = "") -> bool:
    """Whether a value is a part of a configuration, or that of a kind."""
    return isinstance(value, Mapping) and "type" in value and kind in ("", value["type"])
