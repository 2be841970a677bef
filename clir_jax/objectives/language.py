"""Objectives that take the language out of vectors and scores (LangCL), and fairness across it."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery, Output
from clir_jax.objectives.base import Ask, Batch, ModelFacts, weighted_mean
from clir_jax.objectives.rankings import (
    EXCLUDED,
    OnRankings,
    log_distribution,
    present,
    query_field,
    ranked_first,
    scores,
)
from clir_jax.objectives.sentences import reading
from clir_jax.ops.similarity import sentence_similarity


@dataclasses.dataclass(frozen=True)
class _OnPairs:
    """How sentences of a pair are read and compared."""

    temperature: float = 0.05
    read_as: str = "query"
    length: int | None = 64

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.temperature <= 0:
            raise ValueError(f"{name}: temperature is {self.temperature}; it must be above 0")
        reading(name, self.read_as)

    @property
    def student(self) -> Mapping[str, Ask]:
        """Both sides of the pair."""
        return {side: self._ask(f"bitext.{side}") for side in ("english", "other")}

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """Nothing: that they are translations is enough."""
        return {}

    @property
    def token_labels(self) -> Sequence[str]:
        """None."""
        return ()

    @property
    def least_passages(self) -> int:
        """One: there are no rankings here."""
        return 1

    def check(self, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
        """Any retriever will do."""

    def _ask(self, text: str) -> Ask:
        return Ask(reading(type(self).__name__, self.read_as), (text,), length=self.length)


@dataclasses.dataclass(frozen=True)
class SemanticContrastive(_OnPairs):
    r"""Tell each sentence's translation from every other sentence of the batch.

    .. math::
      L = \frac{1}{\sum_b w_b} \sum_b -\frac{w_b}{2} \Big(
        \log \frac{e^{\phi(e_b, o_b) / \tau}}{\sum_{k \in D_b} e^{\phi(e_b, k) / \tau}} +
        \log \frac{e^{\phi(o_b, e_b) / \tau}}{\sum_{k \in D_b} e^{\phi(o_b, k) / \tau}} \Big)

    with :math:`\phi` = ``ops.similarity.sentence_similarity``, :math:`\tau` = ``temperature`` and
    :math:`D_b` every sentence of either language of the whole batch, on every device, but the one
    that is compared and those of pairs with an equal id (they share a side, and may be translations
    as well).

    Args:
      temperature: divides similarities.
      read_as: ``"query"`` or ``"passage"``, for models that tell them apart.
      length: tokens a sentence; None takes the model's own.

    References:
      Hu et al., Language Agnostic Multilingual Information Retrieval with Contrastive Learning,
      Findings of ACL 2023, arXiv:2210.06633.

    Differences from the paper:
      The equation is reconstructed from the paper's description; temperature and weight are not
      verified, and the similarity of late interaction is ours.
    """

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy both ways; metric ``accuracy``: sentences that rank their own first."""
        vectors, mask = _side_by_side([student["english"], student["other"]])
        similarity = sentence_similarity(vectors, mask, vectors, mask) / self.temperature
        ids, weight = _each(batch.labels["bitext.id"], 2), _each(batch.weight, 2)
        place = jnp.arange(ids.shape[0])
        partner = place ^ 1  # the two sentences of a pair are neighbours
        others = (ids[:, None] != ids[None]) & (weight > 0)[None]
        logits = jnp.where(others | (partner[:, None] == place[None]), similarity, EXCLUDED)
        right = jnp.take_along_axis(logits, partner[:, None], axis=1)[:, 0]
        loss = weighted_mean(jax.nn.logsumexp(logits, axis=1) - right, weight)
        return loss, {"accuracy": weighted_mean(ranked_first(logits, partner), weight)}


