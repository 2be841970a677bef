"""The contract of an objective: it declares what it wants asked, and turns answers into a loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Float

from clir_jax.models.encoder_config import EncoderConfig
from clir_jax.models.requests import Array, EncodePassage, EncodeQuery, Output, Request, pytree
from clir_jax.models.retriever import LateInteraction, RetrieverSpec


@dataclasses.dataclass(frozen=True)
class Ask:
    """One thing an objective wants from a model.

    Args:
      kind: the request, one of ``clir_jax.models.requests.Request``.
      texts: what is read, as ``"source.field"`` or ``"source.field.language"``: ``"bitext.other"``,
        ``"ranking.query"``, ``"ranking.query.en"``, ``"ranking.passages"``,
        ``"ranking.passages.en"``. Pair requests take two.
      model: which teacher answers, by its name in ``Task.teachers``; the student ignores it.
      content: keep only the vectors of the text's own pieces: no markers, no special tokens, no
        query expansion. Token-level objectives want this.
      length: tokens a text; None takes the model's own length for this kind of request.
      layer: answer with the unit vectors ``[B, T, D]`` of this layer of the encoder, 1 being the
        lowest, without dropout and without a gradient; None with those that are compared.
    """

    kind: type[Any]
    texts: tuple[str, ...]
    model: str = "teacher"
    content: bool = False
    length: int | None = None
    layer: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What an objective may need to know of a model before it runs.

    Args:
      late_interaction: whether it answers with one vector a token.
      embedding_size: E; 0 of a model that embeds nothing.
      query_form: what it puts around a query: marker and expansion.
      passage_form: what it puts around a passage.
      hidden_size: D.
      layers: of the encoder.
      vocabulary: a print of its tokenizer and of the punctuation that it leaves out of passages;
        ``""`` where that is not known yet.
      kind: what it is called.
      answers: the requests that it answers.
      max_length: tokens of the longest text that it has positions for; None where none is too long.
    """

    late_interaction: bool
    embedding_size: int
    query_form: str = ""
    passage_form: str = ""
    hidden_size: int = 0
    layers: int = 0
    vocabulary: str = ""
    kind: str = "retriever"
    answers: tuple[type[Any], ...] = (EncodeQuery, EncodePassage)
    max_length: int | None = None


def facts_of(spec: RetrieverSpec, encoder: EncoderConfig, vocabulary: str = "") -> ModelFacts:
    """What objectives may know of a retriever.

    Args:
      spec: what kind of retriever.
      encoder: what its encoder is.
      vocabulary: see ``ModelFacts``.

    Returns:
      The facts.

    Example:
      >>> from clir_jax.models.retriever import Dense
      >>> facts_of(Dense(), EncoderConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2, intermediate_size=16, max_position_embeddings=64)).query_form
      'CLS SEP'
    """
    query = passage = "CLS SEP"
    if isinstance(spec, LateInteraction):
        markers = (spec.query_marker, spec.passage_marker)
        query, passage = (" ".join(f"CLS {marker} SEP".split()) for marker in markers)
        query += " and expansion" if spec.expansion else ""
    width = encoder.hidden_size
    return ModelFacts(
        spec.late_interaction,
        spec.embedding_size(width),
        query,
        passage,
        width,
        encoder.num_hidden_layers,
        vocabulary,
        max_length=encoder.max_length,
    )


@pytree
class Batch:
    """What one task reads in one step.

    Args:
      student: requests for the model in training, by the names in ``Objective.student``.
      teacher: requests for teachers, or their stored answers in the request's place.
      weight: ``[B]`` float32; 0 marks a padding row, which must not change loss or gradient.
      labels: integer or float arrays ``[B, ...]`` by name. A source called ``s`` of bitext gives
        ``s.id`` ``[B]``; of rankings ``s.query_id`` ``[B]``, ``s.passage_ids`` ``[B, N]`` (-1 where
        a list is shorter than N; the first is the positive), ``s.known`` ``[B, K]`` (every passage
        known to be relevant, -1 padded) and ``s.scores`` ``[B, N]`` where the source has them.
        Equal text has an equal id. Those of ``Objective.token_labels`` are ``[B, T]``: ``content``
        (bool, the text's own pieces among what is kept) and ``idf`` (float, how rare the token is).
    """

    student: Mapping[str, Request]
    teacher: Mapping[str, Request | Output]
    weight: Float[Array, " B"]
    labels: Mapping[str, Array]


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass of options with these members."""

    @property
    def student(self) -> Mapping[str, Ask]:
        """What the model in training is asked."""

    @property
    def teacher(self) -> Mapping[str, Ask]:
        """What the teachers are asked."""

    @property
    def token_labels(self) -> Sequence[str]:
        """Labels a token that the data are to bring: ``"<side>.<ask>.content"`` or ``".idf"``."""

    @property
    def least_passages(self) -> int:
        """Passages that a ranking must bring for the loss to be one; 1 where there is none."""

    def check(self, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> None:
        """Refuse models that cannot serve this objective, before anything runs.

        Raises:
          ValueError: one sentence with what does not fit and what to set instead.
        """

    def loss(
        self, student: Mapping[str, Output], teacher: Mapping[str, Output], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Turn the answers into a scalar loss and named scalar metrics.

        Weighted means divide by the sum of ``batch.weight``; rows of weight 0 count nowhere.
        """


def weighted_mean(values: Float[Array, " B"], weight: Float[Array, " B"]) -> Float[Array, ""]:
    r"""Mean of the rows that count: :math:`\sum_b w_b x_b / \sum_b w_b`.

    Args:
      values: ``[B]``; rows of weight 0 may hold anything finite.
      weight: ``[B]``; all zero gives 0, not NaN.

    Returns:
      Scalar of the dtype of ``values``.
    """
    weight = weight.astype(values.dtype)
    return (values * weight).sum() / jnp.maximum(weight.sum(), jnp.finfo(values.dtype).tiny)
