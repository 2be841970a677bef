"""Opened sources: records by number, read lazily, with ids that tell equal text."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from clir_jax.data.reading import DataError, Intake, Report
from clir_jax.data.records import Bitext, Passage, Ranking, Record, Text
from clir_jax.data.tables import first_rows


@runtime_checkable
class RowReader(Protocol):
    """Reads the text of row i: the one thing that differs between sources of a kind."""

    def __call__(self, i: int, /) -> Any: ...


@runtime_checkable
class Change(Protocol):
    """Makes of row i the record that is read."""

    def __call__(self, i: int, record: Ranking, /) -> Ranking: ...


class TextRecords:
    """Opened plain text.

    Args:
      row: gives text i.
      keys: ``[n]`` int64 text keys.
      language: of all of it.
      report: what came of opening it.
    """

    kind = Text
    ids: Int[np.ndarray, " n"]

    def __init__(self, row: RowReader, keys: Int[np.ndarray, " n"], language: str, report: Report):
        self._row, self._keys = row, keys
        self.languages, self.report = (language,), report
        self.number([self])

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, i: int) -> Text:
        i = _position(i, len(self))
        return Text(int(self.ids[i]), self._row(i), self.languages[0])

    @staticmethod
    def number(parts: "Sequence[TextRecords]") -> None:
        """Give equal texts of all ``parts`` equal ids."""
        ids = first_rows(np.concatenate([part._keys for part in parts]))
        for part, own in zip(parts, _split(ids, [len(part) for part in parts]), strict=True):
            part.ids = own


class BitextRecords:
    """Opened bitext.

    Args:
      row: gives the English and the other side of pair i.
      english: ``[n]`` int64 text keys of the English sides.
      other: ``[n]`` int64 text keys of the other sides.
      language: of the other side.
      report: what came of opening it.
    """

    kind = Bitext
    ids: Int[np.ndarray, " n"]

    def __init__(
        self,
        row: RowReader,
        english: Int[np.ndarray, " n"],
        other: Int[np.ndarray, " n"],
        language: str,
        report: Report,
    ):
        self._row, self._english, self._other = row, english, other
        self.languages, self.report = (language,), report
        self.number([self])

    def __len__(self) -> int:
        return len(self._english)

    def __getitem__(self, i: int) -> Bitext:
        i = _position(i, len(self))
        english, other = self._row(i)
        return Bitext(int(self.ids[i]), english, other, self.languages[0])

    @staticmethod
    def number(parts: "Sequence[BitextRecords]") -> None:
        """Give pairs of all ``parts`` that share a side equal ids."""
        english = np.concatenate([part._english for part in parts])
        ids = shared_sides(english, np.concatenate([part._other for part in parts]))
        for part, own in zip(parts, _split(ids, [len(part) for part in parts]), strict=True):
            part.ids = own


def shared_sides(
    english: Int[np.ndarray, " n"], other: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Number pairs so that pairs that share a side, directly or through others, are equal.

    Returns:
      ``[n]`` int32: the first row of the pair's group.
    """
    rows = np.arange(len(english))
    links = np.concatenate([first_rows(english), first_rows(other)])
    shape = (len(rows), len(rows))
    graph = coo_array((np.ones(len(links), bool), (np.tile(rows, 2), links)), shape=shape)
    return first_rows(connected_components(graph, directed=False)[1].astype(np.int64))


