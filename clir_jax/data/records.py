"""Records: the text that training reads, whatever file it came from.

A record's ids are int32 row numbers of its source, and equal text has an equal id, so that a loss
can tell a duplicate from a negative. -1 is no record: it pads.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from clir_jax.data.reading import Report

PADDING_ID = -1


@dataclasses.dataclass(frozen=True)
class Bitext:
    """A sentence in English and its translation.

    Args:
      id: equal for pairs that share either side, directly or through other pairs.
      english: the English side.
      other: the other side.
      language: the other side's language, BCP-47.
    """

    id: int
    english: str
    other: str
    language: str


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage.

    Args:
      id: equal for equal texts.
      text: the text.
      texts: the same in each language that it is known in; empty for ``text`` alone.
    """

    id: int
    text: str
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def readings(self) -> tuple[str, ...]:
        """Every text that a step may read of it."""
        return tuple(self.texts.values()) or (self.text,)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """One question and passages that do and do not answer it.

    Args:
      query_id: equal for equal questions.
      queries: the question by language, the source's own language first.
      positives: relevant passages, at least one.
      negatives: passages taken to be irrelevant.
      scores: a teacher's score of each of ``positives + negatives``, or None.
      known: ids of every passage that any record of the source calls relevant to this question.
      asked: the languages that a step may read the question in where an ask leaves it open; empty
        for all of them.
      told: the same of the passages.
      one_language: whether all passages of a list are read in the same of their languages.
    """

    query_id: int
    queries: Mapping[str, str]
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...]
    scores: tuple[float, ...] | None
    known: tuple[int, ...]
    asked: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    one_language: bool = True


@dataclasses.dataclass(frozen=True)
class Text:
    """A text in one language; ``id`` is equal for equal texts."""

    id: int
    text: str
    language: str


Record = Bitext | Ranking | Text
_LANGUAGE = "language."
_FIELDS: dict[type[Any], tuple[str, ...]] = {
    Bitext: ("english", "other"),
    Ranking: ("query", "passages", "positive"),
    Text: ("text",),
}


def check_field(
    kind: type[Any], field: str, languages: Sequence[str], told: Sequence[str] = ()
) -> None:
    """Refuse a field that records of ``kind`` with these languages do not have.

    Args:
      kind: ``Bitext``, ``Ranking`` or ``Text``.
      field: what follows the source's name in an ``Ask``: ``"other"``, ``"query.en"``,
        ``"passages.en"``, ``"language.query"``.
      languages: the languages a ranking's questions are in.
      told: the languages its passages are known in.

    Raises:
      ValueError: naming the nearest field there is.

    Example:
      >>> check_field(Bitext, "othr", ("sw",))
      Traceback (most recent call last):
      ...
      ValueError: "othr" is not a field of a bitext record; write "other" (one of: english, other)
    """
    if field.startswith(_LANGUAGE):
        field = field.removeprefix(_LANGUAGE)
        if kind is Ranking and field in ("passages", "positive"):
            raise ValueError(
                f'"{_LANGUAGE}{field}": the language of passages is not known; write '
                f'"{_LANGUAGE}query"'
            )
    known = list(_FIELDS[kind])
    if kind is Ranking:
        known += [f"query.{language}" for language in languages]
        known += [f"passages.{language}" for language in told]
        if field.startswith("passages.") and not told:
            raise ValueError(
                f'"{field}": the languages of passages are not known; put an InLanguages with '
                'corpora around every source, or write "passages"'
            )
    others = [other for other in _FIELDS if field.split(".")[0] in _FIELDS[other]]
    if field not in known and others and others != [kind]:
        name, wanted = kind.__name__.lower(), others[0].__name__.lower()
        raise ValueError(
            f'"{field}" is not a field of a {name} record, but of a {wanted} record; give a source '
            f"of {wanted} records"
        )
    if field not in known:
        near = difflib.get_close_matches(field, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f'"{field}" is not a field of a {kind.__name__.lower()} record; write "{near}" '
            f"(one of: {', '.join(known)})"
        )


def read(record: Record, field: str) -> str | tuple[str, ...]:
    """The text of one field of a record; ``"passages"`` is a tuple, positives first.

    ``"query"`` of a ranking is the question in its first language, ``"query.en"`` in English, and
    ``"positive"`` its first passage; ``"passages.en"`` are its passages in English.
    ``"language.query"`` is the code of the language that ``"query"`` is in; likewise of any field
    but ``"passages"`` and ``"positive"``.

    Args:
      record: any record.
      field: as ``check_field`` takes it.

    Raises:
      ValueError: if the record has no such field.

    Example:
      >>> read(Bitext(0, "Good morning", "Habari ya asubuhi", "sw"), "other")
      'Habari ya asubuhi'
    """
    languages = tuple(record.queries) if isinstance(record, Ranking) else ()
    told = tuple(record.positives[0].texts) if isinstance(record, Ranking) else ()
    check_field(type(record), field, languages, told)
    of_language, field = field.startswith(_LANGUAGE), field.removeprefix(_LANGUAGE)
    if isinstance(record, Ranking):
        field, _, language = field.partition(".")
        if of_language or field == "query":
            language = language or languages[0]
            return language if of_language else record.queries[language]
        if field == "positive":
            return record.positives[0].text
        listed = record.positives + record.negatives
        return tuple(passage.texts[language] if language else passage.text for passage in listed)
    if of_language:
        return "en" if field == "english" else record.language
    text: str = getattr(record, field)
    return text


@runtime_checkable
class Records(Protocol):
    """An opened source: records by number, from any thread."""

    @property
    def kind(self) -> type[Any]:
        """``Bitext``, ``Ranking`` or ``Text``."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages every record has (of bitext: the other side's)."""

    @property
    def report(self) -> Report:
        """What came of opening it."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record: ...
