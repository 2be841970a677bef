"""Which of the passages found for a question become its negatives."""

import dataclasses
import functools
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from clir_jax.config import Generate, Mine
from clir_jax.data.collections import Collection
from clir_jax.data.reading import DataError
from clir_jax.data.records import Ranking, Records, Text, read
from clir_jax.data.sources import CorpusRecords
from clir_jax.data.tables import text_key
from clir_jax.evaluation.bm25 import words
from clir_jax.training.artifacts import Workplace
from clir_jax.training.judges import Judge, hear, limit, relative
from clir_jax.training.searchers import Found, Searcher

# Records that a judge hears at once, so that memory does not grow with what is mined together.
_HEARD = 256


class Corpus:
    """The passages that are searched, and behind them positives that are not among them.

    Args:
      work: names the corpus.
      place: opens it.
      records: have the positives.
    """

    def __init__(self, work: Mine, place: Workplace, records: Records) -> None:
        opened = place.open_source(work.corpus)
        passages = dict(titled_passages(work, opened))
        self.searched, self.titles = len(passages), list(passages.values())
        if work.other_documents and not any(self.titles):
            raise DataError(
                f"work {work.name}: other_documents tells documents by their titles, and its "
                "corpus has none; give a Retrieval or a CorpusJSONL with titles, or leave it out"
            )
        compared = work.hard or work.semi_hard or work.judge is not None
        if compared or work.margin is not None or work.max_relative is not None:
            for row in range(len(records)):
                record: Any = records[row]
                for passage in record.positives:
                    passages.setdefault(passage.text, "")
        self.texts = list(passages)
        self.keys = [text_key(text) for text in self.texts]
        self._places = {key: n for n, key in enumerate(self.keys)}

    def find(self, text: str) -> int:
        """The number of a passage; -1 if it is not there."""
        return self._places.get(text_key(text), -1)

    def title(self, text: str) -> str:
        """The title of a passage of the corpus, blank if there is none."""
        n = self.find(text)
        return self.titles[n] if 0 <= n < self.searched else ""


def titled_passages(work: Mine | Generate, opened: Any) -> Iterator[tuple[str, str]]:
    """Texts and titles of a corpus, blank where there is none.

    Args:
      work: names the corpus.
      opened: a collection, text or rankings.

    Raises:
      DataError: if it is something else.
    """
    if isinstance(opened, Collection):
        yield from zip(opened.passages, opened.titles or [""] * len(opened.passages), strict=True)
    elif isinstance(opened, CorpusRecords):
        yield from opened.titled()
    elif opened.kind is Text:
        yield from ((opened[row].text, "") for row in range(len(opened)))
    elif opened.kind is Ranking:
        for row in range(len(opened)):
            yield from ((text, "") for text in read(opened[row], "passages"))
    else:
        raise DataError(
            f"work {work.name}: its corpus gives {opened.kind.__name__.lower()} records; give "
            "text, rankings or an evaluation set"
        )


@dataclasses.dataclass
class _Left:
    """What is left of the passages found for a record: numbers and falling scores."""

    rows: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]

    def keep(self, kept: Sequence[bool] | Bool[np.ndarray, " n"]) -> int:
        """Leave out what is not ``kept``; returns how many these are."""
        mask = np.asarray(kept, bool)
        self.rows, self.scores = self.rows[mask], self.scores[mask]
        return int((~mask).sum())


