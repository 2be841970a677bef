"""Rows with named columns as records: what data sets of TFDS and of the Hugging Face hub share."""

import difflib
import fnmatch
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from clir_jax.data.opened import BitextRecords, OpenedSource, RankingKeys, TextRecords
from clir_jax.data.reading import DataError, Intake, is_blank
from clir_jax.data.tables import json_kind, text_key

_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "bitext": ("english", "other"),
    "ranking": ("query", "positives"),
    "text": ("text",),
}
_OPTIONAL: Mapping[str, tuple[str, ...]] = {"ranking": ("negatives", "scores")}
# Fields of which a record has several, so that a pattern may name their columns.
_SEVERAL = ("positives", "negatives", "scores")
_LANGUAGE = "language"
_BATCH = 1024
_LARGEST = float(np.finfo(np.float32).max)
_MEND = 'correct the record, or set on_bad_record="skip" to leave it out'


@runtime_checkable
class Rows(Protocol):
    """A data set by row number, read lazily and from any thread."""

    @property
    def name(self) -> str:
        """The data set and the split, for messages."""

    @property
    def columns(self) -> Sequence[str]:
        """All columns; one inside another is written with a full stop: ``translation.en``."""

    def __len__(self) -> int: ...

    def reader(self, columns: Sequence[str]) -> Callable[[Sequence[int]], list[list[Any]]]:
        """How to read the cells of these columns, row after row.

        A cell is text, UTF-8 bytes, a number, a list of one of these, or None.
        """


class _Fault(Exception):
    """Why a row is no record: the reason to count it under, and the sentence."""


def check_columns(source: str, kind: str, columns: Mapping[str, str]) -> None:
    """Refuse what a source's options cannot mean.

    Args:
      source: its name, for messages.
      kind: of the records.
      columns: the column of each field.

    Raises:
      ValueError: naming the nearest kind or field there is.
    """
    if kind not in _REQUIRED:
        raise ValueError(f'{source}.kind is {kind!r}; write "bitext", "ranking" or "text"')
    known = (*_REQUIRED[kind], *_OPTIONAL.get(kind, ()), _LANGUAGE)
    for field in columns:
        translated = kind == "ranking" and re.fullmatch(r"query\..+", field)
        if field not in known and not translated:
            raise ValueError(
                f'{source}.columns names "{field}", which is no field of a {kind} record; write '
                f'"{_nearest(field, known)}" (one of: {", ".join(known)})'
            )


def open_rows(
    rows: Rows,
    kind: str,
    columns: Mapping[str, str],
    language: str | None,
    on_bad_record: str,
) -> OpenedSource:
    """Read every row once, check it, and give the records.

    Args:
      rows: the data set.
      kind: of the records.
      columns: the column of each field; a field that is missing here lies in the column of its own
        name. A ``*`` in the column of a field that may have several texts stands for any
        characters, and the columns that fit are read in the order of the numbers in their names.
      language: of the other side, the question or the text; None reads it from its column.
      on_bad_record: "error" or "skip".

    Raises:
      DataError: if there is no such column, or a row is no record.
    """
    where = _places(rows, kind, columns, own_language=language is None)
    names = list(dict.fromkeys(name for members in where.values() for name in members))
    read, parse = rows.reader(names), _PARSERS[kind]
    intake = Intake(on_bad_record)
    spoken = language
    kept, keys, gathered = array("q"), array("q"), RankingKeys()
    for number, values in _scan(len(rows), read):
        cells = dict(zip(names, values, strict=True))
        try:
            _, texts, positives = parse(where, cells)
            if language is None:
                spoken = _same_language(_one(where, cells, _LANGUAGE), spoken)
        except _Fault as fault:
            intake.refuse(f"{rows.name}[{number}]", *fault.args)
            continue
        kept.append(number)
        if kind == "ranking":
            gathered.add(text_key(texts[0]), map(text_key, texts[1:]), positives)
        else:
            keys.extend(map(text_key, texts))

    def row(i: int) -> Any:
        return parse(where, dict(zip(names, read([kept[i]])[0], strict=True)))[0]

    report = intake.finish(len(kept), rows.name)
    assert spoken is not None  # a record was read, and it named its language
    own = np.frombuffer(keys, np.int64)
    if kind == "text":
        return TextRecords(row, own, spoken, report)
    if kind == "bitext":
        return BitextRecords(row, own[::2], own[1::2], spoken, report)
    languages = _languages(rows, where, spoken)

    def ranking(i: int) -> Any:
        queries, passages, scores = row(i)
        return dict(zip(languages, queries, strict=True)), passages, scores

    return gathered.records(ranking, languages, intake, rows.name, scored="scores" in where)


def _languages(rows: Rows, where: "_Places", own: str) -> tuple[str, ...]:
    """The languages a ranking's question is in, in the order in which its row gives them."""
    others = [field.removeprefix("query.") for field in where if field.startswith("query.")]
    if own in others:
        raise DataError(
            f'{rows.name}: the question in "{own}" is in query and in query.{own}; '
            "leave the second out of columns"
        )
    return (own, *others)


