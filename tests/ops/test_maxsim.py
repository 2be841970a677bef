"""MaxSim against a loop, and its program on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clir_jax.mesh import ROWS, make_mesh
from clir_jax.ops import maxsim as module
from clir_jax.ops.maxsim import maxsim, maxsim_lists
from tests.programs import collectives, loops_and_their_collectives


def _texts(rng, *shape):
    vectors = rng.normal(size=shape)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    mask = rng.random(shape[:-1]) < 0.7
    mask[..., 0] = True
    return vectors.astype(np.float32), mask


def _device(*arrays):
    return [jnp.asarray(x) for x in arrays]


def _by_loop(query, query_mask, passage, passage_mask):
    scores = np.zeros((len(query), len(passage)))
    for i, q in enumerate(query):
        for j, p in enumerate(passage):
            kept = p[passage_mask[j]].astype(np.float64)
            scores[i, j] = sum(max(kept @ v) for v in q[query_mask[i]].astype(np.float64))
    return scores


def _loop_gradient(query, query_mask, passage, passage_mask, weights):
    """Of sum(weights * scores): each maximum passes its weight to the two vectors that made it."""
    to_query, to_passage = np.zeros(query.shape), np.zeros(passage.shape)
    for i in range(len(query)):
        for j in range(len(passage)):
            for t in np.flatnonzero(query_mask[i]):
                kept = np.flatnonzero(passage_mask[j])
                s = kept[np.argmax(passage[j, kept].astype(np.float64) @ query[i, t])]
                to_query[i, t] += weights[i, j] * passage[j, s]
                to_passage[j, s] += weights[i, j] * query[i, t]
    return to_query, to_passage


@pytest.mark.parametrize("block", [2**30, 200, 1])
def test_equals_the_loop_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(0)
    (q, qm), (p, pm) = _texts(rng, 5, 4, 8), _texts(rng, 7, 6, 8)
    weights = rng.normal(size=(5, 7)).astype(np.float32)

    def total(q, p):
        scores = maxsim(q, jnp.asarray(qm), p, jnp.asarray(pm))
        return (jnp.asarray(weights) * scores).sum(), scores

    (_, scores), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(*_device(q, p))
    np.testing.assert_allclose(scores, _by_loop(q, qm, p, pm), atol=1e-5)
    for got, expected in zip(gradients, _loop_gradient(q, qm, p, pm, weights), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("block", [2**30, 1])
def test_lists_equal_the_loop(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(1)
    (q, qm), (p, pm) = _texts(rng, 5, 4, 8), _texts(rng, 5, 3, 6, 8)
    expected = [_by_loop(q[i : i + 1], qm[i : i + 1], p[i], pm[i])[0] for i in range(5)]
    np.testing.assert_allclose(maxsim_lists(*_device(q, qm, p, pm)), expected, atol=1e-5)


def test_one_vector_a_text_is_the_inner_product():
    rng = np.random.default_rng(2)
    q, p = rng.normal(size=(3, 1, 8)), rng.normal(size=(4, 1, 8))
    q, p = q.astype(np.float32), p.astype(np.float32)
    got = maxsim(*_device(q, np.ones((3, 1), bool), p, np.ones((4, 1), bool)))
    np.testing.assert_allclose(got, q[:, 0] @ p[:, 0].T, atol=1e-5)


def test_a_passage_without_vectors_is_below_all_and_has_no_gradient():
    rng = np.random.default_rng(3)
    (q, qm), (p, pm) = _texts(rng, 2, 4, 8), _texts(rng, 3, 6, 8)
    pm[1] = False
    q, qm, p, pm = _device(q, qm, p, pm)
    scores, gradient = jax.value_and_grad(lambda p: maxsim(q, qm, p, pm).sum())(p)
    assert np.isfinite(scores)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient)[1] == 0)
    assert np.all(np.asarray(maxsim(q, qm, p, pm)).argmin(axis=1) == 1)


def test_on_a_mesh_the_backward_reduces_once_not_in_the_loop(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 64)
    rng = np.random.default_rng(4)
    (q, qm), (p, pm) = _texts(rng, 16, 4, 8), _texts(rng, 32, 6, 8)
    mesh = make_mesh(data=4, fsdp=2, devices=jax.devices()[:8])
    with jax.set_mesh(mesh):
        place = jax.sharding.NamedSharding(mesh, ROWS)
        arrays = jax.device_put((q, qm, p, pm), place)
        step = jax.jit(jax.grad(lambda q, qm, p, pm: maxsim(q, qm, p, pm).sum(), argnums=(0, 2)))
        program = step.lower(*arrays).compile().as_text()
        gradients = step(*arrays)
    loops, inside = loops_and_their_collectives(program)
    assert loops > 0
    assert collectives(program)
    assert inside == []
    expected = _loop_gradient(q, qm, p, pm, np.ones((16, 32)))
    for got, loop in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, loop, atol=1e-5)


def test_never_holds_all_token_pairs():
    shapes = [(256, 32, 8), (256, 128, 8)]
    q, p = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
    qm, pm = (jax.ShapeDtypeStruct(s[:2], jnp.bool_) for s in shapes)
    gradient = jax.grad(lambda q, qm, p, pm: maxsim(q, qm, p, pm).sum(), argnums=(0, 2))
    memory = jax.jit(gradient).lower(q, qm, p, pm).compile().memory_analysis()
    all_pairs = 4 * 256 * 32 * 256 * 128
    assert memory.temp_size_in_bytes < all_pairs / 8
