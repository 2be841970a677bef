"""GELU and its gradient against scipy and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from clir_jax.ops.activation import gelu


def _both(x):
    return jax.jit(jax.vjp, static_argnums=0)(gelu, x)


def test_value_and_gradient_are_those_of_the_normal_distribution_in_float64():
    with jax.enable_x64(True):
        x = np.concatenate([np.linspace(-9, 9, 181), [-40.0, 0.0, 40.0]])
        value, back = _both(jnp.asarray(x))
        np.testing.assert_allclose(value, x * norm.cdf(x), rtol=1e-12, atol=1e-15)
        expected = 2 * (norm.cdf(x) + x * norm.pdf(x))
        np.testing.assert_allclose(
            back(2 * jnp.ones_like(value))[0], expected, rtol=1e-12, atol=1e-15
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_as_exact_as_torch(dtype):
    torch = pytest.importorskip("torch")
    x = np.linspace(-6, 6, 1001)
    theirs = torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True)
    out = torch.nn.functional.gelu(theirs)
    out.sum().backward()
    value, back = _both(jnp.asarray(x, dtype))
    gradient = back(jnp.ones_like(value))[0]
    assert value.dtype == gradient.dtype == dtype
    atol = 1e-6 if dtype == "float32" else 0.03
    for ours, other in ((value, out.detach()), (gradient, theirs.grad)):
        np.testing.assert_allclose(ours.astype("float32"), other.float().numpy(), atol=atol)
