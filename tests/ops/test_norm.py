"""Layer normalisation and its gradients against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clir_jax.ops.norm import layer_norm


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 5e-6), ("float64", 1e-13)])
def test_value_and_gradients_are_torchs(dtype, atol):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x = 3 * random.normal(size=(4, 5, 16)) + random.normal(size=(4, 5, 1))
    x[0, 0] = 2.0  # no variance at all: epsilon keeps it finite
    arrays = [x, random.normal(size=16), random.normal(size=16)]
    gradient = random.normal(size=x.shape)
    theirs = [torch.tensor(a, dtype=getattr(torch, dtype), requires_grad=True) for a in arrays]
    out = torch.nn.functional.layer_norm(theirs[0], (16,), *theirs[1:], eps=1e-2)
    out.backward(torch.tensor(gradient, dtype=out.dtype))
    with jax.enable_x64(dtype == "float64"):
        ours = [jnp.asarray(a, dtype) for a in arrays]
        value, back = jax.vjp(lambda *a: layer_norm(*a, 1e-2), *ours)
        found = [value, *back(jnp.asarray(gradient, dtype))]
    for a, b in zip(found, [out.detach(), *(t.grad for t in theirs)], strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b.numpy(), atol=atol, rtol=atol)
