"""One-to-one matches against the published procedure, SciPy and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from clir_jax.ops.matching import (
    cheapest_matches,
    greedy_matches,
    in_order_plan,
    matched_plan,
    mutual_best,
)

_greedy, _cheapest = jax.jit(greedy_matches), jax.jit(cheapest_matches)


def test_in_order_plan_matches_a_loop():
    rng = np.random.default_rng(0)
    x_mask, y_mask = rng.random((20, 5)) < 0.5, rng.random((20, 6)) < 0.5
    x_mask[0], y_mask[1] = False, False
    expected = np.zeros((20, 5, 6))
    for r in range(20):
        pairs = list(zip(np.flatnonzero(x_mask[r]), np.flatnonzero(y_mask[r]), strict=False))
        for i, j in pairs:
            expected[r, i, j] = 1 / len(pairs)
    np.testing.assert_allclose(in_order_plan(jnp.asarray(x_mask), jnp.asarray(y_mask)), expected)


def _distance(teacher, student):
    lengths = np.linalg.norm(teacher, axis=1)[:, None] * np.linalg.norm(student, axis=1)[None]
    return 1 - teacher @ student.T / (lengths + np.float32(1e-8))


def _published(teacher, distance):
    """Dr.DECR's procedure of one text, in NumPy: swap rows of the teacher's until all are paired.

    Each round takes the smallest distance that is left, of equal ones the first in the order of
    rows, and brings that row of the teacher's to the place of the student's token.
    """
    rows, left = teacher.copy(), distance.copy()
    for _ in range(len(teacher)):
        i, j = np.unravel_index(np.argmin(left), left.shape)
        for both in (rows, left):
            both[[i, j]] = both[[j, i]]
        left[j, :] = left[:, j] = np.inf
    return rows


def _cases(count, tokens, seed):
    """Vectors of texts: near and far translations, repeated tokens, the zeroed CLS, padding."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(rng.integers(2), 1, size=(count, tokens, 8))
    order = rng.permuted(np.tile(np.arange(tokens), (count, 1)), axis=1)
    student = np.take_along_axis(teacher, order[:, :, None], axis=1)
    student = student + rng.normal(size=teacher.shape) * rng.choice([0, 0.1, 1], (count, 1, 1))
    for vectors in (teacher, student):
        vectors[:, 1] = np.where(rng.random((count, 1)) < 0.3, vectors[:, -1], vectors[:, 1])
        # Padding is one and the same vector, in as many places as the text is short.
        short = np.arange(tokens) >= rng.integers(1, tokens + 1, size=(count, 1))
        vectors[short] = rng.normal(size=8)
    zeroed = rng.random(count) < 0.5
    teacher[zeroed, 0], student[zeroed, 0] = 0, 0
    return teacher.astype(np.float32), student.astype(np.float32)


@pytest.mark.parametrize(("count", "tokens"), [(400, 2), (400, 7), (200, 12), (100, 32)])
def test_greedy_aligns_the_vectors_that_the_published_swaps_align(count, tokens):
    teacher, student = _cases(count, tokens, seed=tokens)
    distance = np.stack([_distance(*texts) for texts in zip(teacher, student, strict=True)])
    expected = [_published(*texts) for texts in zip(teacher, distance, strict=True)]
    cost = jnp.asarray(distance.swapaxes(1, 2))
    matches = np.asarray(_greedy(cost, jnp.ones(cost.shape, bool)))
    assert (matches.sum(axis=1) == 1).all()
    assert (matches.sum(axis=2) == 1).all()
    aligned = np.take_along_axis(teacher, matches.argmax(axis=2)[:, :, None], axis=1)
    np.testing.assert_array_equal(aligned, np.stack(expected))


def _problems(rows, tx, ty, seed):
    rng = np.random.default_rng(seed)
    x = np.arange(tx) < rng.integers(1, tx + 1, size=(rows, 1))
    y = rng.random((rows, ty)) < 0.7
    x[0], y[1] = False, False
    return rng.uniform(0, 2, size=(rows, tx, ty)), x[:, :, None] & y[:, None, :]


@pytest.mark.parametrize("costs", [4, 1000])
def test_greedy_of_unequal_lengths_takes_the_first_of_the_nearest_pairs(costs):
    # Few different costs are many ties, as between zero vectors.
    cost, support = _problems(200, 6, 9, seed=0)
    cost = np.floor(cost * costs)
    matches = _greedy(jnp.asarray(cost, jnp.float32), jnp.asarray(support))
    expected = np.zeros(cost.shape, bool)
    for own, allowed, found in zip(cost, support, expected, strict=True):
        left = np.where(allowed, own, np.inf)
        while np.isfinite(left).any():
            # Rows are the second text's tokens, the teacher's.
            j, i = np.unravel_index(np.argmin(left.T), left.T.shape)
            found[i, j] = True
            left[i, :], left[:, j] = np.inf, np.inf
    np.testing.assert_array_equal(matches, expected)


@pytest.mark.parametrize(("tx", "ty"), [(6, 9), (9, 6), (7, 7)])
def test_cheapest_is_scipys_assignment(tx, ty):
    cost, support = _problems(60, tx, ty, seed=tx)
    matches = np.asarray(_cheapest(jnp.asarray(cost, jnp.float32), jnp.asarray(support)))
    for own, allowed, found in zip(cost, support, matches, strict=True):
        rows, columns = np.flatnonzero(allowed.any(axis=1)), np.flatnonzero(allowed.any(axis=0))
        small = own[np.ix_(rows, columns)]
        expected = np.zeros(own.shape, bool)
        if small.size:
            i, j = linear_sum_assignment(small)
            expected[rows[i], columns[j]] = True
        np.testing.assert_array_equal(found, expected)


def test_cheapest_runs_in_float32_and_in_float64_beside_each_other():
    cost, support = _problems(3, 4, 5, seed=5)
    with jax.enable_x64(True):
        single = _cheapest(jnp.asarray(cost, jnp.float32), jnp.asarray(support))
        double = _cheapest(jnp.asarray(cost), jnp.asarray(support))
    np.testing.assert_array_equal(single, double)


def test_greedy_where_every_pair_waits_for_the_one_before_it():
    n = 12
    cost = np.full((1, n, n), 99.0)
    for k in range(n):
        cost[0, k, k] = 2 * k
        if k:
            cost[0, k, k - 1] = 2 * k - 1
    matches = _greedy(jnp.asarray(cost, jnp.float32), jnp.ones(cost.shape, bool))
    np.testing.assert_array_equal(matches[0], np.eye(n, dtype=bool))


def test_mutual_best_matches_a_loop():
    scores = np.random.default_rng(0).integers(0, 4, size=(50, 4, 5)).astype(np.float32)
    got = np.asarray(mutual_best(jnp.asarray(scores)))
    for r, i, j in np.ndindex(scores.shape):
        # Python's max takes the first of equal ones, as documented.
        best_j = max(range(5), key=lambda k, r=r, i=i: scores[r, i, k])
        best_i = max(range(4), key=lambda k, r=r, j=j: scores[r, k, j])
        assert got[r, i, j] == (best_j == j and best_i == i)


def test_matches_share_a_unit_by_the_smaller_mass():
    matches = jnp.array([[[True, False, False], [False, False, True]], [[False] * 3] * 2])
    a = jnp.array([[0.75, 0.25], [0.5, 0.5]])
    b = jnp.array([[0.25, 0.25, 0.5], [1.0, 0.0, 0.0]])
    plan = matched_plan(matches, a, b)
    np.testing.assert_allclose(plan, [[[0.5, 0, 0], [0, 0, 0.5]], [[0] * 3] * 2])
