r"""BM25, the baseline without training, by bm25s.

.. math::
  s(q, d) = \sum_{t \in q} \log\left(1 + \frac{N - n_t + 0.5}{n_t + 0.5}\right)
            \frac{f_{t,d}}{f_{t,d} + k_1 (1 - b + b |d| / \overline{|d|})}

with :math:`N` passages, :math:`n_t` of them holding token t, :math:`f_{t,d}` its count in d.
Tokens are the runs of ``\w`` and combining marks in the lower-cased text; without the marks,
Python's ``\w+`` cuts Hindi or Tamil words at every vowel sign. Chinese, Japanese and Thai, which
write without spaces, give one token for a whole clause.

References:
  Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009.
  Lù, BM25S: Orders of magnitude faster lexical search via eager sparse scoring, 2024,
  arXiv:2407.03618.
"""

import array
import functools
import logging
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def bm25_run(
    corpus_ids: Sequence[str],
    corpus_texts: Iterable[str],
    query_ids: Sequence[str],
    query_texts: Iterable[str],
    k: int = 100,
    k1: float = 1.2,
    b: float = 0.75,
) -> dict[str, list[tuple[str, float]]]:
    """Rank a corpus for every query by BM25.

    The index holds 8 bytes a distinct token of each passage, and one query is scored at a time;
    texts are read once and not kept.

    Args:
      corpus_ids: the passages' ids, no two alike.
      corpus_texts: their texts, in the same order.
      query_ids: the queries' ids, no two alike.
      query_texts: their texts, in the same order.
      k: passages wanted a query, at most.
      k1: how soon repeated tokens stop counting.
      b: how much long passages are discounted, from 0 to 1.

    Returns:
      For every query id, passage ids and scores, falling; equal scores in the order of the corpus.
      A passage without a token of the query is not ranked, so lists may be short, or empty.

    Raises:
      ValueError: if ids and texts differ in number, an id comes twice, the corpus holds no token,
        or ``k`` is below 1.

    Example:
      >>> run = bm25_run(["d1", "d2"], ["A red fox.", "Blue whales"], ["q"], ["Red foxes, a fox?"])
      >>> [passage for passage, _ in run["q"]]
      ['d1']
    """
    if k < 1:
        raise ValueError(f"bm25: k is {k}; ask for at least 1 passage a query")
    _check_ids("corpus", corpus_ids)
    _check_ids("query", query_ids)
    index = BM25(_counted("corpus", corpus_ids, corpus_texts), k1, b)
    run = {}
    for query, text in zip(query_ids, _counted("query", query_ids, query_texts), strict=True):
        scores = index.scores(text)
        run[query] = [(corpus_ids[row], float(scores[row])) for row in best(scores, k)]
    return run


class BM25:
    """An index of passages.

    It holds 8 bytes a distinct token of each passage; texts are read once and not kept.

    Args:
      passages: P texts.
      k1: how soon repeated tokens stop counting.
      b: how much long passages are discounted, from 0 to 1.

    Raises:
      ValueError: if the passages hold no token.
    """

    def __init__(self, passages: Iterable[str], k1: float = 1.2, b: float = 0.75) -> None:
        self._index, self._vocabulary = _index(map(words, passages), k1, b)

    def scores(self, query: str) -> Float[np.ndarray, " P"]:
        """The score of every passage; 0 for those without a token of the query."""
        known = [self._vocabulary[token] for token in words(query) if token in self._vocabulary]
        scores: Float[np.ndarray, " P"] = self._index.get_scores_from_ids(known)
        return scores


def words(text: str) -> list[str]:
    """The tokens of a text, in lower case.

    Example:
      >>> words("A red fox.")
      ['a', 'red', 'fox']
    """
    return _word().findall(text.lower())


def best(scores: Float[np.ndarray, " P"], k: int) -> Int[np.ndarray, " n"]:
    """The rows of the ``k`` highest scores above 0, the smaller row first where they are equal."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        rows = rows[scores[rows] >= np.partition(scores[rows], -k)[-k]]
    return rows[np.argsort(-scores[rows], kind="stable")[:k]]


def _index(texts: Iterable[list[str]], k1: float, b: float) -> tuple[Any, dict[str, int]]:
    # Here and not above: importing bm25s takes seconds and starts JAX's devices, which a run of
    # several processes must not do before it has joined them.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    # Tokens are numbered as they come; bm25s itself would number them in the order of a set of
    # strings, which is another one in every process.
    vocabulary: dict[str, int] = {}
    passages = [
        array.array("i", [vocabulary.setdefault(t, len(vocabulary)) for t in tokens])
        for tokens in texts
    ]
    if not vocabulary:
        raise ValueError("bm25: the corpus holds no word; give passages with text")
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index((passages, vocabulary), create_empty_token=False, show_progress=False)
    return index, vocabulary


@functools.cache
def _word() -> re.Pattern[str]:
    every = map(chr, range(sys.maxunicode + 1))
    marks = "".join(c for c in every if unicodedata.category(c).startswith("M"))
    return re.compile(rf"[\w{marks}]+")


def _counted(what: str, ids: Sequence[str], texts: Iterable[str]) -> Iterator[str]:
    count = 0
    for text in texts:
        count += 1
        yield text
    if count != len(ids):
        raise ValueError(
            f"bm25: {len(ids)} {what} ids and {count} {what} texts; give one text for each id"
        )


def _check_ids(what: str, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"bm25: the {what} id {name!r} comes twice; make ids unique")
        seen.add(name)
