"""Distillation of scores: the student ranks a query's passages as a teacher does."""

import dataclasses
from collections.abc import Mapping
from typing import cast

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clir_jax.models.requests import Embeddings, Output, Scores, TokenScores
from clir_jax.objectives.base import Ask, Batch, weighted_mean
from clir_jax.objectives.rankings import (
    OnRankings,
    likelihood,
    log_distribution,
    log_likelihood,
    mean_over,
    present,
    query_field,
    relevance,
    scores,
)

_TEACHERS = ("retriever", "cross_encoder", "generator", "stored")
_SIMILARITIES = ("cosine", "l2")


@dataclasses.dataclass(frozen=True)
class _ScoreDistillation(OnRankings):
    """Who is asked what, and both models' scores of the same passages."""

    student_query: str = "query"
    teacher_query: str = "query.en"
    teacher_kind: str = "retriever"
    similarity: str = "cosine"

    def __post_init__(self) -> None:
        name = type(self).__name__
        for option in ("student_query", "teacher_query"):
            query_field(name, option, getattr(self, option))
        for option, allowed in (("teacher_kind", _TEACHERS), ("similarity", _SIMILARITIES)):
            if getattr(self, option) not in allowed:
                raise ValueError(
                    f"{name}: {option} is {getattr(self, option)!r}; write one of {allowed}"
                )

    @property
    def student(self) -> Mapping[str, Ask]:
        """The query in the student's language, and its passages."""
        return self._asks(self.student_query)

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """The query in the teacher's language, and its passages; nothing where it is stored."""
        name = type(self).__name__
        if self.teacher_kind == "cross_encoder":
            return {"relevance": relevance(name, self.teacher_query)}
        if self.teacher_kind == "generator":
            text = query_field(name, "teacher_query", self.teacher_query)
            return {"likelihood": likelihood(text, "ranking.passages")}
        return {} if self.teacher_kind == "stored" else self._asks(self.teacher_query)

    @property
    def least_passages(self) -> int:
        """Two, or there is nothing to prefer."""
        return 2

    def _scores(
        self,
        student: Mapping[str, Output],
        teacher: Mapping[str, Output],
        batch: Batch,
        in_batch: bool = False,
    ) -> tuple[Float[Array, "B C"], Float[Array, "B C"], Bool[Array, "B C"]]:
        """Scores of the student and of the teacher, and which of them are of real passages."""
        ours = self._of_retriever(student, in_batch)
        ids, weight = jnp.asarray(batch.labels["ranking.passage_ids"]), jnp.asarray(batch.weight)
        real = present(ids, weight, in_batch)
        if self.teacher_kind == "retriever":
            return ours, self._of_retriever(teacher, in_batch).astype(ours.dtype), real
        if self.teacher_kind == "cross_encoder":
            told = cast(Scores, teacher["relevance"])
            return ours, jnp.asarray(told.values).astype(ours.dtype), real
        if self.teacher_kind == "generator":
            theirs = log_likelihood(cast(TokenScores, teacher["likelihood"]))
            return ours, theirs.astype(ours.dtype), real
        if "ranking.scores" not in batch.labels:
            raise ValueError(
                f'{type(self).__name__}: teacher_kind is "stored" and the records of the source '
                '"ranking" have no scores; give it a source with "scores", or set teacher_kind='
                '"retriever"'
            )
        return ours, jnp.asarray(batch.labels["ranking.scores"]).astype(ours.dtype), real

    def _of_retriever(self, told: Mapping[str, Output], in_batch: bool) -> Float[Array, "B C"]:
        query, passages = (cast(Embeddings, told[name]) for name in ("query", "passages"))
        given = scores(query, passages, in_batch)
        if self.similarity == "cosine":
            return given
        tokens = jnp.asarray(query.mask).sum(axis=1, keepdims=True).astype(given.dtype)
        return 2 * given - 2 * tokens


