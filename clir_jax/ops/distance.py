"""Distances between the token vectors of two texts: of every pair, and under a plan."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clir_jax.mesh import rowwise
from clir_jax.ops.pooling import unit

DISTANCES = ("cosine", "mse", "l1")


def cosine_cost(x: Float[Array, "R Tx E"], y: Float[Array, "R Ty E"]) -> Float[Array, "R Tx Ty"]:
    r"""One minus the cosine of every token vector of one text with every one of the other.

    .. math:: C_{rij} = 1 - \frac{\langle x_{ri}, y_{rj} \rangle}{\|x_{ri}\| \|y_{rj}\|}

    Args:
      x: ``[R, Tx, E]`` vectors of any length. A zero vector (padding) costs 1 to everything, and
        its gradient is finite.
      y: ``[R, Ty, E]`` vectors of any length.

    Returns:
      ``[R, Tx, Ty]`` in [0, 2]; float32, or float64 when either side is float64.

    Example:
      >>> x = jnp.array([[[2.0, 0.0], [0.0, 0.0]]])
      >>> y = jnp.array([[[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
      >>> cosine_cost(x, y)
      Array([[[0., 1., 2.],
              [1., 1., 1.]]], dtype=float32)
    """
    dtype = compute_dtype(x, y)
    return 1 - _products(unit(x.astype(dtype)), unit(y.astype(dtype)))


def planned_distance(
    plan: Float[Array, "R Tx Ty"],
    x: Float[Array, "R Tx E"],
    y: Float[Array, "R Ty E"],
    distance: str,
) -> Float[Array, " R"]:
    r"""Distance of two texts under a plan: that of each pair of tokens, times the pair's mass.

    .. math:: \ell_r = \sum_{ij} P_{rij}\, d(x_{ri}, y_{rj}), \qquad
      d_{mse} = \frac{1}{E} \|x - y\|_2^2, \quad d_{l1} = \frac{1}{E} \|x - y\|_1, \quad
      d_{cosine} = 1 - \cos(x, y)

    Args:
      plan: ``[R, Tx, Ty]``.
      x: ``[R, Tx, E]``.
      y: ``[R, Ty, E]``.
      distance: ``"cosine"``, ``"mse"`` or ``"l1"``. On unit vectors ``"mse"`` is ``"cosine"`` times
        2 / E.

    Returns:
      ``[R]``. No pair's difference is kept: memory is that of the plan and, for ``"l1"``, of one
      token of ``x`` against all of ``y``.

    Example:
      >>> x, y = jnp.ones((1, 1, 4)), jnp.array([[[1.0, 1.0, 1.0, -1.0]]])
      >>> [float(planned_distance(jnp.ones((1, 1, 1)), x, y, d)[0]) for d in DISTANCES]
      [0.5, 1.0, 0.5]
    """
    dtype = compute_dtype(x, y)
    plan, x, y = (part.astype(dtype) for part in (plan, x, y))
    if distance == "cosine":
        return (plan * cosine_cost(x, y)).sum(axis=(1, 2))
    if distance == "l1":
        # By this device's rows, so that a loop over tokens needs nothing of another device.
        return rowwise(lambda _, rows: _absolute(*rows), None, (plan, x, y))
    squares = (jnp.square(v).mean(axis=-1) for v in (x, y))
    ends = sum((plan.sum(axis=2 - i) * square).sum(axis=1) for i, square in enumerate(squares))
    return ends - 2 / x.shape[-1] * (plan * _products(x, y)).sum(axis=(1, 2))


def compute_dtype(*arrays: Array) -> np.dtype:
    """Float64 where one of the arrays is, else float32."""
    wide = any(x.dtype == jnp.float64 for x in arrays)
    return np.dtype(np.float64 if wide else np.float32)


def _absolute(plan: Array, x: Array, y: Array) -> Array:
    def token(one: tuple[Array, Array]) -> Array:
        mass, vector = one
        difference = vector[:, None, :] - y
        # Equal vectors ask for no change; JAX gives |0| the slope 1.
        size = difference * jax.lax.stop_gradient(jnp.sign(difference))
        return (mass * size.mean(axis=-1)).sum(axis=-1)

    tokens = plan.swapaxes(0, 1), x.swapaxes(0, 1)
    by_token: Array = jax.lax.map(jax.checkpoint(token, prevent_cse=False), tokens)
    return by_token.sum(axis=0)


def _products(x: Array, y: Array) -> Array:
    # Full precision: accelerators multiply float32 in bfloat16 by default, and an error of 0.01 in
    # a cost is one fifth of an epsilon of 0.05.
    return jnp.einsum("rxe,rye->rxy", x, y, precision="highest")
