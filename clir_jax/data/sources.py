"""Sources: where records come from, as configuration.

A source is a frozen dataclass of plain values. ``open(data_root)`` checks its files in one pass and
gives records by number. The built-in ``Atlas`` needs no files.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from clir_jax.data import demo
from clir_jax.data.judgements import Corpus, passage_text
from clir_jax.data.opened import (
    BitextRecords,
    MixedRecords,
    OpenedSource,
    RankingRecords,
    TextRecords,
)
from clir_jax.data.reading import Intake, Report
from clir_jax.data.records import Records
from clir_jax.data.tables import open_lines, text_key


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

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        return (self.path,)


@dataclasses.dataclass(frozen=True)
class CorpusJSONL:
    """The passages of a collection in the files of BEIR, each as title and text.

    Args:
      path: JSON lines ``{"_id", "title", "text"}``; ``title`` may be missing.
      language: of the passages.
      on_bad_record: "error" stops at the first bad line; "skip" leaves it out and counts it.
    """

    path: str
    language: str = "en"
    on_bad_record: str = "error"

    def open(self, data_root: str) -> "CorpusRecords":
        """Index and check the file.

        Raises:
          DataError: if the file cannot be read, or holds a bad line or none.
        """
        intake = Intake(self.on_bad_record)
        corpus = Corpus(data_root, self.path, intake)
        rows = list(corpus.rows.values())
        keys = np.fromiter((text_key(corpus.text(row)) for row in rows), np.int64, len(rows))
        report = intake.finish(len(rows), self.path)
        return CorpusRecords(corpus, rows, keys, self.language, report)

    def files(self) -> tuple[str, ...]:
        """The file it reads."""
        return (self.path,)


class CorpusRecords(TextRecords):
    """Opened passages, whose titles are known.

    Args:
      corpus: has them.
      rows: of them, in order.
      keys: ``[n]`` int64 text keys.
      language: of all of them.
      report: what came of opening it.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: Sequence[int],
        keys: Int[np.ndarray, " n"],
        language: str,
        report: Report,
    ):
        super().__init__(lambda i: corpus.text(rows[i]), keys, language, report)
        self._corpus, self._rows = corpus, rows

    def titled(self) -> Iterator[tuple[str, str]]:
        """Texts and titles of all of them, blank where one has none."""
        for title, text in map(self._corpus.parts, self._rows):
            yield passage_text(title, text), title


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
    r"""Several sources of one kind, drawn from by weight or by size.

    Rows take turns by weight, so every batch holds the sources in these proportions, give or take a
    row; equal weights are round-robin.

    Args:
      sources: the sources.
      weights: how often to draw from each, in any unit; a small source is repeated more often. None
        reads every record once an epoch, so sources count by their sizes.
      temperature: draws from a source of :math:`n_i` records in proportion to
        :math:`n_i^{1 / temperature}`, in the place of weights: 1 by size; above it small languages
        come more often, up to equally often.

    Raises:
      ValueError: if there is no source, a mixture in the mixture, weights do not fit, or there are
        both weights and a temperature.

    References:
      Arivazhagan et al., Massively Multilingual Neural Machine Translation in the Wild, 2019,
      arXiv:1907.05019 (temperature 5).
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...] | None = None
    temperature: float | None = None

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
        temperature = self.temperature
        if temperature is not None and (weights or not 0 < temperature < float("inf")):
            raise ValueError(
                f"Mixture.temperature is {temperature} and weights is {weights}; write a positive "
                "number without weights, or None"
            )

    def open(self, data_root: str) -> MixedRecords:
        """Open every source; equal text has an equal id across all of them.

        Raises:
          DataError: if one cannot be opened, or they give different kinds of records.
        """
        opened: list[Any] = [source.open(data_root) for source in self.sources]
        weights = self.weights
        if self.temperature is not None:
            weights = tuple(float(len(part) ** (1 / self.temperature)) for part in opened)
        return MixedRecords(opened, weights)