@dataclasses.dataclass(frozen=True)
class RelevanceDistillation(_ScoreDistillation):
    r"""Rank each query's passages as the teacher ranks them for the English query.

    .. math::
      L = \frac{T^2}{\sum_b w_b} \sum_b w_b\,
        \mathrm{KL}\big(\mathrm{softmax}(s^T_b / T_t) \,\|\, \mathrm{softmax}(s^S_b / T)\big)

    over the passages of the list, with :math:`T` = ``temperature`` and :math:`T_t` =
    ``teacher_temperature``. There is no term for the labels: a task of ``InfoNCE`` beside this one
    adds it.

    **Translated queries.** Score distillation on machine-translated questions (translate-train,
    Translate-Distill) is this objective on rankings whose ``queries`` hold the translation beside
    the English question.

    **QuiCK** distils a query generator, whose score of a passage is the mean log-likelihood of the
    question's tokens: ask it in the step, with ``teacher_query="query"``, or let ``Score`` store
    its scores. That it teaches a dual encoder by distillation is verified; the direction of the
    divergence and the mean are not, and are our choice.

    Args:
      student_query: what the student reads: ``"query"``, the language that the data choose for each
        record, or ``"query.sw"``, one language.
      teacher_query: what the teacher reads; English by default.
      teacher_kind: ``"retriever"``, ``"cross_encoder"`` or ``"generator"``, a teacher that is asked
        in the step; or ``"stored"``, the scores that records bring, for which no teacher is asked.
      similarity: ``"cosine"``, MaxSim as it is; or ``"l2"``, minus the squared distance of unit
        vectors, :math:`\sum_i \max_j (2 \cos_{ij} - 2)`. It ranks alike and doubles every
        difference, so that l2 at temperature 2 is cosine at 1 (up to the factor :math:`T^2`).
        Stored scores, a cross-encoder's and a generator's are taken as they are.
      temperature: of both models.
      teacher_temperature: of the teacher alone; None takes ``temperature``. Means of
        log-likelihoods lie close together: UMR divides them by 0.1.
      in_batch: compare over every passage of the batch, each once, instead of the query's own list.

    Example:
      >>> asks = RelevanceDistillation().teacher
      >>> asks["query"].texts, asks["passages"].texts
      (('ranking.query.en',), ('ranking.passages',))
      >>> RelevanceDistillation(teacher_kind="stored").teacher
      {}

    References:
      Li et al., Learning Cross-Lingual IR from an English Retriever (Dr.DECR), NAACL 2022,
      arXiv:2112.08185; Yang et al., Translate-Distill, ECIR 2024, arXiv:2401.04810; Ren et al.,
      Empowering Dual-Encoder with Query Generator for Cross-Lingual Dense Retrieval (QuiCK), EMNLP
      2022, arXiv:2303.14991.

    Differences from the paper:
      Dr.DECR's list is one positive and one negative, and its T is 2; here it may have any length.
      Its ``l2`` similarity also counted tokens that were masked out, which is not repeated.
    """

    temperature: float = 2.0
    teacher_temperature: float | None = None
    in_batch: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("temperature", "teacher_temperature"):
            value = getattr(self, option)
            if value is not None and value <= 0:
                raise ValueError(f"RelevanceDistillation: {option} is {value}; it must be above 0")
        if self.in_batch and self.teacher_kind != "retriever":
            kind = self.teacher_kind.replace("_", "-")
            given = "stored scores" if kind == "stored" else f"a {kind}'s"
            raise ValueError(
                "RelevanceDistillation: in_batch wants the teacher's scores of other queries' "
                f"passages, and {given} are of the query's own; "
                'set in_batch=False, or teacher_kind="retriever"'
            )

    @property
    def least_passages(self) -> int:
        """Two, or there is nothing to prefer, unless the batch brings others."""
        return 1 if self.in_batch else 2

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The divergence; metric ``agreement``: queries whose first passage is the teacher's."""
        ours, theirs, real = self._scores(student, teacher, batch, self.in_batch)
        own = self.temperature if self.teacher_temperature is None else self.teacher_temperature
        p, q = log_distribution(theirs, real, own), log_distribution(ours, real, self.temperature)
        divergence = jnp.where(real, jnp.exp(p) * (p - q), 0.0).sum(axis=1)
        weight = jnp.asarray(batch.weight)
        agree = (p.argmax(axis=1) == q.argmax(axis=1)).astype(q.dtype)
        loss = self.temperature**2 * weighted_mean(divergence, weight)
        return loss, {"agreement": weighted_mean(agree, weight)}


@dataclasses.dataclass(frozen=True)
class MarginMSE(_ScoreDistillation):
    r"""Give the teacher's margin between the positive and every other passage of the list.

    .. math::
      L = \frac{1}{\sum_b w_b} \sum_b \frac{w_b}{|N_b|} \sum_{n \in N_b}
        \big( (s^S_{b,p} - s^S_{b,n}) - (s^T_{b,p} - s^T_{b,n}) \big)^2

    Margins are compared as they are, so both models' scores should be on one scale.

    Args:
      student_query, teacher_query, teacher_kind, similarity: as in ``RelevanceDistillation``.

    References:
      Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
      Distillation, 2020, arXiv:2010.02666.
    """

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The squared error; metric ``order``: pairs that both models put in the same order."""
        ours, theirs, real = self._scores(student, teacher, batch)
        weight = jnp.asarray(batch.weight)
        margin, wanted = (x[:, :1] - x[:, 1:] for x in (ours, theirs))
        alike = (margin * wanted > 0).astype(margin.dtype)
        # Padding scores -10,000 a token: what would be squared is left out before it is.
        error = jnp.where(real[:, 1:], margin - wanted, 0.0) ** 2
        loss = mean_over(error, real[:, 1:], weight)
        return loss, {"order": mean_over(alike, real[:, 1:], weight)}
