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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from clir_jax.training.kinds import LoadedModel, kind_of

FORMAT = 1
_Told = TypeVar("_Told", Embeddings, np.ndarray)
_ABOUT, RECORDS = "about.json", "records.jsonl"
_SAMPLED = 1000


@dataclasses.dataclass(frozen=True)
class Workplace:
    """What a work needs besides itself.

    Args:
      run: the run it belongs to; None where a command carries out a single work.
      mesh: where models compute.
      seed: of what is chosen by chance; another in every round.
      directory: of the artifact; nothing else is there.
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


def check_finite(work: Work, model: str | FromStage, told: _Told) -> _Told:
    """Refuse a broken model's answers here: in a maximum over tokens, a NaN may go unseen.

    Raises:
      DataError: if a number is not finite.
    """
    if not np.isfinite(told.vectors if isinstance(told, Embeddings) else told).all():
        raise DataError(
            f"work {work.name}: the model {model!r} answers with numbers that are not finite; "
            "look for where its training went wrong, or name another"
        )
    return told


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

    One that a kill interrupted is gone on with, if its inputs are still the same. One that is
    damaged or was made of other inputs is made again, and ``place.say`` tells why.

    Args:
      work: what makes it.
      place: where.
      inputs: a print of everything that decides the content besides the settings, by a name for
        people: ``"model"``.
      make: writes all files into a directory, which may hold what an interrupted call has left, and
        returns what is worth knowing of them.

    Returns:
      The hash of the content.
    """
    directory = place.directory
    fresh = {"format": FORMAT, "settings": _settings(work), "inputs": dict(inputs)}
    about, reason = _look(directory, fresh)
    if about is not None and "content" in about:
        return str(about["content"])
    if reason:
        place.say(f"artifact {work.name} is built again: {reason}")
    if about is None:
        shutil.rmtree(directory, ignore_errors=True)
        write_json(directory / _ABOUT, fresh)
    facts = make(directory)
    files = {str(p.relative_to(directory)): p for p in _files(directory) if p.name != _ABOUT}
    content = _digest(f"{name} {_file_print(path)}" for name, path in files.items())
    sizes = {name: path.stat().st_size for name, path in files.items()}
    write_json(
        directory / _ABOUT, {**fresh, "facts": dict(facts), "files": sizes, "content": content}
    )
    return content


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


def write_rankings(
    directory: Path,
    records: Records,
    block: int,
    lists: Callable[[Sequence[Ranking], range], Iterable[tuple[Sequence[str], Any]]],
    progress: Progress,
) -> None:
    """Write rankings with other negatives or scores as JSON lines, block by block.

    It goes on behind the last whole block that is there, so that a block is always the same
    records, and what is computed together does not depend on where a kill came.

    Args:
      directory: of the artifact.
      records: rankings.
      block: records of a block.
      lists: gives of the records of a block, and their numbers, the negatives and the scores (or
        None) of each.
      progress: told the records that are done.
    """
    language = records.languages[0]

    def lines(rows: range) -> Iterator[str]:
        read: list[Any] = [records[row] for row in rows]
        for record, (negatives, scores) in zip(read, lists(read, rows), strict=True):
            yield _line(record, language, negatives, scores)

    write_blocks(directory / RECORDS, len(records), block, lines, progress)


def write_blocks(
    path: Path,
    total: int,
    block: int,
    lines: Callable[[range], Iterable[str]],
    progress: Progress,
) -> None:
    """Write lines, block by block, behind the last whole block that is there.

    Args:
      path: of the file.
      total: lines.
      block: lines of a block.
      lines: gives those of these numbers.
      progress: told the lines that are done.

    Raises:
      DataError: if there are more or fewer lines at the end.
    """
    for start in range(_cut(path, total, block), total, block):
        progress(start, total)
        text = "".join(lines(range(start, min(start + block, total))))
        with open(path, "ab") as file:
            file.write(text.encode())
    with open(path, "rb") as file:
        there = sum(1 for _ in file)
    if there != total:
        raise DataError(
            f"{path}: {there:,} lines are there, and {total:,} belong there, as if two processes "
            f"had written them; remove {path.parent}, and start again with one"
        )
    progress(total, total)


def written_lines(directory: Path) -> Iterator[dict[str, Any]]:
    """The objects that ``write_rankings`` has written."""
    with open(directory / RECORDS, encoding="utf-8") as file:
        yield from map(json.loads, file)


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


def _settings(work: Work) -> dict[str, Any]:
    """The work as ``config.json`` has it."""
    settings: dict[str, Any] = json.loads(config_files.to_json(work))
    return settings


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
            return None, f"its {key} changed"
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


def _line(record: Ranking, language: str, negatives: Sequence[str], scores: Any) -> str:
    """One line for ``RankingJSONL``."""
    others = {x: text for x, text in record.queries.items() if x != language}
    row: dict[str, Any] = {"query": record.queries[language]}
    row |= {"queries": others} if others else {}
    row |= {"positives": [p.text for p in record.positives], "negatives": list(negatives)}
    row |= {} if scores is None else {"scores": [float(score) for score in scores]}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _cut(path: Path, total: int, block: int) -> int:
    """Cut a file of lines behind its last whole block, and tell how many lines it has then."""
    ends = [0]
    with open(path, "ab+") as file:
        file.seek(0)
        for line in file:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
        done = len(ends) - 1
        done -= done % block if done < total else 0
        file.truncate(ends[done])
    return done


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.suffix != ".part")


def _file_print(path: Any) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()[:32]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
