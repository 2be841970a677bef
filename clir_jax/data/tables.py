"""Tables of text: tab-separated lines, plain lines and JSON lines, checked when they are opened."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from clir_jax.data.json_arrays import JSONArray
from clir_jax.data.reading import DataError, Intake, Lines, find_files, positions


class Table:
    """The lines of several files, or the records of several JSON arrays, numbered through.

    Args:
      files: checked lines or arrays, in order.
    """

    def __init__(self, files: Sequence[Lines] | Sequence[JSONArray]):
        self._files, self.unit = files, files[0].unit
        self._ends = np.cumsum([len(lines) for lines in files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, i: int) -> tuple[Lines | JSONArray, int]:
        file = int(np.searchsorted(self._ends, i, "right"))
        return self._files[file], i - (int(self._ends[file - 1]) if file else 0)

    def raw(self, i: int) -> bytes:
        """Line or record ``i`` as bytes, without its end."""
        lines, row = self._find(i)
        return lines.raw(row)

    def text(self, i: int) -> str:
        """Line or record ``i`` as text, without its end."""
        return self.raw(i).decode()

    def place(self, i: int) -> str:
        """Where line or record ``i`` is, ``file:line``, for messages."""
        lines, row = self._find(i)
        return lines.place(row)

    def raws(self) -> Iterable[bytes]:
        """All lines or records in order, as bytes."""
        for lines in self._files:
            yield from map(lines.raw, range(len(lines)))


def open_tsv(
    data_root: str, path: str, form: str, texts: Sequence[int], intake: Intake, more: bool = False
) -> Table:
    """Index tab-separated files without header or quoting.

    Args:
      data_root: the folder ``path`` is relative to.
      path: a file, or a pattern that names several.
      form: the fields, as an error will ask for them: ``"id<TAB>English<TAB>other"``.
      texts: the fields (from 0) that must not be blank.
      intake: receives the bad lines.
      more: allow further fields.

    Returns:
      The good lines.
    """
    files = []
    for name, file in find_files(data_root, path):
        lines = Lines(file, name, intake)
        _check_fields(lines, form, texts, intake, more)
        files.append(lines)
    return Table(files)


def _check_fields(
    lines: Lines, form: str, texts: Sequence[int], intake: Intake, more: bool
) -> None:
    names = form.split("<TAB>")
    tabs = positions(lines.view, ord("\t"))
    first = np.searchsorted(tabs, lines.starts)
    counts = np.searchsorted(tabs, lines.ends) - first + 1
    good = counts >= len(names) if more else counts == len(names)
    for line in np.flatnonzero(~good).tolist():
        n = int(counts[line])
        number = f"at least {len(names)}" if more else str(len(names))
        sentence = f"the line has {n} field{'s' * (n != 1)}, not {number}; write {form}"
        intake.refuse(lines.place(line), "wrong number of fields", sentence)
    # A tab after the last one of the file does not exist; a last field ends with its line.
    tabs = np.append(tabs, len(lines.view))
    for field in texts:
        rows = np.flatnonzero(good)
        starts = lines.starts[rows] if field == 0 else tabs[first[rows] + field - 1] + 1
        last = counts[rows] == field + 1
        ends = np.where(last, lines.ends[rows], tabs[np.where(last, 0, first[rows] + field)])
        for row in rows[lines.blank(starts, ends)].tolist():
            sentence = f"the {names[field]} field is blank; write text or remove the line"
            intake.refuse(lines.place(row), "blank text", sentence)
            good[row] = False
    lines.keep(good)


def open_lines(data_root: str, path: str, intake: Intake, blank: str | None = None) -> Table:
    """Index files line by line; refuse blank lines with the sentence ``blank`` when it is given."""
    files = []
    for name, file in find_files(data_root, path):
        lines = Lines(file, name, intake)
        if blank is not None:
            good = np.ones(len(lines), bool)
            for row in lines.blank(lines.starts, lines.ends):
                intake.refuse(lines.place(row), "blank text", blank)
                good[row] = False
            lines.keep(good)
        files.append(lines)
    return Table(files)


def open_arrays(data_root: str, path: str) -> Table:
    """Find the records of JSON arrays; none of them is parsed yet."""
    return Table([JSONArray(file, name) for name, file in find_files(data_root, path)])


_JSON_NAMES: dict[type[Any], str] = {str: "a string", list: "a list", dict: "an object"}


def parse_object(
    table: Table, i: int, fields: Mapping[str, type[Any]], required: Sequence[str], intake: Intake
) -> dict[str, Any] | None:
    """Line or record ``i`` as a JSON object whose ``fields``, where present, have the given types.

    Strings in it, one level deep in lists and objects too, must be text that UTF-8 can write.

    Returns:
      The object, or None where it was refused and bad records are skipped.
    """
    what = table.unit
    try:
        found = json.loads(table.text(i))
    except (ValueError, RecursionError) as error:
        why = str(error)
        if isinstance(error, json.JSONDecodeError):
            problem = error.msg.removesuffix(" starting at").removesuffix(" at")
            line = f" of its line {error.lineno}" if error.lineno > 1 else ""
            why = f"{problem} at column {error.colno}{line}"
        sentence = f"the {what} is not JSON ({why}); write one object a {what}"
        intake.refuse(table.place(i), "bad JSON", sentence)
        return None
    if not isinstance(found, dict):
        sentence = f"the {what} is JSON but not an object; write {{...}}"
        intake.refuse(table.place(i), "wrong JSON type", sentence)
        return None
    fault = object_fault(found, fields, required)
    if fault is not None:
        intake.refuse(table.place(i), *fault)
        return None
    return found


def object_fault(
    found: dict[str, Any], fields: Mapping[str, type[Any]], required: Sequence[str]
) -> tuple[str, str] | None:
    """What is wrong with an object that ``parse_object`` refuses: the reason and a sentence."""
    for name in required:
        if name not in found:
            return "missing key", f'the object has no "{name}"; write {_example(fields)}'
    for name, kind in fields.items():
        value = found.get(name, kind())
        if not isinstance(value, kind):
            sentence = f'"{name}" is {json_kind(value)}; write {_JSON_NAMES[kind]}'
            return "wrong JSON type", sentence
        inner = value.values() if isinstance(value, dict) else value
        for text in [value] if isinstance(value, str) else inner:
            if isinstance(text, str) and not is_unicode(text):
                sentence = f'"{name}" holds half a surrogate pair (\\ud800 to \\udfff); remove it'
                return "not Unicode text", sentence
    return None


def _example(fields: Mapping[str, type[Any]]) -> str:
    empty: dict[type[Any], str] = {str: '"…"', list: "[…]", dict: "{…}"}
    return "{" + ", ".join(f'"{name}": {empty[kind]}' for name, kind in fields.items()) + "}"


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write a text."""
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no tokenizer takes
        return False
    return True


def json_kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _JSON_NAMES.get(type(value), "a number")


def text_key(text: str) -> int:
    """A 64-bit key that equal texts share; only its equality within this process means anything."""
    return hash(text.encode())


def first_rows(keys: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number equal keys alike: the row at which each occurs first, int32.

    Two different texts share a 64-bit key with probability n^2 / 2^65: 3e-8 for a million.

    Raises:
      DataError: if there are more rows than int32 numbers.
    """
    if len(keys) > np.iinfo(np.int32).max:
        raise DataError(f"{len(keys)} texts are more than int32 ids can number; split the source")
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int32)