class Miner:
    """Chooses the negatives of records.

    Args:
      work: has the options.
      seed: of what is drawn by chance.
      records: all of the source.
      corpus: the passages.
      searcher: finds and scores them.
      judge: leaves out what it finds relevant; None for no judge.
    """

    def __init__(
        self,
        work: Mine,
        seed: int,
        records: Records,
        corpus: Corpus,
        searcher: Searcher,
        judge: Judge | None,
    ) -> None:
        self._work, self._seed, self._records, self._corpus = work, seed, records, corpus
        self._searcher, self._judge = searcher, judge
        self._language = work.query_language or records.languages[0]
        self._known = _relevant(records)

    def negatives(
        self,
        block: Sequence[Ranking],
        rows: range,
        counts: Counter[str],
        heard: Counter[str],
        progress: Callable[[int, int], None],
    ) -> list[Int[np.ndarray, " n"]]:
        """Choose passages for the records of a block.

        Args:
          block: records.
          rows: their numbers.
          counts: what became of how many passages is added to it.
          heard: how many passages the judge has read and cut is added to it; see ``judges.hear``.
          progress: told how far the search is, and then the judge.

        Returns:
          The numbers of each record's negatives, the best first.
        """
        work = self._work
        asked, which = _asked(self._searcher, block, self._language)
        parts = 1 if self._judge is None else 2
        found = self._searcher.find(asked, work.depth, lambda done, of: progress(done, parts * of))
        left = [
            self._candidates(record, found[n], counts)
            for record, n in zip(block, which, strict=True)
        ]
        bounded = work.margin is not None or work.max_relative is not None
        positives: Float[np.ndarray, " n"] = np.zeros(len(block))
        if bounded or work.hard or work.semi_hard:
            lists = [self._positives(record) for record in block]
            positives = np.asarray([s.min() for s in self._searcher.score(asked, which, lists)])
        for one, positive in zip(left, positives, strict=True):
            self._bound(one, float(positive), counts)
        if self._judge is not None:
            self._hear(self._judge, block, left, counts, heard, progress)
        chosen = []
        for row, one, positive in zip(rows, left, positives, strict=True):
            drawn = self._draw(row, one, float(positive))
            counts["more than are kept"] += len(one.rows) - len(drawn)
            counts["negatives"] += len(drawn)
            chosen.append(one.rows[drawn])
        return chosen

    def _candidates(self, record: Ranking, found: Found, counts: Counter[str]) -> _Left:
        """Of what was found for a record, what its text and place do not rule out."""
        work, corpus = self._work, self._corpus
        rows, scores = found
        if work.skip:
            counts["ranks passed over"] += min(work.skip, len(rows))
        left = _Left(rows[work.skip :], scores[work.skip :])
        known = self._known[record.query_id]
        counts["known to be relevant"] += left.keep(
            [corpus.keys[n] not in known for n in left.rows]
        )
        if work.other_documents:
            titles = {corpus.title(passage.text) for passage in record.positives} - {""}
            kept = [corpus.titles[n] not in titles for n in left.rows]
            counts["of a positive's document"] += left.keep(kept)
        if work.duplicates is not None:
            texts = [self._text(*where) for where in known.values()]
            sets = [_word_set(text) for text in texts]
            alike = [_likeness(_word_set(corpus.texts[n]), sets) for n in left.rows]
            kept = [value < work.duplicates for value in alike]
            counts["near-duplicates of a positive"] += left.keep(kept)
        return left

    def _bound(self, left: _Left, positive: float, counts: Counter[str]) -> None:
        """Leave out what scores too near to the positive, or above it."""
        work = self._work
        if work.margin is not None:
            counts["within margin of the positive"] += left.keep(
                left.scores <= positive - work.margin
            )
        if work.max_relative is not None:
            highest = relative(positive, work.max_relative)
            counts["above max_relative of the positive"] += left.keep(left.scores <= highest)
        if work.hard or work.semi_hard:
            hard, semi = self._kinds(left, positive)
            counts["neither hard nor semi-hard"] += left.keep(hard | semi)

    def _hear(
        self,
        judge: Judge,
        block: Sequence[Ranking],
        left: list[_Left],
        counts: Counter[str],
        heard: Counter[str],
        progress: Callable[[int, int], None],
    ) -> None:
        """Leave out what the judge scores about as high as the positive, or above it."""
        work, total = self._work, len(block)
        asked, which = _asked(judge, block, work.judge_language or self._language)
        for start in range(0, total, _HEARD):
            progress(total + start, 2 * total)
            part = slice(start, start + _HEARD)
            positives = [self._positives(record) for record in block[part]]
            own = hear(judge, asked, which[part], positives, heard)
            found = [one.rows.tolist() for one in left[part]]
            others = hear(judge, asked, which[part], found, heard)
            for one, scores, known in zip(left[part], others, own, strict=True):
                highest = limit(judge, float(known.min()), work.judge_max_relative)
                counts["left out by the judge"] += one.keep(scores <= highest)

    def _draw(self, row: int, left: _Left, positive: float) -> Int[np.ndarray, " n"]:
        """Places in ``left`` of the negatives of record ``row``."""
        work, rng = self._work, np.random.default_rng((self._seed, row))
        groups = [(np.arange(len(left.rows)), work.negatives)]
        if work.hard or work.semi_hard:
            hard, semi = self._kinds(left, positive)
            groups = [(np.flatnonzero(hard), work.hard), (np.flatnonzero(semi), work.semi_hard)]
        if work.sampling == "random":
            groups = [(rng.permutation(group), count) for group, count in groups]
        return np.sort(np.concatenate([group[:count] for group, count in groups]))

    def _kinds(
        self, left: _Left, positive: float
    ) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Which are hard, and which are semi-hard; of what no negative is wanted, none."""
        margin = self._work.semi_hard_margin or 0.0
        hard = (left.scores > positive) & (self._work.hard > 0)
        return hard, (left.scores < positive) & (left.scores > positive - margin)

    def _positives(self, record: Ranking) -> list[int]:
        return [self._corpus.find(passage.text) for passage in record.positives]

    def _text(self, row: int, place: int) -> str:
        record: Any = self._records[row]
        return str(record.positives[place].text)


def _asked(judge: Judge, block: Sequence[Ranking], language: str) -> tuple[Any, list[int]]:
    """The questions of a block without repetitions, and which of them is each record's."""
    numbers: dict[str, int] = {}
    which = [numbers.setdefault(record.queries[language], len(numbers)) for record in block]
    return judge.ask(list(numbers)), which


def _relevant(records: Records) -> dict[int, dict[int, tuple[int, int]]]:
    """By question, the keys of the texts that any record calls relevant to it, and where one is."""
    known: dict[int, dict[int, tuple[int, int]]] = {}
    for row in range(len(records)):
        record: Any = records[row]
        own = known.setdefault(record.query_id, {})
        for place, passage in enumerate(record.positives):
            own.setdefault(text_key(passage.text), (row, place))
    return known


@functools.lru_cache(maxsize=2**16)
def _word_set(text: str) -> frozenset[str]:
    return frozenset(words(unicodedata.normalize("NFKC", text).casefold()))


def _likeness(own: frozenset[str], others: Sequence[frozenset[str]]) -> float:
    """The largest Jaccard index of a set of words and some others; of empty sets it is 1."""
    indices = (len(own & one) / len(own | one) if own | one else 1.0 for one in others)
    return max(indices, default=0.0)
