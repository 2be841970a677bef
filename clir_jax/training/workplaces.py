"""The works of a run: which are still wanted, where they are done, and who has read them."""

import functools
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from clir_jax.config import Collection, FromStage, Source, Stage
from clir_jax.config_files import ConfigError, naming
from clir_jax.files import read_json, write_json
from clir_jax.models import hub
from clir_jax.processes import by_first
from clir_jax.training.artifacts import Workplace, content_print
from clir_jax.training.initial import load_model, load_teacher
from clir_jax.training.kinds import LoadedModel, on_mesh
from clir_jax.training.logging import WorkLog
from clir_jax.training.positions import Itinerary, Position
from clir_jax.training.works import carry_out

_INPUTS = "artifacts.json"


class Works:
    """The works of a run.

    Args:
      itinerary: the run and its directory.
      mesh: where models compute, of one process.
      console: where people read.
    """

    def __init__(self, itinerary: Itinerary, mesh: Mesh, console: Console) -> None:
        self._itinerary, self._mesh, self._console = itinerary, mesh, console

    def carry_out(self, position: Position, title: str) -> None:
        """Write the artifact of ``position`` unless it is there, and fresh, or all read it already.

        Args:
          position: of a work.
          title: shown in its log.
        """
        by_first(lambda: self._carry_out(position, title))

    def _carry_out(self, position: Position, title: str) -> None:
        if not self._wanted(position):
            return
        work: Any = position.item
        with WorkLog(title, self._console) as log:
            place = Workplace(
                run=self._itinerary.run,
                mesh=self._mesh,
                seed=self._itinerary.seed(position),
                directory=self._itinerary.directory(position),
                say=log.say,
                progress=log.progress,
                open_source=functools.partial(self._open, position),
                load_model=functools.partial(self._load, position),
                model_directory=functools.partial(self._directory, position),
                artifact_print=functools.partial(self._print, position),
            )
            with jax.set_mesh(self._mesh):
                carry_out(work, place)

    def check_unchanged(self, position: Position) -> None:
        """Note which artifacts a stage reads when it begins, and refuse others when it goes on.

        Raises:
          ConfigError: if one has been built again since.
        """
        directory = self._itinerary.directory(position)
        reads = self._itinerary.reads(position)
        now = {at.label: content_print(self._itinerary.directory(at)) for at in reads}
        file = directory / _INPUTS
        if not file.exists():
            if now and jax.process_index() == 0:
                write_json(file, now)
            return
        anew = f"restore the file, or remove {directory} to train the stage anew"
        before = read_json(file, dict, anew)
        for label in now:
            if now[label] != before.get(label):
                raise ConfigError(
                    f"{directory}: the stage began with another content of the artifact {label!r}, "
                    "which has been built again since; remove this directory to train the stage "
                    "anew, or choose another --run-dir"
                )

    def _wanted(self, position: Position) -> bool:
        """Whether something that is not done yet reads the artifact, or nothing ever does."""
        itinerary = self._itinerary
        later = itinerary.positions[itinerary.positions.index(position) + 1 :]
        readers = [other for other in later if position in itinerary.reads(other)]
        return not readers or any(
            not (itinerary.directory(other) / "summary.json").exists()
            if isinstance(other.item, Stage)
            else self._wanted(other)
            for other in readers
        )

    def _open(self, position: Position, source: Source | Collection) -> Any:
        return self._itinerary.bound(position, source).open(self._itinerary.run.data_root)

    def _load(self, position: Position, name: str | FromStage, stage: Stage | None) -> LoadedModel:
        directory = self._itinerary.model(position, name)
        with naming(f"stages.{position.item.name}"):
            loaded = load_model(directory) if stage is None else load_teacher(stage, directory)
        return on_mesh(loaded, self._mesh)

    def _directory(self, position: Position, name: str | FromStage) -> Path:
        with naming(f"stages.{position.item.name}"):
            return hub.locate(self._itinerary.model(position, name))

    def _print(self, position: Position, name: str) -> str:
        return content_print(self._itinerary.directory(self._itinerary.artifact(position, name)))
