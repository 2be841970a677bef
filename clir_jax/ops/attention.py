"""Attention: what may attend to what, and the weighted mean of the values."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from clir_jax.ops.dropout import dropout

# Finite, so that a row of padding only gives a finite mean, not 0 / 0; exp of it is exactly 0.
_NEVER = -1e9
# Fixed, so that a probability's dropout bit does not move when T is padded; no two bits are shared
# up to 4,096 tokens and 256 heads.
_DROPOUT_STRIDES = (1 << 24, 1 << 12, 1)


def attention_bias(
    mask: Bool[Array, "R T"], segment_ids: Int[Array, "R T"] | None, dtype: jnp.dtype
) -> Float[Array, "R 1 #T T"]:
    """Say which tokens may attend to which, as numbers to add to the scores.

    Args:
      mask: ``[R, T]`` bool; False marks padding, which no token attends to.
      segment_ids: ``[R, T]`` int; tokens attend only to tokens of an equal number. None: each row
        is one segment.
      dtype: dtype of the result.

    Returns:
      0 where the last axis may be attended to, a large negative number elsewhere: ``[R, 1, 1, T]``
      without segments and ``[R, 1, T, T]`` with them.
    """
    allowed = mask[:, None, None, :]
    if segment_ids is not None:
        allowed = allowed & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    return jnp.where(allowed, jnp.zeros((), dtype), jnp.asarray(_NEVER, dtype))


def attend(
    query: Float[Array, "R T D"],
    key: Float[Array, "R S D"],
    value: Float[Array, "R S D"],
    bias: Float[Array, "#R #H #T S"],
    heads: int,
    *,
    scale: float | None = None,
    rate: float = 0.0,
    seeds: UInt32[Array, " R"] | None = None,
    salt: int | Int[Array, ""] | UInt32[Array, ""] = 0,
) -> Float[Array, "R T D"]:
    r"""Replace each token by a mean of the values, weighted by how well query and key agree.

    For every head, with queries :math:`q`, keys :math:`k`, values :math:`v` of size :math:`K`,

    .. math:: o_i = \sum_j \mathrm{softmax}_j(scale \; q_i \cdot k_j + bias_{ij}) \, v_j

    Args:
      query: ``[R, T, D]``; the heads lie side by side in D.
      key: ``[R, S, D]``; S = T where a row attends to itself.
      value: ``[R, S, D]``.
      bias: ``[R or 1, H or 1, T or 1, S]``, from ``attention_bias`` for instance; its dtype is that
        of the softmax.
      heads: number of heads; divides D.
      scale: None takes :math:`1 / \sqrt{K}`.
      rate: share of the probabilities that dropout sets to zero.
      seeds: ``[R]`` uint32 seeds of dropout; None turns it off.
      salt: the number of this place for dropout; may be traced.

    Returns:
      ``[R, T, D]``, dtype of ``query``.
    """
    rows, tokens, width = query.shape
    size = width // heads
    query = query * jnp.asarray(size**-0.5 if scale is None else scale, query.dtype)
    q = query.reshape(rows, tokens, heads, size).transpose(0, 2, 1, 3)
    k = key.reshape(rows, -1, heads, size).transpose(0, 2, 3, 1)
    v = value.reshape(rows, -1, heads, size).transpose(0, 2, 1, 3)
    scores = jnp.matmul(q, k, preferred_element_type=bias.dtype) + bias
    # The sum divides the result [T, K], not the weights [T, T]: 10 % of the CPU time of attention.
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = dropout(weights, rate, seeds, salt, strides=_DROPOUT_STRIDES)
    mixed = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=bias.dtype) / total
    return mixed.astype(query.dtype).transpose(0, 2, 1, 3).reshape(rows, tokens, width)
