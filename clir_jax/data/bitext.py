"""Sources of bitext: tab-separated pairs, and two files that are aligned line by line."""

import dataclasses
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Bool, Int

from clir_jax.data.opened import BitextRecords, RowReader, shared_sides
from clir_jax.data.reading import DataError, Intake, Lines, find_files
from clir_jax.data.tables import Table, open_tsv

_HOLD_OUT_SEED = 0
_LIMIT_SEED = 1


@dataclasses.dataclass(frozen=True)
class BitextTSV:
    """Translation pairs, ``id<TAB>English<TAB>other``, without header or quoting.

    ``hold_out`` pairs are set aside by a fixed random choice. No text is on both sides of it: pairs
    that share a sentence are set aside together. ``limit`` is a fixed random choice too, and a
    smaller limit chooses a part of a larger one's pairs.

    Args:
      path: a file, or a pattern that names several.
      language: of the other side.
      hold_out: how many pairs to set aside.
      part: "train", or "held_out" for the pairs set aside.
      on_bad_record: "error" stops at the first bad line; "skip" leaves it out and counts it.
      limit: read at most so many pairs of the part; None reads all.

    Raises:
      ValueError: if an option is out of its range.
    """

    path: str
    language: str
    hold_out: int = 0
    part: str = "train"
    on_bad_record: str = "error"
    limit: int | None = None

    def __post_init__(self) -> None:
        _check_choice(self)

    def open(self, data_root: str) -> BitextRecords:
        """Index and check the files.

        Raises:
          DataError: if a file cannot be read or holds a bad line, or ``hold_out`` cannot be met.
        """
        intake = Intake(self.on_bad_record)
        table = open_tsv(data_root, self.path, "id<TAB>English<TAB>other", (1, 2), intake)
        fields = (field for line in table.raws() for field in line.split(b"\t")[1:])
        keys = np.fromiter(map(hash, fields), np.int64).reshape(-1, 2)
        return _chosen(self, lambda i: table.text(i).split("\t")[1:], keys, intake, self.path)

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        return (self.path,)


@dataclasses.dataclass(frozen=True)
class BitextMoses:
    """Translation pairs in two files, as Moses and OPUS have them: line i of one is line i of both.

    Args:
      english: the English file, ``corpus.en-sw.en``. A pattern names several; sorted, they are
        paired with those of ``other``, and all but the last ending of their names must be equal.
      other: the file in the other language, ``corpus.en-sw.sw``.
      language: of the other side.
      hold_out, part, limit: as ``BitextTSV`` takes them.
      on_bad_record: "error" stops at the first bad line; "skip" leaves its pair out and counts it.
        Files with unequal numbers of lines are always an error.

    Raises:
      ValueError: if an option is out of its range.
    """

    english: str
    other: str
    language: str
    hold_out: int = 0
    part: str = "train"
    on_bad_record: str = "error"
    limit: int | None = None

    def __post_init__(self) -> None:
        _check_choice(self)

    def open(self, data_root: str) -> BitextRecords:
        """Index and check the files.

        Raises:
          DataError: if a file cannot be read or holds a bad line, the files have unequal numbers of
            lines, or ``hold_out`` cannot be met.
        """
        intake = Intake(self.on_bad_record)
        sides: list[tuple[Lines, Lines]] = []
        for (english, first), (other, second) in self._pairs(data_root):
            sides.append((Lines(first, english, intake), Lines(second, other, intake)))
            _align(*sides[-1], intake)
        tables = [Table(lines) for lines in zip(*sides, strict=True)]
        keys = [np.fromiter(map(hash, table.raws()), np.int64) for table in tables]

        def row(i: int) -> list[str]:
            return [table.text(i) for table in tables]

        what = " and ".join(self.files())
        return _chosen(self, row, np.stack(keys, axis=1), intake, what)

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        return (self.english, self.other)

    def _pairs(self, data_root: str) -> Sequence[tuple[tuple[str, object], tuple[str, object]]]:
        english, other = (find_files(data_root, path) for path in self.files())
        if len(english) != len(other):
            raise DataError(
                f"{self.english} names {len(english)} files and {self.other} {len(other)}; name a "
                "file of each language for every corpus"
            )
        pairs = list(zip(english, other, strict=True))
        for (first, _), (second, _) in pairs if len(pairs) > 1 else ():
            if _corpus(first) != _corpus(second):
                raise DataError(
                    f"{first} and {second} are paired by their order, but not by their names; give "
                    "them equal names but for the last ending, or a source each in a Mixture"
                )
        return pairs


