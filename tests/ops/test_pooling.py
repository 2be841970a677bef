"""Pooling against loops and torch; normalisation where it is not differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clir_jax.ops.pooling import cls_pool, max_pool, mean_pool, unit


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def _texts(dtype=np.float32):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4, 6, 5)).astype(dtype)
    keep = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0], [0] * 6], bool)
    return hidden, keep


def test_poolings_equal_a_loop_over_the_kept_tokens():
    hidden, keep = _texts()
    for row in range(3):
        kept = [hidden[row, t] for t in range(6) if keep[row, t]]
        mean = mean_pool(jnp.asarray(hidden), jnp.asarray(keep))[row]
        largest = max_pool(jnp.asarray(hidden), jnp.asarray(keep))[row]
        np.testing.assert_allclose(mean, sum(kept) / len(kept), rtol=1e-6)
        np.testing.assert_array_equal(largest, np.stack(kept).max(axis=0))
    first = cls_pool(jnp.asarray(hidden), jnp.asarray(keep))
    np.testing.assert_array_equal(first, hidden[:, 0])


def test_poolings_equal_the_usual_torch_code():
    torch = pytest.importorskip("torch")
    hidden, keep = _texts()
    hidden, keep = torch.tensor(hidden[:3]), torch.tensor(keep[:3])
    mask = keep.unsqueeze(-1).expand(hidden.shape)
    mean = (hidden * mask.float()).sum(1) / mask.float().sum(1).clamp(min=1e-9)
    largest = hidden.masked_fill(~mask, -1e9).max(1).values
    for pool, theirs in ((mean_pool, mean), (max_pool, largest)):
        ours = pool(jnp.asarray(hidden.numpy()), jnp.asarray(keep.numpy()))
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


@pytest.mark.parametrize("pool", [mean_pool, max_pool])
def test_nothing_kept_is_zero_with_zero_gradient(pool):
    hidden, keep = _texts()
    pooled, pullback = jax.vjp(lambda h: pool(h, jnp.asarray(keep)), jnp.asarray(hidden))
    np.testing.assert_array_equal(pooled[3], np.zeros(5))
    (gradient,) = pullback(jnp.ones_like(pooled))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~keep], np.zeros((~keep).sum() * 5).reshape(-1, 5))
    assert (np.abs(gradient[:3]).sum(axis=(1, 2)) > 0).all()


def test_unit_equals_torch_normalize_and_keeps_zero():
    torch = pytest.importorskip("torch")
    vectors = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32) * 1e-4
    vectors[2] = 0.0
    theirs = torch.nn.functional.normalize(torch.tensor(vectors), dim=-1).numpy()
    np.testing.assert_allclose(unit(jnp.asarray(vectors)), theirs, atol=1e-6)
    np.testing.assert_array_equal(unit(jnp.asarray(vectors))[2], np.zeros(3))


def test_unit_has_finite_gradients_and_the_right_ones():
    def f(v):
        return (unit(v) * jnp.arange(1.0, 4.0, dtype=v.dtype)[None]).sum()

    assert np.isfinite(jax.grad(f)(jnp.array([[0.0, 0.0, 0.0], [1e-30, 0.0, 0.0]]))).all()
    with jax.enable_x64(True):
        v = np.array([[0.3, -2.0, 0.7]])
        gradient = jax.grad(f)(jnp.asarray(v))
        for d in range(3):
            step = np.eye(3)[None, d] * 1e-6
            slope = (f(jnp.asarray(v + step)) - f(jnp.asarray(v - step))) / 2e-6
            np.testing.assert_allclose(gradient[0, d], slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "returned"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_dtypes(given, returned):
    with jax.enable_x64(given == "float64"):
        hidden, keep = _texts()
        h, k = jnp.asarray(hidden, given), jnp.asarray(keep)
        for pool in (mean_pool, max_pool, cls_pool):
            assert pool(h, k).dtype == returned
        assert unit(h).dtype == returned
