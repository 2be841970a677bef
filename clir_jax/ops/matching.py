"""One-to-one matches between the tokens of two texts: in order, greedy, or the cheapest of all.

One row is one pair of texts. A match is True where a token of the first text has found its
counterpart in the second; every token is in one match at most.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from clir_jax.mesh import rowwise

_Loop = tuple[Array, Array, Array]


def in_order_plan(
    x_mask: Bool[Array, "R Tx"],
    y_mask: Bool[Array, "R Ty"],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[Array, "R Tx Ty"]:
    """Match the k-th kept token of one text with the k-th of the other, where both have one.

    Args:
      x_mask: ``[R, Tx]`` the tokens of the first text to match.
      y_mask: ``[R, Ty]`` the tokens of the second text to match.
      dtype: of the result; that of the cost.

    Returns:
      ``[R, Tx, Ty]``; the matches of a row share one unit of mass equally.

    Example:
      >>> x = jnp.array([[True, False, True]])
      >>> print(in_order_plan(x, jnp.array([[False, True, True, True]])))
      [[[0.  0.5 0.  0. ]
        [0.  0.  0.  0. ]
        [0.  0.  0.5 0. ]]]
    """
    x_rank, y_rank = (jnp.where(m, jnp.cumsum(m, axis=1), 0) for m in (x_mask, y_mask))
    matched = (x_rank[:, :, None] == y_rank[:, None, :]) & x_mask[:, :, None]
    matches = matched.sum(axis=(1, 2), keepdims=True)
    return matched.astype(dtype) / jnp.maximum(matches, 1).astype(dtype)


def greedy_matches(
    cost: Float[Array, "R Tx Ty"], support: Bool[Array, "R Tx Ty"]
) -> Bool[Array, "R Tx Ty"]:
    """Match the cheapest pair of all, then the cheapest of the tokens that are left, and so on.

    Pairs that are the cheapest of their row and of their column are matched at once: whatever
    greedy matching takes before them leaves them alone. So a few rounds do where one pair at a time
    takes as many as there are tokens. Of equal costs the first counts, in the order of the second
    text's tokens and then of the first's (as published, where rows are the teacher's tokens).

    Args:
      cost: ``[R, Tx, Ty]`` finite.
      support: ``[R, Tx, Ty]`` the pairs that may be matched.

    Returns:
      ``[R, Tx, Ty]``; min(m, n) matches where m and n tokens may be matched with each other.

    Example:
      >>> cost = jnp.array([[[0.1, 0.2], [0.3, 0.9]]])
      >>> print(greedy_matches(cost, jnp.ones((1, 2, 2), bool)))
      [[[ True False]
        [False  True]]]

    References:
      Li et al., Learning Cross-Lingual IR from an English Retriever, NAACL 2022, arXiv:2112.08185
      (Dr.DECR); Preis, Linear Time 1/2-Approximation Algorithm for Maximum Weighted Matching, STACS
      1999 (pairs that are locally the best).
    """

    def local(_: None, rows: tuple[Array, Array]) -> Array:
        cost, support = rows
        most = min(cost.shape[1:])

        def round_(state: _Loop) -> _Loop:
            done, left, matched = state
            chosen = mutual_best(jnp.where(left, -cost, -jnp.inf)) & left
            taken = chosen.any(axis=2)[:, :, None] | chosen.any(axis=1)[:, None, :]
            return done + 1, left & ~taken, matched | chosen

        def unfinished(state: _Loop) -> Array:
            done, left, _ = state
            return (done < most) & left.any()

        start = (jnp.int32(0), support, jnp.zeros_like(support))
        return jax.lax.while_loop(unfinished, round_, start)[2]

    # Per device, or the compiler would put an all-reduce of "is every row done?" into the loop.
    return rowwise(local, None, (cost, support))


def cheapest_matches(
    cost: Float[Array, "R Tx Ty"], support: Bool[Array, "R Tx Ty"]
) -> Bool[Array, "R Tx Ty"]:
    """Match as many tokens as can be, so that the costs of all matches add up to the least.

    Args:
      cost: ``[R, Tx, Ty]`` finite.
      support: ``[R, Tx, Ty]`` the pairs that may be matched: of every token of the one text that
        takes part with every such token of the other.

    Returns:
      ``[R, Tx, Ty]``; min(m, n) matches where m and n tokens may be matched with each other.

    Example:
      >>> cost = jnp.array([[[0.1, 0.2], [0.3, 0.9]]])
      >>> print(cheapest_matches(cost, jnp.ones((1, 2, 2), bool)))
      [[[False  True]
        [ True False]]]

    References:
      Kuhn, The Hungarian Method for the Assignment Problem, 1955; solved by
      ``optax.assignment.hungarian_algorithm``.
    """

    def row(cost: Array) -> Array:
        i, j = optax.assignment.hungarian_algorithm(cost)
        return jnp.zeros(cost.shape, bool).at[i, j].set(True)

    def local(_: None, rows: tuple[Array, Array]) -> Array:
        cost, support = rows
        # Dearer than every match: two tokens beside padding would rather be matched with each
        # other, so as many real pairs are matched as can be.
        dear = jnp.where(support, cost, 0).max(axis=(1, 2), keepdims=True, initial=0) + 1
        filled = jnp.where(support, cost, dear).astype(jnp.result_type(float))
        # optax relies on implicit promotion.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jax.vmap(row)(filled) & support

    return rowwise(local, None, (cost, support))


def mutual_best(scores: Float[Array, "R Tx Ty"]) -> Bool[Array, "R Tx Ty"]:
    """Pairs of which each token is the other's best.

    Args:
      scores: ``[R, Tx, Ty]``, larger is better; of equal ones the first is the best.

    Returns:
      ``[R, Tx, Ty]``; at most one True in a row or column.

    Example:
      >>> print(mutual_best(jnp.array([[[3.0, 2.0], [1.0, 0.0]]])))
      [[[ True False]
        [False False]]]
    """
    _, tx, ty = scores.shape
    of_x = scores.argmax(axis=2)[:, :, None] == jnp.arange(ty)[None, None, :]
    of_y = scores.argmax(axis=1)[:, None, :] == jnp.arange(tx)[None, :, None]
    return of_x & of_y


def matched_plan(
    matches: Bool[Array, "R Tx Ty"], a: Float[Array, "R Tx"], b: Float[Array, "R Ty"]
) -> Float[Array, "R Tx Ty"]:
    """Share one unit of mass among the matches of each row.

    Args:
      matches: ``[R, Tx, Ty]`` at most one of each token.
      a: ``[R, Tx]`` mass of the first text's tokens.
      b: ``[R, Ty]`` mass of the second's.

    Returns:
      ``[R, Tx, Ty]``: matches share in proportion to the mass that both their tokens have, the
      smaller of the two. Where every token of a text has the same, that is 1 / min(m, n) each.

    Example:
      >>> half = jnp.array([[0.5, 0.5]])
      >>> print(matched_plan(jnp.array([[[False, True], [True, False]]]), half, half))
      [[[0.  0.5]
        [0.5 0. ]]]
    """
    both = jnp.minimum(a[:, :, None], b[:, None, :])
    share = jnp.where(matches, both, jnp.zeros_like(both))
    total = share.sum(axis=(1, 2), keepdims=True)
    return share / jnp.where(total > 0, total, jnp.ones_like(total))
