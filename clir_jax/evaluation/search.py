"""Exact search: the best passages of a corpus for each query, whatever the size of the corpus.

Passages arrive in blocks, so neither the device nor the host needs to hold the corpus. Equal scores
are ordered by row number, within a block and across blocks, so the same vectors give the same run
whatever the block sizes.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from clir_jax.mesh import replicated, row_shards
from clir_jax.models.requests import Embeddings
from clir_jax.ops.maxsim import maxsim, maxsim_lists

# Bytes of gathered passage vectors that ``rerank`` sends to the device at a time.
_RERANK_BYTES = 2**28

_Best = tuple[Array, Array]


def top_k(
    queries: Embeddings, passage_blocks: Iterable[Embeddings], k: int, query_block: int = 1024
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Find the ``k`` passages of highest MaxSim for every query, exactly.

    The device holds two blocks of passages, the queries' scores for one of them, and the running
    best; one program serves every block. Products of float32 vectors are computed in full float32,
    also where the hardware's default is less, so that devices agree on the order.

    Args:
      queries: ``[Q, Tq, E]`` vectors and ``[Q, Tq]`` mask, numpy or jax.
      passage_blocks: ``[P, Tp, E]`` vectors and ``[P, Tp]`` masks. P of the first block is the most
        any block may have; smaller blocks are padded to it. Tp may differ between blocks; each
        width compiles once. Rows are numbered in order of arrival.
      k: passages wanted a query; a corpus of fewer gives as many as there are.
      query_block: queries scored at a time.

    Returns:
      scores: ``[Q, k]`` float32 (float64 for float64 vectors), falling; -inf for a passage without
        a kept token.
      rows: ``[Q, k]`` int32; of equal scores, the smaller row comes first.

    Raises:
      ValueError: if ``k`` is below 1, there is no passage, blocks differ in shape, or a score is
        not a number.
    """
    if k < 1:
        raise ValueError(f"search: k is {k}; ask for at least 1 passage a query")
    total, most = 0, 0
    query_blocks = list(_pieces(queries, query_block))
    best: list[_Best] = []
    for block in passage_blocks:
        count = int(block.mask.shape[0])
        _check_width(queries, block)
        if not best:
            most = _padded_rows(count)
            dtype = np.promote_types(np.float32, block.vectors.dtype)
            best = [_empty(piece.mask.shape[0], k, dtype) for piece in query_blocks]
        block = jax.device_put(_pad(block, most))
        # The transfer above runs beside the last block's scoring; waiting here, and not before it,
        # keeps two blocks on the device instead of as many as the host can read ahead.
        jax.block_until_ready(best)
        best = [
            _merge(running, piece, block, np.int32(total), np.int32(count))
            for running, piece in zip(best, query_blocks, strict=True)
        ]
        total += count
    if total == 0:
        raise ValueError("search: the corpus has no passage; give at least one block of vectors")
    return _finish(best, int(queries.mask.shape[0]), min(k, total))


