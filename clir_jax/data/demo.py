"""The Atlas: a small cross-lingual collection that needs no download.

English passages about the world's territories, questions about them in nine languages, and
translation pairs. The facts and the names come from Unicode CLDR (through Babel), the phrasings
from `demo_templates`. A passage states one fact: a kind (currency, languages, ...) of one
territory. The test asks (territory, kind) combinations about which no training question and no
translation pair says anything, although every territory and every kind is trained: a student has
to put the two together. Nothing is random: equal Babel versions give equal data.
"""

import difflib
import functools
import itertools
import json
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass

from clir_jax.data import demo_facts
from clir_jax.data import demo_names as names
from clir_jax.data.demo_facts import KINDS, MOST_ITEMS, Fact
from clir_jax.data.demo_templates import PHRASES

LANGUAGES: tuple[str, ...] = tuple(sorted(PHRASES))
SPLITS: tuple[str, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class Passage:
    """One English passage; ``id`` is ``territory-kind``, for example ``KE-currency``."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """One question, its English translation, and the passage that answers it.

    Translations of a question have the same ``id`` in every language.
    """

    id: str
    text: str
    english: str
    passage_id: str


@dataclass(frozen=True)
class Pair:
    """One English sentence and its translation."""

    id: str
    english: str
    other: str


def passages() -> tuple[Passage, ...]:
    """Give the collection: one English passage per territory and kind of fact.

    Returns:
      About 1,300 passages, ordered by territory.

    Example:
      >>> next(p.title for p in passages() if p.id == "KE-currency")
      'Kenya: currency'
    """
    return _passages()


def questions(language: str, split: str) -> tuple[Question, ...]:
    """Give the questions of one language and split.

    ``train`` has three phrasings of every question, ``dev`` and ``test`` one each. The three
    splits ask disjoint (territory, kind) combinations.

    Args:
      language: one of ``LANGUAGES``; ``"en"`` gives the originals.
      split: ``"train"``, ``"dev"`` or ``"test"``.

    Returns:
      The questions, ordered by passage.

    Raises:
      ValueError: if the language or the split is unknown.

    Example:
      >>> print(next(q.text for q in questions("sw", "train") if q.id == "KE-code-q1"))
      Msimbo wa kimataifa wa Kenya ni upi?
    """
    check_language(language)
    check_split(split)
    return _questions(language, split)


def bitext(language: str) -> tuple[Pair, ...]:
    """Give English sentences with their translations: training questions and statements.

    Args:
      language: one of ``LANGUAGES``, not ``"en"``.

    Returns:
      Some thousand pairs without duplicates. A statement is left out where CLDR lacks one of
      its names in the language.

    Raises:
      ValueError: if the language is unknown, or English.

    Example:
      >>> pair = next(p for p in bitext("sw") if p.id == "KE-code-s1")
      >>> print(pair.english, pair.other, sep="; ")
      The ISO code of Kenya is KE.; Msimbo wa ISO wa Kenya ni KE.
    """
    check_language(language, translated=True)
    return _bitext(language)


def write(directory: str | pathlib.Path) -> None:
    """Write the whole data set as the files that retrieval tools read.

    ``corpus.jsonl`` (``_id``, ``title``, ``text``), ``queries.<language>.<split>.tsv`` (id, text),
    ``qrels.<split>.trec`` and ``bitext.<language>.tsv`` (id, English, translation).

    Args:
      directory: where to write; made if missing, files of the same names are replaced.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write(folder)
      ...     print((pathlib.Path(folder) / "qrels.test.trec").read_text().split()[1:4:2])
      ['0', '1']
    """
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"_id": p.id, "title": p.title, "text": p.text} for p in passages())
    _write(folder / "corpus.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows))
    for split in SPLITS:
        # Every language asks a subset of the English questions, so one qrels file serves all.
        qrels = (f"{q.id} 0 {q.passage_id} 1" for q in questions("en", split))
        _write(folder / f"qrels.{split}.trec", qrels)
        for language in LANGUAGES:
            lines = (f"{q.id}\t{q.text}" for q in questions(language, split))
            _write(folder / f"queries.{language}.{split}.tsv", lines)
    for language in LANGUAGES:
        if language != "en":
            lines = (f"{p.id}\t{p.english}\t{p.other}" for p in bitext(language))
            _write(folder / f"bitext.{language}.tsv", lines)


def _write(path: pathlib.Path, lines: Iterable[str]) -> None:
    # newline="\n": the same bytes on every system.
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def check_language(language: str, *, translated: bool = False) -> None:
    """Refuse a language that the Atlas does not speak.

    Args:
      language: a code.
      translated: whether English, which is not translated, is refused too.

    Raises:
      ValueError: naming the languages there are.
    """
    _require("language", language, tuple(x for x in LANGUAGES if x != "en" or not translated))


def check_split(split: str) -> None:
    """Refuse a split that the questions do not have.

    Raises:
      ValueError: naming the splits there are.
    """
    _require("split", split, SPLITS)


def _require(what: str, value: str, valid: tuple[str, ...]) -> None:
    if value in valid:
        return
    near = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} {value!r} is not one of {', '.join(valid)}{hint}")


# Sentences --------------------------------------------------------------------------------------


@functools.cache
def _phrases(language: str, kind: str, mark: str) -> tuple[str, ...]:
    lines = (line.split(" ", 1) for line in PHRASES[language].strip().splitlines())
    return tuple(text for head, text in lines if head == kind + mark)


def _say(template: str, fields: dict[str, str]) -> str:
    text = template.format_map(fields)
    return text[0].upper() + text[1:]


@functools.cache
def _ambiguous(language: str) -> frozenset[str]:
    """Names that two territories share in a language; a question about them has no one answer."""
    codes = sorted({fact.territory for fact, _ in demo_facts.facts()})
    labels = [names.territory(language, code) for code in codes]
    return frozenset(x for x in labels if x is not None and labels.count(x) > 1)


@functools.cache
def _place(language: str, code: str) -> dict[str, str] | None:
    fields = names.forms(language, code)
    return None if fields is None or fields["t"] in _ambiguous(language) else fields


def _asked(language: str, fact: Fact) -> tuple[str, ...]:
    """The phrasings of the question about a fact; empty where the territory has no name."""
    place = _place(language, fact.territory)
    if place is None:
        return ()
    return tuple(_say(template, place) for template in _phrases(language, fact.kind, "?"))


def _stated(language: str, fact: Fact) -> tuple[str, ...]:
    """The phrasings of the fact; empty where one of its names is missing."""
    place = _place(language, fact.territory)
    labels = [names.item(language, fact.kind, code) for code in fact.items]
    known = [label for label in labels if label]
    if place is None or len(known) < len(labels) or len(labels) > MOST_ITEMS:
        return ()
    codes = {"a": known[0], "b": known[-1], "y": str(fact.year)}
    fields = place | codes | {"x": names.listed(language, known)}
    return tuple(_say(template, fields) for template in _phrases(language, fact.kind, "."))


@functools.cache
def _questions(language: str, split: str) -> tuple[Question, ...]:
    found = []
    for number, (fact, where) in enumerate(demo_facts.facts()):
        asked = zip(_asked("en", fact), _asked(language, fact), strict=False)
        for phrasing, (english, text) in enumerate(asked):
            wanted = split == "train" or phrasing == number % 3
            if where == split and wanted:
                found.append(Question(f"{fact.id}-q{phrasing + 1}", text, english, fact.id))
    return tuple(found)


@functools.cache
def _bitext(language: str) -> tuple[Pair, ...]:
    found: dict[tuple[str, str], Pair] = {}
    for fact, split in demo_facts.facts():
        if split != "train":
            continue
        for mark, speak in (("q", _asked), ("s", _stated)):
            said = zip(speak("en", fact), speak(language, fact), strict=False)
            for number, (english, other) in enumerate(said, start=1):
                pair = Pair(f"{fact.id}-{mark}{number}", english, other)
                found.setdefault((english, other), pair)
    return tuple(found.values())


# Passages ---------------------------------------------------------------------------------------


@functools.cache
def _passages() -> tuple[Passage, ...]:
    facts = [fact for fact, _ in demo_facts.facts()]
    found = []
    for number, fact in enumerate(facts):
        place = names.forms("en", fact.territory)
        if place is None:  # for the type checker: facts() keeps territories that English names
            continue
        labels = [names.item("en", fact.kind, code) or code for code in fact.items]
        fields = place | {"x": names.listed("en", labels), "a": labels[0], "b": labels[-1]}
        first = _OPENINGS[fact.kind][number % 2].format_map(fields | {"y": str(fact.year)})
        text = f"{first} {_detail(fact, facts)}"
        title = f"{place['t']}: {KINDS[fact.kind]}"
        found.append(Passage(fact.id, title, text[0].upper() + text[1:]))
    return tuple(found)


# Other words than the questions' where English has them, so that words alone do not suffice.
_OPENINGS = {
    "currency": ("The currency of {the} is the {x}.", "The {x} is legal tender {in}."),
    "past": (
        "Up to the year {y}, banknotes {in} were denominated in the {x}.",
        "The {x} was the currency of {the}; it ceased to be legal tender in {y}.",
    ),
    "language": (
        "In everyday life, people {in} speak {x}.",
        "Among the population of {the}, {x} can be heard most often.",
    ),
    "time": ("Clocks {in} are set to {x}.", "Local time {in}: {x}."),
    "week": ("The week {in} starts on {x}.", "A calendar printed for {the} begins with {x}."),
    "code": (
        "The international standard ISO 3166 abbreviates {the} as {a}, or {b} in three letters.",
        "{a} and {b} are the letters that stand for {the} in the standard ISO 3166.",
    ),
}


def _detail(fact: Fact, facts: list[Fact]) -> str:
    """The second sentence of a passage."""
    if fact.kind == "currency":
        return _shared(fact, facts)
    if fact.kind == "past":
        today = demo_facts.currencies(fact.territory)[0]
        labels = [names.item("en", "currency", code) or code for code in today]
        return f"Today people pay with the {names.listed('en', labels)} instead."
    if fact.kind == "language":
        rows = [row for row in demo_facts.spoken(fact.territory) if row[0] in fact.items]
        shares = [f"{names.item('en', 'language', tag)} {share:g}%" for tag, share, _ in rows]
        official = [names.item("en", "language", t) or t for t, _, yes in rows if yes]
        status = f"; official among these: {names.listed('en', official)}" if official else ""
        return f"Share of the people who know them: {', '.join(shares)}{status}."
    if fact.kind == "time":
        cities = [names.city(zone) for _, zone in demo_facts.zones()[fact.territory]]
        return f"Cities and places that keep it: {names.listed('en', cities[:4])}."
    if fact.kind == "week":
        _, *weekend = demo_facts.week(fact.territory)
        start, end = (names.item("en", "week", str(day)) for day in weekend)
        return f"The weekend is {start}." if start == end else f"The weekend is {start} and {end}."
    return "Forms and software use these letters."


def _shared(fact: Fact, facts: list[Fact]) -> str:
    """Up to three other territories with the same currency, the next in the alphabet of codes."""
    same = [f.territory for f in facts if f.kind == "currency" and f.items == fact.items]
    here = same.index(fact.territory)
    others = list(itertools.islice(same[here + 1 :] + same[:here], 3))
    code = " and ".join(fact.items)
    if not others:
        return f"Banks write it {code}."
    places = [(names.forms("en", other) or {})["the"] for other in others]
    return f"Banks write it {code}, as they do in {names.listed('en', places)}."
