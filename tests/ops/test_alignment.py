"""The family of aligners: one interface, what all of them keep, and links out of plans."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from scipy.optimize import linear_sum_assignment

from clir_jax.mesh import ROWS, make_mesh
from clir_jax.ops.alignment import IPOT, Assignment, Attention, Greedy, Sinkhorn, agreed, links

ALIGNERS = {
    "greedy": Greedy(),
    "assignment": Assignment(),
    "sinkhorn": Sinkhorn(),
    "unbalanced": Sinkhorn(tau_student=0.9, tau_teacher=0.8),
    "ipot": IPOT(),
    "attention": Attention(),
}
_plan = jax.jit(lambda aligner, *p, null=None: aligner.plan(*p, null=null), static_argnums=0,
                static_argnames="null")  # fmt: skip


def _problems(rows=8, tx=5, ty=7, seed=0):
    """Costs, and marginals of random lengths and weights; row 0 and row 1 have an empty side."""
    rng = np.random.default_rng(seed)
    masses = []
    for tokens in (tx, ty):
        mass = rng.uniform(0.5, 2.0, size=(rows, tokens))
        mass *= np.arange(tokens) < rng.integers(1, tokens + 1, size=(rows, 1))
        masses.append(mass / mass.sum(axis=1, keepdims=True))
    masses[0][0], masses[1][1] = 0, 0
    return rng.uniform(0, 1.5, size=(rows, tx, ty)), *masses


@pytest.mark.parametrize(
    ("name", "null"),
    [*((name, None) for name in ALIGNERS), *((n, 0.6) for n in ("greedy", "ipot", "attention"))],
)
def test_what_every_aligner_keeps(name, null):
    cost, a, b = _problems()
    aligner = ALIGNERS[name]
    with jax.enable_x64(True):
        plan = np.asarray(_plan(aligner, cost, a, b, null=null))
        # With padding, and on eight devices.
        wide = [np.pad(x, [(0, 0)] + [(0, 3)] * (x.ndim - 1)) for x in (cost, a, b)]
        wide[0][:, 5:], wide[0][:, :, 7:] = 0.01, 0.01  # padding is near to everything
        mesh = make_mesh(data=4, fsdp=2)
        with jax.set_mesh(mesh):
            rows = jax.device_put(wide, NamedSharding(mesh, ROWS))
            padded = _plan(aligner, *rows, null=null)
            assert len(padded.sharding.device_set) == 8
            padded = np.asarray(padded)
    assert plan.dtype == np.float64
    np.testing.assert_allclose(padded[:, :5, :7], plan, atol=1e-14)
    assert (padded[:, 5:] == 0).all()
    assert (padded[:, :, 7:] == 0).all()
    assert (plan >= 0).all()
    assert (plan[a == 0] == 0).all()
    assert (plan.swapaxes(1, 2)[b == 0] == 0).all()
    mass = plan.sum(axis=(1, 2))
    assert (mass[:2] == 0).all()
    assert (mass[2:] > 0).all()
    if name != "unbalanced":
        assert (mass <= 1 + 1e-9).all()
        whole = np.abs(mass[2:] - 1) < 1e-3
        assert whole.all() if null is None else not whole.all()
    gradient = jax.grad(lambda c: (aligner.plan(c, jnp.ones((1, 2)), jnp.ones((1, 2))) ** 2).sum())
    assert (gradient(jnp.array([[[0.1, 0.2], [0.3, 0.9]]])) == 0).all()


@pytest.mark.parametrize("name", ["greedy", "assignment"])
def test_one_to_one_plans_share_equally_where_tokens_weigh_the_same(name):
    cost, _, _ = _problems()
    a, b = np.full((8, 5), 1 / 5), np.full((8, 7), 1 / 7)
    plan = np.asarray(_plan(ALIGNERS[name], *(x.astype(np.float32) for x in (cost, a, b))))
    assert ((plan > 0).sum(axis=2) == 1).all()
    assert ((plan > 0).sum(axis=1) <= 1).all()
    np.testing.assert_allclose(plan[plan > 0], 1 / 5, rtol=1e-6)


def test_null_drops_the_matches_that_cost_more():
    cost, a, b = _problems(seed=3)
    given = [x.astype(np.float32) for x in (cost, a, b)]
    for aligner in (Greedy(), Attention(1e-3)):
        whole, kept = (np.asarray(_plan(aligner, *given, null=null)) for null in (None, 0.4))
        np.testing.assert_allclose(kept, np.where(cost <= 0.4, whole, 0), atol=2e-3)
        assert (kept > 0.01).any()
        assert (kept < whole - 0.01).any()


def test_null_in_an_assignment_is_the_cheapest_of_all_partial_ones():
    cost = np.random.default_rng(0).uniform(0, 1, size=(30, 4, 6)).astype(np.float32)
    ones = np.full((30, 4), 0.25, np.float32), np.full((30, 6), 1 / 6, np.float32)
    plan = np.asarray(_plan(Assignment(), cost, *ones, null=0.3)) > 0
    for own, found in zip(cost, plan, strict=True):
        # Staying out is a token of its own for each, at half of null on either side.
        wide = np.full((10, 10), 0.15)
        wide[:4, :6], wide[4:, 6:] = own, 0
        i, j = linear_sum_assignment(wide)
        expected = np.zeros((10, 10), bool)
        expected[i, j] = True
        np.testing.assert_array_equal(found, expected[:4, :6])


def test_null_of_exact_transport_leaves_out_what_the_assignment_leaves_out():
    cost = np.random.default_rng(1).uniform(0, 1, size=(8, 5, 5)).astype(np.float32)
    mass = np.full((8, 5), 0.2, np.float32)
    plans = [_plan(a, cost, mass, mass, null=0.3) for a in (Assignment(), IPOT(0.2, 1000))]
    # Of uniform masses the best plan is an assignment. Both have it, or two within rounding.
    saved = [(np.asarray(plan) * (0.3 - cost)).sum(axis=(1, 2)) for plan in plans]
    np.testing.assert_allclose(saved[1], saved[0], atol=1e-4)
    assert (saved[0] > 0.01).all()
    assert (np.asarray(plans[0]).sum(axis=(1, 2)) < 0.99).any()


def test_attention_is_a_softmax_of_cosines():
    cost, a, b = _problems(seed=2)
    plan = _plan(Attention(0.3), *(x.astype(np.float32) for x in (cost, a, b)), null=0.5)
    for r in range(2, 8):
        weights = np.exp((1 - cost[r]) / 0.3) * (b[r] > 0)
        weights /= (weights.sum(axis=1) + np.exp(0.5 / 0.3))[:, None]
        np.testing.assert_allclose(plan[r], a[r][:, None] * weights, atol=1e-6)


def test_agreed_keeps_mutual_best_pairs_and_all_of_the_mass():
    plan = np.random.default_rng(0).uniform(size=(40, 4, 5)).astype(np.float32)
    plan[0] = 0
    got = np.asarray(agreed(plan))
    for before, after in zip(plan, got, strict=True):
        best = (before == before.max(axis=1)[:, None]) & (before == before.max(axis=0)[None])
        kept = np.where(best, before, 0)
        expected = kept * (before.sum() / kept.sum()) if before.any() else before
        np.testing.assert_allclose(after, expected, rtol=1e-5)


def test_links_of_one_to_one_plans_are_their_matches_by_either_rule():
    cost, a, b = (x.astype(np.float32) for x in _problems())
    for aligner in (Greedy(), Assignment()):
        plan = np.asarray(_plan(aligner, cost, a, b))
        for share in (None, 0.01, 1.0):
            np.testing.assert_array_equal(links(plan, share), plan > 0)


def test_links_of_soft_plans():
    plan = np.random.default_rng(1).uniform(size=(40, 4, 5)).astype(np.float32)
    plan[0] = 0
    mutual, shared = np.asarray(links(plan)), np.asarray(links(plan, 0.3))
    for own, one, many in zip(plan, mutual, shared, strict=True):
        rows, columns = own.sum(axis=1)[:, None], own.sum(axis=0)[None]
        best = (own == own.max(axis=1)[:, None]) & (own == own.max(axis=0)[None]) & (own > 0)
        np.testing.assert_array_equal(one, best)
        np.testing.assert_array_equal(many, (own > 0.3 * rows) & (own > 0.3 * columns))
    # A token may have several counterparts by the second rule only.
    assert mutual.sum(axis=2).max() == 1
    assert shared.sum(axis=2).max() > 1
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"share is {share}; it must be above 0"):
            links(plan, share)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (functools.partial(Sinkhorn, epsilon=0.0), "epsilon is 0.0"),
        (functools.partial(Sinkhorn, tau_student=2.0), "taus are 2.0 and 1.0"),
        (functools.partial(Sinkhorn, solver="ipot"), "solver is 'ipot'"),
        (functools.partial(IPOT, beta=-1.0), "beta is -1.0"),
        (functools.partial(IPOT, iterations=0), "iterations is 0"),
        (functools.partial(IPOT, inner=0), "inner is 0"),
        (functools.partial(Attention, temperature=0.0), "temperature is 0.0"),
    ],
)
def test_options_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