def rerank(
    queries: Embeddings, passages: Embeddings, rows: Int[np.ndarray, "Q N"]
) -> Float[np.ndarray, "Q N"]:
    """Score every query against its own list of passages, exactly.

    Vectors of the passages named are gathered on the host, a bounded number of bytes at a time, so
    ``passages`` may be a memory map larger than memory.

    Args:
      queries: ``[Q, Tq, E]`` vectors and ``[Q, Tq]`` mask.
      passages: ``[P, Tp, E]`` vectors and ``[P, Tp]`` mask of the corpus.
      rows: ``[Q, N]`` row numbers into ``passages``; -1 fills short lists.

    Returns:
      ``[Q, N]`` MaxSim scores, float32 (float64 for float64 vectors), in the order of ``rows``;
      -inf for -1 and for a passage without a kept token.

    Raises:
      ValueError: if widths differ, or a row number is not in the corpus.
    """
    _check_width(queries, passages)
    host = jax.tree.map(np.asarray, passages)
    rows = np.asarray(rows)
    outside = (rows < -1) | (rows >= len(host.mask))
    if outside.any():
        raise ValueError(
            f"rerank: candidate row {int(rows[outside][0])} is not in the corpus of "
            f"{len(host.mask)} passages; give rows from 0, and -1 where a list is short"
        )
    count, width = rows.shape
    if rows.size == 0:
        return np.zeros(rows.shape, np.promote_types(host.vectors.dtype, np.float32))
    a_list = max(1, width * int(np.prod(host.vectors.shape[1:])) * host.vectors.dtype.itemsize)
    scores = []
    for number, piece in enumerate(_pieces(queries, _RERANK_BYTES // a_list, _shards())):
        each = piece.mask.shape[0]
        wanted = np.zeros((each, width), np.int32)
        here = rows[number * each : (number + 1) * each]
        wanted[: len(here)] = np.maximum(here, 0)
        chosen = jax.tree.map(lambda x, wanted=wanted: x[wanted], host)
        scores.append(np.asarray(_score_lists(piece, chosen)))
    return np.where(rows < 0, -np.inf, np.concatenate(scores)[:count])


@functools.partial(jax.jit, donate_argnums=0)
def _merge(
    best: _Best, queries: Embeddings, passages: Embeddings, first_row: Array, count: Array
) -> _Best:
    """Fold a block, of which the first ``count`` passages are real, into the running best.

    The order of ``top_k`` is by value, then by position: the running best stands before the block,
    and its rows are smaller. Real passages score at least the lowest finite number, so that padding
    and the empty running best, at -inf, lose against every one of them.
    """
    running, running_rows = best
    k = running.shape[1]
    lowest = jnp.asarray(np.finfo(running.dtype).min, running.dtype)
    scores = jnp.maximum(_full_precision(maxsim, queries, passages, running.dtype), lowest)
    scores = jnp.where(passages.mask.any(axis=-1)[None], scores, lowest)
    # top_k orders -0 below 0 and NaNs by their sign bit: make the first a tie, the second visible.
    scores = jnp.where(scores == 0, jnp.zeros_like(scores), scores)
    scores = jnp.where(jnp.isnan(scores), jnp.full_like(scores, jnp.nan), scores)
    position = jnp.arange(scores.shape[1], dtype=jnp.int32)
    scores = jnp.where((position < count)[None], scores, jnp.full_like(scores, -jnp.inf))
    values, chosen = jax.lax.top_k(jnp.concatenate([running, scores], axis=1), k)
    old_rows = jnp.take_along_axis(running_rows, jnp.minimum(chosen, k - 1), axis=1)
    return replicated((values, jnp.where(chosen < k, old_rows, chosen - k + first_row)))


@jax.jit
def _score_lists(queries: Embeddings, passages: Embeddings) -> Array:
    dtype = np.promote_types(np.float32, passages.vectors.dtype)
    scores = _full_precision(maxsim_lists, queries, passages, dtype)
    return jnp.where(passages.mask.any(axis=-1), scores, jnp.full_like(scores, -jnp.inf))


def _full_precision(
    score: Callable[..., Array], queries: Embeddings, passages: Embeddings, dtype: Any
) -> Array:
    with jax.default_matmul_precision("highest"):
        return score(
            queries.vectors.astype(dtype),
            queries.mask,
            passages.vectors.astype(dtype),
            passages.mask,
        ).astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(queries: int, k: int, dtype: Any) -> _Best:
    # Placed as _merge leaves its result: donated buffers are reused, and one program serves all.
    return replicated(
        (jnp.full((queries, k), -jnp.inf, dtype), jnp.full((queries, k), -1, jnp.int32))
    )


def _finish(
    best: list[_Best], queries: int, k: int
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Join the query blocks, without the padding of queries and passages."""
    scores, rows = (np.concatenate([np.asarray(b[i]) for b in best])[:queries, :k] for i in (0, 1))
    bad = np.isnan(scores).any(axis=1)
    if bad.any():
        raise ValueError(
            f"search: a score of query row {int(np.argmax(bad))} is not a number, so its vectors "
            "or a passage's hold NaN or infinity; check the checkpoint they come from"
        )
    return np.where(scores == np.finfo(scores.dtype).min, -np.inf, scores), rows


def _pieces(queries: Embeddings, size: int, multiple: int = 1) -> Iterator[Embeddings]:
    """Equal pieces of about ``size`` queries, a multiple of ``multiple``, the last one padded."""
    count = int(queries.mask.shape[0])
    each = -(-count // max(1, -(-count // max(size, 1))))
    each = -(-each // multiple) * multiple
    if each == count:
        yield queries
        return
    host: Embeddings = jax.tree.map(np.asarray, queries)
    for start in range(0, count, each):
        piece = jax.tree.map(lambda x, start=start: x[start : start + each], host)
        yield _pad(piece, each)


def _pad(block: Embeddings, rows: int) -> Embeddings:
    """Append empty rows until ``block`` has ``rows``."""
    missing = rows - block.vectors.shape[0]
    if missing < 0:
        raise ValueError(
            f"search: a block has {block.vectors.shape[0]} passages and the first one allows "
            f"{rows}; give no block more passages than the first"
        )
    if missing == 0:
        return block
    pad = np.pad if isinstance(block.mask, np.ndarray) else jnp.pad
    padded: Embeddings = jax.tree.map(
        lambda x: pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1)), block
    )
    return padded


def _padded_rows(count: int) -> int:
    """The block size that holds ``count`` passages and splits evenly over the devices."""
    return -(-count // _shards()) * _shards()


def _shards() -> int:
    return row_shards(jax.sharding.get_abstract_mesh())


def _check_width(queries: Embeddings, passages: Embeddings) -> None:
    if queries.vectors.shape[-1] != passages.vectors.shape[-1]:
        raise ValueError(
            f"search: query vectors have width {queries.vectors.shape[-1]} and passage vectors "
            f"{passages.vectors.shape[-1]}; encode both with models of one embedding size"
        )
