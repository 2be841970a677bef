"""Rankings of any data set of the package ``ir_datasets``."""

import dataclasses
import itertools
from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from clir_jax.data.ir_files import ADVICE, IRFiles, IRPassages
from clir_jax.data.opened import RankingRecords, RowReader
from clir_jax.data.reading import Intake
from clir_jax.data.tables import text_key

_NEEDED = {
    "docpairs": ("queries", "docpairs"),
    "qrels": ("queries", "qrels"),
    "scoreddocs": ("queries", "qrels", "scoreddocs"),
}


@dataclasses.dataclass(frozen=True)
class IRDataset:
    """Rankings of an id of ``ir_datasets``, which downloads what it does not have yet.

    Every question is held in memory; passages stay in the store on disk that ``ir_datasets``
    makes. To tell equal texts, opening reads each passage that is named once: a million docpairs
    over 400,000 passages take some ten seconds.

    Args:
      id: as in ``"msmarco-passage/train/triples-small"``.
      language: of the queries.
      query_field: of a query, where it has several: ``"ht_title"``; empty takes the text that
        ``ir_datasets`` takes for it.
      translations: the queries in other languages, by field: ``{"en": "title"}``.
      passage_field: as ``query_field``, of a document.
      corpus: an id with the same document ids whose documents are read instead:
        ``"msmarco-passage"`` for English passages with the Spanish queries of
        ``"mmarco/es/train"``.
      use: "docpairs", a positive and a negative passage a record; "qrels", a query a record, whose
        negatives are judged and not relevant; "scoreddocs", the same, with negatives that were
        retrieved and are not judged relevant; or "auto", docpairs where there are some, else qrels.
        Relevant is > 0.
      scores: keep the scores of "scoreddocs", and only passages that have one.
      limit: read at most so many records, the first; None reads all.
      on_bad_record: "error" stops at the first bad record; "skip" leaves it out and counts it.

    Raises:
      ValueError: if an option is out of its range.
    """

    id: str
    language: str = "en"
    query_field: str = ""
    translations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    passage_field: str = ""
    corpus: str = ""
    use: str = "auto"
    scores: bool = False
    limit: int | None = None
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        if self.use != "auto" and self.use not in _NEEDED:
            known = ", ".join(f'"{name}"' for name in _NEEDED)
            raise ValueError(f'IRDataset.use is {self.use!r}; write {known} or "auto"')
        if self.scores and self.use != "scoreddocs":
            raise ValueError(
                f'IRDataset.scores is True for use {self.use!r}; write use="scoreddocs", which has '
                "scores"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"IRDataset.limit is {self.limit}; write a number of records, or None")

    def open(self, data_root: str) -> RankingRecords:
        """Download what is missing and check every record; ``data_root`` is not read.

        Raises:
          DataError: if there is no such id, it cannot be read or lacks what is asked for, or it
            holds a bad record.
        """
        intake = Intake(self.on_bad_record)
        use = self.use
        if use == "auto":
            use = "docpairs" if IRFiles(self.id, ()).has("docpairs") else "qrels"
        files = IRFiles(self.id, _NEEDED[use])
        passages = IRPassages(self.corpus or self.id, self.passage_field, intake)
        fields = {self.language: self.query_field, **self.translations}
        queries = files.queries(fields, intake)
        lists = _Lists(queries)
        if use == "docpairs":
            self._add_pairs(files, lists, intake)
        else:
            self._add_judged(files, queries, lists, use == "scoreddocs", intake)
        where = f"{self.id} {'docpairs' if use == 'docpairs' else 'qrels'}"
        texts = passages.checked(list(lists.passages), where)
        keys = [None if text is None else text_key(text) for text in texts]
        known = np.asarray([key is not None for key in keys], bool)
        kept = lists.kept(known, whole=use == "docpairs")
        lost = "docpair without its passages" if use == "docpairs" else _NO_POSITIVE
        intake.leave_out(lost, len(lists) - len(kept.asked))
        asked = [text_key(texts[0]) for texts in queries.values()]
        return RankingRecords(
            self._reader(kept, list(queries.values()), list(lists.passages), passages),
            queries=np.asarray(asked, np.int64)[kept.asked],
            passages=np.asarray([0 if key is None else key for key in keys], np.int64)[kept.listed],
            counts=kept.counts,
            positives=kept.positives,
            languages=tuple(fields),
            report=intake.finish(len(kept.asked), self.id),
            scored=self.scores,
        )

    def _add_pairs(self, files: IRFiles, lists: "_Lists", intake: Intake) -> None:
        entries = itertools.islice(files.entries("docpairs"), self.limit)
        for n, pair in enumerate(entries, 1):
            if pair.query_id in lists.queries:
                lists.add(pair.query_id, (pair.doc_id_a, pair.doc_id_b), 1)
            else:
                sentence = f'there is no query "{pair.query_id}"; {ADVICE}'
                intake.refuse(f"{self.id} docpairs:{n}", "unknown query", sentence)

    def _add_judged(
        self,
        files: IRFiles,
        queries: Mapping[str, tuple[str, ...]],
        lists: "_Lists",
        retrieved: bool,
        intake: Intake,
    ) -> None:
        qrels = files.qrels(queries, intake)
        scored: dict[str, dict[str, float]] = {}
        for entry in files.entries("scoreddocs") if retrieved else ():
            scored.setdefault(entry.query_id, {})[entry.doc_id] = float(entry.score)
        for query, judged in qrels.items():
            positives = [passage for passage, relevance in judged.items() if relevance > 0]
            others = list(scored.get(query, ())) if retrieved else list(judged)
            negatives = [passage for passage in others if judged.get(passage, 0) <= 0]
            own = scored.get(query, {})
            if self.scores:
                positives = [passage for passage in positives if passage in own]
            if positives and len(lists) != self.limit:
                listed = positives + negatives
                values = [own[passage] for passage in listed] if self.scores else ()
                lists.add(query, listed, len(positives), values)
            else:
                intake.leave_out("beyond limit" if positives else _NO_POSITIVE)
        intake.leave_out(_NO_POSITIVE, len(queries) - len(qrels))

    def _reader(
        self,
        kept: "_Kept",
        questions: Sequence[tuple[str, ...]],
        names: Sequence[str],
        passages: IRPassages,
    ) -> RowReader:
        ends = np.cumsum(kept.counts)

        def row(i: int) -> tuple[dict[str, str], tuple[str, ...], tuple[float, ...] | None]:
            own = slice(int(ends[i] - kept.counts[i]), int(ends[i]))
            listed = [names[n] for n in kept.listed[own]]
            texts = passages.texts(listed)
            languages = (self.language, *self.translations)
            asked = dict(zip(languages, questions[kept.asked[i]], strict=True))
            scores = tuple(kept.scores[own].tolist()) if self.scores else None
            return asked, tuple(texts[name] for name in listed), scores

        return row


