"""Who says which of the passages found are relevant after all: any kind of model, or BM25."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from clir_jax.evaluation.reranking import PairScorer

Check = Callable[[np.ndarray], np.ndarray]


@runtime_checkable
class Judge(Protocol):
    """What scores passages, which are known by their numbers; a ``Searcher`` is one too."""

    def ask(self, questions: Sequence[str]) -> Any:
        """Make of questions what ``score`` takes."""

    def score(
        self, asked: Any, rows: Sequence[int], lists: Sequence[Sequence[int]]
    ) -> list[Float[np.ndarray, " n"]]:
        """The scores of lists of passages, each for the question in a row of ``asked``."""


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
    ) -> list[Float[np.ndarray, " n"]]:
        """As of ``Judge``; memory grows with the pairs, which are texts that are there anyway."""
        pairs = [
            (asked[row], self._passages[n])
            for row, own in zip(rows, lists, strict=True)
            for n in own
        ]
        scores = self._check(self._scorer.scores(pairs, self._language))
        return np.split(scores, np.cumsum([len(own) for own in lists])[:-1])

    @property
    def counts(self) -> Counter[str]:
        """Of a generator's passages, how many were read and cut so far; empty of others."""
        return self._scorer.counts


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
