r"""MaxSim: the score of a passage for a query, from their token vectors.

.. math:: s(q, p) = \sum_i \max_j \langle q_i, p_j \rangle

over the kept tokens of both. With one vector a text (a dense retriever) it is the inner product, so
one function scores both kinds of retriever.

References:
  Khattab and Zaharia, ColBERT: Efficient and Effective Passage Search via Contextualized Late
  Interaction over BERT, SIGIR 2020, arXiv:2004.12832.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clir_jax.mesh import rowwise
from clir_jax.ops.chunking import map_rows

# Token-pair similarities alive at once, on one device: 8 MiB of float32 stay in a CPU's cache (four
# times as many run at half the speed there) and are still a matrix product that fills an
# accelerator.
_BLOCK = 2**21
# Below any score of unit vectors, and finite so that masked maxima have gradient 0 instead of NaN.
_MASKED = -1e4


def maxsim(
    query: Float[Array, "Q Tq E"],
    query_mask: Bool[Array, "Q Tq"],
    passage: Float[Array, "P Tp E"],
    passage_mask: Bool[Array, "P Tp"],
) -> Float[Array, "Q P"]:
    r"""Score every query against every passage.

    Never holds ``[Q, Tq, P, Tp]``: blocks are sized from the shapes, and the backward pass computes
    them again. On a mesh the queries are gathered and the passages stay where they are, so scores
    are sharded by passage and the gradient of the queries is reduced once.

    Args:
      query: ``[Q, Tq, E]`` query token vectors.
      query_mask: ``[Q, Tq]`` the query vectors that count.
      passage: ``[P, Tp, E]`` passage token vectors.
      passage_mask: ``[P, Tp]`` the passage vectors that count. A passage without any scores -10,000
        for each query token: below every real score, and finite.

    Returns:
      ``[Q, P]`` scores.

    Example:
      >>> q = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> p = jnp.array([[[0.5, 0.0], [0.0, 0.25]], [[-1.0, 0.0], [9.0, 9.0]]])
      >>> maxsim(q, jnp.ones((1, 2), bool), p, jnp.array([[True, True], [True, False]]))
      Array([[ 0.75, -1.  ]], dtype=float32)
    """
    per_query = query.shape[1] * passage.shape[1]

    def local(queries: tuple[Array, Array], passages: tuple[Array, Array]) -> Array:
        passages_at_once = max(1, _BLOCK // per_query)

        def of_passages(block: tuple[Array, Array]) -> Array:
            queries_at_once = max(1, _BLOCK // (per_query * block[0].shape[0]))
            return map_rows(lambda q: _all_pairs(*q, *block), queries, queries_at_once).T

        return map_rows(of_passages, passages, passages_at_once)

    return rowwise(local, (query, query_mask), (passage, passage_mask)).T


def maxsim_lists(
    query: Float[Array, "B Tq E"],
    query_mask: Bool[Array, "B Tq"],
    passages: Float[Array, "B N Tp E"],
    passages_mask: Bool[Array, "B N Tp"],
) -> Float[Array, "B N"]:
    """Score every query against its own list of passages.

    Args:
      query: ``[B, Tq, E]`` query token vectors.
      query_mask: ``[B, Tq]`` the query vectors that count.
      passages: ``[B, N, Tp, E]`` the token vectors of N passages a query.
      passages_mask: ``[B, N, Tp]`` the passage vectors that count.

    Returns:
      ``[B, N]`` scores, as ``maxsim`` computes them.
    """
    per_query = query.shape[1] * passages.shape[1] * passages.shape[2]

    def local(_: None, rows: tuple[Array, ...]) -> Array:
        return map_rows(lambda r: jax.vmap(_one_list)(*r), rows, max(1, _BLOCK // per_query))

    return rowwise(local, None, (query, query_mask, passages, passages_mask))


def _one_list(query: Array, query_mask: Array, passages: Array, passages_mask: Array) -> Array:
    return _all_pairs(query[None], query_mask[None], passages, passages_mask)[0]


def _all_pairs(query: Array, query_mask: Array, passage: Array, passage_mask: Array) -> Array:
    """The formula as it stands, for blocks that fit: ``[Q, P]``."""
    similarity = jnp.einsum("qte,pse->qtps", query, passage)
    masked = jnp.asarray(_MASKED, similarity.dtype)
    best = jnp.where(passage_mask[None, None], similarity, masked).max(axis=-1)
    return jnp.where(query_mask[:, :, None], best, jnp.zeros_like(best)).sum(axis=1)
