"""Rows in pieces are rows as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clir_jax.ops.chunking import map_rows


@pytest.mark.parametrize("count", [1, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("multiple", [1, 4])
def test_values_and_gradients_are_those_of_the_whole(count, size, multiple):
    x = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    if multiple > count:
        count, x = multiple, np.resize(x, (multiple, 3))

    def total(w, x):
        out = map_rows(lambda rows: {"y": jnp.tanh(rows["x"] @ w)}, {"x": x}, size, multiple)
        assert out["y"].shape == (count, 2)
        return (out["y"] * jnp.arange(count, dtype=jnp.float32)[:, None]).sum()

    def whole(w, x):
        return (jnp.tanh(x @ w) * jnp.arange(count, dtype=jnp.float32)[:, None]).sum()

    got = jax.value_and_grad(total, argnums=(0, 1))(w, x)
    expected = jax.value_and_grad(whole, argnums=(0, 1))(w, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, expected)


def test_pieces_hold_at_most_their_size():
    seen = []

    def note(rows):
        seen.append(rows.shape[0])
        return rows

    map_rows(note, jnp.zeros((10, 1)), 4)
    assert set(seen) == {4}
    seen.clear()
    # Balanced: three pieces of 3, not 4 + 4 + 1.
    map_rows(note, jnp.zeros((9, 1)), 4)
    assert set(seen) == {3}


def test_memory_is_that_of_a_piece():
    w = jax.ShapeDtypeStruct((64, 4096), jnp.float32)
    x = jax.ShapeDtypeStruct((1024, 64), jnp.float32)

    def temporary(size):
        def total(w, x):
            return map_rows(lambda rows: jnp.tanh(rows @ w).sum(axis=1), x, size).sum()

        compiled = jax.jit(jax.grad(total)).lower(w, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(64) < temporary(1024) / 4
