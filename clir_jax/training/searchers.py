"""Who finds passages for questions and scores them: BM25, or a model that has encoded them once."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int

from clir_jax.data.answers import Answers, AnswerWriter
from clir_jax.evaluation.bm25 import BM25, best
from clir_jax.evaluation.retrieval import Block, Progress, TextEncoder, nearest
from clir_jax.evaluation.search import rerank
from clir_jax.models.requests import Embeddings

# Passages read from the disk at once; widths are multiples of a number: each is compiled once.
_BLOCK_ROWS = 512
_WIDTH_STEP = 32
# Questions whose lists are scored at once, and passages of each.
_LISTS = 32
_COLUMNS = 128

Check = Callable[[Embeddings], Embeddings]
Found = tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]


@runtime_checkable
class Searcher(Protocol):
    """What a miner asks; passages are known by their numbers."""

    def prepare(self, progress: Callable[[int], None]) -> None:
        """Do once what every search needs; told the passages that are done."""

    def ask(self, questions: Sequence[str]) -> Any:
        """Make of questions what the other calls take."""

    def find(self, asked: Any, depth: int, progress: Progress) -> list[Found]:
        """The passages of highest score for every question, and their falling scores."""

    def score(
        self, asked: Any, rows: Sequence[int], lists: Sequence[Sequence[int]]
    ) -> list[Float[np.ndarray, " n"]]:
        """The scores of lists of passages, each for the question in a row of ``asked``."""


class LexicalSearcher:
    """BM25.

    Args:
      passages: P texts.
      searched: of them, the first so many are found; the others are scored only.
    """

    def __init__(self, passages: Sequence[str], searched: int) -> None:
        self._index, self._searched = BM25(passages), searched

    def prepare(self, progress: Callable[[int], None]) -> None:
        """Nothing is left to do."""

    def ask(self, questions: Sequence[str]) -> Sequence[str]:
        """Questions stay text."""
        return questions

    def find(self, asked: Sequence[str], depth: int, progress: Progress) -> list[Found]:
        """As of ``Searcher``; passages without a word of the question are not found."""
        found = []
        for done, question in enumerate(asked):
            progress(done, len(asked))
            scores = self._index.scores(question)[: self._searched]
            rows = best(scores, depth)
            found.append((rows, scores[rows]))
        return found

    def score(
        self, asked: Sequence[str], rows: Sequence[int], lists: Sequence[Sequence[int]]
    ) -> list[Float[np.ndarray, " n"]]:
        """As of ``Searcher``."""
        scored = []
        for row, own in zip(rows, lists, strict=True):
            scored.append(self._index.scores(asked[row])[np.asarray(own, int)])
        return scored


class StoredSearcher:
    """A model whose vectors of the passages are on disk, float16, encoded once.

    Memory holds the vectors of a block of them; after a kill, what is stored is not encoded again.

    Args:
      encoder: the model.
      passages: P texts, no two alike.
      searched: of them, the first so many are found; the others are scored only.
      directory: where vectors are stored.
      check: refuses what a broken model answers.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        passages: Sequence[str],
        searched: int,
        directory: Path,
        check: Check,
    ) -> None:
        self._encoder, self._passages, self._searched = encoder, passages, searched
        self._directory, self._check = directory, check

    def prepare(self, progress: Callable[[int], None]) -> None:
        """Encode what is not stored yet."""
        writer = AnswerWriter(self._directory)
        # What is found is stored before what is not.
        for start, stop in ((0, self._searched), (self._searched, len(self._passages))):
            texts = self._passages[start:stop]
            for places, block in self._encoder.passages(texts, max(0, writer.rows - start)):
                progress(writer.rows)
                writer.append([texts[place] for place in places], self._check(block))
        writer.finish()
        self._stored = Answers.open(self._directory)
        # Passages are stored as they came: those of like length together.
        self._rows = self._stored.rows(self._passages)
        self._places = np.argsort(self._rows)

    def ask(self, questions: Sequence[str]) -> Embeddings:
        """Encode questions."""
        return self._check(self._encoder.queries(questions))

    def find(self, asked: Embeddings, depth: int, progress: Progress) -> list[Found]:
        """As of ``Searcher``."""
        scores, places = nearest(
            asked,
            self._blocks(),
            depth,
            self._encoder.mesh,
            lambda done: progress(done, self._searched),
        )
        # A passage without a kept token is nobody's neighbour.
        kept = np.isfinite(scores)
        return [(places[n][kept[n]], scores[n][kept[n]]) for n in range(len(scores))]

    def score(
        self, asked: Embeddings, rows: Sequence[int], lists: Sequence[Sequence[int]]
    ) -> list[Float[np.ndarray, " n"]]:
        """As of ``Searcher``."""
        scored: list[Float[np.ndarray, " n"]] = []
        for start in range(0, len(lists), _LISTS):
            own = lists[start : start + _LISTS]
            asking = np.resize(np.asarray(rows[start : start + _LISTS], int), _LISTS)
            queries: Embeddings = jax.tree.map(lambda x, asking=asking: x[asking], asked)
            # A few columns at a time, so that memory does not grow with the lists.
            columns = range(0, max(1, *map(len, own)), _COLUMNS)
            parts = [
                self._score(queries, [one[column : column + _COLUMNS] for one in own])
                for column in columns
            ]
            scored += [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        return scored

    def _score(
        self, queries: Embeddings, lists: Sequence[Sequence[int]]
    ) -> list[Float[np.ndarray, " n"]]:
        """Score short lists, at most one for each of the questions."""
        # Few shapes are compiled: all groups have as many questions, and lists of 2^n.
        longest = max(1, *map(len, lists))
        table = np.full((_LISTS, 1 << (longest - 1).bit_length()), -1, np.int32)
        named, numbers = np.unique(np.concatenate([*lists, []]).astype(int), return_inverse=True)
        if not len(named):
            return [np.zeros(0, np.float32) for _ in lists]
        ends = np.cumsum([len(one) for one in lists])
        for row, (end, one) in enumerate(zip(ends, lists, strict=True)):
            table[row, : len(one)] = numbers[end - len(one) : end]
        with jax.set_mesh(self._encoder.mesh):
            told = rerank(queries, self._read(self._rows[named]), table)
        return [told[row, : len(one)] for row, one in enumerate(lists)]

    def _blocks(self) -> Iterator[Block]:
        for start in range(0, self._searched, _BLOCK_ROWS):
            rows = np.arange(start, min(start + _BLOCK_ROWS, self._searched))
            yield self._places[rows], self._read(rows)

    def _read(self, rows: Int[np.ndarray, " n"]) -> Embeddings:
        widest = int(self._stored.widths(rows).max())
        width = 1 if widest == 1 else -(-widest // _WIDTH_STEP) * _WIDTH_STEP
        return self._stored.read(rows, width)
