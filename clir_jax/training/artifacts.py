"""Artifacts: what work writes once, and later stages read.

An artifact is a directory with an ``about.json``, which names all that decided what is in it. While
work goes on, it holds the format, the settings and the inputs; at the end also the files with their
sizes, and a hash of their content. So a run that starts again tells what is whole from what was
interrupted, and what is fresh from what was made of other inputs.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh

from clir_jax import config_files
from clir_jax.config import Artifact, Collection, FromStage, Run, Source, Stage, Work
from clir_jax.data.collections import Collection as OpenedCollection
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.reading import DataError, find_files
from clir_jax.data.records import Ranking, Records
from clir_jax.data.sources import Mixture
from clir_jax.evaluation.retrieval import Progress, TextEncoder
from clir_jax.files import read_json, write_json
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.requests import Embeddings
from clir_jax.training.blocks import RECORDS
from clir_jax.training.kinds import LoadedModel, kind_of

FORMAT = 1
_Answers = TypeVar("_Answers", Embeddings, np.ndarray)
_ABOUT = "about.json"
_SAMPLED = 1000
# Characters of a setting that fit into a sentence.
_SHORT = 60


@dataclasses.dataclass(frozen=True)
class Workplace:
    """What a work needs besides itself.

    Args:
      run: the run it belongs to; None where a command carries out a single work.
      mesh: where models compute.
      seed: of what is chosen by chance; another in every round.
      directory: of the artifact; nothing else is there. A part that is made first lies beside it.
      say: tells people a line.
      progress: told how much is done, and how much there is to do.
      open_source: opens a source or a collection, artifacts of the run among them.
      load_model: loads what a configuration names, its parameters on the mesh: as a teacher of the
        given stage, or, without one, as it was saved.
      model_directory: where such a model is.
      artifact_print: the content hash of an artifact of the run, by its name.
    """

    run: Run | None
    mesh: Mesh
    seed: int
    directory: Path
    say: Callable[[str], None]
    progress: Progress
    open_source: Callable[[Source | Collection], Any]
    load_model: Callable[[str | FromStage, Stage | None], LoadedModel]
    model_directory: Callable[[str | FromStage], Path]
    artifact_print: Callable[[str], str]

    @property
    def data_root(self) -> str:
        """The folder that relative paths of data start from."""
        return "." if self.run is None else self.run.data_root

    def retriever(self, name: str | FromStage, stage: Stage | None = None) -> LoadedRetriever:
        """Load a model that gives texts vectors; ``stage`` as ``load_model`` takes it.

        Raises:
          ConfigError: if the model is of another kind.
        """
        loaded = self.load_model(name, stage)
        if not isinstance(loaded, LoadedRetriever):
            raise config_files.ConfigError(
                f"model {name!r} is a {kind_of(loaded.spec).name}, which gives texts no vectors; "
                "name a retriever"
            )
        return loaded

    def encoder(self, name: str | FromStage) -> TextEncoder:
        """Load a retriever that takes text."""
        return TextEncoder.of(self.retriever(name), self.mesh)

    def rankings(self, work: Work, source: Source) -> Records:
        """Open the rankings that a work reads.

        Raises:
          DataError: if they are no rankings, or share no language to ask their questions in.
        """
        records: Records = self.open_source(source)
        if records.kind is not Ranking:
            raise DataError(
                f"work {work.name}: its source gives {records.kind.__name__.lower()} records; "
                "give rankings, which are questions with passages"
            )
        if not records.languages:
            raise DataError(
                f"work {work.name}: the parts of its source ask their questions in no common "
                "language; give each part a work of its own"
            )
        return records


def check_finite(work: Work, model: str | FromStage, answers: _Answers) -> _Answers:
    """Refuse a broken model's answers here: in a maximum over tokens, a NaN may go unseen.

    Raises:
      DataError: if a number is not finite.
    """
    if not np.isfinite(answers.vectors if isinstance(answers, Embeddings) else answers).all():
        raise DataError(
            f"work {work.name}: the model {model!r} answers with numbers that are not finite; "
            "look for where its training went wrong, or name another"
        )
    return answers


def check_language(work: Work, name: str, records: Records) -> None:
    """Refuse a language in which a work's source asks no questions.

    Args:
      work: has the option.
      name: of the option; empty where it is left to the source.
      records: the opened source.

    Raises:
      DataError: naming the languages that there are.
    """
    language = getattr(work, name)
    if language and language not in records.languages:
        raise DataError(
            f"work {work.name}: {name} is {language!r}, and its source asks in "
            f"{', '.join(records.languages)}; write one of these"
        )


def ensure(
    work: Work,
    place: Workplace,
    inputs: Mapping[str, str],
    make: Callable[[Path], Mapping[str, Any]],
) -> str:
    """Make an artifact, unless it is there and fresh.

    One that a kill interrupted is gone on with, if its inputs are still the same. In a run, one
    that is damaged or was made of other inputs is made again, and ``place.say`` tells why and what
    is removed. Of what a command has left, nothing is removed: it is refused.

    Args:
      work: what makes it.
      place: where.
      inputs: a print of everything that decides the content besides the settings, by a name for
        people: ``"model"``.
      make: writes all files into a directory, which may hold what an interrupted call has left, and
        returns what is worth knowing of them.

    Returns:
      The hash of the content.

    Raises:
      DataError: if a command finds something that it cannot go on with.
    """
    directory = place.directory
    fresh = _fresh(work, inputs)
    about, reason = _look(directory, fresh)
    if about is not None and "content" in about:
        return str(about["content"])
    if about is None:
        _begin(work, place, fresh, reason)
    facts = make(directory)
    named = {str(p.relative_to(directory)): p for p in _files(directory)}
    files = {name: path for name, path in named.items() if path.name != _ABOUT}
    content = _digest(f"{name} {_file_print(path)}" for name, path in files.items())
    sizes = {name: path.stat().st_size for name, path in files.items()}
    write_json(
        directory / _ABOUT, {**fresh, "facts": dict(facts), "files": sizes, "content": content}
    )
    return content


def finished(work: Work, place: Workplace, inputs: Mapping[str, str]) -> str | None:
    """The hash of the content that ``ensure`` would take; None where it would make something."""
    about, _ = _look(place.directory, _fresh(work, inputs))
    return None if about is None else about.get("content")


def records_source(directory: Path) -> RankingJSONL:
    """The source that reads the rankings which ``Mine`` or ``Score`` has written.

    Raises:
      DataError: if they are not written yet, or not all of them.
    """
    language = _whole(directory)["facts"]["language"]
    return RankingJSONL(str(directory.absolute() / RECORDS), language)


def content_print(directory: Path) -> str:
    """The hash of the content of an artifact.

    Raises:
      DataError: if it is not written yet, or not all of it.
    """
    return str(_whole(directory)["content"])


def model_print(directory: Path) -> str:
    """A hash of all files of a model."""
    return _digest(f"{p.relative_to(directory)} {_file_print(p)}" for p in _files(directory))


def searcher_print(model: str | FromStage, place: Workplace) -> str:
    """A hash of a retriever's files, or ``"bm25"``."""
    return "bm25" if model == "bm25" else model_print(place.model_directory(model))


