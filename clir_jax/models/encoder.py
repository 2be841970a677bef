"""The text encoder: BERT, multilingual BERT, MiniLM, LaBSE, RoBERTa and XLM-R in one module.

Parameters of all layers are stacked on a leading axis and run by one ``scan``, so compile time does
not grow with depth. The encoder has no random state: dropout is a function of one seed per row.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from clir_jax.mesh import look_up, on_one_cpu
from clir_jax.models.encoder_config import EncoderConfig as EncoderConfig
from clir_jax.ops.activation import ACTIVATIONS
from clir_jax.ops.attention import attend, attention_bias
from clir_jax.ops.dropout import dropout
from clir_jax.ops.norm import layer_norm

_SITES = 3  # places of dropout in a layer: attention probabilities, attention output, MLP output


class Table(nnx.Module):
    """Rows to look up by number: ``embedding [V, D]``."""

    def __init__(self, size: int, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(_normal(rngs, (size, config.hidden_size), config))


class Linear(nnx.Module):
    """One linear map for each layer: ``kernel [L, in, out]`` and ``bias [L, out]``."""

    def __init__(self, inputs: int, outputs: int, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        layers = config.num_hidden_layers
        self.kernel = nnx.Param(_normal(rngs, (layers, inputs, outputs), config))
        self.bias = nnx.Param(jnp.zeros((layers, outputs), _param_dtype(config)))

    def __call__(self, x: Float[Array, "R T F"]) -> Float[Array, "R T G"]:
        """Apply one layer's slice of the parameters, in the dtype of ``x``."""
        kernel, bias = (p[...].astype(x.dtype) for p in (self.kernel, self.bias))
        # One axis of tokens: with two, the kernel's gradient copies what it multiplies.
        y = x.reshape(-1, x.shape[-1]) @ kernel + bias[None, :]
        return y.reshape(*x.shape[:-1], -1)


class LayerNorm(nnx.Module):
    """Layer normalisation over D: ``scale [..., D]`` and ``bias [..., D]``."""

    def __init__(self, shape: tuple[int, ...], config: EncoderConfig) -> None:
        self.eps = config.layer_norm_eps
        self.scale = nnx.Param(jnp.ones(shape, _param_dtype(config)))
        self.bias = nnx.Param(jnp.zeros(shape, _param_dtype(config)))

    def __call__(self, x: Float[Array, "R T D"], dtype: jnp.dtype) -> Float[Array, "R T D"]:
        """Normalise in the dtype of ``x`` (float32 or wider) and return ``dtype``."""
        scale, bias = (p[...].astype(x.dtype) for p in (self.scale, self.bias))
        return layer_norm(x, scale, bias, self.eps).astype(dtype)


class Attention(nnx.Module):
    """Self-attention of all layers, with the residual and its layer norm."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.query = Linear(width, width, config, rngs=rngs)
        self.key = Linear(width, width, config, rngs=rngs)
        self.value = Linear(width, width, config, rngs=rngs)
        self.output = Linear(width, width, config, rngs=rngs)
        self.norm = LayerNorm((config.num_hidden_layers, width), config)


class MLP(nnx.Module):
    """The feed-forward part of all layers, with the residual and its layer norm."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        width, inner = config.hidden_size, config.intermediate_size
        self.up = Linear(width, inner, config, rngs=rngs)
        self.down = Linear(inner, width, config, rngs=rngs)
        self.norm = LayerNorm((config.num_hidden_layers, width), config)


class Layers(nnx.Module):
    """All layers; every parameter has a leading axis L, which ``scan`` removes."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.attention = Attention(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "R T D"],
        bias: Float[Array, "R 1 #T T"],
        seeds: UInt32[Array, " R"] | None,
        salt: UInt32[Array, ""],
    ) -> Float[Array, "R T D"]:
        """Run one layer (of which ``self`` holds the slice); ``salt`` numbers its first dropout."""
        config, a, m = self.config, self.attention, self.mlp
        wide = bias.dtype  # residual sums and norms are not rounded to bfloat16 in between
        rate = config.hidden_dropout_prob
        h = attend(
            a.query(x), a.key(x), a.value(x), bias, config.num_attention_heads,
            rate=config.attention_probs_dropout_prob, seeds=seeds, salt=salt,
        )  # fmt: skip
        h = dropout(a.output(h), rate, seeds, salt + jnp.uint32(1))
        x = a.norm(x.astype(wide) + h.astype(wide), x.dtype)
        h = m.down(ACTIVATIONS[config.hidden_act](m.up(x)))
        h = dropout(h, rate, seeds, salt + jnp.uint32(2))
        return m.norm(x.astype(wide) + h.astype(wide), x.dtype)


class Embeddings(nnx.Module):
    """The three tables whose rows are added, and their layer norm."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        self.word = Table(config.vocab_size, config, rngs=rngs)
        self.position = Table(config.max_position_embeddings, config, rngs=rngs)
        self.token_type = Table(config.type_vocab_size, config, rngs=rngs)
        self.norm = LayerNorm((config.hidden_size,), config)


