"""The records of one large JSON array, found without parsing it, and parsed one at a time."""

import functools
import re
from array import array

import numpy as np
from etils import epath
from jaxtyping import Int

from clir_jax.data.reading import BOM, DataError, content_of, positions

# Everything up to the next bracket that is in no string. Nothing in it is tried twice, so that a
# quotation mark without its pair ends the search instead of shifting it into the text.
_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+[\[\]{}]', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_SHOWN = 20


class JSONArray:
    """The records of one file that holds a JSON array of objects.

    The file is searched for brackets once, at some 200 MB a second, and 16 bytes a record are kept;
    a record becomes Python objects only when it is asked for.

    Args:
      path: the file.
      name: its name in messages.

    Raises:
      DataError: if the file cannot be read, or is not one whole array.
    """

    unit = "record"

    def __init__(self, path: epath.Path, name: str):
        self.name = name
        self._content = content_of(path, name)
        self._starts, self._ends = array("q"), array("q")
        self._refuse_other_text(self._find())

    def __len__(self) -> int:
        return len(self._starts)

    def raw(self, i: int) -> bytes:
        """Record ``i`` as bytes."""
        return self._content[self._starts[i] : self._ends[i]]

    def place(self, i: int) -> str:
        """The file, the line and the number of record ``i``, for messages."""
        line = int(np.searchsorted(self._line_ends, self._starts[i])) + 1
        return f"{self.name}:{line} (record {i + 1})"

    @functools.cached_property
    def _line_ends(self) -> Int[np.ndarray, " lines"]:
        return positions(np.frombuffer(self._content, np.uint8), ord("\n"))

    def _find(self) -> int:
        """Note where records start and end; returns where the array ends, -1 if it does not."""
        depth, position = 0, self._first()
        while found := _TO_BRACKET.match(self._content, position):
            position = found.end()
            if self._content[position - 1] in b"[{":
                if depth == 1:
                    self._starts.append(position - 1)
                depth += 1
            else:
                depth -= 1
                if depth == 1:
                    self._ends.append(position)
                elif depth == 0:
                    return position
        return -1

    def _first(self) -> int:
        """Where the array starts."""
        first = self._skip(len(BOM) if self._content[: len(BOM)] == BOM else 0)
        if self._content[first : first + 1] != b"[":
            raise DataError(
                f"{self.name}: the file starts with {self._shown(first)}; write one JSON array of "
                "objects, [{...}, {...}], in UTF-8"
            )
        return first

    def _refuse_other_text(self, closed: int) -> None:
        """Refuse an array without an end, and whatever is no record, comma or space."""
        if closed < 0:
            raise DataError(
                f"{self.name}: the array does not end after record {len(self._ends)}; copy the "
                "file again if it was cut off, or add the missing bracket or quotation mark"
            )
        after = self._first() + 1
        for n, start in enumerate((*self._starts, closed - 1)):
            found = self._skip(after)
            comma = self._content[found : found + 1] == b","
            if comma != (0 < n < len(self)) or self._skip(found + comma) != start:
                what = f"record {n} is followed by" if n else "the array starts with"
                raise DataError(
                    f"{self.name}: {what} {self._shown(found)}; write objects only, with a comma "
                    "between two of them"
                )
            after = self._ends[n] if n < len(self) else closed
        found = self._skip(closed)
        if found < len(self._content):
            raise DataError(
                f"{self.name}: the array is followed by {self._shown(found)}; write one array a "
                "file"
            )

    def _skip(self, position: int) -> int:
        space = _SPACE.match(self._content, position)
        return space.end() if space else position

    def _shown(self, start: int) -> str:
        return repr(self._content[start : start + _SHOWN].decode(errors="replace"))
