"""Layer normalisation, with the backward pass written out, and its plainer relative."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "R T D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "R T D"]:
    r"""Normalise every token's vector to mean 0 and variance 1, then scale and shift it.

    With :math:`\mu` and :math:`\sigma^2` the mean and variance over D, :math:`g` = ``scale`` and
    :math:`b` = ``bias``,

    .. math::
      y = g \hat x + b, \quad \hat x = (x - \mu) r, \quad r = (\sigma^2 + \epsilon)^{-1/2}

    The backward pass reads :math:`\hat x` and :math:`r` only, once each:

    .. math::
      \frac{\partial L}{\partial x} = r \, (h - \overline{h} - \hat x \, \overline{h \hat x}), \quad
      h = g \frac{\partial L}{\partial y}

    where a bar is the mean over D.

    Args:
      x: ``[R, T, D]``, float32 or wider.
      scale: ``[D]``, dtype of ``x``.
      bias: ``[D]``, dtype of ``x``.
      eps: added to the variance.

    Returns:
      ``[R, T, D]``, dtype of ``x``.

    References:
      Ba, Kiros and Hinton, Layer Normalization, 2016, arXiv:1607.06450.
    """
    return _forward(x, scale, bias, eps)[0]


def _forward(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, tuple[Array, ...]]:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    root = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    x = x * root
    return x * scale[None, None, :] + bias[None, None, :], (x, root, scale)


def _backward(eps: float, kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    del eps
    x, root, scale = kept
    h = gradient * scale[None, None, :]
    shared = jnp.mean(h, axis=-1, keepdims=True) + x * jnp.mean(h * x, axis=-1, keepdims=True)
    return (h - shared) * root, jnp.sum(gradient * x, axis=(0, 1)), jnp.sum(gradient, axis=(0, 1))


layer_norm.defvjp(_forward, _backward)


def rms_norm(
    x: Float[Array, "R T D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "R T D"]:
    r"""Scale every token's vector to mean square 1, then by ``scale``; nothing is shifted.

    With :math:`g` = ``scale``,

    .. math:: y = g x \, \Big(\frac{1}{D} \sum_d x_d^2 + \epsilon\Big)^{-1/2}

    Args:
      x: ``[R, T, D]``, float32 or wider.
      scale: ``[D]``, dtype of ``x``.
      eps: added to the mean square.

    Returns:
      ``[R, T, D]``, dtype of ``x``.

    References:
      Zhang and Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019, arXiv:1910.07467.
    """
    root = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * root * scale[None, None, :]
