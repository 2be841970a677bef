"""Dropout whose mask is a function of a seed per row, not of a random state.

A row keeps its mask however the batch is chunked, padded or spread over devices, because every
element's bit is a hash of (row seed, salt of the site, position in the row) and of nothing else.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

# Odd, so that multiplying by it permutes the 32-bit numbers; the golden ratio spreads small salts.
_GOLDEN = 0x9E3779B9
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)  # hash-prospector's 32-bit pair of lowest known bias


def hash32(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Map 32-bit numbers to 32-bit numbers one to one, so that near inputs give unrelated outputs.

    Args:
      x: any shape, uint32.

    Returns:
      The hash of every element; same shape, uint32.
    """
    first, second = (jnp.uint32(m) for m in _MULTIPLIERS)
    x = (x ^ (x >> jnp.uint32(16))) * first
    x = (x ^ (x >> jnp.uint32(15))) * second
    x = x ^ (x >> jnp.uint32(16))
    return x


def row_bits(
    shape: Sequence[int],
    seeds: UInt32[Array, " R"],
    salt: int | Int[Array, ""] | UInt32[Array, ""],
    strides: Sequence[int],
) -> UInt32[Array, "R ..."]:
    r"""Give every element of an array 32 random bits that depend on its row's seed and its place.

    With :math:`h` = ``hash32`` in two rounds, seed :math:`s_r`, salt :math:`a` and strides
    :math:`d_j`,

    .. math:: bits_{r i_1 i_2 \dots} = h_{s_r, a}\Big(\sum_j d_j i_j\Big)

    Args:
      shape: ``(R, ...)``, the shape of the result.
      seeds: ``[R]`` uint32, one a row; consecutive numbers are good enough.
      salt: a number per place of use, equal in no two of them.
      strides: one for each axis after the first. Elements whose sums agree share their bits; a sum
        is taken modulo 2 ** 32.

    Returns:
      ``[R, ...]`` uint32.
    """
    salt = jnp.asarray(salt).astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    ones = (1,) * (len(shape) - 1)
    start = hash32(hash32(seeds) + salt).reshape(-1, *ones)
    # A second number in mid-hash: two rows whose ranges of counters overlap still differ.
    twist = hash32(start + jnp.uint32(_GOLDEN))
    index = jnp.zeros((1, *shape[1:]), jnp.uint32)
    for axis, stride in enumerate(strides, start=1):
        place = jax.lax.broadcasted_iota(jnp.uint32, index.shape, axis)
        index = index + place * jnp.uint32(stride)
    first, second = (jnp.uint32(m) for m in _MULTIPLIERS)
    bits: Array = index + start
    bits = (bits ^ (bits >> jnp.uint32(16))) * first
    bits = (bits ^ (bits >> jnp.uint32(15)) ^ twist) * second
    bits = bits ^ (bits >> jnp.uint32(16))
    return bits


def dropout(
    x: Float[Array, "R ..."],
    rate: float,
    seeds: UInt32[Array, " R"] | None,
    salt: int | Int[Array, ""] | UInt32[Array, ""],
    *,
    strides: Sequence[int] | None = None,
) -> Float[Array, "R ..."]:
    r"""Set a share of the elements to zero and scale up the others, one mask for each row seed.

    With bits :math:`b` from ``row_bits``,

    .. math:: y = x \cdot [\, b \ge 2^{32} \, rate \,] / (1 - rate)

    Args:
      x: ``[R, ...]``, any float dtype.
      rate: the expected share of zeros, a Python number in [0, 1).
      seeds: ``[R]`` uint32, one for each row; None turns dropout off.
      salt: a number that differs between all uses of one seed (layer and site); may be traced.
      strides: the weight of each axis after the first in an element's number. None counts
        elements in memory order, which does not depend on the size of axis 1: padding the
        tokens of ``[R, T, D]`` changes no mask. Where a later axis is padded, pass fixed strides.

    Returns:
      ``[R, ...]``, dtype of ``x``; ``x`` itself where ``seeds`` is None or ``rate`` is 0.

    Raises:
      ValueError: if ``rate`` is outside [0, 1).

    Example:
      >>> seeds = jnp.arange(2, dtype=jnp.uint32)
      >>> y = dropout(jnp.ones((2, 1000)), 0.25, seeds, salt=0)
      >>> print(f"{y.max():.4f} {abs(y.mean() - 1) < 0.05}")
      1.3333 True
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout: rate is {rate}; write a number from 0 up to, not including, 1")
    if seeds is None or rate == 0.0:
        return x
    if strides is None:
        strides = [_size(x.shape[axis + 1 :]) for axis in range(1, x.ndim)]
    threshold = jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    keep = row_bits(x.shape, seeds, salt, strides) >= threshold
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
