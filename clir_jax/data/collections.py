"""Evaluation sets: queries, the passages to search, and which of them are relevant."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from clir_jax.data import demo
from clir_jax.data.bitext import BitextMoses, BitextTSV
from clir_jax.data.ir_files import IRFiles, IRPassages
from clir_jax.data.judgements import Corpus, Qrels, Queries, passage_text, read_qrels
from clir_jax.data.pools import RELEVANT, Pool
from clir_jax.data.reading import Intake, Report

_SAMPLE_SEED = 0


@dataclasses.dataclass(frozen=True)
class Collection:
    """An opened evaluation set.

    Args:
      name: for tables and file names.
      language: of the queries.
      passage_ids: of the passages, without duplicates.
      passages: their texts, title first.
      query_ids: of the queries, without duplicates; each has a judgement.
      queries: their texts.
      qrels: relevance by query id and passage id.
      report: what came of opening it.
      titles: of the passages, blank where one has none; empty where titles are not known.
    """

    name: str
    language: str
    passage_ids: list[str]
    passages: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels
    report: Report
    titles: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """A judged collection in the files of TREC or BEIR.

    Queries without a judged passage are left out, and counted in the report.

    Args:
      corpus: JSON lines ``{"_id", "title", "text"}``; a passage is read as title and text.
      queries: ``id<TAB>text`` with any further columns, or JSON lines ``{"_id", "text"}``.
      qrels: TREC ``query 0 passage relevance``, or BEIR tab-separated lines.
      language: of the queries.
      query_column: the column of ``queries`` with the text, counted from 1 after the id.
      sample: search so many passages only: all judged ones and a fixed random choice of the others.
        None searches the whole corpus.
      name: for tables and file names.
      on_bad_record: "error" stops at the first bad line; "skip" leaves it out and counts it.
      translations: the corpus in other languages, a file of equal ids for each. All are searched as
        one pool, in which the id of a translated passage is ``language:id``.
      relevant: what counts in a pool: ``"any"``, the judged passages in every language; ``"own"``,
        in the language of the queries (the corpus's, where there is no translation into it); or
        ``"language"``, every passage in that language, judged or not: P@10 is then their share of
        the first ten, which tells how much a model prefers what is in the query's own language.

    Raises:
      ValueError: if ``sample`` or ``relevant`` is out of range.
    """

    corpus: str
    queries: str
    qrels: str
    language: str
    query_column: int = 1
    sample: int | None = None
    name: str = "retrieval"
    on_bad_record: str = "error"
    translations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    relevant: str = "any"

    def __post_init__(self) -> None:
        _check_sample("Retrieval", self.sample)
        if self.relevant not in RELEVANT:
            raise ValueError(f"Retrieval.relevant is {self.relevant!r}; write one of {RELEVANT}")
        if self.relevant != "any" and not self.translations:
            raise ValueError(
                f"Retrieval.relevant is {self.relevant!r} and there are no translations to choose "
                'from; name some, or write relevant="any"'
            )

    def open(self, data_root: str) -> Collection:
        """Read and check all files.

        Raises:
          DataError: if a file cannot be read, or holds a bad record.
        """
        intake = Intake(self.on_bad_record)
        pool = Pool(data_root, self.corpus, self.translations, intake)
        queries = Queries(data_root, self.queries, (self.query_column,), intake)
        qrels = read_qrels(data_root, self.qrels, queries.rows, pool.originals, intake)
        intake.leave_out("query without a judged passage", len(queries.rows) - len(qrels))
        qrels = pool.everywhere(qrels, intake)
        query_ids = [query for query in queries.rows if query in qrels]
        passage_ids = _sampled(pool.ids, qrels, self.sample)
        qrels = pool.counted(qrels, self.relevant, self.language, passage_ids)
        parts = [pool.parts(passage) for passage in passage_ids]
        return Collection(
            name=self.name,
            language=self.language,
            passage_ids=passage_ids,
            passages=[passage_text(title, text) for title, text in parts],
            query_ids=query_ids,
            queries=[queries.text(queries.rows[query], self.query_column) for query in query_ids],
            qrels={query: qrels[query] for query in query_ids},
            report=intake.finish(len(query_ids), self.qrels),
            titles=[title for title, _ in parts],
        )

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        return (self.corpus, self.queries, self.qrels, *self.translations.values())


@dataclasses.dataclass(frozen=True)
class IRDatasetRetrieval:
    """A judged collection that ``ir_datasets`` has, which downloads what it does not have yet.

    Queries without a judged passage are left out, and counted in the report.

    Args:
      id: as in ``"beir/scifact/test"``.
      language: of the queries.
      query_field, passage_field, corpus: as ``IRDataset`` takes them.
      sample, name, on_bad_record: as ``Retrieval`` takes them.
    """

    id: str
    language: str
    query_field: str = ""
    passage_field: str = ""
    corpus: str = ""
    sample: int | None = None
    name: str = "ir_datasets"
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        _check_sample("IRDatasetRetrieval", self.sample)

    def open(self, data_root: str) -> Collection:
        """Download what is missing, and read and check it; ``data_root`` is not read.

        Raises:
          DataError: if there is no such id, it cannot be read or lacks queries, judgements or
            documents, or it holds a bad record.
        """
        intake = Intake(self.on_bad_record)
        files = IRFiles(self.id, ("queries", "qrels"))
        corpus = IRPassages(self.corpus or self.id, self.passage_field, intake)
        queries = files.queries({self.language: self.query_field}, intake)
        qrels = files.qrels(queries, intake)
        # Of a sample only the ids are held, not millions of texts.
        texts = {name: "" if self.sample else text for name, text in corpus.all()}
        for query, judged in list(qrels.items()):
            unknown = [passage for passage in judged if passage not in texts]
            for passage in unknown:
                corpus.refuse_unknown(passage, f"{self.id} qrels")
                del judged[passage]
            if not judged:
                del qrels[query]
        intake.leave_out("query without a judged passage", len(queries) - len(qrels))
        passage_ids = _sampled(list(texts), qrels, self.sample)
        if self.sample:
            texts = corpus.texts(passage_ids)
        query_ids = [query for query in queries if query in qrels]
        return Collection(
            name=self.name,
            language=self.language,
            passage_ids=passage_ids,
            passages=[texts[passage] for passage in passage_ids],
            query_ids=query_ids,
            queries=[queries[query][0] for query in query_ids],
            qrels={query: qrels[query] for query in query_ids},
            report=intake.finish(len(query_ids), self.id),
        )


def _check_sample(kind: str, sample: int | None) -> None:
    if sample is not None and sample < 1:
        raise ValueError(f"{kind}.sample is {sample}; write a number of passages, or None")


def _sampled(passage_ids: list[str], qrels: Qrels, sample: int | None) -> list[str]:
    if sample is None or sample >= len(passage_ids):
        return passage_ids
    chosen = {passage for judged in qrels.values() for passage in judged}
    others = [passage for passage in passage_ids if passage not in chosen]
    order = np.random.default_rng(_SAMPLE_SEED).permutation(len(others))
    chosen.update(others[n] for n in order[: max(0, sample - len(chosen))])
    return [passage for passage in passage_ids if passage in chosen]


@dataclasses.dataclass(frozen=True)
class AtlasRetrieval:
    """The questions of the built-in data over its passages.

    Args:
      language: one of ``clir_jax.data.demo.LANGUAGES``.
      split: "dev" or "test", or "train" to see what was learned by heart.
      name: for tables and file names.

    Raises:
      ValueError: if there is no such language or split.
    """

    language: str
    split: str = "dev"
    name: str = "atlas"

    def __post_init__(self) -> None:
        demo.check_language(self.language)
        demo.check_split(self.split)

    def open(self, data_root: str) -> Collection:
        """Give the collection; ``data_root`` is not read."""
        questions = demo.questions(self.language, self.split)
        passages = demo.passages()
        return Collection(
            name=self.name,
            language=self.language,
            passage_ids=[passage.id for passage in passages],
            passages=[passage_text(passage.title, passage.text) for passage in passages],
            query_ids=[question.id for question in questions],
            queries=[question.text for question in questions],
            qrels={question.id: {question.passage_id: 1} for question in questions},
            report=Intake().finish(len(questions), "AtlasRetrieval"),
        )


@dataclasses.dataclass(frozen=True)
class BitextRetrieval:
    """Held-out bitext as an evaluation set: a sentence must find its English translation.

    The pairs are the ones that ``BitextTSV``, or ``BitextMoses``, with the same files and
    ``hold_out`` leaves out of training. Equal sentences are one query or one passage, and every
    translation of a query is relevant.

    Args:
      path: bitext, as ``BitextTSV`` takes it; or, with ``english``, the file in the other language.
      language: of the other side.
      hold_out: how many pairs to set aside.
      distractors: JSON lines of further English passages to search; None searches the held-out
        English sides only. Passages equal to one of those are left out.
      name: for tables and file names.
      on_bad_record: "error" stops at the first bad line; "skip" leaves it out and counts it.
      english: the English file, as ``BitextMoses`` takes it.
    """

    path: str
    language: str
    hold_out: int
    distractors: str | None = None
    name: str = "bitext"
    on_bad_record: str = "error"
    english: str | None = None

    def __post_init__(self) -> None:
        if self.hold_out < 1:
            raise ValueError(f"BitextRetrieval.hold_out is {self.hold_out}; write how many pairs")

    def open(self, data_root: str) -> Collection:
        """Read and check all files.

        Raises:
          DataError: if a file cannot be read or holds a bad record, or ``hold_out`` cannot be met.
        """
        pairs = self._held_out().open(data_root)
        held_out = [pairs[i] for i in range(len(pairs))]
        passages = _named("passage", (pair.english for pair in held_out))
        queries = _named("query", (pair.other for pair in held_out))
        qrels: Qrels = {}
        for pair in held_out:
            qrels.setdefault(queries[pair.other], {})[passages[pair.english]] = 1
        intake = Intake(self.on_bad_record)
        if self.distractors is not None:
            corpus = Corpus(data_root, self.distractors, intake)
            for passage, row in corpus.rows.items():
                passages.setdefault(corpus.text(row), f"distractor-{passage}")
        report = intake.finish(len(queries), self.path)
        for reason, count in pairs.report.skipped.items():
            report.skipped[reason] = report.skipped.get(reason, 0) + count
        report.places[:0] = pairs.report.places
        return Collection(
            name=self.name,
            language=self.language,
            passage_ids=list(passages.values()),
            passages=list(passages),
            query_ids=list(queries.values()),
            queries=list(queries),
            qrels=qrels,
            report=report,
        )

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        distractors = () if self.distractors is None else (self.distractors,)
        return (*self._held_out().files(), *distractors)

    def _held_out(self) -> BitextTSV | BitextMoses:
        return _bitext(self, part="held_out")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Opened translation pairs to be told from all other pairs of their sentences.

    Args:
      name: for tables.
      language: of the other side.
      english: the English sentences, no two alike.
      other: the sentences in the other language, no two alike.
      pairs: places in ``other`` and ``english`` of every pair, no two alike.
      report: what came of opening it.
    """

    name: str
    language: str
    english: list[str]
    other: list[str]
    pairs: list[tuple[int, int]]
    report: Report


@dataclasses.dataclass(frozen=True)
class BitextPairs:
    """Bitext as an evaluation set of pairs: accuracy both ways and F1, see ``evaluation.bitext``.

    Args:
      path: bitext, as ``BitextTSV`` takes it; or, with ``english``, the file in the other language.
      language: of the other side.
      hold_out: read the pairs that ``BitextTSV`` with this ``hold_out`` leaves out of training; 0
        reads all.
      limit: read at most so many pairs, a fixed random choice; None reads all.
      name, on_bad_record, english: as ``BitextRetrieval`` takes them.
    """

    path: str
    language: str
    hold_out: int = 0
    limit: int | None = None
    name: str = "bitext"
    on_bad_record: str = "error"
    english: str | None = None

    def __post_init__(self) -> None:
        self._source()  # refuses what is out of range

    def open(self, data_root: str) -> Pairs:
        """Read and check all files.

        Raises:
          DataError: if a file cannot be read or holds a bad record, or ``hold_out`` cannot be met.
        """
        opened = self._source().open(data_root)
        read = [opened[i] for i in range(len(opened))]
        english = {text: n for n, text in enumerate(dict.fromkeys(pair.english for pair in read))}
        other = {text: n for n, text in enumerate(dict.fromkeys(pair.other for pair in read))}
        pairs = dict.fromkeys((other[pair.other], english[pair.english]) for pair in read)
        return Pairs(
            self.name, self.language, list(english), list(other), list(pairs), opened.report
        )

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        return self._source().files()

    def _source(self) -> BitextTSV | BitextMoses:
        part = "held_out" if self.hold_out else "train"
        return dataclasses.replace(_bitext(self, part), limit=self.limit)


def _bitext(which: BitextRetrieval | BitextPairs, part: str) -> BitextTSV | BitextMoses:
    options = (which.language, which.hold_out, part, which.on_bad_record)
    if which.english is None:
        return BitextTSV(which.path, *options)
    return BitextMoses(which.english, which.path, *options)


def _named(what: str, texts: Iterable[str]) -> dict[str, str]:
    """An id for each text, equal for equal texts, in order."""
    names: dict[str, str] = {}
    for text in texts:
        names.setdefault(text, f"{what}-{len(names)}")
    return names
