r"""How near two sentences are, for retrievers of either kind.

.. math::
  \phi(x, y) = \frac{1}{2} \Big( \frac{1}{|x|} \sum_i \max_j \cos(x_i, y_j)
    + \frac{1}{|y|} \sum_j \max_i \cos(x_i, y_j) \Big)

over the kept vectors of both: MaxSim in both directions, each divided by its number of vectors, so
that it is symmetric and from -1 to 1 whatever the lengths. With one vector a text (a dense
retriever) it is the cosine.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clir_jax.ops.maxsim import maxsim
from clir_jax.ops.pooling import unit


def sentence_similarity(
    x: Float[Array, "X Tx E"],
    x_mask: Bool[Array, "X Tx"],
    y: Float[Array, "Y Ty E"],
    y_mask: Bool[Array, "Y Ty"],
) -> Float[Array, "X Y"]:
    """Compare every sentence with every other.

    Args:
      x: ``[X, Tx, E]`` vectors; their lengths do not count.
      x_mask: ``[X, Tx]`` the vectors that count.
      y: ``[Y, Ty, E]`` vectors.
      y_mask: ``[Y, Ty]`` the vectors that count.

    Returns:
      ``[X, Y]``. A sentence without any vector is below -1,000 from every other.

    Example:
      >>> x = jnp.array([[[2.0, 0.0], [0.0, 1.0]]])
      >>> y = jnp.array([[[0.0, 3.0], [0.0, 0.0]]])
      >>> sentence_similarity(x, jnp.ones((1, 2), bool), y, jnp.array([[True, False]]))
      Array([[0.75]], dtype=float32)
    """
    x, y = unit(x), unit(y)
    there = maxsim(x, x_mask, y, y_mask)
    if x.shape[1] == y.shape[1] == 1:
        return there
    back = maxsim(y, y_mask, x, x_mask).T
    return (there / _count(x_mask, there)[:, None] + back / _count(y_mask, there)[None, :]) / 2


def _count(mask: Bool[Array, "S T"], like: Array) -> Float[Array, " S"]:
    return jnp.maximum(mask.sum(axis=1), 1).astype(like.dtype)
