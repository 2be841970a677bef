"""From the vectors of tokens to the vector of a text."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_SMALLEST = 1e-12  # norms below this count as zero; its square is still a normal float32


def mean_pool(
    hidden: Float[Array, "*batch T D"], keep: Bool[Array, "*batch T"]
) -> Float[Array, "*batch D"]:
    r"""Average the vectors of the tokens that count.

    With :math:`h` = ``hidden`` and :math:`k` = ``keep``,

    .. math::
      v = \sum_t k_t h_t \, / \, \max(1, \sum_t k_t)

    Args:
      hidden: ``[..., T, D]`` token vectors, summed in float32 or wider.
      keep: ``[..., T]`` bool; with nothing kept the result is 0, not NaN.

    Returns:
      ``[..., D]``, float32 or wider.

    Example:
      >>> hidden = jnp.array([[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]])
      >>> print(mean_pool(hidden, jnp.array([True, True, False])))
      [2. 3.]
    """
    wide = _wide(hidden)
    total = jnp.sum(wide, axis=-2, where=keep[..., None])
    count = jnp.sum(keep, axis=-1, keepdims=True, dtype=wide.dtype)
    return total / jnp.maximum(count, jnp.ones_like(count))


def max_pool(
    hidden: Float[Array, "*batch T D"], keep: Bool[Array, "*batch T"]
) -> Float[Array, "*batch D"]:
    r"""Take the largest value of each dimension over the tokens that count.

    .. math::
      v_d = \max_{t : k_t} h_{td}

    Args:
      hidden: ``[..., T, D]`` token vectors (h).
      keep: ``[..., T]`` bool (k); with nothing kept the result is 0, not minus infinity.

    Returns:
      ``[..., D]``, float32 or wider.
    """
    wide = _wide(hidden)
    largest = jnp.max(wide, axis=-2, where=keep[..., None], initial=-jnp.inf)
    return jnp.where(jnp.any(keep, axis=-1)[..., None], largest, jnp.zeros_like(largest))


def cls_pool(
    hidden: Float[Array, "*batch T D"], keep: Bool[Array, "*batch T"]
) -> Float[Array, "*batch D"]:
    """Take the vector of the first token, CLS, whether or not it is kept.

    Args:
      hidden: ``[..., T, D]`` token vectors.
      keep: not read; the three poolings are called alike.

    Returns:
      ``[..., D]``, float32 or wider.
    """
    del keep
    return _wide(hidden[..., 0, :])


def unit(vectors: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
    r"""Scale vectors to length 1.

    .. math::
      u = v / \lVert v \rVert_2

    Args:
      vectors: ``[..., E]`` (v).

    Returns:
      ``[..., E]``, float32 or wider. A zero vector stays zero and has a finite gradient, so that
      a masked token cannot turn a gradient into NaN.

    Example:
      >>> print(unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
      [[0.6 0.8]
       [0.  0. ]]
    """
    wide = _wide(vectors)
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    # The root is taken of 1 where the vector is zero: `where` after it would still differentiate
    # the root at 0, and infinity times zero is NaN.
    zero = square < _SMALLEST**2
    return wide / jnp.sqrt(jnp.where(zero, jnp.ones_like(square), square))


def _wide(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
