"""Text files by line number: found, checked once, and read lazily.

A file is memory-mapped, its line ends are found with NumPy, and a line becomes text only when it is
asked for. So opening a million lines takes a second or two, costs 24 bytes a line, and any thread
may read any line at any time. What comes from a bucket or is compressed is held in memory whole.
"""

import dataclasses
import gzip
import io
import mmap
import pathlib
import shutil
import unicodedata
import zlib

import numpy as np
from etils import epath
from jaxtyping import Bool, Int, UInt8

BOM = b"\xef\xbb\xbf"
"""The byte order mark that some programs write before UTF-8."""

_CHUNK = 1 << 24
_PLACES = 5
# Characters that leave nothing to read: controls, invisible format characters, private use, spaces,
# and the sign for a character that was lost. Tokenizers drop them all.
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Zs", "Zl", "Zp"})
_LOST = "\ufffd"
# The bytes that such characters start with in UTF-8; text that starts otherwise needs no look.
_MAYBE_BLANK = np.zeros(256, bool)
_MAYBE_BLANK[:33] = True
_MAYBE_BLANK[[0x7F, 0xC2, 0xD8, 0xDB, 0xDC, 0xE0, 0xE1, 0xE2, 0xE3]] = True
_MAYBE_BLANK[[0xEE, 0xEF, 0xF0, 0xF3, 0xF4]] = True


class DataError(ValueError):
    """A file that cannot be read as asked: one sentence: which file and line, and what to write."""


@dataclasses.dataclass
class Report:
    """What came of opening a source.

    Args:
      read: records that can be read.
      skipped: records left out, by reason.
      places: the first few of them, each as the sentence an error would have been.
    """

    read: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    places: list[str] = dataclasses.field(default_factory=list)