@dataclasses.dataclass(frozen=True)
class LanguageContrastive(_OnPairs):
    r"""Ask every sentence to be equally near to both members of every other pair.

    For a pair :math:`(i, j)` and a sentence :math:`u` outside it, with :math:`p_i(u) =
    \sigma((\phi(i, u) - \phi(j, u)) / \tau)` and :math:`p_j(u) = 1 - p_i(u)`,

    .. math::
      L = \frac{1}{\sum_{b,u} w_b w_u} \sum_{b,u}
        - w_b w_u \big(\log p_{i_b}(u) + \log p_{j_b}(u)\big)

    over the pairs of the batch and all of its sentences, parallel or not, but those of pairs with
    an equal id. It is at least 2 log 2, reached where the similarities agree: what is left of a
    vector does not tell its language.

    Args:
      temperature: divides similarities.
      read_as: ``"query"`` or ``"passage"``, for models that tell them apart.
      length: tokens a sentence; None takes the model's own.
      text: also read the source ``"text"``, sentences without translation in any language.

    Example:
      >>> sorted(LanguageContrastive(text=True).student)
      ['english', 'other', 'text']

    References:
      Hu et al., Language Agnostic Multilingual Information Retrieval with Contrastive Learning,
      Findings of ACL 2023, arXiv:2210.06633.

    Differences from the paper:
      The equation is reconstructed from the paper's description. Its normaliser is not verified:
      the mean over the terms that are kept is our choice. A sentence of ``text`` that equals a side
      of a pair is compared with the pair like any other.
    """

    text: bool = False

    @property
    def student(self) -> Mapping[str, Ask]:
        """Both sides of the pair and, with ``text``, a sentence without translation."""
        asks = dict(super().student)
        return asks | {"text": self._ask("text.text")} if self.text else asks

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The balance; metric ``gap``: the mean difference of a sentence's two similarities."""
        names = ("english", "other", "text") if self.text else ("english", "other")
        vectors, mask = _side_by_side([student["english"], student["other"]])
        sentences, sentence_mask = _side_by_side([student[name] for name in names])
        similarity = sentence_similarity(vectors, mask, sentences, sentence_mask)
        by_pair = similarity.reshape(-1, 2, similarity.shape[1])
        first, second = by_pair[:, 0], by_pair[:, 1]
        ids = jnp.asarray(batch.labels["bitext.id"])
        row = _each(ids, len(names))
        outside = ids[:, None] != row[None]
        if self.text:  # every third sentence belongs to no pair
            outside |= (jnp.arange(row.shape[0]) % 3 == 2)[None]
        weight = jnp.asarray(batch.weight).astype(first.dtype)
        weight = jnp.where(outside, weight[:, None] * _each(weight, len(names))[None], 0.0)
        loss = language_balance(first / self.temperature, second / self.temperature, weight)
        gap = weighted_mean(jnp.abs(first - second).reshape(-1), weight.reshape(-1))
        return loss, {"gap": gap}


def language_balance(
    first: Float[Array, "P U"], second: Float[Array, "P U"], weight: Float[Array, "P U"]
) -> Float[Array, ""]:
    r"""How far sentences are from being equally near to both members of pairs.

    .. math::
      L = \frac{1}{\sum_{pu} w_{pu}} \sum_{pu} w_{pu} \big(
        -\log\sigma(a_{pu} - b_{pu}) - \log\sigma(b_{pu} - a_{pu}) \big)

    The gradient of a term is :math:`p - (1 - p)` for :math:`p = \sigma(a - b)`; adding the same to
    both similarities changes nothing.

    Args:
      first: ``[P, U]`` similarity of sentence u to the first member of pair p (a).
      second: ``[P, U]`` the same to the second (b).
      weight: ``[P, U]``; 0 leaves a term out. All zero gives 0.

    Returns:
      Scalar, at least 2 log 2 where anything counts.

    Example:
      >>> same = jnp.zeros((2, 3))
      >>> print(f"{language_balance(same, same, jnp.ones((2, 3))):.4f}")
      1.3863
    """
    gap = first - second
    terms = jax.nn.softplus(gap) + jax.nn.softplus(-gap)
    return weighted_mean(terms.reshape(-1), weight.reshape(-1))


