"""What objectives on rankings share: every query's scores of passages, and which of them count."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clir_jax.models.requests import (
    Embeddings,
    EncodePassage,
    EncodeQuery,
    Likelihood,
    Relevance,
    TokenScores,
)
from clir_jax.objectives.base import Ask, Batch, ModelFacts, weighted_mean
from clir_jax.ops.maxsim import maxsim, maxsim_lists

EXCLUDED = -1e9
"""The score of what is not a candidate; finite, so that its gradient is 0 and not NaN."""
REDUCTIONS = ("mean", "sum")
"""How the log-likelihoods of a question's tokens become one score."""


class OnRankings:
    """What objectives on rankings have in common; those with a teacher ask it besides."""

    @property
    def student(self) -> Mapping[str, Ask]:
        """The query and its list of passages."""
        return self._asks("query")

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """Nothing: labels are enough."""
        return {}

    @property
    def token_labels(self) -> Sequence[str]:
        """None."""
        return ()

    def check(self, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
        """Any model that answers what is asked will do."""

    def _asks(self, field: str) -> dict[str, Ask]:
        """A question, read as ``query_field`` says, and its list of passages."""
        text = query_field(type(self).__name__, "query", field)
        passages = Ask(EncodePassage, ("ranking.passages",))
        return {"query": Ask(EncodeQuery, (text,)), "passages": passages}


def relevance(objective: str, field: str) -> Ask:
    """Ask how relevant each passage of the list is to a question, read as ``query_field`` says."""
    return Ask(Relevance, (query_field(objective, "query", field), "ranking.passages"))


def likelihood(target: str, given: str) -> Ask:
    """Ask how likely a text is, written in its language, given another text or each of a list.

    Args:
      target: ``"ranking.query"``, ``"bitext.other"``.
      given: ``"ranking.passages"``, ``"bitext.english"``.

    Returns:
      The ask; its third text is the language of the first.
    """
    source, _, field = target.partition(".")
    return Ask(Likelihood, (target, given, f"{source}.language.{field}"))


def log_likelihood(told: TokenScores, reduction: str = "mean") -> Float[Array, "*batch"]:
    """A generator's score of each text: the mean, or the sum, of its tokens' log-probabilities."""
    total = jnp.asarray(told.log_probs).sum(axis=-1)  # 0 outside the mask
    if reduction == "sum":
        return total
    count = jnp.asarray(told.mask).sum(axis=-1)
    return total / jnp.maximum(count, 1).astype(total.dtype)


def query_field(objective: str, option: str, field: str) -> str:
    """The text that an ask for a question reads.

    Args:
      objective: for messages.
      option: for messages.
      field: ``"query"``, or ``"query.en"`` for the question in English.

    Returns:
      ``"ranking.query"``, ``"ranking.query.en"``.

    Raises:
      ValueError: if the field is not a question's.
    """
    if field.partition(".")[0] != "query" or field.endswith("."):
        raise ValueError(
            f'{objective}: {option} is {field!r}; write "query" for the language that the data '
            'choose, or "query.en" for one'
        )
    return f"ranking.{field}"


def scores(query: Embeddings, passages: Embeddings, in_batch: bool) -> Float[Array, "B C"]:
    """Score every query against its own list, or against the passages of the whole batch.

    Args:
      query: ``[B, Tq, E]``.
      passages: ``[B, N, Tp, E]``.
      in_batch: whether C is B x N, every passage of the batch, or N, the query's own.

    Returns:
      ``[B, C]`` MaxSim scores.
    """
    asked, asked_mask, told, told_mask = (
        jnp.asarray(x) for x in (query.vectors, query.mask, passages.vectors, passages.mask)
    )
    if not in_batch:
        return maxsim_lists(asked, asked_mask, told, told_mask)
    flat = (told.reshape(-1, *told.shape[2:]), told_mask.reshape(-1, told_mask.shape[-1]))
    return maxsim(asked, asked_mask, *flat)


def present(
    passage_ids: Int[Array, "B N"], weight: Float[Array, " B"], in_batch: bool
) -> Bool[Array, "B C"]:
    """Which of the passages that ``scores`` scores are passages at all, and not padding.

    Args:
      passage_ids: ``[B, N]``; -1 fills short lists.
      weight: ``[B]``; in a batch, the passages of rows of weight 0 do not count.
      in_batch: as ``scores`` takes it.

    Returns:
      ``[B, C]`` bool; in a batch, of equal passages the first.
    """
    if not in_batch:
        return passage_ids >= 0
    return jnp.broadcast_to(
        _first_copies(passage_ids, weight), (passage_ids.shape[0], passage_ids.size)
    )


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
    relevant = jnp.any(flat[None, :, None] == known[:, None, :], axis=-1)
    relevant |= flat[None, :] == passage_ids[:, :1]
    own_positive = jnp.arange(flat.shape[0])[None] == (jnp.arange(queries) * width)[:, None]
    return _first_copies(passage_ids, weight) & ~relevant | own_positive


def negatives(passage_ids: Int[Array, "B N"], known: Int[Array, "B K"]) -> Bool[Array, "B N"]:
    """Which passages of each list are there and are not known to be relevant."""
    relevant = jnp.any(passage_ids[:, :, None] == known[:, None, :], axis=-1)
    return (passage_ids >= 0) & ~relevant & (passage_ids != passage_ids[:, :1])


def listwise(
    given: Float[Array, "B N"], batch: Batch, temperature: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of each list's positive, and ``accuracy``: how many lists score it highest.

    Args:
      given: ``[B, N]`` scores, the positive's first.
      batch: says which of the others are there and are not known to be relevant.
      temperature: divides scores.

    Returns:
      The loss and the metric.
    """
    ids, known = (jnp.asarray(batch.labels[f"ranking.{n}"]) for n in ("passage_ids", "known"))
    weight = jnp.asarray(batch.weight)
    candidates = negatives(ids, known).at[:, 0].set(True)
    logits = jnp.where(candidates, given / temperature, EXCLUDED)
    loss = weighted_mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0], weight)
    correct = ranked_first(logits, jnp.zeros(ids.shape[0], jnp.int32))
    return loss, {"accuracy": weighted_mean(correct, weight)}


def ranked_first(scores: Float[Array, "B C"], own: Int[Array, " B"]) -> Float[Array, " B"]:
    """Which rows score their own entry above every other; a tie is not first.

    Args:
      scores: ``[B, C]``; ``EXCLUDED`` where an entry does not count.
      own: ``[B]`` the column of each row's own.

    Returns:
      ``[B]``, 1 or 0, in the dtype of ``scores``.
    """
    columns = jnp.arange(scores.shape[1], dtype=own.dtype)
    others = jnp.where(columns[None] == own[:, None], EXCLUDED, scores).max(axis=1)
    at_own = jnp.take_along_axis(scores, own[:, None], axis=1)[:, 0]
    return (at_own > others).astype(scores.dtype)


def log_distribution(
    scores: Float[Array, "B C"], real: Bool[Array, "B C"], temperature: float
) -> Float[Array, "B C"]:
    """Log-probabilities of a softmax over the real entries; far below zero at the others."""
    return jax.nn.log_softmax(jnp.where(real, scores / temperature, EXCLUDED), axis=1)


def mean_over(
    values: Float[Array, "B N"], real: Bool[Array, "B N"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """Mean over the real entries of each list, then the weighted mean over lists."""
    kept = jnp.where(real, values, jnp.zeros_like(values)).sum(axis=1)
    return weighted_mean(kept / jnp.maximum(real.sum(axis=1), 1).astype(values.dtype), weight)


def _first_copies(passage_ids: Int[Array, "B N"], weight: Float[Array, " B"]) -> Bool[Array, "1 P"]:
    """Of each passage of the batch, the first place where it counts."""
    flat = passage_ids.reshape(-1)
    usable = (flat >= 0) & jnp.repeat(weight > 0, passage_ids.shape[1])
    # Sorting puts copies side by side, in their order: [P log P], never a [P, P] comparison.
    # Unusable rows sort as -1, so that they are not the first copy of anything.
    keys = jnp.where(usable, flat, -1)
    order = jnp.argsort(keys, stable=True)
    ordered = keys[order]
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    first = jnp.zeros_like(starts).at[order].set(starts)
    return (usable & first)[None]
