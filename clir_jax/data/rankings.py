"""Sources of rankings: judged collections, triples, and lists with scores."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clir_jax.data.judgements import Corpus, Qrels, Queries, read_qrels
from clir_jax.data.opened import RankingKeys, RankingRecords
from clir_jax.data.reading import DataError, Intake, is_blank
from clir_jax.data.tables import Table, json_kind, open_lines, open_tsv, parse_object, text_key

_SHARE_SEED = 0
_Row = tuple[Mapping[str, str], tuple[str, ...], tuple[float, ...] | None]


@dataclasses.dataclass(frozen=True)
class Beir:
    """A judged collection: every query with a relevant passage is a ranking without negatives.

    Args:
      corpus: JSON lines ``{"_id", "title", "text"}``; a passage is read as title and text.
      queries: ``id<TAB>text`` with any further columns, or JSON lines ``{"_id", "text"}``.
      qrels: TREC ``query 0 passage relevance``, or BEIR tab-separated lines; relevant is > 0.
      language: of the queries.
      query_column: the column of ``queries`` with the text, counted from 1 after the id.
      translations: the queries in other languages: another file of the same ids, or another column.
      on_bad_record: "error" stops at the first bad line; "skip" leaves it out and counts it.
      share: of the queries that are read, a fixed random choice; a smaller share is part of a
        larger one.

    Raises:
      ValueError: if the language is named twice, or the share is out of range.
    """

    corpus: str
    queries: str
    qrels: str
    language: str = "en"
    query_column: int = 1
    translations: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    on_bad_record: str = "error"
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"Beir.share is {self.share}; write a number above 0 and at most 1, which reads all"
            )
        if self.language in self.translations:
            raise ValueError(
                f"Beir.translations has {self.language!r}, the language; name other languages "
                "there, and this one's column as query_column"
            )

    def open(self, data_root: str) -> RankingRecords:
        """Read and check all files; texts are read again when they are asked for.

        Raises:
          DataError: if a file cannot be read, or holds a bad record.
        """
        intake = Intake(self.on_bad_record)
        corpus = Corpus(data_root, self.corpus, intake)
        named = {self.language: self.query_column, **self.translations}
        columns = [place for place in named.values() if isinstance(place, int)]
        queries = Queries(data_root, self.queries, columns, intake)
        asked: dict[str, tuple[Queries, int]] = {}
        for language, place in named.items():
            if isinstance(place, int):
                asked[language] = (queries, place)
            else:
                asked[language] = (Queries(data_root, place, (1,), intake), 1)
        qrels = read_qrels(data_root, self.qrels, queries.rows, corpus.rows, intake)
        qrels = self._answerable(qrels, asked, intake)
        intake.leave_out("query without a relevant passage", len(queries.rows) - len(qrels))
        kept = math.ceil(self.share * len(qrels))
        drawn = set(np.random.default_rng(_SHARE_SEED).permutation(len(qrels))[:kept].tolist())
        intake.leave_out("beyond share", len(qrels) - kept)
        qrels = {query: own for n, (query, own) in enumerate(qrels.items()) if n in drawn}
        return _judged_records(corpus, asked, qrels, intake, self.qrels)

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        translated = (place for place in self.translations.values() if isinstance(place, str))
        return (self.corpus, self.queries, self.qrels, *translated)

    def _answerable(
        self, qrels: Qrels, asked: Mapping[str, tuple[Queries, int]], intake: Intake
    ) -> Qrels:
        kept: Qrels = {}
        for query, judged in qrels.items():
            missing = [x for x, (queries, _) in asked.items() if query not in queries.rows]
            relevant = {passage: gain for passage, gain in judged.items() if gain > 0}
            if not relevant:
                continue
            if missing:
                place = str(self.translations[missing[0]])
                sentence = f'there is no query "{query}", which {self.qrels} judges; translate it'
                intake.refuse(place, "query without a translation", sentence)
            else:
                kept[query] = relevant
        return kept


def _judged_records(
    corpus: Corpus,
    asked: Mapping[str, tuple[Queries, int]],
    qrels: Qrels,
    intake: Intake,
    what: str,
) -> RankingRecords:
    ids = list(qrels)
    passages = [[corpus.rows[passage] for passage in judged] for judged in qrels.values()]
    rows = {x: [queries.rows[query] for query in ids] for x, (queries, _) in asked.items()}

    def row(i: int) -> _Row:
        texts = {x: queries.text(rows[x][i], column) for x, (queries, column) in asked.items()}
        return texts, tuple(corpus.text(n) for n in passages[i]), None

    first, (queries, column) = next(iter(asked.items()))
    keys = {n: text_key(corpus.text(n)) for judged in passages for n in judged}
    gathered = RankingKeys()
    for query, judged in zip(rows[first], passages, strict=True):
        own = text_key(queries.text(query, column))
        gathered.add(own, (keys[n] for n in judged), len(judged))
    return gathered.records(row, tuple(asked), intake, what)


@dataclasses.dataclass(frozen=True)
class TriplesTSV:
    """Training triples, ``query<TAB>positive<TAB>negative``, without header or quoting.

    Args:
      path: a file, or a pattern that names several.
      query_language: of the queries.
      translations: the same triples with the queries in other languages: another file (or pattern)
        by language, line by line the same passages.
      on_bad_record: "error" stops at the first bad line; "skip" leaves it out and counts it.

    Raises:
      ValueError: if a language is named twice, or lines are skipped where files go side by side.
    """

    path: str
    query_language: str = "en"
    translations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        if self.query_language in self.translations:
            raise ValueError(
                f"TriplesTSV.translations has {self.query_language!r}, the query_language; name "
                "other languages there"
            )
        if self.translations and self.on_bad_record == "skip":
            raise ValueError(
                "TriplesTSV: translations are read line by line, and a line left out would shift "
                'them; write on_bad_record="error"'
            )

    def open(self, data_root: str) -> RankingRecords:
        """Index and check the files.

        Raises:
          DataError: if a file cannot be read, or holds a bad line, or translations are not line by
            line of the same passages.
        """
        intake = Intake(self.on_bad_record)
        files = {self.query_language: self.path, **self.translations}
        form = "query<TAB>positive<TAB>negative"
        tables = {x: open_tsv(data_root, p, form, (0, 1, 2), intake) for x, p in files.items()}
        table = tables[self.query_language]
        for language, path in self.translations.items():
            _check_parallel(table, self.path, tables[language], path)
        gathered = RankingKeys()
        for line in table.raws():
            query, positive, negative = map(hash, line.split(b"\t"))
            gathered.add(query, (positive, negative), 1)

        def row(i: int) -> _Row:
            queries = {x: own.text(i).partition("\t")[0] for x, own in tables.items()}
            _, positive, negative = table.text(i).split("\t")
            return queries, (positive, negative), None

        return gathered.records(row, tuple(tables), intake, self.path)

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        return (self.path, *self.translations.values())


def _check_parallel(table: Table, path: str, other: Table, other_path: str) -> None:
    """Refuse triples that are not those of ``table``, line by line."""
    if len(other) != len(table):
        raise DataError(
            f"{other_path}: it has {len(other)} lines, and {path}, whose queries it translates, "
            f"has {len(table)}; write one line for each"
        )
    for i, (own, translated) in enumerate(zip(table.raws(), other.raws(), strict=True)):
        if own.partition(b"\t")[2] != translated.partition(b"\t")[2]:
            raise DataError(
                f"{other.place(i)}: its passages are not those of {table.place(i)}, whose query it "
                "translates; write the same passages in both lines"
            )


_LARGEST = float(np.finfo(np.float32).max)
_LIST_FIELDS = {
    "query": str,
    "queries": dict,
    "positives": list,
    "negatives": list,
    "scores": list,
}


@dataclasses.dataclass(frozen=True)
class RankingJSONL:
    """Questions with passages, one JSON object a line.

    ``{"query": "…", "positives": ["…"], "negatives": ["…"], "scores": [1.5, -0.5]}``. ``negatives``
    and ``scores`` (of positives, then negatives) may be missing. ``"queries": {"en": "…"}`` gives
    the question in further languages; ``query`` may be missing when it has ``query_language``.

    Args:
      path: a file, or a pattern that names several.
      query_language: of ``query``.
      on_bad_record: "error" stops at the first bad line; "skip" leaves it out and counts it.
    """

    path: str
    query_language: str = "en"
    on_bad_record: str = "error"

    def open(self, data_root: str) -> RankingRecords:
        """Parse and check every line; texts are read again when they are asked for.

        Raises:
          DataError: if a file cannot be read, or holds a bad line.
        """
        intake = Intake(self.on_bad_record)
        table = open_lines(data_root, self.path, intake)
        kept: list[int] = []
        gathered = RankingKeys()
        languages: dict[str, None] | None = None
        scored: bool | None = None
        for i in range(len(table)):
            found = parse_object(table, i, _LIST_FIELDS, ("positives",), intake)
            if found is None:
                continue
            fault = _list_fault(found, self.query_language, scored)
            if fault is not None:
                intake.refuse(table.place(i), *fault)
                continue
            texts, listed, scores = self._parts(found)
            scored = scores is not None
            languages = {x: None for x in languages or texts if x in texts}
            kept.append(i)
            own = text_key(texts[self.query_language])
            gathered.add(own, map(text_key, listed), len(found["positives"]))
        return gathered.records(
            lambda i: self._row(table, kept[i]),
            tuple(languages or ()),
            intake,
            self.path,
            scored=bool(scored),
        )

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        return (self.path,)

    def _parts(self, found: dict[str, Any]) -> _Row:
        queries = found.get("queries", {})
        own = found.get("query", queries.get(self.query_language))
        scores = found.get("scores")
        return (
            {self.query_language: own, **queries},
            (*found["positives"], *found.get("negatives", ())),
            None if scores is None else tuple(float(x) for x in scores),
        )

    def _row(self, table: Table, i: int) -> _Row:
        found = parse_object(table, i, {}, (), Intake())
        assert found is not None  # the line was parsed when the source was opened
        return self._parts(found)


def _list_fault(
    found: dict[str, Any], language: str, scored: bool | None
) -> tuple[str, str] | None:
    """What is wrong with one object: None, or the reason and the sentence."""
    if "query" not in found and language not in found.get("queries", {}):
        sentence = f'there is no "query", nor "queries" with "{language}"; write "query": "…"'
        return "missing key", sentence
    if not found["positives"]:
        return "no positive", '"positives" is empty; name at least one relevant passage'
    own = found.get("queries", {}).get(language)
    if own is not None and found.get("query", own) != own:
        sentence = f'"query" and "queries" have two texts for "{language}"; keep one'
        return "two queries in one language", sentence
    texts = {"query": [found.get("query", own)], "queries": list(found.get("queries", {}).values())}
    for name in ("positives", "negatives"):
        texts[name] = found.get(name, [])
    for name, values in texts.items():
        for text in values:
            if not isinstance(text, str):
                return "wrong JSON type", f'"{name}" holds {json_kind(text)}; write strings'
            if is_blank(text):
                return "blank text", f'"{name}" holds a blank text; write text or leave it out'
    return _score_fault(found.get("scores"), texts, scored)


def _score_fault(
    scores: Sequence[Any] | None, texts: Mapping[str, Sequence[Any]], scored: bool | None
) -> tuple[str, str] | None:
    if scored is not None and scored != (scores is not None):
        here, before = ("scores", "no scores") if scores is not None else ("no scores", "scores")
        sentence = f"the line has {here} and the lines before have {before}; all or none have them"
        return "scores in some lines only", sentence
    n = len(texts["positives"]) + len(texts["negatives"])
    if scores is not None and len(scores) != n:
        sentence = f'"scores" has {len(scores)} numbers for {n} passages; write one for each'
        return "wrong number of scores", sentence
    for score in scores or ():
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            return "wrong JSON type", f'"scores" holds {json_kind(score)}; write numbers'
        if not abs(score) <= _LARGEST:
            return "score not finite", f'"scores" holds {score}; write finite float32 numbers'
    return None