_NO_POSITIVE = "query without a relevant passage"


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Records as numbers: their queries, and their passages one after another."""

    asked: Int[np.ndarray, " n"]
    listed: Int[np.ndarray, " p"]
    scores: Float[np.ndarray, " s"]
    counts: Int[np.ndarray, " n"]
    positives: Int[np.ndarray, " n"]


class _Lists:
    """Gathers records, 12 bytes each and 4 a passage, with a number for every id."""

    def __init__(self, queries: Iterable[str]):
        self.queries = {name: n for n, name in enumerate(queries)}
        self.passages: dict[str, int] = {}
        self._asked, self._listed, self._scores = array("i"), array("i"), array("d")
        self._counts, self._positives = array("i"), array("i")

    def __len__(self) -> int:
        return len(self._asked)

    def add(
        self, query: str, passages: Sequence[str], positives: int, scores: Sequence[float] = ()
    ) -> None:
        """Add a record of ids, its positives first."""
        self._asked.append(self.queries[query])
        for passage in passages:
            self._listed.append(self.passages.setdefault(passage, len(self.passages)))
        self._counts.append(len(passages))
        self._positives.append(positives)
        self._scores.extend(scores)

    def kept(self, known: Bool[np.ndarray, " ids"], whole: bool) -> _Kept:
        """The records without unknown passages, if they still have a positive.

        Args:
          known: whether a passage can be read, by its number.
          whole: keep only records of which every passage can be read.
        """
        asked, listed, counts, positives = (
            np.asarray(numbers, np.int32)
            for numbers in (self._asked, self._listed, self._counts, self._positives)
        )
        good = known[listed]
        owners = np.repeat(np.arange(len(asked)), counts)
        relevant = np.arange(len(listed)) - (np.cumsum(counts) - counts)[owners] < positives[owners]
        left = np.bincount(owners[good], minlength=len(asked))
        found = np.bincount(owners[good & relevant], minlength=len(asked))
        rows = (found > 0) & ((left == counts) | (not whole))
        good &= rows[owners]
        scores = np.asarray(self._scores, np.float64)
        return _Kept(
            asked[rows],
            listed[good],
            scores[good] if len(scores) else scores,
            left[rows],
            found[rows],
        )
