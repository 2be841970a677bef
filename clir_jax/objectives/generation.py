"""Objectives with a query generator: training it, and queries of other languages aligned by it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clir_jax.models.requests import Embeddings, EncodeQuery, Output, TokenScores
from clir_jax.objectives.base import Ask, Batch, ModelFacts, weighted_mean
from clir_jax.objectives.rankings import (
    REDUCTIONS,
    OnRankings,
    likelihood,
    listwise,
    log_distribution,
    log_likelihood,
    present,
    query_field,
    scores,
)

_CONFIDENCES = ("generator", "none")


@dataclasses.dataclass(frozen=True)
class SequenceLikelihood:
    r"""Teach a generator to write the question that was asked of a passage.

    .. math::
      L = -\frac{1}{\sum_b w_b} \sum_b \frac{w_b}{|q_b|} \sum_t
        \log P(q_{b,t} \mid q_{b,<t}, p_b^+, \mathrm{language}_b)

    The prompt names the language of the target, so that one model writes in many. On bitext the
    same loss teaches it to translate.

    Args:
      target: what is written: ``"ranking.query"``, in the language that the data choose for each
        record, ``"ranking.query.en"``, or a side of bitext, ``"bitext.other"``.
      given: what is read: ``"ranking.positive"``, or the other side, ``"bitext.english"``.

    Example:
      >>> SequenceLikelihood("bitext.other", "bitext.english").student["likelihood"].texts
      ('bitext.other', 'bitext.english', 'bitext.language.other')

    References:
      Ren et al., Empowering Dual-Encoder with Query Generator for Cross-Lingual Dense Retrieval
      (QuiCK), EMNLP 2022, arXiv:2303.14991.

    Differences from the paper:
      That its generator is first trained on query generation is verified; the equation is the usual
      one, and not verified, like the mean over tokens.
    """

    target: str = "ranking.query"
    given: str = "ranking.positive"

    def __post_init__(self) -> None:
        for option in ("target", "given"):
            source, _, field = getattr(self, option).partition(".")
            if not source or not field:
                raise ValueError(
                    f'SequenceLikelihood: {option} is {getattr(self, option)!r}; write "source.'
                    'field", as in "ranking.query" or "bitext.other"'
                )
        if self.target.partition(".")[0] != self.given.partition(".")[0]:
            raise ValueError(
                f"SequenceLikelihood: target is {self.target!r} and given {self.given!r}; write "
                "two fields of one source"
            )

    @property
    def student(self) -> Mapping[str, Ask]:
        """How likely the target is, given the passage."""
        return {"likelihood": likelihood(self.target, self.given)}

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """Nothing."""
        return {}

    @property
    def token_labels(self) -> Sequence[str]:
        """None."""
        return ()

    @property
    def least_passages(self) -> int:
        """The positive."""
        return 1

    def check(self, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
        """Any generator will do."""

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean negative log-likelihood a token; metric ``perplexity``: its exponential."""
        told = log_likelihood(cast(TokenScores, student["likelihood"]))
        loss = -weighted_mean(told, batch.weight)
        return loss, {"perplexity": jnp.exp(loss)}


