"""Rankings read in several languages: which of them a step reads, record by record."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from clir_jax.data.judgements import Corpus
from clir_jax.data.opened import RankingRecords
from clir_jax.data.reading import DataError, Intake
from clir_jax.data.records import Passage, Ranking
from clir_jax.data.sources import Mixture, Source
from clir_jax.data.tables import text_key

_MIXES = ("record", "passage", "round_robin")


@dataclasses.dataclass(frozen=True)
class InLanguages:
    """Rankings whose questions and passages are read in several languages.

    An objective that names a language (``"ranking.query.en"``, ``"ranking.passages.es"``) reads
    that; where it leaves it open (``"ranking.query"``, ``"ranking.passages"``), the language is one
    of these. It is a function of the run's seed and the row's number, so a resumed run reads the
    same. Scores and ids are those of the passage, in whatever language it is read: a translation is
    no negative.

    Args:
      source: rankings, not a mixture: a ``Mixture`` may have several of these.
      queries: the languages that questions are read in; empty takes all that they have.
      corpora: passages by language: JSON lines ``{"_id", "title", "text"}`` with equal ids in all
        of them; the first is the language of ``source``. Empty leaves passages as they are.
      mix: ``"record"``, a language by chance for the question and one for all of its passages;
        ``"passage"``, one for the question and another for each passage; or ``"round_robin"``, no
        chance: an epoch reads every record once in each pair of a language of the question and one
        of the passages.

    Raises:
      ValueError: if an option is out of range.

    References:
      Yang et al., Distillation for Multilingual Information Retrieval, SIGIR 2024,
      arXiv:2405.00977 (mix entries, mix passages, round-robin entries).
    """

    source: Source
    queries: tuple[str, ...] = ()
    corpora: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mix: str = "record"

    def __post_init__(self) -> None:
        if self.mix not in _MIXES:
            raise ValueError(f"InLanguages.mix is {self.mix!r}; write one of {_MIXES}")
        if isinstance(self.source, Mixture | InLanguages):
            raise ValueError(
                f"InLanguages.source is a {type(self.source).__name__}; put an InLanguages around "
                "each of its sources instead"
            )
        if self.mix == "passage" and not self.corpora:
            raise ValueError(
                'InLanguages.mix is "passage" and there are no corpora; name the passages of each '
                'language, or write mix="record"'
            )
        if len(set(self.queries)) < len(self.queries):
            raise ValueError(
                f"InLanguages.queries is {self.queries}; write every language once, and give the "
                "sources of a Mixture weights to read one more often"
            )

    def open(self, data_root: str) -> RankingRecords:
        """Open the rankings, and find every passage in every language.

        Raises:
          DataError: if the source gives no rankings, or lacks a language, or a passage is missing.
        """
        records: Any = self.source.open(data_root)
        if not isinstance(records, RankingRecords):
            raise DataError(
                f"InLanguages.source gives {records.kind.__name__} records; give a source of "
                "Ranking records"
            )
        missing = [language for language in self.queries if language not in records.languages]
        if missing:
            raise DataError(
                f'InLanguages.queries names "{missing[0]}", in which not every record of the '
                f"source has its question; those are {', '.join(records.languages)}"
            )
        passages = _Passages(data_root, self.corpora, records)
        asked, told = self.queries or records.languages, tuple(self.corpora)
        if self.mix != "round_robin":
            alike = self.mix == "record"
            return records.changed(lambda i, record: _read(record, asked, passages, told, alike))
        turns = len(asked) * max(1, len(told))

        def in_turn(i: int, record: Ranking) -> Ranking:
            query, own = divmod(i % turns, max(1, len(told)))
            return _read(record, (asked[query],), passages, told[own : own + 1], True)

        return records.changed(in_turn, turns)

    def files(self) -> tuple[str, ...]:
        """The files it reads besides those of its source."""
        return tuple(self.corpora.values())


class _Passages:
    """Passages in every language, by the text of the first."""

    def __init__(self, data_root: str, corpora: Mapping[str, str], records: RankingRecords) -> None:
        intake = Intake()
        self._corpora = {x: Corpus(data_root, path, intake) for x, path in corpora.items()}
        self._ids: dict[int, str] = {}
        if not corpora:
            return
        own = next(iter(self._corpora.values()))
        self._ids = {text_key(own.text(row)): name for name, row in own.rows.items()}
        known = np.isin(records.passage_keys, np.fromiter(self._ids, np.int64, len(self._ids)))
        first, *others = corpora.items()
        if not known.all():
            raise DataError(
                f"{first[1]}: {int((~known).sum())} of the {len(known)} passages of the source are "
                f'not in it, word for word; name the corpus "{first[0]}" that they were taken from'
            )
        for language, path in others:
            lacks = [
                name
                for name in map(self._ids.__getitem__, np.unique(records.passage_keys).tolist())
                if name not in self._corpora[language].rows
            ]
            if lacks:
                raise DataError(
                    f'{path}: there is no passage "{lacks[0]}", which {first[1]} has and the '
                    f"source reads; translate it ({len(lacks)} are missing)"
                )

    def in_languages(self, passage: Passage) -> Passage:
        """The passage with its text in every language."""
        if not self._corpora:
            return passage
        name = self._ids[text_key(passage.text)]
        texts = {x: own.text(own.rows[name]) for x, own in self._corpora.items()}
        return dataclasses.replace(passage, texts=texts)


def _read(
    record: Ranking,
    asked: tuple[str, ...],
    passages: _Passages,
    told: tuple[str, ...],
    one_language: bool,
) -> Ranking:
    positives, negatives = (
        tuple(map(passages.in_languages, own)) for own in (record.positives, record.negatives)
    )
    return dataclasses.replace(
        record,
        positives=positives,
        negatives=negatives,
        asked=asked,
        told=told,
        one_language=one_language,
    )
