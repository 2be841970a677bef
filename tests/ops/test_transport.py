"""Optimal transport against ott, an exact linear programme, finite differences and loops."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from scipy.optimize import linprog

from clir_jax.mesh import ROWS, make_mesh
from clir_jax.ops import transport
from clir_jax.ops.distance import cosine_cost
from clir_jax.ops.transport import SOLVERS, ipot_plan, marginals, transport_plan, with_null
from tests.programs import loops_and_their_collectives

EXACT = {"iterations": 5000, "threshold": 1e-13}
# Compiled once for each shape and choice of options.
_plan = jax.jit(
    transport_plan,
    static_argnames=("epsilon", "iterations", "threshold", "tau_a", "tau_b", "solver"),
)
_ipot_plan = jax.jit(ipot_plan, static_argnames=("beta", "iterations", "inner"))
TAUS = [(1.0, 1.0), (0.9, 1.0), (1.0, 0.8), (0.95, 0.7)]


def _vectors(rows, tokens, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, tokens, size))


def _problems(rows=3, tx=5, ty=7, seed=0):
    """Costs of random texts, and marginals of random lengths and weights, in float64."""
    rng = np.random.default_rng(seed)
    x, y = _vectors(rows, tx, seed=seed), _vectors(rows, ty, seed=seed + 1)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    y /= np.linalg.norm(y, axis=-1, keepdims=True)
    masses = []
    for tokens in (tx, ty):
        mass = rng.uniform(0.5, 2.0, size=(rows, tokens))
        mass *= np.arange(tokens) < rng.integers(2, tokens + 1, size=(rows, 1))
        masses.append(mass / mass.sum(axis=1, keepdims=True))
    return 1 - np.einsum("rxe,rye->rxy", x, y), *masses


def _ott_plan(cost, a, b, epsilon, tau_a, tau_b):
    """ott's own facade, called as its documentation does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
        from ott.geometry import geometry
        from ott.solvers import linear

    def solve(cost, a, b):
        geom = geometry.Geometry(cost_matrix=cost, epsilon=epsilon)
        options = {"tau_a": tau_a, "tau_b": tau_b, "threshold": 1e-13, "max_iterations": 20000}
        return linear.solve(geom, a=a, b=b, **options).matrix

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        solve = jax.jit(solve)
        return np.stack([solve(*map(jnp.asarray, row)) for row in zip(cost, a, b, strict=True)])


def _kl(p, q):
    return (p * np.log(p / q) - p + q).sum()


def _regularised_cost(x, y, a, b, epsilon, tau_a, tau_b):
    """The optimum of one problem without padding, by plain Sinkhorn in NumPy."""
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    cost = 1 - x @ y.T
    kernel = np.exp(-cost / epsilon)
    u, v = np.ones_like(a), np.ones_like(b)
    for _ in range(3000):
        v = (b / (kernel.T @ u)) ** tau_b
        u = (a / (kernel @ v)) ** tau_a
    plan = u[:, None] * kernel * v
    value = (plan * cost).sum() + epsilon * (plan * (np.log(plan) - 1)).sum()
    if tau_a < 1:
        value += epsilon * tau_a / (1 - tau_a) * _kl(plan.sum(1), a)
    if tau_b < 1:
        value += epsilon * tau_b / (1 - tau_b) * _kl(plan.sum(0), b)
    return value


def _cheapest(cost, a, b):
    """The exact plan's cost, by linear programming."""
    tx, ty = cost.shape
    rows, columns = np.kron(np.eye(tx), np.ones(ty)), np.kron(np.ones(tx), np.eye(ty))
    out = linprog(cost.ravel(), A_eq=np.r_[rows, columns], b_eq=np.r_[a, b], method="highs")
    assert out.status == 0
    return out.fun


def test_marginals_share_one_unit_among_real_tokens():
    mask = jnp.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
    weights = jnp.array([[1.0, 2.0, 50.0, 5.0], [1.0] * 4, [7.0] * 4, [0.0, 0.0, 3.0, 3.0]])
    third = np.float32(1 / 3)
    np.testing.assert_allclose(
        marginals(mask), [[third, third, 0, third], [0] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]]
    )
    np.testing.assert_allclose(
        marginals(mask, weights),
        [[0.125, 0.25, 0, 0.625], [0] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]],
    )


