"""The parts of a T5: norms, attention, feed-forward parts, and one side made of them.

As in ``encoder.py``, parameters of all layers are stacked and run by one ``scan``, and dropout is a
function of one seed per row.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt32

from clir_jax.mesh import on_one_cpu
from clir_jax.models.t5_config import T5Config
from clir_jax.ops.activation import ACTIVATIONS
from clir_jax.ops.attention import attend, attention_bias
from clir_jax.ops.dropout import dropout
from clir_jax.ops.norm import rms_norm
from clir_jax.ops.relative_position import position_buckets

_SITES = 6  # places of dropout in a layer: two in each attention, two in the feed-forward part
_NEVER = -1e9  # finite; exp of it is exactly 0


class Table(nnx.Module):
    """Rows to look up by number: ``embedding [V, D]``."""

    def __init__(self, shape: tuple[int, int], std: float, config: T5Config, rngs: nnx.Rngs):
        self.embedding = nnx.Param(_normal(shape, std, config, rngs))


class Embeddings(nnx.Module):
    """The table of word embeddings, which both sides read."""

    def __init__(self, shape: tuple[int, int], config: T5Config, rngs: nnx.Rngs) -> None:
        self.word = Table(shape, 1.0, config, rngs)


class Linear(nnx.Module):
    """One linear map without bias for each layer: ``kernel [L, in, out]``."""

    def __init__(
        self, shape: tuple[int, int, int], std: float, config: T5Config, rngs: nnx.Rngs
    ) -> None:
        self.kernel = nnx.Param(_normal(shape, std, config, rngs))

    def __call__(self, x: Float[Array, "R T F"]) -> Float[Array, "R T G"]:
        """Apply one layer's slice, in the dtype of ``x``."""
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """Normalisation by the mean square over D: ``scale [..., D]``."""

    def __init__(self, shape: tuple[int, ...], config: T5Config) -> None:
        self.config = config
        self.scale = nnx.Param(jnp.ones(shape, _stored(config)))

    def __call__(self, x: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        """Normalise in the dtype of ``x`` and return that of the computation."""
        scale = self.scale[...]
        y = rms_norm(x, scale.astype(x.dtype), self.config.layer_norm_epsilon)
        return y.astype(jnp.float64 if scale.dtype == jnp.float64 else self.config.dtype)


class Attention(nnx.Module):
    """The attention of all layers, to the row itself or to the source, with its norm."""

    def __init__(self, layers: int, config: T5Config, rngs: nnx.Rngs) -> None:
        self.config = config
        width, inner = config.d_model, config.num_heads * config.d_kv
        into, out = (layers, width, inner), (layers, inner, width)
        # Scores are not divided by sqrt(K); the queries' first weights are, instead.
        self.query = Linear(into, (width * config.d_kv) ** -0.5, config, rngs)
        self.key = Linear(into, width**-0.5, config, rngs)
        self.value = Linear(into, width**-0.5, config, rngs)
        self.output = Linear(out, inner**-0.5, config, rngs)
        self.norm = RMSNorm((layers, width), config)

    def read(self, h: Float[Array, "R S D"]) -> tuple[Array, Array]:
        """Keys and values ``[R, S, H K]`` of what is attended to."""
        return self.key(h), self.value(h)

    def __call__(
        self,
        h: Float[Array, "R T D"],
        keys: Float[Array, "R S I"],
        values: Float[Array, "R S I"],
        bias: Float[Array, "#R #H #T S"],
        seeds: UInt32[Array, " R"] | None = None,
        salt: UInt32[Array, ""] | int = 0,
    ) -> Float[Array, "R T D"]:
        """What to add to the residual, in the dtype of ``bias``."""
        rate = self.config.dropout_rate
        mixed = attend(
            self.query(h), keys, values, bias, self.config.num_heads, scale=1.0, rate=rate,
            seeds=seeds, salt=salt,
        )  # fmt: skip
        return dropout(self.output(mixed), rate, seeds, salt + 1).astype(bias.dtype)


class MLP(nnx.Module):
    """The feed-forward part of all layers, with its norm."""

    def __init__(self, layers: int, config: T5Config, rngs: nnx.Rngs) -> None:
        self.config = config
        width, inner = config.d_model, config.d_ff
        if config.gated:
            self.gate = Linear((layers, width, inner), width**-0.5, config, rngs)
        self.up = Linear((layers, width, inner), width**-0.5, config, rngs)
        self.down = Linear((layers, inner, width), inner**-0.5, config, rngs)
        self.norm = RMSNorm((layers, width), config)

    def __call__(
        self,
        x: Float[Array, "R T D"],
        seeds: UInt32[Array, " R"] | None = None,
        salt: UInt32[Array, ""] | int = 0,
    ) -> Float[Array, "R T D"]:
        """What to add to the residual ``x``, in its dtype."""
        rate, h = self.config.dropout_rate, self.norm(x)
        if self.config.gated:
            h = ACTIVATIONS["gelu_new"](self.gate(h)) * self.up(h)
        else:
            h = ACTIVATIONS["relu"](self.up(h))
        h = self.down(dropout(h, rate, seeds, salt))
        return dropout(h, rate, seeds, salt + 1).astype(x.dtype)


class Layers(nnx.Module):
    """All layers of one side; every parameter has a leading axis L, which ``scan`` removes."""

    def __init__(self, layers: int, decoder: bool, config: T5Config, rngs: nnx.Rngs) -> None:
        self.attention = Attention(layers, config, rngs)
        if decoder:
            self.cross_attention = Attention(layers, config, rngs)
        self.mlp = MLP(layers, config, rngs)

    def __call__(
        self,
        x: Float[Array, "R T D"],
        bias: Float[Array, "#R #H T T"],
        source: tuple[Array, Array] | None,
        seeds: UInt32[Array, " R"] | None,
        salt: UInt32[Array, ""],
    ) -> Float[Array, "R T D"]:
        """Run one layer (of which ``self`` holds the slice); ``salt`` numbers its first dropout."""
        a = self.attention
        h = a.norm(x)
        x = x + a(h, *a.read(h), bias, seeds, salt)
        if source is not None:
            encoded, source_bias = source
            c = self.cross_attention
            x = x + c(c.norm(x), *c.read(encoded), source_bias, seeds, salt + 2)
        return x + self.mlp(x, seeds, salt + 4)


class Side(nnx.Module):
    """The encoder or the decoder: relative positions, layers and the last norm."""

    def __init__(self, layers: int, decoder: bool, config: T5Config, rngs: nnx.Rngs) -> None:
        self.config = config
        self.depth = layers
        self.decoder = decoder
        std = config.d_model**-0.5
        shape = (config.relative_attention_num_buckets, config.num_heads)
        self.position_bias = Table(shape, std, config, rngs)
        self.layers = Layers(layers, decoder, config, rngs)
        self.norm = RMSNorm((config.d_model,), config)

    def position(self, length: int, dtype: jnp.dtype) -> Float[Array, "1 H T T"]:
        """What to add to the scores of each pair of positions; later ones never, in a decoder."""
        buckets = position_buckets(
            length,
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
            both_sides=not self.decoder,
        )
        bias = self.position_bias.embedding[...][buckets].astype(dtype).transpose(2, 0, 1)[None]
        if not self.decoder:
            return bias
        earlier = np.tril(np.ones((length, length), bool))[None, None]
        return jnp.where(earlier, bias, jnp.asarray(_NEVER, dtype))

    def __call__(
        self,
        x: Float[Array, "R T D"],
        mask: Bool[Array, "R T"] | None,
        source: tuple[Array, Array] | None,
        seeds: UInt32[Array, " R"] | None,
        salt: int,
    ) -> Float[Array, "R T D"]:
        """Run all layers and the last norm; uses the salts from ``salt`` on."""
        config = self.config
        x = dropout(x, config.dropout_rate, seeds, salt)
        position = self.position(x.shape[1], x.dtype)
        padding = None if mask is None else attention_bias(mask, None, x.dtype)

        def body(x: Array, layer: tuple[Layers, Array]) -> tuple[Array, None]:
            module, number = layer
            # Added here, not before the loop: [R, H, T, T] is then never in memory.
            bias = position if padding is None else position + padding
            return module(x, bias, source, seeds, number * _SITES + salt + 1), None

        run = (self.layers, jnp.arange(self.depth, dtype=jnp.uint32))
        x, _ = jax.lax.scan(
            jax.checkpoint(body) if config.remat else body,
            x,
            run,
            unroll=on_one_cpu() and not config.remat,  # as in encoder.py
        )
        return dropout(self.norm(x), config.dropout_rate, seeds, self.last_salt(salt))

    def last_salt(self, salt: int) -> int:
        """The last salt in use, if ``salt`` is the first."""
        return salt + 1 + _SITES * self.depth


def wide_dtype(stored: jnp.dtype) -> jnp.dtype:
    """The dtype of residual sums, softmax and logits, for parameters of dtype ``stored``."""
    return jnp.dtype("float64" if stored == jnp.float64 else "float32")


def _stored(config: T5Config) -> jnp.dtype:
    return jnp.dtype("float64" if config.dtype == "float64" else "float32")


def _normal(shape: tuple[int, ...], std: float, config: T5Config, rngs: nnx.Rngs) -> Array:
    values = jax.random.normal(rngs.params(), shape, _stored(config))
    return values * jnp.asarray(std * config.initializer_factor, values.dtype)