@dataclasses.dataclass(frozen=True)
class LanguageFairness(OnRankings):
    r"""Give one question the same scores of the same passages, whatever languages they are in.

    The Jensen-Shannon divergence between the distributions that a question gives over passages,
    where :math:`l = 1 \dots K` are the languages of the passages, those of the question, or the
    pairs of both:

    .. math::
      L = \frac{1}{\sum_b w_b} \sum_b \frac{w_b}{K} \sum_l \mathrm{KL}(p_{bl} \,\|\, \bar p_b),
      \qquad p_{bl} = \mathrm{softmax}(s(q_{bl}, d_{bl\cdot}) / \tau), \quad
      \bar p_b = \frac{1}{K} \sum_l p_{bl}

    From 0, where all agree, to log K. It is a regulariser: a model that scores everything alike has
    none of it, so it goes beside an objective that ranks.

    Args:
      queries: the question: ``"query"``, in the language that the data choose for each record, and
        ``"query.en"``, in one; several are compared.
      temperature: divides scores (:math:`\tau`).
      in_batch: over every passage of the batch, each once, instead of the query's own list.
      passages: the same of the passages: ``"passages"`` and ``"passages.en"``, of which
        ``data.languages.InLanguages`` has one for each of its corpora.

    Example:
      >>> sorted(LanguageFairness(("query",), passages=("passages.en", "passages.de")).student)
      ['passages.de', 'passages.en', 'query']
    """

    queries: tuple[str, ...] = ("query", "query.en")
    temperature: float = 1.0
    in_batch: bool = False
    passages: tuple[str, ...] = ("passages",)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"LanguageFairness: temperature is {self.temperature}; it must be above 0"
            )
        compared = len(set(self.queries)) * len(set(self.passages))
        if compared < max(2, len(self.queries) * len(self.passages)):
            raise ValueError(
                f"LanguageFairness: queries is {self.queries} and passages is {self.passages}; "
                'write each once and at least two of either, as in queries=("query", "query.en")'
            )
        for field in self.queries:
            query_field("LanguageFairness", "queries", field)
        for field in self.passages:
            if field.partition(".")[0] != "passages" or field.endswith("."):
                raise ValueError(
                    f'LanguageFairness: passages is {field!r}; write "passages" for the language '
                    'that the data choose, or "passages.en" for one'
                )

    @property
    def student(self) -> Mapping[str, Ask]:
        """The question and its passages, in every language once."""
        asks = {field: Ask(EncodeQuery, (f"ranking.{field}",)) for field in self.queries}
        return asks | {x: Ask(EncodePassage, (f"ranking.{x}",)) for x in self.passages}

    @property
    def least_passages(self) -> int:
        """Two, or there is nothing to agree on, unless the batch brings others."""
        return 1 if self.in_batch else 2

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The divergence; metric ``agreement``: questions with one best passage in every one."""
        weight = jnp.asarray(batch.weight)
        real = present(jnp.asarray(batch.labels["ranking.passage_ids"]), weight, self.in_batch)
        given = (
            scores(cast(Embeddings, student[asked]), cast(Embeddings, student[told]), self.in_batch)
            for asked, told in itertools.product(self.queries, self.passages)
        )
        logs = jnp.stack([log_distribution(own, real, self.temperature) for own in given])
        mean = jax.nn.logsumexp(logs, axis=0, keepdims=True) - math.log(len(logs))
        apart = jnp.where(real[None], jnp.exp(logs) * (logs - mean), 0.0).sum(axis=2).mean(axis=0)
        best = logs.argmax(axis=2)
        agree = (best == best[:1]).all(axis=0).astype(logs.dtype)
        return weighted_mean(apart, weight), {"agreement": weighted_mean(agree, weight)}


def _side_by_side(
    told: Sequence[Output],
) -> tuple[Float[Array, "S T E"], Bool[Array, "S T"]]:
    """K answers of B rows as the K B sentences of a batch, those of a row together.

    So no row leaves its device. Narrower answers are filled up to the widest.
    """
    parts = [cast(Embeddings, one) for one in told]
    width = max(part.mask.shape[1] for part in parts)
    vectors = jnp.stack([_widened(part.vectors, width) for part in parts], axis=1)
    mask = jnp.stack([_widened(part.mask, width) for part in parts], axis=1)
    return vectors.reshape(-1, *vectors.shape[2:]), mask.reshape(-1, width)


def _widened(x: Array, width: int) -> Array:
    fill = [(0, 0), (0, width - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, fill)


def _each(values: Array, count: int) -> Array:
    """Every row's value ``count`` times, as ``_side_by_side`` orders sentences."""
    return jnp.repeat(jnp.asarray(values), count)
