"""The triplet loss of CL-ReLKT: a positive nearer than a negative by a margin."""

import dataclasses
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clir_jax.models.requests import Embeddings, Output
from clir_jax.objectives.base import Batch, ModelFacts
from clir_jax.objectives.rankings import OnRankings, negatives, scores

_DISTANCES = ("cosine", "l2")
_REDUCTIONS = ("sum", "mean")


@dataclasses.dataclass(frozen=True)
class Triplet(OnRankings):
    r"""Ask every query to be nearer to its positive than to each of its negatives, by a margin.

    .. math::
      L = \sum_b w_b \sum_{n \in N_b} \max(0,\, d(q_b, p_b^+) - d(q_b, n) + m)

    with :math:`m` = ``margin`` and :math:`d` the distance. Hard negatives come with the rankings;
    which of them are hard or semi-hard is decided when they are mined.

    Args:
      margin: published: 0.27 on XORQA, 0.24 on XQuAD, 0.13 on MLQA.
      distance: ``"cosine"``, 1 - s(q, p) for the retriever's score of unit vectors; or ``"l2"``,
        the squared Euclidean distance, for dense retrievers.
      reduction: ``"sum"`` over the batch's triplets, as published; or ``"mean"``, whose learning
        rate does not depend on the batch size (under Adam neither does that of the sum).

    References:
      Limkonchotiwat et al., CL-ReLKT: Cross-lingual Language Knowledge Transfer for Multilingual
      Retrieval Question Answering, Findings of NAACL 2022.

    Differences from the paper:
      A list may bring several negatives, each of which makes a triplet; passages known to be
      relevant to the query make none. With late interaction the distance is 1 - MaxSim, whose
      margin is of the size of a sum over query tokens.
    """

    margin: float = 0.27
    distance: str = "cosine"
    reduction: str = "sum"

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ValueError(f"Triplet: margin is {self.margin}; it must be 0 or above")
        for name, allowed in (("distance", _DISTANCES), ("reduction", _REDUCTIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Triplet: {name} is {getattr(self, name)!r}; write one of {allowed}"
                )

    @property
    def least_passages(self) -> int:
        """A positive and a negative."""
        return 2

    def check(self, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
        """Refuse the distance of vectors for a retriever with many of them."""
        if self.distance == "l2" and student.late_interaction:
            raise ValueError(
                'Triplet: distance is "l2", between one vector a text, and the student is a '
                'late-interaction retriever with one a token; set distance="cosine"'
            )

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The hinge; metric ``violations``: the share of triplets that do not keep the margin."""
        query, passages = (cast(Embeddings, student[name]) for name in ("query", "passages"))
        distance = self._distance(query, passages)
        ids, known = (
            jnp.asarray(batch.labels[f"ranking.{name}"]) for name in ("passage_ids", "known")
        )
        weight = jnp.asarray(batch.weight).astype(distance.dtype)[:, None]
        kept = jnp.where(negatives(ids, known)[:, 1:], weight, 0.0)
        gap = jnp.where(kept > 0, distance[:, :1] - distance[:, 1:] + self.margin, 0.0)
        count = jnp.maximum(kept.sum(), jnp.finfo(distance.dtype).tiny)
        loss = (kept * jax.nn.relu(gap)).sum()
        loss = loss / count if self.reduction == "mean" else loss
        return loss, {"violations": jnp.where(gap > 0, kept, 0.0).sum() / count}

    def _distance(self, query: Embeddings, passages: Embeddings) -> Float[Array, "B N"]:
        if self.distance == "cosine":
            return 1.0 - scores(query, passages, in_batch=False)
        difference = jnp.asarray(query.vectors)[:, None] - jnp.asarray(passages.vectors)
        return jnp.square(difference).sum(axis=(2, 3))
