"""Contrastive losses on rankings: InfoNCE and ColBERT's pairwise softmax."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery, Output
from clir_jax.objectives.base import Ask, Batch, ModelFacts, weighted_mean
from clir_jax.ops.maxsim import maxsim, maxsim_lists

_QUERY_AND_PASSAGES = {
    "query": Ask(EncodeQuery, ("ranking.query",)),
    "passages": Ask(EncodePassage, ("ranking.passages",)),
}
# Added to the score of what is not a candidate; finite, so that its gradient is 0 and not NaN.
_EXCLUDED = -1e9


class _OnRankings:
    """What objectives on rankings without a teacher have in common."""

    @property
    def student(self) -> Mapping[str, Ask]:
        """The query and its list of passages."""
        return _QUERY_AND_PASSAGES

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """Nothing: labels are enough."""
        return {}

    @property
    def token_labels(self) -> Sequence[str]:
        """None."""
        return ()

    def check(self, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
        """Any retriever will do."""


@dataclasses.dataclass(frozen=True)
class InfoNCE(_OnRankings):
    r"""Tell each query's positive from its hard negatives and from the whole batch's passages.

    .. math::
      L = \frac{1}{\sum_b w_b} \sum_b -w_b \log
        \frac{e^{s(q_b, p_b^+) / \tau}}{\sum_{p \in C_b} e^{s(q_b, p) / \tau}}

    with :math:`\tau` = ``temperature``. The candidates :math:`C_b` are the positive, the query's
    own negatives and, when ``in_batch``, every passage of every other query on every device: each
    passage once (equal ids are equal text), and none that is known to be relevant to the query.

    Args:
      temperature: divides scores. Unit vectors want about 0.05 in a dense retriever; late
        interaction sums over query tokens and is usually trained at 1.
      in_batch: False keeps only the query's own list.

    References:
      van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018,
      arXiv:1807.03748; Karpukhin et al., Dense Passage Retrieval for Open-Domain Question
      Answering, EMNLP 2020, arXiv:2004.04906.
    """

    temperature: float = 1.0
    in_batch: bool = True

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"InfoNCE: temperature is {self.temperature}; it must be above 0")

    @property
    def least_passages(self) -> int:
        """A positive, and without in-batch negatives a negative to tell it from."""
        return 1 if self.in_batch else 2

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of the positive; metric ``accuracy``: how many queries rank it first."""
        query, passages = (cast(Embeddings, student[name]) for name in ("query", "passages"))
        known = batch.labels["ranking.known"]
        ids = batch.labels["ranking.passage_ids"]
        if self.in_batch:
            scores = maxsim(
                query.vectors, query.mask, _rows(passages.vectors), _rows(passages.mask)
            )
            positive = jnp.arange(ids.shape[0]) * ids.shape[1]
            candidates = in_batch_candidates(ids, known, batch.weight)
        else:
            scores = maxsim_lists(query.vectors, query.mask, passages.vectors, passages.mask)
            positive = jnp.zeros(ids.shape[0], jnp.int32)
            candidates = _negatives(ids, known).at[:, 0].set(True)
        logits = jnp.where(candidates, scores / self.temperature, _EXCLUDED)
        at_positive = jnp.take_along_axis(logits, positive[:, None], axis=1)[:, 0]
        loss = weighted_mean(jax.nn.logsumexp(logits, axis=1) - at_positive, batch.weight)
        correct = (at_positive >= logits.max(axis=1)).astype(loss.dtype)
        return loss, {"accuracy": weighted_mean(correct, batch.weight)}


@dataclasses.dataclass(frozen=True)
class PairwiseSoftmax(_OnRankings):
    r"""ColBERT's loss: the positive against each of the query's own negatives, pair by pair.

    .. math::
      L = \frac{1}{\sum_b w_b} \sum_b \frac{w_b}{|N_b|} \sum_{n \in N_b}
        -\log \frac{e^{s(q_b, p_b^+)}}{e^{s(q_b, p_b^+)} + e^{s(q_b, n)}}

    References:
      Khattab and Zaharia, ColBERT, SIGIR 2020, arXiv:2004.12832.
    """

    @property
    def least_passages(self) -> int:
        """A positive and a negative."""
        return 2

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean pairwise cross-entropy; metric ``accuracy``: the pairs in the right order."""
        query, passages = (cast(Embeddings, student[name]) for name in ("query", "passages"))
        scores = maxsim_lists(query.vectors, query.mask, passages.vectors, passages.mask)
        margin = scores[:, :1] - scores[:, 1:]
        ids, known = (batch.labels[f"ranking.{name}"] for name in ("passage_ids", "known"))
        real = _negatives(ids, known)[:, 1:]
        loss = _mean_over(-jax.nn.log_sigmoid(margin), real, batch.weight)
        right = (margin > 0).astype(loss.dtype)
        return loss, {"accuracy": _mean_over(right, real, batch.weight)}


def in_batch_candidates(
    passage_ids: Int[Array, "B N"], known: Int[Array, "B K"], weight: Float[Array, " B"]
) -> Bool[Array, "B P"]:
    """Which of the batch's P = B x N passages each query is compared with.

    Args:
      passage_ids: ``[B, N]``; column 0 is the positive, -1 fills short lists.
      known: ``[B, K]`` the passages known to be relevant to each query, -1 padded.
      weight: ``[B]``; the passages of rows of weight 0 are nobody's candidates.

    Returns:
      ``[B, P]`` bool: each query's own positive, and the first copy of every other passage that is
      not known to be relevant to the query.

    Example:
      >>> ids = jnp.array([[7, 3], [3, 5]])
      >>> in_batch_candidates(ids, jnp.array([[7], [3]]), jnp.ones(2)).astype(int)
      Array([[1, 1, 0, 1],
             [1, 0, 1, 1]], dtype=int32)
    """
    queries, width = passage_ids.shape
    flat = passage_ids.reshape(-1)
    usable = (flat >= 0) & jnp.repeat(weight > 0, width)
    # Sorting puts copies side by side, in their order: [P log P], never a [P, P] comparison.
    # Unusable rows sort as -1, so that they are not the first copy of anything.
    keys = jnp.where(usable, flat, -1)
    order = jnp.argsort(keys, stable=True)
    ordered = keys[order]
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    first = jnp.zeros_like(starts).at[order].set(starts)
    relevant = jnp.any(flat[None, :, None] == known[:, None, :], axis=-1)
    relevant |= flat[None, :] == passage_ids[:, :1]
    own_positive = jnp.arange(flat.shape[0])[None] == (jnp.arange(queries) * width)[:, None]
    return (usable & first)[None] & ~relevant | own_positive


def _negatives(passage_ids: Array, known: Array) -> Array:
    """Which passages of each list are there and are not known to be relevant: ``[B, N]`` bool."""
    relevant = jnp.any(passage_ids[:, :, None] == known[:, None, :], axis=-1)
    return (passage_ids >= 0) & ~relevant & (passage_ids != passage_ids[:, :1])


def _rows(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _mean_over(values: Array, real: Array, weight: Array) -> Array:
    """Mean over the real entries of each list, then the weighted mean over lists."""
    kept = jnp.where(real, values, jnp.zeros_like(values)).sum(axis=1)
    return weighted_mean(kept / jnp.maximum(real.sum(axis=1), 1).astype(values.dtype), weight)
