"""Aligners: which token of one text belongs to which of the other, by one interface.

An aligner is a frozen dataclass of options, written into configurations. All of them turn the same
three arrays into a plan: a cost ``[R, Tx, Ty]``, how far each token of the first text is from each
of the second, and the mass of the tokens of both, ``a [R, Tx]`` and ``b [R, Ty]``, 0 on padding::

  plan = Greedy().plan(cost, a, b, null=None)     # [R, Tx, Ty]

A plan is mass on pairs, at most one unit a row. It is 0 where ``a`` or ``b`` is, so texts may be of
any two lengths, and in rows without mass on either side; no gradient flows through it. With
``null``, tokens without a counterpart stay out, and their mass with them. Arrays may be of numpy or
JAX; ``jax.jit(aligner.plan)`` compiles for repeated use.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from clir_jax.ops.distance import compute_dtype
from clir_jax.ops.matching import cheapest_matches, greedy_matches, matched_plan, mutual_best
from clir_jax.ops.transport import check_options, ipot_plan, transport_plan, with_null

_Given = Array | np.ndarray
_Solve = Callable[[Array, Array, Array], Array]


class _Aligned:
    """The interface; an aligner computes ``_plan`` from arrays of one dtype."""

    def plan(
        self,
        cost: Float[_Given, "R Tx Ty"],
        a: Float[_Given, "R Tx"],
        b: Float[_Given, "R Ty"],
        *,
        null: float | None = None,
    ) -> Float[Array, "R Tx Ty"]:
        """Align; see the module for arguments and result."""
        given = [jax.lax.stop_gradient(jnp.asarray(part)) for part in (cost, a, b)]
        cost, a, b = (part.astype(compute_dtype(*given)) for part in given)
        return self._plan(cost, a, b, null)

    def _plan(self, cost: Array, a: Array, b: Array, null: float | None) -> Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Greedy(_Aligned):
    """One to one: the nearest pair of all first, then the nearest of the tokens that are left.

    The matches share one unit in proportion to the smaller mass of their two tokens: 1 / min(m, n)
    each where the m and the n tokens of the texts weigh the same. With ``null``, matches that cost
    more are dropped. See ``ops.matching.greedy_matches``.

    Example:
      >>> half = jnp.array([[0.5, 0.5]])
      >>> print(Greedy().plan(jnp.array([[[0.1, 0.2], [0.3, 0.9]]]), half, half))
      [[[0.5 0. ]
        [0.  0.5]]]
    """

    def _plan(self, cost: Array, a: Array, b: Array, null: float | None) -> Array:
        plan = matched_plan(greedy_matches(cost, _support(a, b)), a, b)
        return plan if null is None else _within(null, cost, plan)


@dataclasses.dataclass(frozen=True)
class Assignment(_Aligned):
    """One to one, the cheapest of all such alignments.

    Mass is shared as ``Greedy`` does. With ``null``, it is the cheapest alignment in which a pair
    of tokens may stay out at that cost. See ``ops.matching.cheapest_matches``.

    Example:
      >>> half = jnp.array([[0.5, 0.5]])
      >>> print(Assignment().plan(jnp.array([[[0.1, 0.2], [0.3, 0.9]]]), half, half))
      [[[0.  0.5]
        [0.5 0. ]]]
    """

    def _plan(self, cost: Array, a: Array, b: Array, null: float | None) -> Array:
        # Matching at cost ``null`` or leaving out is all the same, so what costs more costs that.
        capped = cost if null is None else jnp.minimum(cost, jnp.asarray(null, cost.dtype))
        plan = matched_plan(cheapest_matches(capped, _support(a, b)), a, b)
        return plan if null is None else _within(null, cost, plan)


@dataclasses.dataclass(frozen=True)
class Sinkhorn(_Aligned):
    """Optimal transport, blurred: near tokens share what they have; see ``ops.transport``.

    Args:
      epsilon: blur of the plan, in the unit of the cost; 0.02 to 0.1 for cosines.
      iterations: of the solver, at most.
      threshold: mass in the wrong column at which the solver stops.
      tau_student: 1 asks every token of the first text to find a place; below 1 (unbalanced
        transport), tokens without a translation may stay out, the more the lower (at epsilon 0.05,
        0.99 is mild and 0.5 drastic).
      tau_teacher: the same for the second text's tokens.
      solver: ``"sinkhorn"`` or ``"ott"``, see ``ops.transport.transport_plan``.

    Raises:
      ValueError: if an option is outside its range.
    """

    epsilon: float = 0.05
    iterations: int = 100
    threshold: float = 1e-3
    tau_student: float = 1.0
    tau_teacher: float = 1.0
    solver: str = "sinkhorn"

    def __post_init__(self) -> None:
        check_options(
            self.epsilon,
            self.iterations,
            self.threshold,
            self.tau_student,
            self.tau_teacher,
            self.solver,
        )

    def _plan(self, cost: Array, a: Array, b: Array, null: float | None) -> Array:
        def solve(cost: Array, a: Array, b: Array) -> Array:
            return transport_plan(
                cost,
                a,
                b,
                epsilon=self.epsilon,
                iterations=self.iterations,
                threshold=self.threshold,
                tau_a=self.tau_student,
                tau_b=self.tau_teacher,
                solver=self.solver,
            )

        return _transported(solve, cost, a, b, null)


@dataclasses.dataclass(frozen=True)
class IPOT(_Aligned):
    """Optimal transport, exact in the limit; see ``ops.transport.ipot_plan``.

    Args:
      beta: the inverse of a step's size. Below 0.5, marginals need more than 50 iterations.
      iterations: steps.
      inner: iterations of Sinkhorn a step.

    Raises:
      ValueError: if an option is outside its range.
    """

    beta: float = 0.5
    iterations: int = 50
    inner: int = 1

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"IPOT: beta is {self.beta}; it must be above 0, 0.5 say")
        for name in ("iterations", "inner"):
            if getattr(self, name) < 1:
                raise ValueError(f"IPOT: {name} is {getattr(self, name)}; it must be at least 1")

    def _plan(self, cost: Array, a: Array, b: Array, null: float | None) -> Array:
        def solve(cost: Array, a: Array, b: Array) -> Array:
            options = {"iterations": self.iterations, "inner": self.inner}
            return ipot_plan(cost, a, b, beta=self.beta, **options)

        return _transported(solve, cost, a, b, null)


@dataclasses.dataclass(frozen=True)
class Attention(_Aligned):
    r"""Each token of the first text is spread over those of the second by a softmax.

    .. math:: P_{ij} = a_i \frac{e^{-C_{ij} / \tau}}{\sum_{k: b_k > 0} e^{-C_{ik} / \tau}}

    On cosine distances that is the softmax of cosines. Nothing keeps many tokens from choosing one
    and the same; of ``b`` only counts where it is 0. ``null`` is one more choice at that cost.

    Args:
      temperature: :math:`\tau`, in the unit of the cost.

    Raises:
      ValueError: if it is not above 0.
    """

    temperature: float = 0.05

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"Attention: temperature is {self.temperature}; it must be above 0, 0.05 say"
            )

    def _plan(self, cost: Array, a: Array, b: Array, null: float | None) -> Array:
        support = _support(a, b)
        if null is not None:
            cost = jnp.pad(cost, [(0, 0), (0, 0), (0, 1)], constant_values=null)
            support = jnp.pad(support, [(0, 0), (0, 0), (0, 1)], constant_values=True)
        shares = jax.nn.softmax(-cost / self.temperature, axis=2, where=support)
        plan = jnp.where(support, shares * a[:, :, None], jnp.zeros_like(cost))
        return plan if null is None else plan[:, :, :-1]


Aligner = Greedy | Assignment | Sinkhorn | IPOT | Attention
"""All of them, for annotations: what a configuration may name as an aligner."""


def agreed(plan: Float[_Given, "R Tx Ty"]) -> Float[Array, "R Tx Ty"]:
    """Keep the mass of pairs that are each other's best, and give them what the others had.

    Args:
      plan: ``[R, Tx, Ty]``.

    Returns:
      ``[R, Tx, Ty]`` with the same mass a row, on pairs that are the largest of their row and of
      their column, in proportion to what they had.

    Example:
      >>> print(agreed(jnp.array([[[0.4, 0.2], [0.3, 0.1]]])))
      [[[1. 0.]
        [0. 0.]]]
    """
    plan = jnp.asarray(plan)
    kept = jnp.where(mutual_best(plan), plan, jnp.zeros_like(plan))
    before, after = (mass.sum(axis=(1, 2), keepdims=True) for mass in (plan, kept))
    return kept * (before / jnp.where(after > 0, after, jnp.ones_like(after)))


def links(plan: Float[_Given, "R Tx Ty"], share: float | None = None) -> Bool[Array, "R Tx Ty"]:
    """The pairs of tokens that a plan says belong together.

    A match of a one-to-one plan is all that its two tokens have, so both rules give its matches.

    Args:
      plan: ``[R, Tx, Ty]``.
      share: None links the pairs that are each other's best, one to one; a number in (0, 1] links
        every pair that holds at least this part of the mass of each of its tokens, so that a token
        may have several links.

    Returns:
      ``[R, Tx, Ty]``; False wherever there is no mass.

    Raises:
      ValueError: if ``share`` is outside its range.

    Example:
      >>> plan = jnp.array([[[0.3, 0.2], [0.0, 0.1]]])
      >>> print(links(plan))
      [[[ True False]
        [False False]]]
      >>> print(links(plan, share=0.4))
      [[[ True  True]
        [False False]]]
    """
    plan = jnp.asarray(plan)
    if share is None:
        return mutual_best(plan) & (plan > 0)
    if not 0 < share <= 1:
        raise ValueError(f"links: share is {share}; it must be above 0 and at most 1")
    of_row, of_column = (share * plan.sum(axis=axis, keepdims=True) for axis in (2, 1))
    return (plan >= of_row) & (plan >= of_column) & (plan > 0)


def _support(a: Array, b: Array) -> Array:
    return (a > 0)[:, :, None] & (b > 0)[:, None, :]


def _within(null: float, cost: Array, plan: Array) -> Array:
    return jnp.where(cost <= null, plan, jnp.zeros_like(plan))


def _transported(solve: _Solve, cost: Array, a: Array, b: Array, null: float | None) -> Array:
    if null is None:
        return solve(cost, a, b)
    return solve(*with_null(cost, a, b, null))[:, :-1, :-1]
