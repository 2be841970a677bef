"""T5 and mT5: an encoder that reads a text, and a decoder that writes another.

The decoder runs in two ways with the same parameters: over a given
target at once (``decode``), or token by token with the keys and values of earlier tokens kept
(``begin``, ``step``).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from clir_jax.mesh import look_up
from clir_jax.models.requests import pytree
from clir_jax.models.t5_config import T5Config as T5Config
from clir_jax.models.t5_layers import Embeddings, Side, Table, wide_dtype
from clir_jax.ops.attention import attention_bias
from clir_jax.tree import path_of


@pytree
class Cache:
    """What the decoder keeps between steps: keys and values of the tokens so far.

    Args:
      keys: ``[L, rows * beams, T, H K]``; zeros where no token is yet.
      values: as ``keys``.
    """

    keys: Float[Array, "L X T I"]
    values: Float[Array, "L X T I"]


@pytree
class Fixed:
    """What stays the same in all steps of one batch.

    Args:
      keys: ``[L, R, S, H K]`` of the source.
      values: as ``keys``.
      source_bias: ``[R, 1, 1, S]``, which of the source is padding.
      position: ``[1, H, T, T]``, the bias of relative positions.
    """

    keys: Float[Array, "L R S I"]
    values: Float[Array, "L R S I"]
    source_bias: Float[Array, "R 1 1 S"]
    position: Float[Array, "1 H T T"]


class T5(nnx.Module):
    """Equal to Hugging Face's ``T5ForConditionalGeneration`` and ``MT5ForConditionalGeneration``.

    Row i of every output depends on row i of the inputs only. Rows are padded on the right.

    Args:
      config: size, kind and dtype.
      rngs: source of the initial weights (stream ``params``).

    Raises:
      ValueError: if ``config.dtype`` is ``float64`` and JAX's 64-bit mode is off.

    Example:
      >>> config = T5Config(vocab_size=99, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
      >>> ids, mask = jnp.ones((3, 5), jnp.int32), jnp.ones((3, 5), bool)
      >>> def score():
      ...     model = T5(config, rngs=nnx.Rngs(0))
      ...     return model.logits(model.decode(ids[:, :2], model.encode(ids, mask), mask))
      >>> jax.eval_shape(score).shape
      (3, 2, 99)
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        if config.dtype == "float64" and jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64:
            raise ValueError(
                "t5: dtype 'float64' needs JAX's 64-bit mode; "
                'call jax.config.update("jax_enable_x64", True) first, or write dtype="float32"'
            )
        self.config = config
        shape = (config.vocab_size, config.d_model)
        self.embeddings = Embeddings(shape, config, rngs)
        self.encoder = Side(config.num_layers, False, config, rngs)
        self.decoder = Side(config.decoder_layers, True, config, rngs)
        if not config.tie_word_embeddings:  # the first logits then have a spread of about 1
            self.head = Table(shape, config.d_model**-0.5, config, rngs)

    def encode(
        self,
        ids: Int[Array, "R S"],
        mask: Bool[Array, "R S"],
        row_seeds: UInt32[Array, " R"] | None = None,
    ) -> Float[Array, "R S D"]:
        """Read sources.

        Args:
          ids: ``[R, S]`` word pieces.
          mask: ``[R, S]`` bool; False marks padding.
          row_seeds: ``[R]`` seeds of dropout; None turns it off.

        Returns:
          ``[R, S, D]`` vectors in the dtype of the computation.
        """
        return self.encoder(self._embed(ids), mask, None, row_seeds, 0)

    def decode(
        self,
        inputs: Int[Array, "R T"],
        encoded: Float[Array, "R S D"],
        mask: Bool[Array, "R S"],
        row_seeds: UInt32[Array, " R"] | None = None,
    ) -> Float[Array, "R T D"]:
        """Read targets that are known, all tokens at once.

        Args:
          inputs: ``[R, T]``, the start token and then the target without its last token; position
            t sees the inputs up to t, so padding on the right changes nothing before it.
          encoded: from ``encode``.
          mask: of the source.
          row_seeds: ``[R]`` seeds of dropout, those of ``encode``; None turns it off.

        Returns:
          ``[R, T, D]``, for ``logits``.
        """
        x = self._embed(inputs)
        source = (encoded, attention_bias(mask, None, x.dtype))
        return self._scaled(self.decoder(x, None, source, row_seeds, self.encoder.last_salt(0) + 1))

    def begin(
        self, encoded: Float[Array, "R S D"], mask: Bool[Array, "R S"], length: int, beams: int = 1
    ) -> tuple[Fixed, Cache]:
        """Prepare to write ``length`` tokens a row, on ``beams`` beams: what stays and what grows.

        The source's keys and values are computed here, once.
        """
        cross = self.decoder.layers.cross_attention
        _, (keys, values) = jax.lax.scan(lambda _, c: (None, c.read(encoded)), None, cross)
        wide = wide_dtype(self.embeddings.word.embedding[...].dtype)
        position = self.decoder.position(length, wide)
        fixed = Fixed(keys, values, attention_bias(mask, None, wide), position)
        shape = (keys.shape[0], keys.shape[1] * beams, length, keys.shape[-1])
        empty = jnp.zeros(shape, keys.dtype)
        return fixed, Cache(empty, empty)

    def step(
        self, ids: Int[Array, "R B"], place: Int[Array, ""], fixed: Fixed, cache: Cache
    ) -> tuple[Float[Array, "R B D"], Cache]:
        """Read one more token on every beam.

        Args:
          ids: ``[R, B]``, the tokens at ``place``; the start token at 0.
          place: how many tokens came before.
          fixed: from ``begin``.
          cache: keys and values of those.

        Returns:
          ``[R, B, D]``, for ``logits``, and the cache with this token in it.
        """
        rows, beams = ids.shape
        bias = jax.lax.dynamic_slice_in_dim(fixed.position, place, 1, axis=2)

        # The cache is carried, not stacked anew: the compiler then changes it in place.
        def body(carry: tuple[Array, Cache], layer: Any) -> tuple[tuple[Array, Cache], None]:
            x, cache = carry
            module, keys, values, number = layer
            a, c = module.attention, module.cross_attention
            h = a.norm(x)
            at = (number, jnp.zeros_like(number), place, jnp.zeros_like(number))
            kept = zip((cache.keys, cache.values), a.read(h), strict=True)
            cache = Cache(*(jax.lax.dynamic_update_slice(old, y[None], at) for old, y in kept))
            x = x + a(h, cache.keys[number], cache.values[number], bias)
            # The beams of a row read one source: to it they are as many query tokens.
            h = c.norm(x).reshape(rows, beams, -1)
            x = x + c(h, keys, values, fixed.source_bias).reshape(x.shape)
            return (x + module.mlp(x), cache), None

        numbers = jnp.arange(self.decoder.depth, dtype=place.dtype)
        run = (self.decoder.layers, fixed.keys, fixed.values, numbers)
        x = self._embed(ids.reshape(-1, 1))
        (x, cache), _ = jax.lax.scan(body, (x, cache), run)
        return self._scaled(self.decoder.norm(x)).reshape(rows, beams, -1), cache

    def head_table(self) -> Float[Array, "V D"]:
        """The vectors of all tokens, in the dtype of the computation, for ``logits``."""
        tied = self.config.tie_word_embeddings
        table = (self.embeddings.word if tied else self.head).embedding[...]
        return table.astype(table.dtype if table.dtype == jnp.float64 else self.config.dtype)

    def logits(
        self, hidden: Float[Array, "*rows D"], table: Float[Array, "V D"] | None = None
    ) -> Float[Array, "*rows V"]:
        """Score every token of the vocabulary, in float32 or wider.

        Args:
          hidden: from ``decode`` or ``step``.
          table: ``head_table()``, where it has been made already.
        """
        table = self.head_table() if table is None else table
        return jax.lax.dot_general(
            hidden,
            table,
            (((hidden.ndim - 1,), (1,)), ((), ())),
            preferred_element_type=wide_dtype(table.dtype),
        )

    def _embed(self, ids: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        table = self.embeddings.word.embedding[...]
        x: Array = look_up(table, ids)
        return x.astype(wide_dtype(table.dtype))

    def _scaled(self, hidden: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        if not self.config.scale_decoder_outputs:
            return hidden
        return hidden * jnp.asarray(self.config.d_model**-0.5, hidden.dtype)


def in_compute_dtype(model: T5) -> T5:
    """The same model with its kernels in the dtype of the computation, for many steps of it."""
    graphdef, params = nnx.split(model)

    def cast(path: Any, leaf: Array) -> Array:
        keep = leaf.dtype == jnp.float64 or not path_of(path).endswith("/kernel")
        return leaf if keep else leaf.astype(model.config.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(cast, params))
