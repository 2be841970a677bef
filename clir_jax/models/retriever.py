"""Retrievers: an encoder, and how its token vectors become the vectors that are compared.

A retriever is specified by plain values (``Dense``, ``LateInteraction``) that go into configuration
files and beside saved weights; ``Retriever`` is the module that such a specification describes.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt32

from clir_jax.models.encoder import Encoder, EncoderConfig
from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery
from clir_jax.ops.pooling import cls_pool, max_pool, mean_pool, unit

_POOLINGS: dict[str, Callable[[Array, Array], Array]] = {
    "mean": mean_pool,
    "cls": cls_pool,
    "max": max_pool,
}
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"identity": lambda x: x, "tanh": jnp.tanh}


@dataclasses.dataclass(frozen=True)
class Dense:
    """A retriever with one vector a text: pooled, perhaps projected, perhaps normalised.

    Args:
      pooling: ``mean`` over the text's tokens, special tokens included; ``cls``, the first token;
        ``max`` over tokens.
      projection: width of a linear map after pooling; None has no map.
      projection_activation: ``identity`` or ``tanh``, after the map.
      projection_bias: whether the map adds a bias.
      normalize: scale vectors to length 1, so that the score is the cosine.
      query_length: tokens a query, special tokens included; longer ones are cut.
      passage_length: tokens a passage.
      query_prompt: text put before every query, ``"query: "`` for instance.
      passage_prompt: text put before every passage.

    Raises:
      ValueError: if a value is out of range.
    """

    pooling: str = "mean"
    projection: int | None = None
    projection_activation: str = "identity"
    projection_bias: bool = True
    normalize: bool = True
    query_length: int = 32
    passage_length: int = 180
    query_prompt: str = ""
    passage_prompt: str = ""

    def __post_init__(self) -> None:
        _require_choice("dense", "pooling", self.pooling, _POOLINGS)
        _require_choice("dense", "projection_activation", self.projection_activation, _ACTIVATIONS)
        _require_width("dense", "projection", self.projection)
        if self.projection is None and self.projection_activation != "identity":
            raise ValueError(
                f"dense: projection_activation is {self.projection_activation!r} and there is no "
                "projection; write the projection's width, or projection_activation='identity'"
            )
        for name in ("query_length", "passage_length"):
            _require_length("dense", name, getattr(self, name), 3, "CLS, SEP and one piece")
        for name in ("query_prompt", "passage_prompt"):
            _require_text("dense", name, getattr(self, name))

    @property
    def late_interaction(self) -> bool:
        """False: one vector a text."""
        return False

    def embedding_size(self, hidden_size: int) -> int:
        """Return E for an encoder of width ``hidden_size``."""
        return self.projection or hidden_size


@dataclasses.dataclass(frozen=True)
class LateInteraction:
    """A retriever with one unit vector a token, compared by MaxSim (ColBERT).

    Args:
      dimension: width of the linear map of every token vector; None has no map.
      query_length: tokens a query, special tokens and marker included; longer ones are cut.
      passage_length: tokens a passage.
      query_marker: the token put after CLS in queries; one piece, its space included. ``""`` puts
        none.
      passage_marker: the same in passages.
      expansion: fill queries up to ``query_length`` with mask tokens, whose vectors count.
      attend_to_expansion: let the other tokens attend to those.
      skip_punctuation: leave the vectors of punctuation out of passages.
      content_only: at search keep only the vectors of the text's own pieces: none of CLS, SEP and
        marker, and no expansion, whatever ``expansion`` says.
      projection_bias: whether the linear map adds a bias.

    Raises:
      ValueError: if a value is out of range, or two do not fit together.

    References:
      Khattab and Zaharia, ColBERT: Efficient and Effective Passage Search via Contextualized Late
      Interaction over BERT, SIGIR 2020, arXiv:2004.12832.
    """

    dimension: int | None = 128
    query_length: int = 32
    passage_length: int = 180
    query_marker: str = "[Q] "
    passage_marker: str = "[D] "
    expansion: bool = True
    attend_to_expansion: bool = False
    skip_punctuation: bool = True
    # Objectives that distil token by token (an Ask with content=True) train the text's own pieces
    # and nothing else. The vectors of CLS, SEP, markers and mask tokens are then whatever the
    # initial encoder made of them, in a language it may not know, and MaxSim would add their noise
    # to every score. A model trained so must be searched so: hence a field that is saved with it.
    content_only: bool = False
    projection_bias: bool = False

    def __post_init__(self) -> None:
        _require_width("late interaction", "dimension", self.dimension)
        for name in ("query_length", "passage_length"):
            _require_length(
                "late interaction", name, getattr(self, name), 4, "CLS, marker, SEP and one piece"
            )
        for name in ("query_marker", "passage_marker"):
            _require_text("late interaction", name, getattr(self, name))
        if self.query_marker and self.query_marker == self.passage_marker:
            raise ValueError(
                f"late interaction: query_marker and passage_marker are both "
                f"{self.query_marker!r}; write two different markers, or '' for none"
            )
        if self.attend_to_expansion and not self.expansion:
            raise ValueError(
                "late interaction: attend_to_expansion is set and expansion is not; "
                "write expansion=True, or attend_to_expansion=False"
            )

    @property
    def late_interaction(self) -> bool:
        """True: one vector a token."""
        return True

    def embedding_size(self, hidden_size: int) -> int:
        """Return E for an encoder of width ``hidden_size``."""
        return self.dimension or hidden_size


RetrieverSpec = Dense | LateInteraction
_KINDS: dict[str, type[Dense] | type[LateInteraction]] = {
    "dense": Dense,
    "late_interaction": LateInteraction,
}


def spec_to_dict(spec: RetrieverSpec) -> dict[str, Any]:
    """Write a specification as plain values: its ``kind`` and its fields.

    Example:
      >>> spec_from_dict(spec_to_dict(Dense(pooling="cls"))) == Dense(pooling="cls")
      True
    """
    kind = next(name for name, cls in _KINDS.items() if isinstance(spec, cls))
    return {"kind": kind} | dataclasses.asdict(spec)


def spec_from_dict(values: Mapping[str, Any]) -> RetrieverSpec:
    """Read what ``spec_to_dict`` wrote.

    Args:
      values: ``kind`` (``dense`` or ``late_interaction``) and fields; absent ones take defaults.

    Returns:
      The specification.

    Raises:
      ValueError: if the kind or a field is not known, or a value is out of range.
    """
    fields = dict(values)
    kind = fields.pop("kind", None)
    _require_choice("retriever", "kind", kind, _KINDS)
    cls = _KINDS[kind]
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(
            f"retriever: {kind} has no field {unknown[0]!r}; write one of {', '.join(known)}"
        )
    return cls(**fields)


class Projection(nnx.Module):
    """The linear map after the encoder: ``kernel [D, E]`` and perhaps ``bias [E]``.

    Args:
      inputs: D.
      outputs: E.
      bias: whether there is a bias.
      dtype: dtype of the product; sums are float32 or wider.
      rngs: source of the initial weights (stream ``params``).
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool, dtype: str, *, rngs: nnx.Rngs
    ) -> None:
        self.dtype = dtype
        stored = jnp.float64 if dtype == "float64" else jnp.float32
        # Torch's Linear, and so every ColBERT, starts uniform in +-1/sqrt(D): variance 1/(3 D).
        bound = inputs**-0.5
        values = jax.random.uniform(rngs.params(), (inputs, outputs), stored, -bound, bound)
        self.kernel = nnx.Param(values)
        self.bias = nnx.Param(jnp.zeros((outputs,), stored)) if bias else None

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch E"]:
        """Map vectors; the result is float32 or wider."""
        kernel = self.kernel[...]
        compute = jnp.dtype("float64") if kernel.dtype == jnp.float64 else jnp.dtype(self.dtype)
        wide = jnp.float64 if compute == jnp.float64 else jnp.float32
        y = jnp.matmul(x.astype(compute), kernel.astype(compute), preferred_element_type=wide)
        if self.bias is None:
            return y
        return y + self.bias[...].astype(wide).reshape((1,) * (y.ndim - 1) + (-1,))