class Encoder(nnx.Module):
    """A stack of post-norm transformer layers that turns tokens into vectors.

    Equal to Hugging Face's ``BertModel``, ``RobertaModel`` and ``XLMRobertaModel`` (without their
    pooler). Row i of the output depends on row i of the input only.

    Args:
      config: size, kind and dtype.
      rngs: source of the initial weights (stream ``params``).

    Raises:
      ValueError: if ``config.dtype`` is ``float64`` and JAX's 64-bit mode is off.

    Example:
      >>> config = EncoderConfig(vocab_size=99, hidden_size=8, num_hidden_layers=2,
      ...     num_attention_heads=2, intermediate_size=16, max_position_embeddings=32)
      >>> encoder = Encoder(config, rngs=nnx.Rngs(0))
      >>> encoder(jnp.ones((3, 5), jnp.int32), jnp.ones((3, 5), bool)).shape
      (3, 5, 8)
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        if config.dtype == "float64" and jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64:
            raise ValueError(
                "encoder: dtype 'float64' needs JAX's 64-bit mode; "
                'call jax.config.update("jax_enable_x64", True) first, or write dtype="float32"'
            )
        self.config = config
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = Layers(config, rngs=rngs)

    def __call__(
        self,
        ids: Int[Array, "R T"],
        mask: Bool[Array, "R T"],
        *,
        positions: Int[Array, "R T"] | None = None,
        segment_ids: Int[Array, "R T"] | None = None,
        token_types: Int[Array, "R T"] | None = None,
        row_seeds: UInt32[Array, " R"] | None = None,
        layers: int | None = None,
    ) -> Float[Array, "R T D"]:
        """Encode rows of tokens.

        Args:
          ids: ``[R, T]`` word pieces, each below ``vocab_size``.
          mask: ``[R, T]`` bool; False marks padding. Outputs there are finite and mean nothing.
          positions: ``[R, T]`` rows of the position table; None counts as Hugging Face does, from
            the start of each segment.
          segment_ids: ``[R, T]``, equal for the tokens of one text where several are packed into
            a row; each text's tokens must be neighbours. None: one text a row.
          token_types: ``[R, T]`` BERT's sentence A or B; None is all 0.
          row_seeds: ``[R]`` seeds of dropout; None turns it off.
          layers: how many to run, from the lowest; None runs all.

        Returns:
          ``[R, T, D]`` vectors in the dtype of the computation.

        Raises:
          ValueError: if the rows are longer than the position table, and neither positions nor
            segments are given.
        """
        config = self.config
        stored = self.embeddings.word.embedding[...].dtype
        compute = jnp.dtype("float64" if stored == jnp.float64 else config.dtype)
        wide = jnp.dtype("float64" if compute == jnp.float64 else "float32")
        x = self._embed(ids, positions, segment_ids, token_types)
        x = self.embeddings.norm(x.astype(wide), compute)
        x = dropout(x, config.hidden_dropout_prob, row_seeds, 0)
        bias = attention_bias(mask, segment_ids, wide)

        def body(x: Array, layer: tuple[Layers, Array]) -> tuple[Array, None]:
            module, number = layer
            return module(x, bias, row_seeds, number * jnp.uint32(_SITES) + jnp.uint32(1)), None

        numbers = jnp.arange(config.num_hidden_layers, dtype=jnp.uint32)
        run = (self.layers, numbers)
        run = run if layers is None else jax.tree.map(lambda leaf: leaf[:layers], run)
        # A loop copies what the backward pass needs into arrays of all layers: on one CPU, a tenth
        # of a training step. There the layers are laid out; compiling takes longer.
        x, _ = jax.lax.scan(
            jax.checkpoint(body) if config.remat else body,
            x,
            run,
            unroll=on_one_cpu() and not config.remat,
        )
        return x

    def _embed(
        self,
        ids: Int[Array, "R T"],
        positions: Int[Array, "R T"] | None,
        segment_ids: Int[Array, "R T"] | None,
        token_types: Int[Array, "R T"] | None,
    ) -> Float[Array, "R T D"]:
        """Add the rows of the three tables."""
        config, tables, tokens = self.config, self.embeddings, ids.shape[1]
        x: Array = look_up(tables.word.embedding[...], ids)
        if token_types is None:
            x = x + tables.token_type.embedding[...][None, :1]
        else:
            x = x + tables.token_type.embedding[...][token_types]
        if positions is None and segment_ids is None:
            if tokens > config.max_length:
                raise ValueError(
                    f"encoder: rows of {tokens} tokens, but the position table serves "
                    f"{config.max_length}; cut the texts to {config.max_length} tokens"
                )
            if config.model_type == "bert":  # a slice: its gradient needs no scatter
                return x + tables.position.embedding[...][None, :tokens]
        if positions is None:
            positions = _default_positions(config, ids, segment_ids)
        return x + tables.position.embedding[...][positions]


def _default_positions(
    config: EncoderConfig, ids: Int[Array, "R T"], segment_ids: Int[Array, "R T"] | None
) -> Int[Array, "R T"]:
    """Count tokens from the start of each segment; RoBERTa's kinds skip padding in the count."""
    counted: Array = jnp.ones_like(ids)
    if config.model_type != "bert":
        counted = jnp.not_equal(ids, config.pad_token_id or 0).astype(ids.dtype)
    count = jnp.cumsum(counted, axis=1, dtype=ids.dtype)
    if segment_ids is not None:
        place = jax.lax.broadcasted_iota(ids.dtype, ids.shape, 1)
        begins = segment_ids != jnp.roll(segment_ids, 1, axis=1)
        start = jax.lax.cummax(jnp.where(begins, place, jnp.zeros_like(place)), axis=1)
        count = count - jnp.take_along_axis(count - counted, start, axis=1)
    return count * counted + jnp.asarray(config.position_offset, ids.dtype)


def _param_dtype(config: EncoderConfig) -> jnp.dtype:
    return jnp.dtype("float64" if config.dtype == "float64" else "float32")


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], config: EncoderConfig) -> Array:
    values = jax.random.normal(rngs.params(), shape, _param_dtype(config))
    return values * jnp.asarray(config.initializer_range, values.dtype)
