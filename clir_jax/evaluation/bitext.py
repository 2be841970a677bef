r"""How well a retriever tells translations from all other sentences of a bitext.

Both ways, a sentence of one side is the query and the sentences of the other are the passages: a
dense retriever scores the inner product of their vectors, late interaction MaxSim. A score is
divided by the number of the query's vectors, so that those of long and short sentences compare:
late interaction's is then the mean, over the tokens of the one that asks, of the best cosine in the
other, and differs between the two ways.

*Accuracy* is the share of sentences whose nearest neighbour is a translation. *Margin F1* is that
of mined pairs: a pair's score is divided by the mean of its neighbourhoods,

.. math::
  m(x, y) = \frac{s(x, y)}{\sum_{z \in N_k(x)} \frac{s(x, z)}{2k} +
            \sum_{z \in N_k(y)} \frac{s(y, z)}{2k}}

every sentence proposes the neighbour of greatest margin, and of all these pairs, best first, those
are taken of which neither sentence is taken yet. F1 is that of the pairs above a threshold, the
best there is.

References:
  Artetxe and Schwenk, Margin-based Parallel Corpus Mining with Multilingual Sentence Embeddings,
  ACL 2019, arXiv:1811.01136 (the ratio margin, and candidates of both ways).
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from clir_jax.data.collections import Pairs
from clir_jax.evaluation.metrics import BITEXT_METRICS
from clir_jax.evaluation.retrieval import Progress, TextEncoder, nearest

_NEIGHBOURS = 4
# A neighbourhood scores above 0, but for a model that has learned nothing.
_LEAST = 1e-9

Scores = Float[np.ndarray, "Q k"]
Rows = Int[np.ndarray, "Q k"]
Pair = tuple[int, int]


def measure_pairs(
    encoder: TextEncoder, pairs: Pairs, progress: Progress = lambda done, total: None
) -> dict[str, float]:
    """Measure a retriever on translation pairs.

    Args:
      encoder: the retriever.
      pairs: what translates what; a sentence may have several translations, and each counts.
      progress: called with the number of passages encoded and to encode.

    Returns:
      Values from 0 to 1, by the names in ``metrics.BITEXT_METRICS``.
    """
    first, total = len(pairs.english), len(pairs.english) + len(pairs.other)
    forward = _neighbours(encoder, pairs.other, pairs.english, lambda done: progress(done, total))
    backward = _neighbours(
        encoder, pairs.english, pairs.other, lambda done: progress(first + done, total)
    )
    values = (
        accuracy(forward[1], pairs.pairs),
        accuracy(backward[1], [(y, x) for x, y in pairs.pairs]),
        best_f1(mined(*forward, *backward), pairs.pairs),
    )
    return dict(zip(BITEXT_METRICS, values, strict=True))


def accuracy(rows: Rows, pairs: Sequence[Pair]) -> float:
    """The share of sentences whose nearest neighbour is a translation.

    Args:
      rows: ``[Q, k]`` neighbours of every sentence, the nearest first.
      pairs: sentence and translation.

    Example:
      >>> accuracy(np.asarray([[0], [0]]), [(0, 0), (1, 1)])
      0.5
    """
    right = set(pairs)
    return float(np.mean([(x, int(y)) in right for x, y in enumerate(rows[:, 0])]))


def mined(
    forward: Scores, forward_rows: Rows, backward: Scores, backward_rows: Rows
) -> list[tuple[float, Pair]]:
    """Pair sentences one to one by ratio margin.

    Args:
      forward: ``[X, k]`` scores of the k neighbours of every sentence of the one side.
      forward_rows: ``[X, k]`` which sentences of the other side these are.
      backward: ``[Y, k']`` and
      backward_rows: ``[Y, k']`` the same of the other side.

    Returns:
      Margins and pairs (row of the one side, row of the other), the best first; equal ones by row.
    """
    one, other = forward.mean(axis=1), backward.mean(axis=1)
    here = forward / np.maximum((one[:, None] + other[forward_rows]) / 2, _LEAST)
    there = backward / np.maximum((other[:, None] + one[backward_rows]) / 2, _LEAST)
    proposed: dict[Pair, float] = {}
    for x, (place, margins) in enumerate(zip(here.argmax(axis=1), here, strict=True)):
        proposed[x, int(forward_rows[x, place])] = float(margins[place])
    for y, (place, margins) in enumerate(zip(there.argmax(axis=1), there, strict=True)):
        pair = int(backward_rows[y, place]), y
        proposed[pair] = max(float(margins[place]), proposed.get(pair, -np.inf))
    taken: tuple[set[int], set[int]] = set(), set()
    found = []
    for margin, (x, y) in sorted(((-m, pair) for pair, m in proposed.items())):
        if x not in taken[0] and y not in taken[1]:
            taken[0].add(x)
            taken[1].add(y)
            found.append((-margin, (x, y)))
    return found


def best_f1(found: Sequence[tuple[float, Pair]], pairs: Sequence[Pair]) -> float:
    """The F1 of the best threshold.

    Args:
      found: margins and pairs, the best first.
      pairs: those that are right.

    Returns:
      The largest F1 of the pairs whose margin is at least a threshold.

    Example:
      Of the pairs at 2.0 both are right, of all four three: 2 * 3 / (4 + 4).

      >>> found = [(2.0, (0, 0)), (2.0, (1, 1)), (1.5, (2, 3)), (1.2, (3, 3))]
      >>> best_f1(found, [(0, 0), (1, 1), (2, 2), (3, 3)])
      0.75
    """
    gold = set(pairs)
    right = np.cumsum([pair in gold for _, pair in found])
    margins = np.asarray([margin for margin, _ in found])
    # A threshold takes all pairs of one margin, or none.
    ends = np.append(margins[1:] < margins[:-1], True)
    f1 = 2 * right / (np.arange(len(found)) + 1 + len(gold))
    return float(f1[ends].max())


def _neighbours(
    encoder: TextEncoder,
    asked: Sequence[str],
    searched: Sequence[str],
    progress: Callable[[int], None],
) -> tuple[Scores, Rows]:
    queries = encoder.queries(asked)
    passages = encoder.passages(searched)
    scores, rows = nearest(queries, passages, _NEIGHBOURS, encoder.mesh, progress)
    # A passage without a kept token scores -inf in a search: its best cosine is that of nothing.
    scores = np.where(np.isfinite(scores), scores, 0)
    return scores / np.maximum(queries.mask.sum(axis=1, keepdims=True), 1), rows