def _corpus(name: str) -> str:
    return PurePosixPath(name.removesuffix(".gz")).stem


def _align(english: Lines, other: Lines, intake: Intake) -> None:
    """Keep the lines that neither file refused, and that are blank in neither."""
    if english.total != other.total:
        raise DataError(
            f"{english.name} has {english.total} lines and {other.name} has {other.total}; line i "
            "of one must translate line i of the other"
        )
    good = np.zeros(english.total + 1, bool)
    good[np.intersect1d(english.numbers, other.numbers)] = True
    for lines in (english, other):
        for row in lines.blank(lines.starts, lines.ends):
            if good[lines.numbers[row]]:
                sentence = "the line is blank; write text, or remove it from both files"
                intake.refuse(lines.place(row), "blank text", sentence)
                good[lines.numbers[row]] = False
    for lines in (english, other):
        lines.keep(good[lines.numbers])


def _check_choice(source: BitextTSV | BitextMoses) -> None:
    kind = type(source).__name__
    if source.part not in ("train", "held_out"):
        raise ValueError(f'{kind}.part is {source.part!r}; write "train" or "held_out"')
    if source.hold_out < 0 or (source.part == "held_out" and source.hold_out == 0):
        raise ValueError(
            f"{kind}.hold_out is {source.hold_out} for part {source.part!r}; "
            "write how many pairs to set aside"
        )
    if source.limit is not None and source.limit < 1:
        raise ValueError(f"{kind}.limit is {source.limit}; write a number of pairs, or None")


def _chosen(
    source: BitextTSV | BitextMoses,
    row: RowReader,
    keys: Int[np.ndarray, "n 2"],
    intake: Intake,
    what: str,
) -> BitextRecords:
    """The pairs of the source's part, up to its limit.

    Args:
      source: has the options.
      row: gives the English and the other side of pair i, of all pairs.
      keys: text keys of both sides of all pairs.
      intake: of the source; its report is closed.
      what: was read, for messages.
    """
    intake.finish(len(keys), what)
    held_out = _held_out(shared_sides(keys[:, 0], keys[:, 1]), source.hold_out, what)
    rows = np.flatnonzero(held_out == (source.part == "held_out"))
    reason = "set aside by hold_out" if source.part == "train" else "not set aside by hold_out"
    intake.leave_out(reason, len(keys) - len(rows))
    if source.limit is not None and source.limit < len(rows):
        intake.leave_out("beyond limit", len(rows) - source.limit)
        order = np.random.default_rng(_LIMIT_SEED).permutation(len(rows))
        rows = np.sort(rows[order[: source.limit]])
    report = intake.finish(len(rows), what)
    own = keys[rows]
    return BitextRecords(lambda i: row(int(rows[i])), own[:, 0], own[:, 1], source.language, report)


def _held_out(groups: Int[np.ndarray, " n"], count: int, what: str) -> Bool[np.ndarray, " n"]:
    """Choose whole groups at random until exactly ``count`` rows are chosen."""
    chosen = np.zeros(len(groups), bool)
    if count == 0:
        return chosen
    names, sizes = np.unique(groups, return_counts=True)
    left, kept = count, []
    for group in np.random.default_rng(_HOLD_OUT_SEED).permutation(len(names)):
        if sizes[group] <= left:
            left -= int(sizes[group])
            kept.append(names[group])
        if left == 0:
            break
    chosen = np.isin(groups, kept)
    if left or chosen.all():
        raise DataError(
            f"{what}: hold_out={count} cannot be set aside from {len(groups)} pairs in "
            f"{len(names)} groups that share no sentence and leave pairs to train on; "
            "hold out fewer"
        )
    return chosen