def test_marginals_ignore_what_lies_on_padding():
    mask, weights = jnp.array([[True, False]]), jnp.array([[2.0, jnp.nan]])
    np.testing.assert_array_equal(marginals(mask, weights), [[1, 0]])
    assert np.isfinite(jax.grad(lambda w: marginals(mask, w)[0, 0])(weights)).all()


@pytest.mark.parametrize(("tau_a", "tau_b"), TAUS)
def test_plan_is_otts_in_float64(tau_a, tau_b):
    cost, a, b = _problems()
    options = {"epsilon": 0.07, "tau_a": tau_a, "tau_b": tau_b}
    with jax.enable_x64(True):
        expected = _ott_plan(cost, a, b, **options)
        mass = expected.sum(axis=(1, 2))
        for solver in SOLVERS:
            plan = _plan(*map(jnp.asarray, (cost, a, b)), solver=solver, **options, **EXACT)
            assert plan.dtype == jnp.float64
            np.testing.assert_allclose(plan, expected, atol=1e-12)
            np.testing.assert_allclose(plan.sum(axis=(1, 2)), mass, rtol=1e-11)
    # With both taus below 1, mass is left out; one side held, or both, and all of it moves.
    assert (np.abs(mass - 1) < 1e-9).all() == (1.0 in (tau_a, tau_b))


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_plan_is_close_to_float64(solver):
    cost, a, b = _problems(rows=8, tx=20, ty=30)
    single = _plan(
        *(jnp.asarray(x, jnp.float32) for x in (cost, a, b)),
        epsilon=0.05,
        iterations=3000,
        threshold=1e-6,
        solver=solver,
    )
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = _plan(*map(jnp.asarray, (cost, a, b)), epsilon=0.05, **EXACT)
    assert np.abs(single - np.asarray(double)).sum(axis=(1, 2)).max() < 2e-4


def test_plan_becomes_the_exact_one_as_epsilon_vanishes():
    cost, a, b = _problems(rows=4, tx=6, ty=8, seed=3)
    exact = np.array([_cheapest(*row) for row in zip(cost, a, b, strict=True)])
    gaps = []
    with jax.enable_x64(True):
        for epsilon in (0.1, 0.01, 0.002):
            plan = _plan(
                *map(jnp.asarray, (cost, a, b)),
                epsilon=epsilon,
                iterations=20000,
                threshold=1e-5,
            )
            np.testing.assert_allclose(plan.sum(axis=1), b, atol=1e-4)
            np.testing.assert_allclose(plan.sum(axis=2), a, atol=1e-4)
            gaps.append((np.asarray(plan) * cost).sum(axis=(1, 2)) - exact)
    assert (gaps[0] > np.maximum(gaps[1], 1e-3)).all()
    assert np.abs(gaps[2]).max() < 1e-3


def test_tiny_epsilon_and_large_costs_stay_finite_and_feasible_in_float32():
    # exp(-cost / epsilon) is exp(-20,000) here: far below the smallest float32.
    cost, a, b = (jnp.asarray(x, jnp.float32) for x in _problems(rows=4, tx=6, ty=8, seed=4))
    for options in ({}, {"tau_a": 0.9, "tau_b": 0.7}):
        plan = _plan(10 * cost, a, b, epsilon=1e-3, iterations=2000, threshold=1e-3, **options)
        assert np.isfinite(plan).all()
        if not options:  # a potential of 20,000 has an error of 1e-3 in float32
            np.testing.assert_allclose(plan.sum(axis=2), a, atol=5e-3)


