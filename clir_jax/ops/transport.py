r"""Entropic optimal transport between the tokens of two texts.

One row is one pair of texts: a cost ``[Tx, Ty]``, how much each token of the one has to give
(``a``), how much each token of the other has to take (``b``), and the plan that carries the one to
the other cheaply:

.. math::
  P = \arg\min_{P \ge 0} \langle P, C \rangle + \epsilon \sum_{ij} P_{ij} (\log P_{ij} - 1)
      + \rho_a KL(P 1 \| a) + \rho_b KL(P^\top 1 \| b)

Balanced transport has infinite :math:`\rho`: it uses all of both sides. A padding token gives and
takes nothing; the plan with padding is the plan without.

References:
  Cuturi, Sinkhorn Distances: Lightspeed Computation of Optimal Transport, NeurIPS 2013,
  arXiv:1306.0895; Sejourne et al., Sinkhorn Divergences for Unbalanced Optimal Transport, 2019,
  arXiv:1910.12958 (unbalanced); Schmitzer, Stabilized Sparse Scaling Algorithms for Entropy
  Regularized Transport Problems, SIAM J. Sci. Comput. 2019, arXiv:1610.06519 (absorption).
"""

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from clir_jax.mesh import rowwise
from clir_jax.ops.distance import compute_dtype

SOLVERS = ("sinkhorn", "ott")
# Iterations between two looks at the error, as in ott: a look costs one more pass over the plan.
_BLOCK = 10
# Largest change of a potential before it is absorbed into the kernel: e^30 times e^30 is far from
# the ends of float32, so that no sum below is infinite or NaN, whatever epsilon.
_CLIP = 30.0

_State = tuple[Array, Array, Array, Array]
_Solver = Callable[[Array, Array, Array], Array]


