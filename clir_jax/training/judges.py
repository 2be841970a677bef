"""Who says which of the passages found are relevant after all: any kind of model, or BM25."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clir_jax.evaluation.reranking import PairScorer
from clir_jax.training.searchers import Searcher

Check = Callable[[np.ndarray], np.ndarray]


class PairJudge:
    """A model that reads a question and a passage together.

    Args:
      scorer: the cross-encoder or the generator.
      passages: P texts.
      language: of the questions.
      check: refuses what a broken model answers.
    """

    def __init__(
        self, scorer: PairScorer, passages: Sequence[str], language: str, check: Check
    ) -> None:
        self._scorer, self._passages = scorer, passages
        self._language, self._check = language, check

    def ask(self, questions: Sequence[str]) -> Sequence[str]:
        """Questions stay text."""
        return questions

    def score(
        self, asked: Sequence[str], rows: Sequence[int], lists: Sequence[Sequence[int]]
    ) -> tuple[list[Float[np.ndarray, " n"]], Counter[str]]:
        """As of ``Searcher``, and ``PairScorer.scores``' counts; the pairs are held in memory."""
        pairs = [
            (asked[row], self._passages[n])
            for row, own in zip(rows, lists, strict=True)
            for n in own
        ]
        scores, counts = self._scorer.scores(pairs, self._language)
        ends = np.cumsum([len(own) for own in lists])
        return np.split(self._check(scores), ends[:-1]), counts


Judge = Searcher | PairJudge


def hear(
    judge: Judge,
    asked: Any,
    rows: Sequence[int],
    lists: Sequence[Sequence[int]],
    heard: Counter[str],
) -> list[Float[np.ndarray, " n"]]:
    """A judge's scores of lists of passages, each for the question in a row of ``asked``.

    Args:
      judge: who is asked.
      asked: what it made of questions.
      rows: of ``asked``.
      lists: numbers of passages.
      heard: how many of them a generator has read and cut is added to it.
    """
    if not isinstance(judge, PairJudge):
        return judge.score(asked, rows, lists)
    scores, counts = judge.score(asked, rows, lists)
    heard.update(counts)
    return scores


def relative(positive: float, share: float) -> float:
    """``share`` of a score above 0; as much below a score that is not.

    Example:
      >>> relative(10.0, 0.75), relative(-10.0, 0.75)
      (7.5, -12.5)
    """
    return positive - (1 - share) * abs(positive)


def limit(judge: Judge, positive: float, share: float) -> float:
    r"""The highest score of a passage that a judge leaves in.

    Scores of pairs are logarithms: a softmax makes shares of a list's passages of them, so that
    their 0 means nothing and their difference does. A passage has at most ``share`` of the
    positive's part where :math:`e^s \le \mathtt{share} \cdot e^{s^+}`.

    Args:
      judge: whose score it is.
      positive: :math:`s^+`, its score of the positive.
      share: above 0.
    """
    if isinstance(judge, PairJudge):
        return positive + math.log(share)
    return relative(positive, share)
