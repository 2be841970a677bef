"""Relative positions in buckets: near ones each have their own, far ones share."""

import math

import numpy as np
from jaxtyping import Int


def position_buckets(
    length: int, buckets: int, max_distance: int, *, both_sides: bool
) -> Int[np.ndarray, "T T"]:
    r"""Number the bucket of every pair of positions, as T5 does.

    With the distance :math:`n`, :math:`E` = N / 2 of the :math:`N` buckets for exact distances and
    the largest distance :math:`m`,

    .. math::
      b(n) = n \text{ for } n < E, \quad b(n) = \min(E + \lfloor s(n) \rfloor, N - 1), \quad
      s(n) = \frac{\log(n / E)}{\log(m / E)} (N - E)

    Args:
      length: T.
      buckets: how many there are in all; with both sides, half of them for each.
      max_distance: m.
      both_sides: whether a position reads later ones too, whose buckets are the second half. If
        not, all later ones are in bucket 0.

    Returns:
      ``[T, T]`` int32, the bucket of query position i and key position j; computed on the host, so
      equal on every device.

    Example:
      >>> position_buckets(4, 8, 16, both_sides=True)[1].tolist()
      [1, 0, 5, 6]

    References:
      Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text
      Transformer, JMLR 2020, arXiv:1910.10683, section 2.1.
    """
    apart = np.arange(length)[None, :] - np.arange(length)[:, None]  # key less query
    side = buckets // 2 if both_sides else buckets
    first = np.where(apart > 0, side, 0) if both_sides else 0
    distance = np.abs(apart) if both_sides else np.maximum(-apart, 0)
    exact = side // 2
    # Rounded to float32 after every operation, as the model was trained: exact powers land where
    # they did.
    share = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    share = share / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    far = np.minimum(exact + share.astype(np.int64), side - 1)
    return np.asarray(first + np.where(distance < exact, distance, far), np.int32)
