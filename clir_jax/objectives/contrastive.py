"""Contrastive losses on rankings: InfoNCE, ColBERT's pairwise and a cross-encoder's softmax."""

import dataclasses
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clir_jax.models.requests import Embeddings, Output, Scores
from clir_jax.objectives.base import Ask, Batch, weighted_mean
from clir_jax.objectives.rankings import (
    EXCLUDED,
    OnRankings,
    in_batch_candidates,
    listwise,
    mean_over,
    negatives,
    ranked_first,
    relevance,
    scores,
)


@dataclasses.dataclass(frozen=True)
class InfoNCE(OnRankings):
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
            positive = jnp.arange(ids.shape[0]) * ids.shape[1]
            candidates = in_batch_candidates(ids, known, batch.weight)
        else:
            positive = jnp.zeros(ids.shape[0], jnp.int32)
            candidates = negatives(ids, known).at[:, 0].set(True)
        given = scores(query, passages, self.in_batch)
        logits = jnp.where(candidates, given / self.temperature, EXCLUDED)
        at_positive = jnp.take_along_axis(logits, positive[:, None], axis=1)[:, 0]
        loss = weighted_mean(jax.nn.logsumexp(logits, axis=1) - at_positive, batch.weight)
        return loss, {"accuracy": weighted_mean(ranked_first(logits, positive), batch.weight)}


@dataclasses.dataclass(frozen=True)
class PairwiseSoftmax(OnRankings):
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
        given = scores(query, passages, in_batch=False)
        margin = given[:, :1] - given[:, 1:]
        ids, known = (batch.labels[f"ranking.{name}"] for name in ("passage_ids", "known"))
        real = negatives(ids, known)[:, 1:]
        loss = mean_over(-jax.nn.log_sigmoid(margin), real, batch.weight)
        right = (margin > 0).astype(loss.dtype)
        return loss, {"accuracy": mean_over(right, real, batch.weight)}


@dataclasses.dataclass(frozen=True)
class ListwiseSoftmax(OnRankings):
    r"""Train a cross-encoder to tell each query's positive from the query's own negatives.

    .. math::
      L = \frac{1}{\sum_b w_b} \sum_b -w_b \log
        \frac{e^{s(q_b, p_b^+) / \tau}}{\sum_{p \in C_b} e^{s(q_b, p) / \tau}}

    with :math:`\tau` = ``temperature`` and :math:`C_b` the positive and those negatives of the list
    that are not known to be relevant.

    Args:
      query: what is read: ``"query"``, the language that the data choose for each record, or
        ``"query.en"``, one language.
      temperature: divides scores.

    References:
      Nogueira and Cho, Passage Re-ranking with BERT, 2019, arXiv:1901.04085 (the model); Gao et
      al., Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline, ECIR 2021,
      arXiv:2101.08751 (the loss).
    """

    query: str = "query"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        relevance("ListwiseSoftmax", self.query)
        if self.temperature <= 0:
            raise ValueError(
                f"ListwiseSoftmax: temperature is {self.temperature}; it must be above 0"
            )

    @property
    def student(self) -> Mapping[str, Ask]:
        """The relevance of every passage of the list."""
        return {"relevance": relevance("ListwiseSoftmax", self.query)}

    @property
    def least_passages(self) -> int:
        """A positive and a negative."""
        return 2

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of the positive; metric ``accuracy``: how many queries rank it first."""
        given = jnp.asarray(cast(Scores, student["relevance"]).values)
        return listwise(given, batch, self.temperature)