def no_split(what: str, split: str, known: Sequence[str]) -> DataError:
    """The error for a split that a data set does not have."""
    if not known:
        return DataError(f"{what}: it has no splits; prepare it again")
    return DataError(
        f'{what}: there is no split "{split}"; write "{_nearest(split, known)}" '
        f"(one of: {', '.join(known)})"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


def _places(
    rows: Rows, kind: str, columns: Mapping[str, str], own_language: bool
) -> dict[str, list[str]]:
    """The columns of every field that is read."""
    if not rows.columns:
        raise DataError(f"{rows.name}: it has no columns of text; name another data set")
    wanted = [*_REQUIRED[kind], *(field for field in columns if field.startswith("query."))]
    wanted += [f for f in _OPTIONAL.get(kind, ()) if f in columns or f in rows.columns]
    if own_language:
        if _LANGUAGE not in columns and _LANGUAGE not in rows.columns:
            raise DataError(
                f'{rows.name}: no column says in which language the records are; set language="…"'
            )
        wanted.append(_LANGUAGE)
    return {field: _matching(rows, field, columns.get(field, field)) for field in wanted}


def _matching(rows: Rows, field: str, name: str) -> list[str]:
    if name in rows.columns:
        return [name]
    found = fnmatch.filter(rows.columns, name.replace("[", "[[]")) if field in _SEVERAL else []
    if "*" not in name or not found:
        raise DataError(
            f'{rows.name}: there is no column "{name}" for {field}; write columns={{"{field}": '
            f'"{_nearest(name, rows.columns)}"}} (one of: {", ".join(rows.columns)})'
        )
    return sorted(found, key=lambda column: [int(n) for n in re.findall(r"\d+", column)])


def _scan(
    n: int, read: Callable[[Sequence[int]], list[list[Any]]]
) -> Iterator[tuple[int, list[Any]]]:
    for start in range(0, n, _BATCH):
        numbers = range(start, min(start + _BATCH, n))
        yield from zip(numbers, read(numbers), strict=True)


_Cells = Mapping[str, Any]
_Places = Mapping[str, Sequence[str]]
# The record's text as its reader gives it, all texts (the question first), how many are relevant.
_Parsed = tuple[Any, Sequence[str], int]


def _text_row(where: _Places, cells: _Cells) -> _Parsed:
    text = _one(where, cells, "text")
    return text, (text,), 0


def _bitext_row(where: _Places, cells: _Cells) -> _Parsed:
    sides = _one(where, cells, "english"), _one(where, cells, "other")
    return sides, sides, 0


def _ranking_row(where: _Places, cells: _Cells) -> _Parsed:
    queries = tuple(_one(where, cells, field) for field in where if field.startswith("query"))
    listed = {
        field: [
            _text(value, name)
            for name in where.get(field, ())
            for value in (cells[name] if isinstance(cells[name], list) else [cells[name]])
        ]
        for field in ("positives", "negatives")
    }
    if not listed["positives"]:
        columns = ", ".join(where["positives"])
        raise _Fault("no positive", f'the column "{columns}" names no relevant passage; {_MEND}')
    passages = (*listed["positives"], *listed["negatives"])
    scores = _scores(where["scores"], cells, len(passages)) if "scores" in where else None
    return (queries, passages, scores), (queries[0], *passages), len(listed["positives"])


_PARSERS: Mapping[str, Callable[[_Places, _Cells], _Parsed]] = {
    "text": _text_row,
    "bitext": _bitext_row,
    "ranking": _ranking_row,
}


def _one(where: _Places, cells: _Cells, field: str) -> str:
    return _text(cells[where[field][0]], where[field][0])


def _text(value: Any, name: str) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} (0x{value[error.start]:02x})"
            sentence = f'{byte} of the column "{name}" is not UTF-8; {_MEND}'
            raise _Fault("not UTF-8", sentence) from None
    if not isinstance(value, str):
        kind = json_kind(value)
        raise _Fault("wrong type", f'the column "{name}" holds {kind}, not text; {_MEND}')
    if is_blank(value):
        raise _Fault("blank text", f'the column "{name}" is blank; {_MEND}')
    return value


def _scores(names: Sequence[str], cells: _Cells, passages: int) -> tuple[float, ...]:
    columns = ", ".join(names)
    found: list[float] = []
    for name in names:
        for value in cells[name] if isinstance(cells[name], list) else [cells[name]]:
            if isinstance(value, bool) or not isinstance(value, int | float):
                kind = "text" if isinstance(value, bytes | str) else json_kind(value)
                sentence = f'the column "{name}" holds {kind}, not numbers; {_MEND}'
                raise _Fault("wrong type", sentence)
            if not abs(value) <= _LARGEST:
                sentence = f'the column "{name}" holds {value}, no finite float32 number; {_MEND}'
                raise _Fault("score not finite", sentence)
            found.append(float(value))
    if len(found) != passages:
        sentence = (
            f'the column "{columns}" has {len(found)} scores for {passages} passages; {_MEND}'
        )
        raise _Fault("wrong number of scores", sentence)
    return tuple(found)


def _same_language(found: str, before: str | None) -> str:
    if before is not None and found != before:
        raise _Fault(
            "another language",
            f'the record is in "{found}" and those before it are in "{before}"; '
            "split the data set by language",
        )
    return found