@pytest.mark.parametrize(
    ("solver", "tau_a", "tau_b"),
    [("sinkhorn", 1.0, 1.0), ("sinkhorn", 0.9, 0.8), ("ott", 1.0, 1.0)],
)
def test_padding_changes_nothing(solver, tau_a, tau_b):
    x, y = _vectors(2, 4), _vectors(2, 6, seed=1)

    def loss(x, y, x_mask, y_mask):
        cost = cosine_cost(x, y)
        options = {"tau_a": tau_a, "tau_b": tau_b, "solver": solver}
        a, b = marginals(x_mask, None, x.dtype), marginals(y_mask, None, y.dtype)
        plan = _plan(cost, a, b, epsilon=0.1, iterations=50, **options)
        return (cost * plan).sum(), plan

    with jax.enable_x64(True):
        graded = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        narrow = jnp.asarray(x), jnp.asarray(y), jnp.ones((2, 4), bool), jnp.ones((2, 6), bool)
        (value, plan), (gx, gy) = jax.device_get(graded(*narrow))
        wide_x = jnp.asarray(np.concatenate([x, 7 * _vectors(2, 3, seed=8)], axis=1))
        wide_y = jnp.asarray(np.concatenate([y, np.zeros((2, 5, 8))], axis=1))
        x_mask = jnp.broadcast_to(jnp.arange(7)[None] < 4, (2, 7))
        y_mask = jnp.broadcast_to(jnp.arange(11)[None] < 6, (2, 11))
        (wide_value, wide_plan), (wide_gx, wide_gy) = jax.device_get(
            graded(wide_x, wide_y, x_mask, y_mask)
        )
    assert np.abs(gx).max() > 0.01
    np.testing.assert_allclose(wide_value, value, rtol=1e-13)
    np.testing.assert_allclose(wide_plan[:, :4, :6], plan, atol=1e-15)
    assert (wide_plan[:, 4:] == 0).all()
    assert (wide_plan[:, :, 6:] == 0).all()
    np.testing.assert_allclose(wide_gx[:, :4], gx, atol=1e-14)
    np.testing.assert_allclose(wide_gy[:, :6], gy, atol=1e-14)
    assert (wide_gx[:, 4:] == 0).all()
    assert (wide_gy[:, 6:] == 0).all()


