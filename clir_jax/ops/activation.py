"""The nonlinear functions between the two products of a feed-forward layer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""The exact GELU, :math:`x \, \Phi(x)` with the normal distribution function :math:`\Phi`.

    The backward pass needs ``x`` only: left to automatic differentiation, a CPU also writes and
    reads what lies between, arrays of the width of the feed-forward layer.

    Args:
      x: any shape, any float dtype.

    Returns:
      Shape and dtype of ``x``.

    Example:
      >>> [f"{y:.4f}" for y in gelu(jnp.array([-1.0, 0.0, 1.0]))]
      ['-0.1587', '0.0000', '0.8413']

    References:
      Hendrycks and Gimpel, Gaussian Error Linear Units, 2016, arXiv:1606.08415.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def _forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _backward(x: Array, gradient: Array) -> tuple[Array]:
    # Not by erf: the compiler would find the forward's, and keep it in memory until here.
    below = 0.5 * jax.lax.erfc(x * -(0.5**0.5))
    density = jnp.exp(-0.5 * x * x) * (0.5 / jnp.pi) ** 0.5
    return (gradient * (below + x * density),)


gelu.defvjp(_forward, _backward)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
