"""Sources: where records come from, as configuration.

A source is a frozen dataclass of plain values. ``open(data_root)`` checks its files in one pass and
gives records by number. The built-in ``Atlas`` needs no files.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from clir_jax.data import demo
from clir_jax.data.judgements import passage_text
from clir_jax.data.opened import (
    BitextRecords,
    MixedRecords,
    OpenedSource,
    RankingRecords,
    TextRecords,
    shared_sides,
)
from clir_jax.data.rankings import Beir, RankingJSONL, TriplesTSV
from clir_jax.data.reading import DataError, Intake
from clir_jax.data.records import Records
from clir_jax.data.tables import open_lines, open_tsv, text_key

_HOLD_OUT_SEED = 0
_LIMIT_SEED = 1


@runtime_checkable
class Source(Protocol):
    """A frozen dataclass of plain values that can open what it names."""

    def open(self, data_root: str) -> Records:
        """Check what the source names and give its records.

        Args:
          data_root: the folder that relative paths start from, or a ``gs://`` address.

        Raises:
          DataError: naming the file, the line and what to write.
        """


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
        if self.part not in ("train", "held_out"):
            raise ValueError(f'BitextTSV.part is {self.part!r}; write "train" or "held_out"')
        if self.hold_out < 0 or (self.part == "held_out" and self.hold_out == 0):
            raise ValueError(
                f"BitextTSV.hold_out is {self.hold_out} for part {self.part!r}; "
                "write how many pairs to set aside"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"BitextTSV.limit is {self.limit}; write a number of pairs, or None")

    def open(self, data_root: str) -> BitextRecords:
        """Index and check the files.

        Raises:
          DataError: if a file cannot be read or holds a bad line, or ``hold_out`` cannot be met.
        """
        intake = Intake(self.on_bad_record)
        table = open_tsv(data_root, self.path, "id<TAB>English<TAB>other", (1, 2), intake)
        fields = (field for line in table.raws() for field in line.split(b"\t")[1:])
        keys = np.fromiter(map(hash, fields), np.int64).reshape(-1, 2)
        intake.finish(len(keys), self.path)
        held_out = _held_out(shared_sides(keys[:, 0], keys[:, 1]), self.hold_out, self.path)
        rows = np.flatnonzero(held_out == (self.part == "held_out"))
        reason = "set aside by hold_out" if self.part == "train" else "not set aside by hold_out"
        intake.leave_out(reason, len(keys) - len(rows))
        if self.limit is not None and self.limit < len(rows):
            intake.leave_out("beyond limit", len(rows) - self.limit)
            order = np.random.default_rng(_LIMIT_SEED).permutation(len(rows))
            rows = np.sort(rows[order[: self.limit]])

        def row(i: int) -> list[str]:
            return table.text(int(rows[i])).split("\t")[1:]

        report = intake.finish(len(rows), self.path)
        return BitextRecords(row, keys[rows, 0], keys[rows, 1], self.language, report)


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


@dataclasses.dataclass(frozen=True)
class TextLines:
    """Plain text, one text a line.

    Args:
      path: a file, or a pattern that names several.
      language: of the text.
      on_bad_record: "error" stops at the first bad line; "skip" leaves it out and counts it.
    """

    path: str
    language: str
    on_bad_record: str = "error"

    def open(self, data_root: str) -> TextRecords:
        """Index and check the files.

        Raises:
          DataError: if a file cannot be read, or holds a blank or undecodable line.
        """
        intake = Intake(self.on_bad_record)
        blank = "the line is blank; write one text a line"
        table = open_lines(data_root, self.path, intake, blank)
        keys = np.fromiter(map(hash, table.raws()), np.int64)
        return TextRecords(table.text, keys, self.language, intake.finish(len(keys), self.path))


@dataclasses.dataclass(frozen=True)
class Atlas:
    """The built-in data, in the language asked for.

    Args:
      part: "bitext"; "ranking", questions with their passage (and in English too); or "text",
        the passages in English, the translated sentences in another language.
      language: one of ``clir_jax.data.demo.LANGUAGES``.
      split: "train", "dev" or "test"; bitext and text belong to "train".

    Raises:
      ValueError: if there is no such part, or it has no such split.
    """

    part: str
    language: str
    split: str = "train"

    def __post_init__(self) -> None:
        if self.part not in ("bitext", "ranking", "text"):
            raise ValueError(f'Atlas.part is {self.part!r}; write "bitext", "ranking" or "text"')
        demo.check_language(self.language, translated=self.part == "bitext")
        demo.check_split(self.split)
        if self.part != "ranking" and self.split != "train":
            raise ValueError(
                f"Atlas.split is {self.split!r} for part {self.part!r}; "
                'write "train", the only one this part has'
            )

    def open(self, data_root: str) -> OpenedSource:
        """Give the records; ``data_root`` is not read.

        Raises:
          ValueError: if there is no such language.
        """
        if self.part == "ranking":
            return self._ranking()
        if self.part == "text" and self.language == "en":
            texts = [passage_text(passage.title, passage.text) for passage in demo.passages()]
            return self._text(texts)
        pairs = demo.bitext(self.language)
        if self.part == "text":
            return self._text([pair.other for pair in pairs])
        report = Intake().finish(len(pairs), "Atlas")
        return BitextRecords(
            lambda i: (pairs[i].english, pairs[i].other),
            _keys([pair.english for pair in pairs]),
            _keys([pair.other for pair in pairs]),
            self.language,
            report,
        )

    def _text(self, texts: Sequence[str]) -> TextRecords:
        report = Intake().finish(len(texts), "Atlas")
        return TextRecords(texts.__getitem__, _keys(texts), self.language, report)

    def _ranking(self) -> RankingRecords:
        questions = demo.questions(self.language, self.split)
        texts = {p.id: passage_text(p.title, p.text) for p in demo.passages()}

        def row(i: int) -> Any:
            question = questions[i]
            queries = {self.language: question.text}
            return queries | {"en": question.english}, (texts[question.passage_id],), None

        ones = np.ones(len(questions), np.int64)
        return RankingRecords(
            row,
            queries=_keys([question.text for question in questions]),
            passages=_keys([texts[question.passage_id] for question in questions]),
            counts=ones,
            positives=ones,
            languages=tuple(dict.fromkeys((self.language, "en"))),
            report=Intake().finish(len(questions), "Atlas"),
        )


def _keys(texts: Sequence[str]) -> Int[np.ndarray, " n"]:
    return np.fromiter(map(text_key, texts), np.int64, len(texts))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several sources of one kind, drawn from by weight.

    Args:
      sources: the sources.
      weights: how often to draw from each, in any unit; a small source is repeated more often. None
        reads every record once an epoch, so sources count by their sizes.

    Raises:
      ValueError: if there is no source, a mixture in the mixture, or weights do not fit.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("Mixture.sources is empty; name at least one source")
        if any(isinstance(source, Mixture) for source in self.sources):
            raise ValueError("Mixture.sources holds a Mixture; name its sources instead")
        weights = self.weights
        if weights is not None and (
            len(weights) != len(self.sources) or not all(0 < w < float("inf") for w in weights)
        ):
            raise ValueError(
                f"Mixture.weights is {weights} for {len(self.sources)} sources; write one positive "
                "number for each, or None"
            )

    def open(self, data_root: str) -> MixedRecords:
        """Open every source; equal text has an equal id across all of them.

        Raises:
          DataError: if one cannot be opened, or they give different kinds of records.
        """
        opened: list[Any] = [source.open(data_root) for source in self.sources]
        return MixedRecords(opened, self.weights)


SOURCES: dict[str, type[Any]] = {
    source.__name__: source
    for source in (BitextTSV, TriplesTSV, Beir, RankingJSONL, TextLines, Atlas, Mixture)
}