@pytest.mark.parametrize(("tau_a", "tau_b"), [TAUS[0], TAUS[3]])
def test_gradient_of_the_regularised_cost_by_finite_differences(tau_a, tau_b):
    x, y = _vectors(1, 4)[0], _vectors(1, 5, seed=1)[0]
    a, b = np.array([0.1, 0.2, 0.3, 0.4]), np.full(5, 0.2)
    optimum = functools.partial(_regularised_cost, a=a, b=b, epsilon=0.2, tau_a=tau_a, tau_b=tau_b)

    def loss(x, y):
        cost = cosine_cost(x[None], y[None])
        masses = jnp.asarray(a)[None], jnp.asarray(b)[None]
        plan = _plan(cost, *masses, epsilon=0.2, tau_a=tau_a, tau_b=tau_b, **EXACT)
        return (cost * plan).sum()

    with jax.enable_x64(True):
        gx, gy = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(x), jnp.asarray(y))
    h = 1e-5
    for i, e in [(0, 0), (1, 3), (2, 5), (3, 7)]:
        step = np.zeros_like(x)
        step[i, e] = h
        assert gx[i, e] == pytest.approx(
            (optimum(x + step, y) - optimum(x - step, y)) / (2 * h), abs=1e-8
        )
        step = np.zeros_like(y)
        step[i, e] = h
        assert gy[i, e] == pytest.approx(
            (optimum(x, y + step) - optimum(x, y - step)) / (2 * h), abs=1e-8
        )
    assert np.abs(gx).max() > 0.01


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_gradient_flows_through_the_plan(solver):
    cost, a, b = (jnp.asarray(x, jnp.float32) for x in _problems())
    gradient = jax.grad(lambda c: (_plan(c, a, b, epsilon=0.1, solver=solver) ** 2).sum())(cost)
    assert (gradient == 0).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_without_mass_are_zero_and_leave_the_others_alone(solver):
    cost, a, b = (jnp.asarray(x, jnp.float32) for x in _problems(rows=4))
    alone = _plan(cost, a, b, epsilon=0.1, solver=solver)
    emptied = _plan(
        cost, a.at[0].set(0).at[2].set(0), b.at[1].set(0).at[2].set(0), epsilon=0.1, solver=solver
    )
    assert (emptied[:3] == 0).all()
    np.testing.assert_allclose(emptied[3], alone[3], atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_single_token_takes_everything(solver):
    cost, _, b = (jnp.asarray(x, jnp.float32) for x in _problems(rows=2))
    one = jnp.zeros((2, 5)).at[:, 3].set(1.0)
    plan = _plan(cost, one, b, epsilon=0.1, solver=solver)
    np.testing.assert_allclose(plan[:, 3], b, atol=1e-6)
    assert plan[:, :3].sum() == 0
    plan = _plan(cost[:, :1, :1], one[:, 3:4], one[:, 3:4], epsilon=0.1, solver=solver)
    np.testing.assert_allclose(plan, np.ones((2, 1, 1)), atol=1e-6)


def test_identical_texts_match_one_to_one():
    x = jnp.asarray(_vectors(2, 6, size=32), jnp.float32)
    mask = jnp.ones((2, 6), bool)
    cost = cosine_cost(x, x)
    plan = _plan(cost, marginals(mask), marginals(mask), epsilon=0.05)
    np.testing.assert_allclose(plan, np.broadcast_to(np.eye(6) / 6, (2, 6, 6)), atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_row_stops_on_its_own(solver):
    # Row 0 converges at once, row 1 needs many blocks; neither may notice the other.
    cost, a, b = (jnp.asarray(x, jnp.float32) for x in _problems(rows=2, tx=8, ty=8))
    cost = cost.at[0].multiply(0.01)
    solve = functools.partial(_plan, epsilon=0.02, iterations=500, threshold=1e-4, solver=solver)
    both = solve(cost, a, b)
    for r in range(2):
        alone = solve(cost[r : r + 1], a[r : r + 1], b[r : r + 1])
        np.testing.assert_allclose(both[r : r + 1], alone, atol=1e-7)
    further = solve(cost, a, b, iterations=5000, threshold=0.0)
    moved = np.abs(both - further).sum(axis=(1, 2))
    assert moved[1] > 1e-5  # stopped early, so the test above compares unfinished plans


def test_threshold_bounds_the_marginal_error():
    cost, a, b = (jnp.asarray(x, jnp.float32) for x in _problems(rows=8, tx=16, ty=16))
    errors = []
    for threshold in (0.3, 1e-2, 1e-4):
        plan = _plan(cost, a, b, epsilon=0.02, iterations=5000, threshold=threshold)
        errors.append(np.abs(plan.sum(axis=1) - b).sum(axis=1).max())
        assert errors[-1] < threshold + 1e-5
        np.testing.assert_allclose(plan.sum(axis=2), a, atol=1e-5)
    assert errors[0] > errors[2]


def _ipot(cost, a, b, beta, iterations, inner=1):
    """The published iteration, with masses in the place of its 1/n and 1/m; without logarithms."""
    kernel, plan = np.exp(-cost / beta), np.ones_like(cost)
    sigma = np.ones(len(b))
    for _ in range(iterations):
        q = kernel * plan
        for _ in range(inner):
            delta = a / (q @ sigma)
            sigma = b / (delta @ q)
        plan = delta[:, None] * q * sigma
    return plan


@pytest.mark.parametrize(("beta", "inner"), [(0.5, 1), (0.1, 3)])
def test_ipot_is_the_published_iteration(beta, inner):
    cost, a, b = _problems()
    with jax.enable_x64(True):
        plan = np.asarray(
            _ipot_plan(*map(jnp.asarray, (cost, a, b)), beta=beta, iterations=20, inner=inner)
        )
    for r in range(3):
        own = np.ix_(a[r] > 0, b[r] > 0)
        masses = a[r][a[r] > 0], b[r][b[r] > 0]
        np.testing.assert_allclose(
            plan[r][own], _ipot(cost[r][own], *masses, beta, 20, inner), atol=1e-13
        )
        assert plan[r].sum() == pytest.approx(plan[r][own].sum(), abs=1e-15)


def test_ipot_nears_the_exact_plan_as_published():
    # Marginals are uniform, as published: 50 iterations do at beta 0.5 and do not at 0.1.
    costs = _problems(rows=4, tx=12, ty=15, seed=3)[0]
    a, b = np.full((4, 12), 1 / 12), np.full((4, 15), 1 / 15)
    exact = np.array([_cheapest(*row) for row in zip(costs, a, b, strict=True)])

    def solved(beta, iterations):
        problem = (jnp.asarray(x, jnp.float32) for x in (costs, a, b))
        plan = np.asarray(_ipot_plan(*problem, beta=beta, iterations=iterations))
        np.testing.assert_allclose(plan.sum(axis=1), b, atol=1e-5)
        error = np.abs(plan.sum(axis=2) - a).sum(axis=1).max()
        return error, (plan * costs).sum(axis=(1, 2)) - exact

    half, gap = solved(0.5, 50)
    longer, closer = solved(0.5, 400)
    tenth, _ = solved(0.1, 50)
    assert longer < half / 5
    assert half < tenth / 2
    assert np.abs(gap).max() < 5e-3
    assert np.abs(closer).max() < 1e-3


def test_ipot_keeps_rows_apart_and_stays_finite():
    cost, a, b = (jnp.asarray(x, jnp.float32) for x in _problems(rows=4))
    plan = _ipot_plan(cost, a, b)
    emptied = _ipot_plan(cost, a.at[0].set(0), b.at[1].set(0))
    assert (emptied[:2] == 0).all()
    np.testing.assert_allclose(emptied[2:], plan[2:], atol=1e-7)
    assert np.isfinite(_ipot_plan(10 * cost, a, b, beta=0.01, iterations=50)).all()
    gradient = jax.grad(lambda c: (_ipot_plan(c, a, b) ** 2).sum())(cost)
    assert (gradient == 0).all()


def test_null_takes_what_would_rather_stay_out():
    # Token 0 of both sides is near; the other two are farther from each other than null.
    cost = jnp.array([[[0.1, 1.0], [1.0, 0.9]]])
    half = jnp.array([[0.5, 0.5]])
    with jax.enable_x64(True):
        for null, kept in ((0.8, [[0.5, 0.0], [0.0, 0.0]]), (1.0, [[0.5, 0.0], [0.0, 0.5]])):
            problem = [x.astype(jnp.float64) for x in (cost, half, half)]
            plan = _plan(*with_null(*problem, null), epsilon=0.005, iterations=3000)
            np.testing.assert_allclose(plan[0, :2, :2], kept, atol=2e-3)
            np.testing.assert_allclose(plan.sum(axis=2)[0, :2], half[0], atol=2e-3)


def test_marginals_are_exact_in_float64():
    with jax.enable_x64(True):
        mask = jnp.ones((1, 3), bool)
        assert marginals(mask, None, jnp.float64)[0, 0] == 1 / 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": 0.1, "iterations": 0}, "iterations is 0"),
        ({"epsilon": 0.1, "threshold": -1.0}, "threshold -1.0"),
        ({"epsilon": 0.1, "tau_a": 0.0}, "taus are 0.0 and 1.0"),
        ({"epsilon": 0.1, "tau_b": 1.5}, "taus are 1.0 and 1.5"),
        ({"epsilon": 0.1, "solver": "lp"}, "solver is 'lp'"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        transport_plan(jnp.ones((1, 2, 2)), jnp.ones((1, 2)), jnp.ones((1, 2)), **options)


@pytest.mark.parametrize("solver", SOLVERS)
def test_eight_devices_agree_with_one_and_never_talk_inside_the_loop(solver, monkeypatch):
    problems = [jnp.asarray(x, jnp.float32) for x in _problems(rows=16, tx=6, ty=7)]
    mesh = make_mesh(data=4, fsdp=2)

    def compiled():
        solve = functools.partial(transport_plan, epsilon=0.05, solver=solver)
        return jax.jit(solve).lower(*rows).compile()

    with jax.set_mesh(mesh):
        rows = jax.device_put(problems, NamedSharding(mesh, ROWS))
        program = compiled()
        plan = program(*rows)
        monkeypatch.setattr(transport, "rowwise", lambda f, shared, rows: f(shared, rows))
        left_to_the_compiler = compiled()
    assert len(plan.sharding.device_set) == 8
    np.testing.assert_allclose(plan, _plan(*problems, epsilon=0.05, solver=solver), atol=1e-6)
    loops, inside = loops_and_their_collectives(program.as_text())
    assert loops > 0
    assert inside == []
    # The check can find what it looks for: without our care it is there.
    assert "all-reduce" in loops_and_their_collectives(left_to_the_compiler.as_text())[1]