class RankingRecords:
    """Opened rankings.

    Args:
      row: gives of record i the question by language, the passages' texts (positives first) and
        their scores or None.
      queries: ``[n]`` int64 text keys of the questions in the source's own language.
      passages: ``[p]`` int64 text keys of all records' passages, one after another.
      counts: ``[n]`` passages of each record; they sum to p.
      positives: ``[n]`` how many of a record's passages are relevant.
      languages: the languages every record's question is in, the source's own first.
      scored: whether records carry a teacher's scores.
      report: what came of opening it.
    """

    kind = Ranking
    ids: Int[np.ndarray, " n"]
    passage_ids: Int[np.ndarray, " p"]
    _known_queries: Int[np.ndarray, " k"]
    _known_passages: Int[np.ndarray, " k"]

    def __init__(
        self,
        row: RowReader,
        queries: Int[np.ndarray, " n"],
        passages: Int[np.ndarray, " p"],
        counts: Int[np.ndarray, " n"],
        positives: Int[np.ndarray, " n"],
        languages: tuple[str, ...],
        report: Report,
        scored: bool = False,
    ):
        self._row, self._queries, self._passages, self._positives = (
            row,
            queries,
            passages,
            positives,
        )
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self._change: Change | None = None
        self.languages, self.scored, self.report = languages, scored, report
        self.number([self])

    def __len__(self) -> int:
        return len(self._queries)

    def __getitem__(self, i: int) -> Ranking:
        i = _position(i, len(self))
        queries, texts, scores = self._row(i)
        ids = self.passage_ids[self._starts[i] : self._starts[i + 1]]
        passages = tuple(Passage(int(n), text) for n, text in zip(ids, texts, strict=True))
        positives = int(self._positives[i])
        known = self._known_passages[
            slice(*np.searchsorted(self._known_queries, (self.ids[i], self.ids[i] + 1)))
        ]
        record = Ranking(
            query_id=int(self.ids[i]),
            queries=queries,
            positives=passages[:positives],
            negatives=passages[positives:],
            scores=scores,
            known=tuple(int(n) for n in known),
        )
        return record if self._change is None else self._change(i, record)

    @property
    def most_known(self) -> int:
        """The largest number of known relevant passages of a question."""
        return int(np.unique(self._known_queries, return_counts=True)[1].max())

    @property
    def passage_keys(self) -> Int[np.ndarray, " p"]:
        """Text keys of all records' passages, one after another."""
        return self._passages

    def changed(self, change: "Change", times: int = 1) -> "RankingRecords":
        """Every record ``times`` times in a row, as ``change(row, record)`` makes it.

        Args:
          change: gives the record to read; it keeps questions, passages and ids.
          times: rows of a record.
        """
        counts = np.diff(self._starts)
        passages = self._passages
        if times > 1:
            lists = np.split(passages, self._starts[1:-1])
            passages = np.concatenate([own for own in lists for _ in range(times)])
        records = RankingRecords(
            lambda i: self._row(i // times),
            queries=np.repeat(self._queries, times),
            passages=passages,
            counts=np.repeat(counts, times),
            positives=np.repeat(self._positives, times),
            languages=self.languages,
            report=self.report,
            scored=self.scored,
        )
        records._change = change
        return records

    @staticmethod
    def number(parts: "Sequence[RankingRecords]") -> None:
        """Give equal questions and equal passages of all ``parts`` equal ids; gather the known."""
        queries = first_rows(np.concatenate([part._queries for part in parts]))
        passages = first_rows(np.concatenate([part._passages for part in parts]))
        counts = np.concatenate([np.diff(part._starts) for part in parts])
        positives = np.concatenate([part._positives for part in parts])
        within = np.arange(len(passages)) - np.repeat(np.cumsum(counts) - counts, counts)
        relevant = within < np.repeat(positives, counts)
        # One number a (question, passage), so that unique is a sort of integers and not of rows.
        pairs = np.repeat(queries, counts)[relevant].astype(np.int64) << 32
        pairs = np.unique(pairs | passages[relevant])
        sizes = [len(part._passages) for part in parts]
        own_queries = _split(queries, [len(part) for part in parts])
        for part, ids, own in zip(parts, own_queries, _split(passages, sizes), strict=True):
            part.ids, part.passage_ids = ids, own
            part._known_queries = (pairs >> 32).astype(np.int32)
            part._known_passages = (pairs & 0xFFFFFFFF).astype(np.int32)


class RankingKeys:
    """Gathers what ``RankingRecords`` needs of each record, while a source is checked.

    It holds 24 bytes a record and 8 a passage.
    """

    def __init__(self) -> None:
        self._queries, self._passages = array("q"), array("q")
        self._counts, self._positives = array("q"), array("q")

    def add(self, query: int, passages: Iterable[int], positives: int) -> None:
        """Add a record.

        Args:
          query: text key of the question.
          passages: text keys of its passages, positives first.
          positives: how many of them are relevant.
        """
        before = len(self._passages)
        self._queries.append(query)
        self._passages.extend(passages)
        self._counts.append(len(self._passages) - before)
        self._positives.append(positives)

    def records(
        self,
        row: RowReader,
        languages: tuple[str, ...],
        intake: Intake,
        what: str,
        scored: bool = False,
    ) -> RankingRecords:
        """The records, with ``row`` to read them.

        Args:
          row, languages, scored: as ``RankingRecords`` takes them.
          intake: of the source; its report is closed.
          what: was read, for messages.

        Raises:
          DataError: if there is no record.
        """
        report = intake.finish(len(self._queries), what)
        return RankingRecords(
            row,
            queries=np.frombuffer(self._queries, np.int64),
            passages=np.frombuffer(self._passages, np.int64),
            counts=np.frombuffer(self._counts, np.int64),
            positives=np.frombuffer(self._positives, np.int64),
            languages=languages,
            report=report,
            scored=scored,
        )


OpenedSource = TextRecords | BitextRecords | RankingRecords


class MixedRecords:
    """Several opened sources of one kind as one; ids are shared across them.

    Args:
      parts: the opened sources.
      weights: how often to draw from each, or None: every record once an epoch.

    Raises:
      DataError: if the parts differ in kind, or only some carry scores.
    """

    def __init__(self, parts: Sequence[OpenedSource], weights: tuple[float, ...] | None):
        self.parts, self.weights = tuple(parts), weights
        first = self.parts[0]
        for n, part in enumerate(self.parts):
            if part.kind is not first.kind:
                raise DataError(
                    f"source {n + 1} of the mixture gives {part.kind.__name__} records and "
                    f"source 1 {first.kind.__name__}; mix sources of one kind"
                )
            if getattr(part, "scored", False) != getattr(first, "scored", False):
                raise DataError(
                    f"source {n + 1} and source 1 of the mixture differ in whether they have "
                    "scores; give all of them scores or none"
                )
        self.kind, self.scored = first.kind, getattr(first, "scored", False)
        shared = [set(part.languages) for part in self.parts]
        own = dict.fromkeys(language for part in self.parts for language in part.languages)
        common = self.kind is Ranking
        self.languages = tuple(x for x in own if not common or all(x in s for s in shared))
        self._ends = np.cumsum([len(part) for part in self.parts])
        first.number(self.parts)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> Record:
        i = _position(i, len(self))
        part = int(np.searchsorted(self._ends, i, "right"))
        return self.parts[part][i - (int(self._ends[part - 1]) if part else 0)]

    @property
    def most_known(self) -> int:
        """The largest number of known relevant passages of a question."""
        return max(part.most_known for part in self.parts if isinstance(part, RankingRecords))

    @property
    def report(self) -> Report:
        """The parts' reports, added up."""
        total = Report()
        for part in self.parts:
            total.read += part.report.read
            total.places += part.report.places
            for reason, count in part.report.skipped.items():
                total.skipped[reason] = total.skipped.get(reason, 0) + count
        return total


def _position(i: int, n: int) -> int:
    if not -n <= i < n:
        raise IndexError(f"record {i} of {n}")
    return i % n


def _split(ids: Int[np.ndarray, " n"], sizes: Sequence[int]) -> list[Int[np.ndarray, " m"]]:
    return np.split(ids, np.cumsum(sizes)[:-1])