class Intake:
    """Receives bad records while a source is opened: stops at the first, or counts and goes on.

    Args:
      on_bad_record: "error" or "skip".

    Raises:
      ValueError: if ``on_bad_record`` is neither.
    """

    def __init__(self, on_bad_record: str = "error"):
        if on_bad_record not in ("error", "skip"):
            raise ValueError(f'on_bad_record is {on_bad_record!r}; write "error" or "skip"')
        self._skip = on_bad_record == "skip"
        self.report = Report()

    def refuse(self, place: str, reason: str, sentence: str) -> None:
        """Raise ``place: sentence``, or count it under ``reason`` when bad records are skipped."""
        if not self._skip:
            raise DataError(f"{place}: {sentence}")
        self.leave_out(reason)
        if len(self.report.places) < _PLACES:
            self.report.places.append(f"{place}: {sentence}")

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count records that are left out for a reason that is no fault."""
        if count:
            self.report.skipped[reason] = self.report.skipped.get(reason, 0) + count

    def finish(self, read: int, what: str) -> Report:
        """Close the report.

        Raises:
          DataError: if nothing is left to read.
        """
        self.report.read = read
        if not read:
            reasons = ", ".join(f"{n} x {reason}" for reason, n in self.report.skipped.items())
            raise DataError(f"{what}: no record is left to read; left out: {reasons or 'none'}")
        return self.report


def find_files(data_root: str, path: str) -> list[tuple[str, epath.Path]]:
    """The files ``path`` names under ``data_root``, sorted; ``*``, ``?`` and ``[`` match names.

    Returns:
      Pairs of the name for messages (as written, relative to ``data_root``) and the path.

    Raises:
      DataError: if there is no such file.
    """
    if not path:
        raise DataError(f"an empty path under {data_root!r}; write the name of a file or a pattern")
    full = epath.Path(data_root) / path
    if full.is_file():
        return [(path, full)]
    if not any(c in path for c in "*?["):
        what = "that is a directory, not a file" if full.is_dir() else "there is no such file"
        raise DataError(f"{path}: {what} under data_root {data_root!r}; write a file that is there")
    if "**" in path:
        raise DataError(f"{path}: ** is not a pattern here; write one * for each folder")
    segments = path.split("/")
    magic = next(i for i, segment in enumerate(segments) if any(c in segment for c in "*?["))
    base = epath.Path(data_root) / ("/".join(segments[:magic]) or ("/" if magic else "."))
    # On local paths pathlib, because etils would take a [ in data_root for a pattern as well.
    glob = base.glob if "://" in base.as_posix() else pathlib.Path(base).glob
    found = sorted(epath.Path(p) for p in glob("/".join(segments[magic:])) if p.is_file())
    if not found:
        raise DataError(f"{path}: no file under data_root {data_root!r} matches this pattern")
    return [("/".join([*segments[:magic], *p.parts[len(base.parts) :]]), p) for p in found]


def content_of(path: epath.Path, name: str) -> mmap.mmap | bytes:
    """The bytes of a file; mapped when it is local, so that they are not held in memory.

    A file whose name ends in ``.gz`` is held decompressed, with an eighth more while it is read.

    Args:
      path: the file.
      name: its name in messages.

    Raises:
      DataError: if it cannot be read or decompressed, or is empty.
    """
    try:
        if "://" in path.as_posix():
            content: mmap.mmap | bytes = path.read_bytes()
        else:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    if name.endswith(".gz") and len(content):
        content = _decompressed(content, name)
    if content[:3] in (b"", BOM) and len(content) <= len(BOM):
        raise DataError(f"{name}: the file is empty; write at least one record")
    return content


def _decompressed(content: mmap.mmap | bytes, name: str) -> bytes:
    # A BytesIO grows in place and gives its bytes without a copy; read() would hold them twice.
    whole = io.BytesIO()
    try:
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        with gzip.GzipFile(fileobj=source) as file:  # type: ignore[arg-type]
            shutil.copyfileobj(file, whole, _CHUNK)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{name}: cannot be decompressed ({error}); copy or compress it again, or take .gz off "
            "its name if it is not compressed"
        ) from error
    return whole.getvalue()


class Lines:
    """The lines of one file, by position.

    Lines end at ``\\n``; a ``\\r`` before it and a byte order mark at the start are not text. Every
    other character is, a ``"`` included. Lines that are not UTF-8 or hold a NUL are refused.
    ``total`` counts the lines of the file, those that were refused or left out included.

    Args:
      path: the file.
      name: its name in messages.
      intake: receives the bad lines.

    Raises:
      DataError: if the file cannot be read or is empty, or ``intake`` raises.
    """

    unit = "line"

    def __init__(self, path: epath.Path, name: str, intake: Intake):
        self.name = name
        self._content = content_of(path, name)
        view = np.frombuffer(self._content, np.uint8)
        breaks = positions(view, ord("\n"))
        ends = breaks if view[-1] == ord("\n") else np.append(breaks, len(view))
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
        if self._content[:3] == BOM:
            starts[0] = len(BOM)
        returns = (ends > starts) & (view[np.maximum(ends - 1, 0)] == ord("\r"))
        self.starts, self.ends = starts, ends - returns
        self.numbers = np.arange(1, len(starts) + 1)
        self.total = len(starts)
        self._refuse_undecodable(intake)

    def __len__(self) -> int:
        return len(self.starts)

    def raw(self, i: int) -> bytes:
        """Line ``i`` as bytes, without its end."""
        return self._content[self.starts[i] : self.ends[i]]

    def text(self, i: int) -> str:
        """Line ``i`` as text, without its end."""
        return self.raw(i).decode()

    def place(self, i: int) -> str:
        """``file:line`` of line ``i``, for messages."""
        return f"{self.name}:{self.numbers[i]}"

    def keep(self, rows: Bool[np.ndarray, " n"]) -> None:
        """Leave out the lines where ``rows`` is False."""
        if not rows.all():
            self.starts, self.ends = self.starts[rows], self.ends[rows]
            self.numbers = self.numbers[rows]

    def blank(self, starts: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"]) -> list[int]:
        """Which of the stretches of bytes ``[starts, ends)`` have nothing to see."""
        heads = self.view[np.minimum(starts, len(self.view) - 1)]
        return [
            int(k)
            for k in np.flatnonzero((starts == ends) | _MAYBE_BLANK[heads])
            if is_blank(self._content[int(starts[k]) : int(ends[k])].decode())
        ]

    @property
    def view(self) -> UInt8[np.ndarray, " bytes"]:
        """The bytes of the whole file."""
        return np.frombuffer(self._content, np.uint8)

    def _refuse_undecodable(self, intake: Intake) -> None:
        good = np.ones(len(self), bool)
        nuls = np.searchsorted(self.starts, positions(self.view, 0), "right") - 1
        for line in np.unique(nuls).tolist():
            sentence = "the line holds a NUL byte; write the file as UTF-8, not UTF-16 or binary"
            intake.refuse(self.place(line), "NUL byte", sentence)
            good[line] = False
        view = memoryview(self._content)
        position = int(self.starts[0])
        while position < len(view):
            chunk = np.searchsorted(self.starts, position + _CHUNK, "right")
            stop = int(self.starts[chunk]) if chunk < len(self) else len(view)
            try:
                str(view[position:stop], "utf-8")
                position = stop
            except UnicodeDecodeError as error:
                where = position + error.start
                line = int(np.searchsorted(self.starts, where, "right")) - 1
                column = where - int(self.starts[line]) + 1
                if good[line]:
                    sentence = (
                        f"byte {column} of the line (0x{view[where]:02x}) is not UTF-8; "
                        "convert the file to UTF-8"
                    )
                    intake.refuse(self.place(line), "not UTF-8", sentence)
                good[line] = False
                position = int(self.starts[line + 1]) if line + 1 < len(self) else len(view)
        self.keep(good)


def positions(view: UInt8[np.ndarray, " bytes"], byte: int) -> Int[np.ndarray, " found"]:
    """Where ``byte`` occurs, looked for in pieces so that no mask of the whole file is made."""
    pieces = [
        np.flatnonzero(view[start : start + _CHUNK] == byte) + start
        for start in range(0, len(view), _CHUNK)
    ]
    return np.concatenate([np.zeros(0, np.int64), *pieces])


def is_blank(text: str) -> bool:
    """Whether a text has nothing to read: only spaces, controls and other invisible characters."""
    return all(unicodedata.category(c) in _INVISIBLE or c == _LOST for c in text)
