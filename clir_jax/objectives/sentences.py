"""Objectives on the vectors of whole texts: the student's take the places of the teacher's."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery, Output, Request
from clir_jax.objectives.base import Ask, Batch, ModelFacts, weighted_mean
from clir_jax.objectives.rankings import OnRankings, mean_over, query_field

_READINGS: Mapping[str, type[Request]] = {"query": EncodeQuery, "passage": EncodePassage}


@dataclasses.dataclass(frozen=True)
class SentenceDistillation:
    r"""Give a sentence and its English translation the teacher's vector of the English side.

    .. math::
      L = \frac{1}{(1 + \lambda)\, E \sum_b w_b} \sum_b w_b
        \Big( \lVert S(o_b) - T(e_b) \rVert^2 + \lambda \lVert S(e_b) - T(e_b) \rVert^2 \Big)

    for pairs of an English sentence :math:`e` and another :math:`o`, with :math:`\lambda` =
    ``english_weight``: the mean over both sides, rows and dimensions where it is 1.

    Args:
      english_weight: of the English side; 0 leaves it out, and its request.
      read_as: ``"query"`` or ``"passage"``, for models that tell them apart.
      length: tokens a sentence; None takes the models' own.

    References:
      Reimers and Gurevych, Making Monolingual Sentence Embeddings Multilingual using Knowledge
      Distillation, EMNLP 2020, arXiv:2004.09813.
    """

    english_weight: float = 1.0
    read_as: str = "query"
    length: int | None = 64

    def __post_init__(self) -> None:
        if self.english_weight < 0:
            raise ValueError(
                f"SentenceDistillation: english_weight is {self.english_weight}; it must be 0 or "
                "above"
            )
        reading("SentenceDistillation", self.read_as)

    @property
    def student(self) -> Mapping[str, Ask]:
        """The sentence in the other language and, with ``english_weight``, in English."""
        asks = {"other": self._ask("bitext.other")}
        return asks | {"english": self._ask("bitext.english")} if self.english_weight else asks

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """The English sentence."""
        return {"english": self._ask("bitext.english")}

    @property
    def token_labels(self) -> Sequence[str]:
        """None."""
        return ()

    @property
    def least_passages(self) -> int:
        """One: there are no rankings here."""
        return 1

    def check(self, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
        """Refuse late interaction, and a student and teacher of different embedding sizes."""
        _check_vectors("SentenceDistillation", student, teachers["teacher"])

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The squared error; metrics ``error_other`` and ``error_english``, of each side."""
        target, weight = _vectors(teacher["english"]), jnp.asarray(batch.weight)
        errors = {
            name: weighted_mean(_squared_error(_vectors(student[name]), target), weight)
            for name in self.student
        }
        shares = {"other": 1.0, "english": self.english_weight}
        terms = [shares[name] * error for name, error in errors.items()]
        loss = jnp.stack(terms).sum() / (1.0 + self.english_weight)
        return loss, {f"error_{name}": error for name, error in errors.items()}

    def _ask(self, text: str) -> Ask:
        kind = reading("SentenceDistillation", self.read_as)
        return Ask(kind, (text,), length=self.length)


