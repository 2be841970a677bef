"""Where in a run: its stages and works in the order they are carried out, round by round.

A configuration names models by stage and records by artifact. What these names mean depends on the
place where they are read: inside rounds, the newest. ``Itinerary.bound`` puts files in the place of
names, so that whatever carries out a stage knows of neither stages nor rounds.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from clir_jax.config import Artifact, EncodeTeacher, FromStage, Rounds, Run, Stage, Work
from clir_jax.config_files import ConfigError
from clir_jax.config_types import mapped, walk
from clir_jax.training.artifacts import records_source

BEST, LAST = "model", "last"


@dataclasses.dataclass(frozen=True)
class Position:
    """A stage or a work at its place in a run.

    Args:
      item: what is carried out.
      place: its number among the run's stages and works, from 1; the same in every round.
      group: the rounds it belongs to.
      round: of the group, from 1; 0 outside rounds.
    """

    item: Stage | Work
    place: int
    group: Rounds | None = None
    round: int = 0

    @property
    def label(self) -> str:
        """Its name in rows, logs and directories: ``distil``, ``distil.2`` in the second round."""
        return f"{self.item.name}.{self.round}" if self.round else self.item.name


def positions(run: Run) -> list[Position]:
    """Everything a run carries out, in order.

    Example:
      ``Rounds("r", 2, (Mine(…, "mined"), Stage("train", …)))`` gives the labels ``mined.1``,
      ``train.1``, ``mined.2``, ``train.2``.
    """
    found: list[Position] = []
    place = 1
    for step in run.stages:
        if not isinstance(step, Rounds):
            found.append(Position(step, place))
            place += 1
            continue
        for number in range(1, step.count + 1):
            found += [Position(item, place + i, step, number) for i, item in enumerate(step.stages)]
        place += len(step.stages)
    return found


class Itinerary:
    """A run's positions, and what the names of its configuration mean at each of them.

    Args:
      run: the configuration.
      run_dir: where its files go.

    Raises:
      ConfigError: if two positions would share a directory, or a teacher is encoded before the
        model that will teach has been trained.
    """

    def __init__(self, run: Run, run_dir: Path) -> None:
        self.run, self.run_dir = run, run_dir
        self.positions = positions(run)
        labels = [position.label for position in self.positions]
        for label in labels:
            if labels.count(label) > 1:
                raise ConfigError(
                    f"stages.{label}: a round of {label.rpartition('.')[0]} has this name too; "
                    "rename one of them"
                )
        for position in self.positions:
            for at, work in self.stored(position).values():
                self._check_teacher(position, at, work)

    def directory(self, position: Position) -> Path:
        """Where its files are: ``stages/02-distil.2`` or ``artifacts/mined.2``."""
        if isinstance(position.item, Stage):
            return self.run_dir / "stages" / f"{position.place:02d}-{position.label}"
        return self.run_dir / "artifacts" / position.label

    def seed(self, position: Position) -> int:
        """The seed of what happens there: the run's own, and another in every later round."""
        if position.round <= 1:
            return self.run.seed
        other = np.random.SeedSequence((self.run.seed, position.round)).generate_state(1)[0]
        return int(other >> 1)

    def model(self, position: Position, model: str | FromStage) -> str:
        """The directory or hub name of a model that is named at ``position``.

        A stage is the newest training of it before ``position``; where its rounds have not come to
        it yet, what they start with.
        """
        found = self.meant(position, model)
        if isinstance(found, str):
            return found
        trained, which = found
        return str(self.directory(trained) / (BEST if which == "best" else LAST))

    def meant(self, position: Position, model: str | FromStage) -> str | tuple[Position, str]:
        """The same model as a directory or hub name, or as a training and which model of it."""
        if isinstance(model, str):
            return model
        trained = self._latest(position, model.stage)
        if trained is not None:
            return trained, model.which
        assert position.group is not None  # Run has checked it.
        return self.meant(position, position.group.start[model.stage])

    def artifact(self, position: Position, name: str) -> Position:
        """The work that wrote the newest artifact of this name before ``position``."""
        found = self._latest(position, name)
        assert found is not None  # Run has checked it.
        return found

    def stored(self, position: Position) -> dict[tuple[str, str], tuple[Position, EncodeTeacher]]:
        """By task and teacher: the works whose stored answers a stage reads."""
        found: dict[tuple[str, str], tuple[Position, EncodeTeacher]] = {}
        for other in self._before(position):
            work = other.item
            if isinstance(work, EncodeTeacher) and work.stage == position.item.name:
                found[work.task, work.teacher] = other, work
        return found

    def bound(self, position: Position, node: Any) -> Any:
        """A part of the configuration at ``position``, with files in the place of names."""

        def bind(part: Any) -> Any:
            if isinstance(part, FromStage):
                return self.model(position, part)
            if isinstance(part, Artifact):
                return records_source(self.directory(self.artifact(position, part.name)))
            return part

        return mapped(node, bind)

    def reads(self, position: Position) -> list[Position]:
        """The works whose artifacts are read at ``position``."""
        node: Any = position.item
        if isinstance(node, EncodeTeacher):
            _, task = self.run.encoded_for(node)
            node = task.sources_of(node.teacher)
        names = [part.name for part in walk(node) if isinstance(part, Artifact)]
        works = [self.artifact(position, name) for name in dict.fromkeys(names)]
        return works + [work for work, _ in self.stored(position).values()]

    def _check_teacher(self, reader: Position, at: Position, work: EncodeTeacher) -> None:
        model = self.run.encoded_for(work)[1].teachers[work.teacher]
        if self.model(at, model) != self.model(reader, model):
            raise ConfigError(
                f"stages.{work.name}: it encodes teacher {work.teacher!r} of stage {work.stage!r} "
                "before that model is trained again in the same round; move it behind that stage"
            )

    def _latest(self, position: Position, name: str) -> Position | None:
        named = [other for other in self._before(position) if other.item.name == name]
        return named[-1] if named else None

    def _before(self, position: Position) -> list[Position]:
        return self.positions[: self.positions.index(position)]