def source_print(source: Source | Collection, place: Workplace) -> str:
    """A hash of a source: its configuration, and the content of the files that it names.

    A source without files (built in, or known by an id) counts with the number of its records and
    the text of a thousand of them, spread evenly; an artifact with its content.

    Raises:
      DataError: if a file is missing.
    """
    if isinstance(source, Artifact):
        return place.artifact_print(source.name)
    if isinstance(source, Mixture):
        parts: list[Any] = list(source.sources)
        return _digest([repr(source), *(source_print(part, place) for part in parts)])
    if hasattr(source, "files"):
        files = (found for p in source.files() for found in find_files(place.data_root, p))
        found = [_file_print(file) for _, file in files]
        if isinstance(source, InLanguages):
            inner: Any = source.source
            found.append(source_print(inner, place))
    else:
        opened = place.open_source(source)
        whole = isinstance(opened, OpenedCollection)
        lists = (opened.passages, opened.queries) if whole else (opened,)
        found = [part for records in lists for part in _sample(records)]
    return _digest([repr(source), *found])


def _sample(records: Records | Sequence[str]) -> list[str]:
    """How many records there are, and some of them."""
    rows = np.linspace(0, len(records) - 1, min(len(records), _SAMPLED)).astype(int)
    return [str(len(records)), *(repr(records[int(row)]) for row in rows)]


def _fresh(work: Work, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What ``about.json`` says before the content is there; the work as ``config.json`` has it."""
    settings: dict[str, Any] = json.loads(config_files.to_json(work))
    return {"format": FORMAT, "settings": settings, "inputs": dict(inputs)}


def _begin(work: Work, place: Workplace, fresh: dict[str, Any], reason: str) -> None:
    """Remove what cannot be gone on with, and say so, or refuse to."""
    directory = place.directory
    made = [path for path in _files(directory) if path.name != _ABOUT]
    lines = max((_lines(path) for path in made if path.name == RECORDS), default=0)
    if reason and made and place.run is None:
        raise DataError(
            f"{directory}: an output was begun here (lines written: {lines:,}), and {reason}; "
            "write what was given before, to go on with it, or remove this directory, to begin anew"
        )
    if reason:
        removed = f"; lines removed: {lines:,}" if lines else ""
        place.say(f"artifact {work.name} is built again: {reason}{removed}")
    for path in directory.iterdir() if directory.exists() else ():
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)
    write_json(directory / _ABOUT, fresh)


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _whole(directory: Path) -> dict[str, Any]:
    path = directory / _ABOUT
    about = read_json(path, dict, f"remove {directory}, to build it again") if path.exists() else {}
    if "content" not in about:
        raise DataError(
            f"{directory}: there is no finished artifact here; let the run carry out the work "
            "that writes it"
        )
    return about


def _look(directory: Path, fresh: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """What there is of an artifact: its ``about.json`` if it can be used, else why it cannot."""
    path = directory / _ABOUT
    if not path.exists():
        return None, f"{_ABOUT} is missing" if _files(directory) else ""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            return None, f"its format is {about['format']}, and this version writes {FORMAT}"
        if about["settings"] != fresh["settings"]:
            key = config_files.first_difference(about["settings"], fresh["settings"])
            old, new = (_value(each["settings"], key) for each in (about, fresh))
            return None, f"its {key} changed" + (f" from {old} to {new}" if old and new else "")
        for name in (*about["inputs"], *fresh["inputs"]):
            if about["inputs"].get(name) != fresh["inputs"].get(name):
                return None, f"its {name} changed"
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, f"{_ABOUT} cannot be read"
    for name, size in about.get("files", {}).items():
        file = directory / name
        if not file.is_file():
            return None, f"{name} is missing"
        if file.stat().st_size != size:
            return None, f"{name} has {file.stat().st_size:,} bytes and had {size:,}"
    return about, ""


def _value(settings: Any, key: str) -> str:
    """What a dotted path of settings holds, as JSON; empty if it is long, or there is no such."""
    try:
        for part in key.split("."):
            settings = settings[int(part) if isinstance(settings, list) else part]
    except (LookupError, TypeError, ValueError):
        return ""
    text = json.dumps(settings, ensure_ascii=False)
    return text if len(text) <= _SHORT else ""


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.suffix != ".part")


def _file_print(path: Any) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()[:32]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