@dataclasses.dataclass(frozen=True)
class ThreeTermTransfer(OnRankings):
    r"""CL-ReLKT's third step: a student's questions and documents take the teacher's places.

    .. math::
      L = 1000 \big( w_q\, \mathrm{MSE}(T(q^{en}), S(q)) + w_d\, \mathrm{MSE}(T(d), S(d))
        + w_{qd}\, \mathrm{MSE}(T(d), S(q)) \big)

    where :math:`\mathrm{MSE}` is the mean over rows and dimensions, :math:`d` the relevant passage
    (in the second term every passage of the list, one in the published form) and the weights are
    ``question_weight``, ``passage_weight`` and ``answer_weight``.

    Args:
      question_weight: of the teacher's English question against the student's other question.
      passage_weight: of the teacher's passage against the student's.
      answer_weight: of the teacher's passage against the student's question.
      student_query: what the student reads: ``"query"``, the language that the data choose for each
        record, or ``"query.sw"``, one language.
      teacher_query: what the teacher reads; English by default.

    References:
      Limkonchotiwat et al., CL-ReLKT: Cross-lingual Language Knowledge Transfer for Multilingual
      Retrieval Question Answering, Findings of NAACL 2022.

    Differences from the paper:
      The defaults are the published weights for XORQA. The factor 1000 is kept: under Adam it
      matters beside epsilon only. The authors drop duplicate questions and read documents without
      duplicates; equal texts are not dropped here, and count once for each record.
    """

    question_weight: float = 0.1
    passage_weight: float = 1.0
    answer_weight: float = 0.1
    student_query: str = "query"
    teacher_query: str = "query.en"

    def __post_init__(self) -> None:
        for name in ("question_weight", "passage_weight", "answer_weight"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"ThreeTermTransfer: {name} is {getattr(self, name)}; it must be 0 or above"
                )
        for name in ("student_query", "teacher_query"):
            query_field("ThreeTermTransfer", name, getattr(self, name))

    @property
    def student(self) -> Mapping[str, Ask]:
        """The question in the other language, and the passage."""
        return self._asks(self.student_query)

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """The question in English, and the passage."""
        return self._asks(self.teacher_query)

    @property
    def least_passages(self) -> int:
        """The relevant one."""
        return 1

    def check(self, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
        """Refuse late interaction, and a student and teacher of different embedding sizes."""
        _check_vectors("ThreeTermTransfer", student, teachers["teacher"])

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The three terms; metrics ``question``, ``passage``, ``answer``, before the weights."""
        query, passages = _vectors(student["query"]), _vectors(student["passages"])
        english, wanted = _vectors(teacher["query"]), _vectors(teacher["passages"])
        weight = jnp.asarray(batch.weight)
        real = jnp.asarray(batch.labels["ranking.passage_ids"]) >= 0
        terms = {
            "question": weighted_mean(_squared_error(query, english), weight),
            "passage": mean_over(_squared_error(passages, wanted), real, weight),
            "answer": weighted_mean(_squared_error(query, wanted[:, 0]), weight),
        }
        weighted = [getattr(self, f"{name}_weight") * term for name, term in terms.items()]
        return 1000.0 * jnp.stack(weighted).sum(), terms


def reading(objective: str, read_as: str) -> type[Request]:
    """The request by which sentences are read.

    Args:
      objective: for messages.
      read_as: ``"query"`` or ``"passage"``.

    Raises:
      ValueError: if it is neither.
    """
    if read_as not in _READINGS:
        raise ValueError(f"{objective}: read_as is {read_as!r}; write one of {tuple(_READINGS)}")
    return _READINGS[read_as]


def _check_vectors(objective: str, student: ModelFacts, teacher: ModelFacts) -> None:
    for role, model in (("student", student), ("teacher", teacher)):
        if model.late_interaction:
            raise ValueError(
                f"{objective} compares one vector a text, and the {role} is a late-interaction "
                "retriever with one a token; make it a dense retriever, or distil tokens with "
                "TokenAlignmentDistillation"
            )
    if student.embedding_size != teacher.embedding_size:
        raise ValueError(
            f"{objective} compares vectors, and the student's have {student.embedding_size} "
            f"numbers where the teacher's have {teacher.embedding_size}; give the student the "
            "teacher's embedding size"
        )


def _vectors(told: Output) -> Float[Array, "*batch E"]:
    """The one vector of every text."""
    return jnp.asarray(cast(Embeddings, told).vectors)[..., 0, :]


def _squared_error(
    x: Float[Array, "*batch E"], y: Float[Array, "*batch E"]
) -> Float[Array, "*batch"]:
    """Mean over dimensions."""
    return jnp.square(x - y).mean(axis=-1)