def marginals(
    mask: Bool[Array, "R T"],
    weights: Float[Array, "R T"] | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[Array, "R T"]:
    """Share one unit of mass among the tokens of each text.

    Args:
      mask: ``[R, T]`` the tokens that count.
      weights: ``[R, T]`` not negative, in any unit: tokens share in proportion (inverse document
        frequency, for instance). None shares equally, and so does a text whose weights are all 0.
      dtype: of the result; that of the cost.

    Returns:
      ``[R, T]``; every row sums to 1, or to 0 where no token counts. Zero outside ``mask``.

    Example:
      >>> mask = jnp.array([[True, True, False], [False, False, False]])
      >>> marginals(mask)
      Array([[0.5, 0.5, 0. ],
             [0. , 0. , 0. ]], dtype=float32)
      >>> marginals(mask, jnp.array([[3.0, 1.0, 9.0], [1.0, 1.0, 1.0]]))
      Array([[0.75, 0.25, 0.  ],
             [0.  , 0.  , 0.  ]], dtype=float32)
    """
    equal = mask.astype(dtype)
    if weights is None:
        return _normalised(equal)
    share = jnp.where(mask, weights.astype(dtype), jnp.zeros_like(equal))
    return _normalised(jnp.where(share.sum(axis=1, keepdims=True) > 0, share, equal))


def transport_plan(
    cost: Float[Array, "R Tx Ty"],
    a: Float[Array, "R Tx"],
    b: Float[Array, "R Ty"],
    *,
    epsilon: float,
    iterations: int = 100,
    threshold: float = 1e-3,
    tau_a: float = 1.0,
    tau_b: float = 1.0,
    solver: str = "sinkhorn",
) -> Float[Array, "R Tx Ty"]:
    r"""Solve every row's transport problem; no gradient flows through the plan.

    Use the plan as a constant: the gradient of the regularised optimum with respect to the cost is
    the plan itself (Danskin), so ``sum(cost * transport_plan(cost, ...))`` has that gradient.

    ``solver="ott"`` is ott-jax. ``"sinkhorn"``, the default, runs the same iteration and reaches
    the same plan (1e-12 in float64), but keeps :math:`e^{-C/\epsilon}` between iterations where ott
    computes it anew, and absorbs the scalings into the potentials every ten iterations, which makes
    it as safe as logarithms. For 32 rows on two CPU cores it takes a fifth to a tenth of the time:
    0.5-1.0 ms for 2.2-7.1 with 32 tokens, 0.8-2.3 ms for 5.6-23 with 64, beside about 30 ms for the
    rest of a small model's training step (``python benchmarks/transport.py``).

    Args:
      cost: ``[R, Tx, Ty]`` finite. float64 is solved in float64, all else in float32 (in bfloat16
        the iteration does not converge).
      a: ``[R, Tx]`` mass of each token of the first text, 0 on padding.
      b: ``[R, Ty]`` mass of each token of the second text, 0 on padding.
      epsilon: blur, in the unit of the cost; small is close to one-to-one and slow to converge.
      iterations: at most so many, in blocks of 10.
      threshold: a row stops once less than this mass is in the wrong column.
      tau_a: 1 gives away all of ``a``; below 1, a token keeps mass where nothing is near (and gives
        a little more than it has where something is), with
        :math:`\rho_a = \epsilon \tau_a / (1 - \tau_a)`.
      tau_b: the same for ``b``.
      solver: ``"sinkhorn"`` or ``"ott"``.

    Returns:
      ``[R, Tx, Ty]``, zero where ``a`` or ``b`` is zero, and in rows without mass on either side.

    Raises:
      ValueError: if an option is outside its range.

    Example:
      >>> cost = jnp.array([[[0.0, 1.0, 5.0], [1.0, 0.0, 5.0]]])
      >>> half = jnp.array([[0.5, 0.5]])
      >>> plan = transport_plan(cost, half, jnp.array([[0.5, 0.5, 0.0]]), epsilon=0.1)
      >>> print(plan.round(2))
      [[[0.5 0.  0. ]
        [0.  0.5 0. ]]]
    """
    check_options(epsilon, iterations, threshold, tau_a, tau_b, solver)
    dtype = compute_dtype(cost, a, b)
    solve = (_sinkhorn if solver == "sinkhorn" else _ott)(
        epsilon, iterations, threshold, float(tau_a), float(tau_b)
    )

    def local(_: None, rows: list[Array]) -> Array:
        return jax.vmap(functools.partial(_row, solve))(*rows)

    # Per device, or the compiler would put an all-reduce of "has every row stopped?" into the loop.
    return rowwise(local, None, [jax.lax.stop_gradient(x.astype(dtype)) for x in (cost, a, b)])


def ipot_plan(
    cost: Float[Array, "R Tx Ty"],
    a: Float[Array, "R Tx"],
    b: Float[Array, "R Ty"],
    *,
    beta: float = 0.5,
    iterations: int = 50,
    inner: int = 1,
) -> Float[Array, "R Tx Ty"]:
    r"""Transport without blur, by proximal steps; no gradient flows through the plan.

    .. math::
      P^{(t+1)} = \arg\min_{P \ge 0,\; P 1 = a,\; P^\top 1 = b}
        \langle P, C \rangle + \beta\, KL(P \| P^{(t)}), \qquad P^{(0)} = 1

    with ``inner`` iterations of Sinkhorn for each step. The steps lead to the exact plan whatever
    ``beta``, a small one in fewer steps of which each takes more iterations to be solved: with one,
    the rows' marginals are good to 1e-3 after 50 steps at 0.5 and need many more at 0.1. The
    columns' are always exact.

    Args:
      cost: ``[R, Tx, Ty]`` finite; solved in float64 or float32 as in ``transport_plan``.
      a: ``[R, Tx]`` mass of each token of the first text, 0 on padding.
      b: ``[R, Ty]`` mass of each token of the second text, 0 on padding.
      beta: size of a step is its inverse, in the unit of the cost.
      iterations: steps.
      inner: iterations a step.

    Returns:
      ``[R, Tx, Ty]``, zero where ``a`` or ``b`` is zero, and in rows without mass on either side.

    Example:
      >>> cost = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
      >>> half = jnp.array([[0.5, 0.5]])
      >>> print(ipot_plan(cost, half, half).round(2))
      [[[0.5 0. ]
        [0.  0.5]]]

    References:
      Xie, Wang, Wang, Zha, A Fast Proximal Point Method for Computing Exact Wasserstein Distance,
      UAI 2019, arXiv:1802.04307.
    """
    dtype = compute_dtype(cost, a, b)

    def solve(cost: Array, a: Array, b: Array) -> Array:
        support = (a > 0)[:, None] & (b > 0)[None, :]
        scores = jnp.where(support, -cost / beta, -jnp.inf)
        log_a, log_b = (jnp.log(jnp.where(m > 0, m, jnp.ones_like(m))) for m in (a, b))

        def potential(log_mass: Array, mass: Array, log_sum: Array) -> Array:
            return jnp.where(mass > 0, log_mass - log_sum, jnp.zeros_like(mass))

        # In logarithms: entries beside the exact plan become smaller with every step, and their
        # share in the sums must not be lost where they are all that a row has left.
        def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            plan, g = state
            plan = plan + scores

            def iteration(_: Array, potentials: tuple[Array, Array]) -> tuple[Array, Array]:
                _, g = potentials
                f = potential(log_a, a, jax.nn.logsumexp(plan + g[None, :], axis=1))
                return f, potential(log_b, b, jax.nn.logsumexp(plan + f[:, None], axis=0))

            f, g = jax.lax.fori_loop(0, inner, iteration, (jnp.zeros_like(a), g))
            return plan + f[:, None] + g[None, :], g

        start = (jnp.where(support, 0.0, -jnp.inf).astype(cost.dtype), jnp.zeros_like(b))
        return jnp.exp(jax.lax.fori_loop(0, iterations, step, start)[0])

    def local(_: None, rows: list[Array]) -> Array:
        return jax.vmap(functools.partial(_row, solve))(*rows)

    return rowwise(local, None, [jax.lax.stop_gradient(x.astype(dtype)) for x in (cost, a, b)])


def with_null(
    cost: Float[Array, "R Tx Ty"], a: Float[Array, "R Tx"], b: Float[Array, "R Ty"], null: float
) -> tuple[Float[Array, "R Sx Sy"], Float[Array, "R Sx"], Float[Array, "R Sy"]]:
    """Add a token to each text that can take all of the other's mass.

    Args:
      cost: ``[R, Tx, Ty]``.
      a: ``[R, Tx]`` mass of the first text.
      b: ``[R, Ty]`` mass of the second.
      null: what it costs to leave a unit on each side without a counterpart; tokens that are
        farther apart would rather be left out.

    Returns:
      Cost ``[R, Tx + 1, Ty + 1]`` and masses; what a plan gives the last row and column is left
      out.

    Example:
      >>> cost, a, b = with_null(jnp.zeros((1, 1, 2)), jnp.ones((1, 1)), jnp.ones((1, 2)) / 2, 0.6)
      >>> print(cost, a, b)
      [[[0.  0.  0.3]
        [0.3 0.3 0. ]]] [[1. 1.]] [[0.5 0.5 1. ]]
    """
    wide = jnp.pad(cost, [(0, 0), (0, 1), (0, 1)], constant_values=null / 2)
    wide = wide.at[:, -1, -1].set(0)
    left, right = (mass.sum(axis=1, keepdims=True) for mass in (a, b))
    return wide, jnp.concatenate([a, right], axis=1), jnp.concatenate([b, left], axis=1)


def check_options(
    epsilon: float, iterations: int, threshold: float, tau_a: float, tau_b: float, solver: str
) -> None:
    """Refuse options of ``transport_plan`` outside their range.

    Raises:
      ValueError: one sentence with the option, its value and its range.
    """
    if epsilon <= 0:
        raise ValueError(f"optimal transport: epsilon is {epsilon}; it must be above 0, 0.05 say")
    if iterations < 1 or threshold < 0:
        raise ValueError(
            f"optimal transport: iterations is {iterations} and threshold {threshold}; "
            "the one must be at least 1 and the other not negative"
        )
    if not (0 < tau_a <= 1 and 0 < tau_b <= 1):
        raise ValueError(
            f"optimal transport: the taus are {tau_a} and {tau_b}; they must be above 0 and at "
            "most 1, where 1 is balanced transport"
        )
    if solver not in SOLVERS:
        raise ValueError(f"optimal transport: solver is {solver!r}; write one of {SOLVERS}")


def _row(solve: _Solver, cost: Array, a: Array, b: Array) -> Array:
    """Solve one row; one without mass becomes a harmless problem first, and a zero plan last."""
    empty = (a.sum() <= 0) | (b.sum() <= 0)
    plan = solve(
        cost,
        jnp.where(empty, jnp.full_like(a, 1 / a.size), a),
        jnp.where(empty, jnp.full_like(b, 1 / b.size), b),
    )
    support = (a > 0)[:, None] & (b > 0)[None, :]
    return jnp.where(support & ~empty, plan, jnp.zeros_like(plan))


def _sinkhorn(
    epsilon: float, iterations: int, threshold: float, tau_a: float, tau_b: float
) -> _Solver:
    """Our solver of one row; potentials f, g in units of epsilon: P = exp(f + g - C / epsilon)."""

    def update(mass: Array, tau: float, kernel_sum: Array, potential: Array) -> Array:
        # The change that makes the potential tau * log(mass / sum). Any finite one will do on
        # padding, whose kernel is 0; where a sum underflowed, it is the largest step up.
        tiny = float(np.finfo(mass.dtype).tiny)
        log_mass = jnp.log(jnp.where(mass > 0, mass, jnp.ones_like(mass)))
        change = tau * (log_mass - jnp.log(jnp.maximum(kernel_sum, tiny)))
        return jnp.clip(change - (1 - tau) * potential, -_CLIP, _CLIP)

    def solve(cost: Array, a: Array, b: Array) -> Array:
        support = (a > 0)[:, None] & (b > 0)[None, :]
        scores = jnp.where(support, -cost / epsilon, -jnp.inf)
        product = functools.partial(jnp.matmul, precision="highest")

        def plan(f: Array, g: Array) -> Array:
            return jnp.exp(scores + f[:, None] + g[None, :])

        def block(state: _State) -> _State:
            f, g, done, _ = state
            kernel = plan(f, g)

            def iteration(_: Array, change: tuple[Array, Array]) -> tuple[Array, Array]:
                df, _ = change
                dg = update(b, tau_b, product(jnp.exp(df), kernel), g)
                df = update(a, tau_a, product(kernel, jnp.exp(dg)), f)
                return df, dg

            zeros = (jnp.zeros_like(f), jnp.zeros_like(g))
            df, dg = jax.lax.fori_loop(0, _BLOCK, iteration, zeros)
            # The mass that the next update would move; balanced, the error of the second marginal.
            column = product(jnp.exp(df), kernel)
            step = update(b, tau_b, column, g) - dg
            error = jnp.abs(jnp.exp(dg) * column * jnp.expm1(step)).sum()
            return f + df, g + dg, done + _BLOCK, error

        def unfinished(state: _State) -> Array:
            _, _, done, error = state
            return (done < iterations) & (error >= threshold)

        f, g = _first_potentials(scores, a, b, tau_a, tau_b)
        start = (f, g, jnp.int32(0), jnp.asarray(jnp.inf, cost.dtype))
        f, g, _, _ = jax.lax.while_loop(unfinished, block, start)
        return plan(f, g)

    return solve


def _first_potentials(
    scores: Array, a: Array, b: Array, tau_a: float, tau_b: float
) -> tuple[Array, Array]:
    """The first iteration, in logarithms: after it no row or column of the plan underflows."""

    def potential(mass: Array, tau: float, log_sum: Array) -> Array:
        real = mass > 0
        log_mass = jnp.log(jnp.where(real, mass, jnp.ones_like(mass)))
        return jnp.where(real, tau * (log_mass - log_sum), jnp.zeros_like(mass))

    g = potential(b, tau_b, jax.nn.logsumexp(scores, axis=0))
    f = potential(a, tau_a, jax.nn.logsumexp(scores + g[None, :], axis=1))
    return f, g


def _ott(epsilon: float, iterations: int, threshold: float, tau_a: float, tau_b: float) -> _Solver:
    """ott-jax's solver of one row. Imported here: it takes seconds, and it warns about jaxopt."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
        from ott.geometry.geometry import Geometry
        from ott.problems.linear.linear_problem import LinearProblem
        from ott.solvers.linear.sinkhorn import Sinkhorn

    def solve(cost: Array, a: Array, b: Array) -> Array:
        # ott relies on implicit promotion in a few places.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            geometry = Geometry(cost_matrix=cost, epsilon=epsilon)
            problem = LinearProblem(geometry, a, b, tau_a=tau_a, tau_b=tau_b)
            return Sinkhorn(threshold=threshold, max_iterations=iterations)(problem).matrix

    return solve


def _normalised(share: Array) -> Array:
    total = share.sum(axis=1, keepdims=True)
    return share / jnp.where(total > 0, total, jnp.ones_like(total))