@dataclasses.dataclass(frozen=True)
class GeneratorContrastive(OnRankings):
    r"""Train a generator to find the question likelier for its passage than for others.

    .. math::
      L = \frac{1}{\sum_b w_b} \sum_b -w_b \log
        \frac{e^{s(q_b, p_b^+) / \tau}}{\sum_{p \in C_b} e^{s(q_b, p) / \tau}}, \qquad
      s(q, p) = \frac{1}{|q|} \sum_t \log P(q_t \mid q_{<t}, p, \mathrm{language})

    with :math:`\tau` = ``temperature`` and :math:`C_b` the positive and those negatives of the list
    that are not known to be relevant.

    Args:
      query: ``"query"``, the language that the data choose for each record, or ``"query.en"``.
      temperature: divides scores; means of log-likelihoods lie close together, so that about 0.1 is
        apt for them.
      reduction: ``"mean"`` over the question's tokens, or their ``"sum"``.

    References:
      Ren et al., Empowering Dual-Encoder with Query Generator for Cross-Lingual Dense Retrieval
      (QuiCK), EMNLP 2022, arXiv:2303.14991.

    Differences from the paper:
      That the generator is trained contrastively after it was trained on query generation is
      verified. The equation and the temperature are reconstructed; the mean, so that the length of
      a question does not decide, is our choice.
    """

    query: str = "query"
    temperature: float = 1.0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        query_field("GeneratorContrastive", "query", self.query)
        _require_above_0("GeneratorContrastive", "temperature", self.temperature)
        if self.reduction not in REDUCTIONS:
            raise ValueError(
                f"GeneratorContrastive: reduction is {self.reduction!r}; write one of {REDUCTIONS}"
            )

    @property
    def student(self) -> Mapping[str, Ask]:
        """How likely the question is, given each passage of the list."""
        text = query_field("GeneratorContrastive", "query", self.query)
        return {"likelihood": likelihood(text, "ranking.passages")}

    @property
    def least_passages(self) -> int:
        """A positive and a negative."""
        return 2

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of the positive; metric ``accuracy``: questions it makes the likeliest."""
        given = log_likelihood(cast(TokenScores, student["likelihood"]), self.reduction)
        return listwise(given, batch, self.temperature)


@dataclasses.dataclass(frozen=True)
class QueryAlignment(OnRankings):
    r"""Let questions of one passage in two languages score passages alike.

    .. math::
      L = \frac{1}{\sum_b w_b} \sum_b w_b\, g(c_b)\,
        \mathrm{KL}\big(\mathrm{softmax}_C(s(q_b, p) / T) \,\|\,
        \mathrm{softmax}_C(s(q'_b, p) / T)\big)

    over the passages of the list, with :math:`q` = ``reference``, :math:`q'` = ``query`` and
    :math:`T` = ``temperature``. The two need not be translations of each other: a generator has
    written them for the same passage :math:`p^+`, and no parallel text is read. How sure it is that
    both ask for that passage, the generator itself tells, with :math:`\tau` =
    ``confidence_temperature``:

    .. math::
      c = \min\big(\mathrm{softmax}_C(s_{QG}(q, \cdot) / \tau)_{p^+},
        \mathrm{softmax}_C(s_{QG}(q', \cdot) / \tau)_{p^+}\big), \qquad
      g(c) = c \text{ where } c \ge \mathtt{threshold} \text{ and } c > 1 / N, \text{ else } 0

    A generator that knows nothing of a question finds all N passages alike: c is 1 / N, and the
    question teaches nothing.

    Args:
      reference: the question whose ranking is followed.
      query: the question in the other language; ``"query"`` is the one that the data choose.
      temperature: divides the student's scores.
      threshold: of :math:`c`, from 0 to 1.
      confidence: ``"generator"``, a teacher, or ``"none"``: :math:`c = 1`, for questions that were
        filtered when they were written.
      confidence_temperature: divides the generator's mean log-likelihoods.
      stop_gradient: whether only ``query`` learns; False lets both come closer.

    References:
      Ren et al., Empowering Dual-Encoder with Query Generator for Cross-Lingual Dense Retrieval
      (QuiCK), EMNLP 2022, arXiv:2303.14991; the ``confidence_temperature`` is that of UMR, which
      multiplies log-likelihoods by 10.

    Differences from the paper:
      That the generator aligns queries of different languages without parallel sentences is
      verified, and that an option file of the same authors has ``align_thresh`` 0.5. The equation,
      the direction of the divergence and what the threshold is compared with are not: the
      divergence is reconstructed, and :math:`c` and stopping the gradient are our choice.
    """

    reference: str = "query.en"
    query: str = "query"
    temperature: float = 1.0
    threshold: float = 0.5
    confidence: str = "generator"
    confidence_temperature: float = 0.1
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        for option in ("reference", "query"):
            query_field("QueryAlignment", option, getattr(self, option))
        if self.reference == self.query:
            raise ValueError(
                f"QueryAlignment: reference and query are both {self.query!r}; write two languages"
            )
        for option in ("temperature", "confidence_temperature"):
            _require_above_0("QueryAlignment", option, getattr(self, option))
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"QueryAlignment: threshold is {self.threshold}; write a number from 0 to 1"
            )
        if self.confidence not in _CONFIDENCES:
            raise ValueError(
                f"QueryAlignment: confidence is {self.confidence!r}; write one of {_CONFIDENCES}"
            )

    @property
    def student(self) -> Mapping[str, Ask]:
        """Both questions, and the list of passages."""
        reference = Ask(EncodeQuery, (f"ranking.{self.reference}",))
        return {"reference": reference, **self._asks(self.query)}

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """How likely each question is, given each passage; nothing without a generator."""
        if self.confidence == "none":
            return {}
        return {
            name: likelihood(f"ranking.{getattr(self, name)}", "ranking.passages")
            for name in ("reference", "query")
        }

    @property
    def least_passages(self) -> int:
        """Two, or there is nothing to prefer."""
        return 2

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The divergence; metrics ``gate``: the mean of g, and ``agreement``: of first passages."""
        passages = cast(Embeddings, student["passages"])
        weight = jnp.asarray(batch.weight)
        real = present(jnp.asarray(batch.labels["ranking.passage_ids"]), weight, in_batch=False)

        def ranked(name: str) -> Float[Array, "B N"]:
            given = scores(cast(Embeddings, student[name]), passages, in_batch=False)
            return log_distribution(given, real, self.temperature)

        p, q = ranked("reference"), ranked("query")
        if self.stop_gradient:
            p = jax.lax.stop_gradient(p)
        gate = jnp.ones_like(p[:, 0])
        if self.confidence == "generator":
            told = [self._told(teacher[name], real) for name in ("reference", "query")]
            # That both prefer the same passage is not enough: a generator that knows nothing has
            # equal preferences too, and so have two questions that ask for the same other passage.
            sure = jnp.minimum(*told)[:, 0]
            # Rounding may find one of N equal shares a little greater than 1 / N.
            guess = (1 + 1e-5) / jnp.maximum(real.sum(axis=1, dtype=sure.dtype), 1)
            surely = (sure >= self.threshold) & (sure > guess)
            gate = jnp.where(surely, sure, 0.0).astype(p.dtype)
        divergence = jnp.where(real, jnp.exp(p) * (p - q), 0.0).sum(axis=1)
        agree = (p.argmax(axis=1) == q.argmax(axis=1)).astype(p.dtype)
        means = {"gate": weighted_mean(gate, weight), "agreement": weighted_mean(agree, weight)}
        return weighted_mean(gate * divergence, weight), means

    def _told(self, told: Output, real: Array) -> Float[Array, "B N"]:
        """The generator's distribution over the passages; 0 at padding."""
        given = log_likelihood(cast(TokenScores, told))
        return jnp.exp(log_distribution(given, real, self.confidence_temperature))


def _require_above_0(objective: str, option: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{objective}: {option} is {value}; it must be above 0")
