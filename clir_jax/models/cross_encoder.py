"""Cross-encoders: a query and a passage are read together, and get one score.

A cross-encoder is specified by plain values (``CrossEncoder``) that go into configuration files and
beside saved weights; ``CrossEncoderModel`` is the module that such a specification describes.
"""

import dataclasses
from collections.abc import Hashable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt32

from clir_jax.models.encoder import Encoder, EncoderConfig
from clir_jax.models.requests import Relevance, Scores
from clir_jax.ops.dropout import dropout


@dataclasses.dataclass(frozen=True)
class CrossEncoder:
    """A model that scores how well a passage answers a query, reading both at once.

    Args:
      length: tokens a pair, special tokens included; of a longer one the passage is cut at its end.
      query_length: pieces of the query, its prompt included; longer ones are cut.
      query_prompt: text put before every query.
      passage_prompt: text put before every passage.

    Raises:
      ValueError: if a value is out of range, or the query leaves no room for a passage.
    """

    length: int = 256
    query_length: int = 64
    query_prompt: str = ""
    passage_prompt: str = ""

    def __post_init__(self) -> None:
        for name, least in (("length", 6), ("query_length", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(
                    f"cross-encoder: {name} is {value!r}; write a whole number of at least {least}"
                )
        if self.query_length > self.length - 5:
            raise ValueError(
                f"cross-encoder: query_length is {self.query_length} and length {self.length}, "
                "which leaves no room for a passage beside four special tokens; write a "
                f"query_length of at most {self.length - 5}"
            )
        for name in ("query_prompt", "passage_prompt"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(
                    f"cross-encoder: {name} is {getattr(self, name)!r}; write a text, '' for none"
                )


class Linear(nnx.Module):
    """A linear map of the head: ``kernel [in, out]`` and ``bias [out]``."""

    def __init__(self, inputs: int, outputs: int, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        stored = jnp.float64 if config.dtype == "float64" else jnp.float32
        values = jax.random.normal(rngs.params(), (inputs, outputs), stored)
        self.kernel = nnx.Param(values * jnp.asarray(config.initializer_range, stored))
        self.bias = nnx.Param(jnp.zeros((outputs,), stored))

    def __call__(self, x: Float[Array, "R F"]) -> Float[Array, "R G"]:
        """Map vectors; float32, or float64 where the parameters are."""
        kernel, bias = self.kernel[...], self.bias[...]
        y = jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=kernel.dtype)
        return y + bias[None, :]


class Head(nnx.Module):
    r"""From the vector of the first token to a score.

    .. math:: s = w^\top \tanh(W x + b) + c

    BERT calls :math:`W` its pooler; XLM-R has it in its classification head.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size, config, rngs=rngs)
        self.score = Linear(config.hidden_size, 1, config, rngs=rngs)


class CrossEncoderModel(nnx.Module):
    """An encoder with a score head that answers ``Relevance`` with ``Scores``.

    Equal to Hugging Face's ``BertForSequenceClassification``, ``RobertaForSequenceClassification``
    and ``XLMRobertaForSequenceClassification`` with one label; a score is the logit.

    Args:
      spec: lengths and prompts.
      encoder_config: size, kind and dtype of the encoder.
      rngs: source of the initial weights (stream ``params``).

    Raises:
      ValueError: if the encoder has no positions for ``length`` tokens.

    Example:
      >>> import numpy as np
      >>> from clir_jax.models.requests import Tokens
      >>> config = EncoderConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
      >>> model = CrossEncoderModel(CrossEncoder(16, 4), config, rngs=nnx.Rngs(0))
      >>> on = np.ones((2, 5), bool)
      >>> model(Relevance(Tokens(np.ones((2, 5), np.int32), on, on))).values.shape
      (2,)
    """

    def __init__(
        self, spec: CrossEncoder, encoder_config: EncoderConfig, *, rngs: nnx.Rngs
    ) -> None:
        if spec.length > encoder_config.max_length:
            raise ValueError(
                f"cross-encoder: length is {spec.length} and the encoder has positions for "
                f"{encoder_config.max_length} tokens; write at most that"
            )
        self.spec = spec
        self.encoder = Encoder(encoder_config, rngs=rngs)
        self.head = Head(encoder_config, rngs=rngs)

    def tower(self, kind: type) -> Hashable:
        """Name the part of the model that answers requests of ``kind``.

        Raises:
          TypeError: if a cross-encoder does not answer such requests.
        """
        if kind is not Relevance:
            raise TypeError(
                f"cross-encoder: asked for {getattr(kind, '__name__', kind)}, and a cross-encoder "
                "answers Relevance; give the objective a model of another kind"
            )
        return "encoder"

    def __call__(self, request: Relevance, row_seeds: UInt32[Array, " R"] | None = None) -> Scores:
        """Score rows of pairs.

        Args:
          request: pairs ``[R, T]``; ``keep`` is where BERT's sentence B is.
          row_seeds: ``[R]`` seeds of dropout; None turns it off.

        Returns:
          Scores ``[R]``, float32, or float64 where the parameters are.

        Raises:
          TypeError: if the request is of another kind.
        """
        self.tower(type(request))
        tokens, config = request.tokens, self.encoder.config
        ids, mask = jnp.asarray(tokens.ids), jnp.asarray(tokens.mask)
        types = jnp.asarray(tokens.keep).astype(ids.dtype) if config.type_vocab_size > 1 else None
        x = self.encoder(ids, mask, token_types=types, row_seeds=row_seeds)[:, 0]
        # The encoder's own places of dropout come before: 1 of its embeddings, 3 a layer.
        salt, rate = 1 + 3 * config.num_hidden_layers, config.hidden_dropout_prob
        x = x.astype(self.head.score.kernel[...].dtype)
        if config.model_type != "bert":  # as torch has it
            x = dropout(x, rate, row_seeds, salt)
        x = dropout(jnp.tanh(self.head.dense(x)), rate, row_seeds, salt + 1)
        return Scores(self.head.score(x)[:, 0])
