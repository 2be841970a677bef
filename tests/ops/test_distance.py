"""Distances against loops, and their gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from clir_jax.mesh import ROWS, make_mesh
from clir_jax.ops.distance import DISTANCES, cosine_cost, planned_distance


def _vectors(rows, tokens, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, tokens, size))


def test_cosine_cost_matches_a_loop():
    x, y = _vectors(2, 3), _vectors(2, 4, seed=1)
    x[0, 1] = 0
    got = cosine_cost(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    for r, i, j in np.ndindex(2, 3, 4):
        lengths = np.linalg.norm(x[r, i]) * np.linalg.norm(y[r, j])
        expected = 1 - x[r, i] @ y[r, j] / lengths if lengths else 1.0
        assert got[r, i, j] == pytest.approx(expected, abs=1e-6)


def test_cosine_cost_is_float32_unless_a_side_is_float64():
    half, single = jnp.ones((1, 2, 3), jnp.bfloat16), jnp.ones((1, 2, 3), jnp.float32)
    assert cosine_cost(half, half).dtype == cosine_cost(half, single).dtype == jnp.float32
    with jax.enable_x64(True):
        assert cosine_cost(single, jnp.ones((1, 2, 3), jnp.float64)).dtype == jnp.float64


def test_cosine_cost_of_a_zero_vector_has_a_finite_gradient():
    x, y = jnp.zeros((1, 2, 3)).at[0, 0, 0].set(2.0), jnp.ones((1, 2, 3))
    gx, gy = jax.grad(lambda x, y: (cosine_cost(x, y) ** 2).sum(), argnums=(0, 1))(x, y)
    assert np.isfinite([gx, gy]).all()
    assert np.abs(gx[0, 0]).max() > 0


def _loop(plan, x, y, distance):
    total = np.zeros(len(plan))
    for r, i, j in np.ndindex(*plan.shape):
        difference = x[r, i] - y[r, j]
        cosine = x[r, i] @ y[r, j] / np.linalg.norm(x[r, i]) / np.linalg.norm(y[r, j])
        each = {
            "cosine": 1 - cosine,
            "mse": np.mean(difference**2),
            "l1": np.mean(np.abs(difference)),
        }
        total[r] += plan[r, i, j] * each[distance]
    return total


@pytest.mark.parametrize("distance", DISTANCES)
def test_planned_distance_and_its_gradient_match_a_loop(distance):
    plan = np.random.default_rng(0).uniform(size=(8, 3, 4))
    x, y = _vectors(8, 3, seed=1), _vectors(8, 4, seed=2)

    def both(x, plan, y):
        got = planned_distance(plan, x, y, distance)
        return got.sum(), got

    graded = jax.jit(jax.grad(both, has_aux=True))
    with jax.enable_x64(True):
        given = [jnp.asarray(part) for part in (x, plan, y)]
        gradient, got = graded(*given)
        mesh = make_mesh(data=4, fsdp=2)
        with jax.set_mesh(mesh):
            gradient_8, got_8 = graded(*jax.device_put(given, NamedSharding(mesh, ROWS)))
    np.testing.assert_allclose(got, _loop(plan, x, y, distance), rtol=1e-12)
    np.testing.assert_allclose(got_8, got, rtol=1e-12)
    np.testing.assert_allclose(gradient_8, gradient, atol=1e-14)
    for r, i, e in [(0, 0, 0), (3, 2, 5), (7, 1, 7)]:
        step = np.zeros_like(x)
        step[r, i, e] = 1e-6
        up, down = (_loop(plan, x + sign * step, y, distance)[r] for sign in (1, -1))
        assert gradient[r, i, e] == pytest.approx((up - down) / 2e-6, abs=1e-8)


def test_l1_holds_no_differences_of_all_pairs():
    shapes = [(2, 40, 50), (2, 40, 8), (2, 50, 8)]
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(plan, x, y):
        return planned_distance(plan, x, y, "l1").sum()

    memory = jax.jit(jax.grad(loss, argnums=1)).lower(*given).compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes < 4 * 2 * 40 * 50 * 8