def make_projection(
    spec: RetrieverSpec, encoder_config: EncoderConfig, *, rngs: nnx.Rngs
) -> Projection | None:
    """Make the projection a specification asks for, with initial weights; None if it has none."""
    outputs = spec.dimension if isinstance(spec, LateInteraction) else spec.projection
    if outputs is None:
        return None
    return Projection(
        encoder_config.hidden_size, outputs, spec.projection_bias, encoder_config.dtype, rngs=rngs
    )


class Retriever(nnx.Module):
    """An encoder that answers ``EncodeQuery`` and ``EncodePassage`` with ``Embeddings``.

    Args:
      spec: what kind of retriever.
      encoder_config: size, kind and dtype of the encoder.
      rngs: source of the initial weights (stream ``params``).

    Raises:
      ValueError: if the encoder has no positions for ``query_length`` or ``passage_length`` tokens.

    Example:
      >>> import numpy as np
      >>> from clir_jax.models.requests import Tokens
      >>> config = EncoderConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
      >>> spec = LateInteraction(dimension=4, query_length=8, passage_length=16)
      >>> model = Retriever(spec, config, rngs=nnx.Rngs(0))
      >>> on = np.ones((2, 5), bool)
      >>> model(EncodeQuery(Tokens(np.ones((2, 5), np.int32), on, on))).vectors.shape
      (2, 5, 4)
    """

    def __init__(
        self, spec: RetrieverSpec, encoder_config: EncoderConfig, *, rngs: nnx.Rngs
    ) -> None:
        for name in ("query_length", "passage_length"):
            if getattr(spec, name) > encoder_config.max_length:
                raise ValueError(
                    f"retriever: {name} is {getattr(spec, name)} and the encoder has positions "
                    f"for {encoder_config.max_length} tokens; write at most that"
                )
        width = encoder_config.hidden_size
        self.spec = spec
        self.embedding_size = spec.embedding_size(width)
        self.encoder = Encoder(encoder_config, rngs=rngs)
        self.projection = make_projection(spec, encoder_config, rngs=rngs)

    def tower(self, kind: type) -> Hashable:
        """Name the part of the model that answers requests of ``kind``.

        Both kinds have the same answer, because queries and passages differ in their token arrays
        only (markers, masks, ``keep``): rows of one width can be encoded in one call.

        Raises:
          TypeError: if a retriever does not answer such requests.
        """
        if kind not in (EncodeQuery, EncodePassage):
            name = getattr(kind, "__name__", kind)
            raise TypeError(
                f"retriever: asked for {name}, and a retriever answers EncodeQuery and "
                "EncodePassage; give the objective a model of another kind"
            )
        return "encoder"

    def __call__(
        self,
        request: EncodeQuery | EncodePassage,
        row_seeds: UInt32[Array, " R"] | None = None,
        layer: int | None = None,
    ) -> Embeddings:
        """Encode rows of texts.

        Args:
          request: tokens ``[R, T]``.
          row_seeds: ``[R]`` seeds of dropout; None turns it off.
          layer: answer with the unit vectors ``[R, T, D]`` of this layer's tokens, 1 being the
            lowest, whatever kind of retriever; None with those that are compared.

        Returns:
          Vectors ``[R, T, E]`` of late interaction, exactly 0 outside ``mask`` = ``keep``; or
          ``[R, 1, E]`` of a dense retriever, ``mask`` all True. Float32, or float64 where the
          parameters are.

        Raises:
          TypeError: if the request is of another kind.
        """
        self.tower(type(request))
        tokens = request.tokens
        ids, mask, keep = (
            jnp.asarray(tokens.ids),
            jnp.asarray(tokens.mask),
            jnp.asarray(tokens.keep),
        )
        hidden = self.encoder(ids, mask, row_seeds=row_seeds, layers=layer)
        if isinstance(self.spec, Dense) and layer is None:
            vectors = self._activate(_POOLINGS[self.spec.pooling](hidden, keep))
            vectors = unit(vectors) if self.spec.normalize else vectors
            return Embeddings(vectors[:, None, :], jnp.ones((vectors.shape[0], 1), bool))
        projection = self.projection if layer is None else None
        vectors = unit(hidden if projection is None else projection(hidden))
        return Embeddings(jnp.where(keep[:, :, None], vectors, jnp.zeros_like(vectors)), keep)

    def _activate(self, pooled: Float[Array, "R D"]) -> Float[Array, "R E"]:
        if self.projection is None or not isinstance(self.spec, Dense):
            return pooled
        return _ACTIVATIONS[self.spec.projection_activation](self.projection(pooled))


def _require_choice(what: str, name: str, value: Any, choices: Mapping[str, Any]) -> None:
    if not isinstance(value, str) or value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{what}: {name} is {value!r}; write one of {allowed}")


def _require_width(what: str, name: str, value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{what}: {name} is {value!r}; write a width of at least 1, or None")


def _require_length(what: str, name: str, value: Any, least: int, room: str) -> None:
    if type(value) is not int or value < least:
        raise ValueError(
            f"{what}: {name} is {value!r}; write a whole number of at least {least}, "
            f"room for {room}"
        )


def _require_text(what: str, name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{what}: {name} is {value!r}; write a text, '' for none")
