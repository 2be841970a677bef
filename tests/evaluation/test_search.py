"""Search against brute force in numpy: pairs scored in a loop, ordered by score, then by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clir_jax.evaluation import search
from clir_jax.models.requests import Embeddings


def _brute_scores(queries, passages):
    scores = np.zeros((len(queries.mask), len(passages.mask)))
    for q, (qv, qm) in enumerate(zip(queries.vectors, queries.mask, strict=True)):
        for p, (pv, pm) in enumerate(zip(passages.vectors, passages.mask, strict=True)):
            kept = np.asarray(pv, np.float64)[pm]
            if len(kept) == 0:
                scores[q, p] = -np.inf
                continue
            scores[q, p] = sum((kept @ v).max() for v in np.asarray(qv, np.float64)[qm])
    return scores


def _brute_top_k(queries, passages, k):
    scores = _brute_scores(queries, passages)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def _random(rng, count, tokens, width=4, keep=0.7, dtype=np.float32):
    """Small integers: sums are exact in any order, and equal scores are frequent."""
    vectors = rng.integers(-2, 3, (count, tokens, width)).astype(dtype)
    mask = rng.random((count, tokens)) < keep
    return Embeddings(vectors * mask[..., None].astype(dtype), mask)


def _cut(passages, size):
    for start in range(0, len(passages.mask), size):
        yield jax.tree.map(lambda x, s=start: x[s : s + size], passages)


@pytest.mark.parametrize(("query_tokens", "passage_tokens"), [(1, 1), (3, 5)])
@pytest.mark.parametrize("size", [1, 4, 7, 23, 100])
def test_top_k_is_brute_force_for_every_block_size(query_tokens, passage_tokens, size):
    rng = np.random.default_rng(0)
    queries, passages = _random(rng, 6, query_tokens), _random(rng, 23, passage_tokens)
    expected, order = _brute_top_k(queries, passages, 10)
    assert (np.diff(expected, axis=1) == 0).any(), "the test must contain ties"
    scores, rows = search.top_k(queries, _cut(passages, size), 10)
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(scores, expected)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int32


@pytest.mark.parametrize("query_block", [1, 4, 9, 64])
def test_queries_are_scored_in_blocks(query_block):
    rng = np.random.default_rng(1)
    queries, passages = _random(rng, 9, 3), _random(rng, 20, 4)
    expected, order = _brute_top_k(queries, passages, 5)
    scores, rows = search.top_k(queries, _cut(passages, 8), 5, query_block=query_block)
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(scores, expected)


def test_float_vectors_match_brute_force():
    rng = np.random.default_rng(2)
    queries = Embeddings(rng.normal(size=(4, 8, 32)).astype(np.float32), rng.random((4, 8)) < 0.8)
    passages = Embeddings(
        rng.normal(size=(50, 20, 32)).astype(np.float32), rng.random((50, 20)) < 0.8
    )
    expected, order = _brute_top_k(queries, passages, 7)
    scores, rows = search.top_k(queries, _cut(passages, 16), 7)
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_k_above_the_corpus_returns_every_passage_and_no_padding():
    rng = np.random.default_rng(3)
    queries, passages = _random(rng, 3, 2), _random(rng, 11, 3, keep=0.3)
    assert (~passages.mask.any(axis=1)).any(), "the test must contain a passage without tokens"
    expected, order = _brute_top_k(queries, passages, 50)
    scores, rows = search.top_k(queries, _cut(passages, 4), 50)
    assert scores.shape == (3, 11)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(11), (3, 1)))
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(scores, expected)


def test_ties_go_to_the_smaller_row_across_blocks():
    passages = Embeddings(np.ones((9, 1, 2), np.float32), np.ones((9, 1), bool))
    passages.vectors[6] = 2
    queries = Embeddings(np.ones((2, 1, 2), np.float32), np.ones((2, 1), bool))
    for size in (1, 2, 4, 9):
        scores, rows = search.top_k(queries, _cut(passages, size), 4)
        np.testing.assert_array_equal(rows, [[6, 0, 1, 2]] * 2)
        np.testing.assert_array_equal(scores, [[4, 2, 2, 2]] * 2)


def test_blocks_of_different_token_counts():
    rng = np.random.default_rng(12)
    queries, passages = _random(rng, 4, 2), _random(rng, 17, 5)
    passages.mask[:9, 3:] = False
    narrow = jax.tree.map(lambda x: x[:9, :3], passages)
    rest = jax.tree.map(lambda x: x[9:], passages)
    expected, order = _brute_top_k(queries, passages, 6)
    scores, rows = search.top_k(queries, [narrow, rest], 6)
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(scores, expected)


def test_minus_zero_ties_with_zero():
    vectors = np.array([-0.0, 0.0, 0.0, -0.0], np.float32).reshape(4, 1, 1)
    passages = Embeddings(vectors, np.ones((4, 1), bool))
    queries = Embeddings(np.ones((1, 1, 1), np.float32), np.ones((1, 1), bool))
    _, rows = search.top_k(queries, [passages], 4)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3]])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_vectors_accumulate_in_float32(dtype):
    # 2049 ones: float16 stops counting at 2048, bfloat16 at 256.
    queries = Embeddings(np.ones((1, 2049, 1), dtype), np.ones((1, 2049), bool))
    passages = Embeddings(np.ones((2, 1, 1), dtype), np.ones((2, 1), bool))
    scores, _ = search.top_k(queries, [passages], 1)
    assert scores.dtype == np.float32
    assert scores[0, 0] == 2049
    assert search.rerank(queries, passages, np.array([[1]]))[0, 0] == 2049


def test_jax_arrays_and_numpy_arrays_agree():
    rng = np.random.default_rng(4)
    queries, passages = _random(rng, 5, 2), _random(rng, 13, 3)
    on_device = jax.tree.map(jnp.asarray, (queries, passages))
    left = search.top_k(queries, _cut(passages, 5), 6)
    right = search.top_k(on_device[0], _cut(on_device[1], 5), 6)
    np.testing.assert_array_equal(left[0], right[0])
    np.testing.assert_array_equal(left[1], right[1])


def test_float64_stays_float64():
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        queries = Embeddings(rng.normal(size=(3, 2, 8)), np.ones((3, 2), bool))
        passages = Embeddings(rng.normal(size=(12, 4, 8)), np.ones((12, 4), bool))
        scores, rows = search.top_k(queries, _cut(passages, 5), 4)
    expected, order = _brute_top_k(queries, passages, 4)
    assert scores.dtype == np.float64
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(scores, expected, rtol=1e-13)


def test_strict_promotion_and_rank():
    rng = np.random.default_rng(6)
    queries, passages = _random(rng, 3, 2, width=6), _random(rng, 10, 3, width=6)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        _, rows = search.top_k(queries, _cut(passages, 4), 3)
        search.rerank(queries, passages, rows)
    np.testing.assert_array_equal(rows, _brute_top_k(queries, passages, 3)[1])


def test_one_compilation_serves_all_blocks():
    rng = np.random.default_rng(7)
    queries, passages = _random(rng, 7, 2, width=5), _random(rng, 31, 3, width=5)
    before = search._merge._cache_size()
    search.top_k(queries, _cut(passages, 6), 4, query_block=3)
    assert search._merge._cache_size() == before + 1


def test_blocks_are_read_one_at_a_time():
    rng = np.random.default_rng(8)
    queries, alive = _random(rng, 2, 1), []

    def blocks():
        for _ in range(20):
            block = jax.tree.map(jnp.asarray, _random(rng, 4, 1, keep=1.0))
            alive.append(len([x for x in jax.live_arrays() if x.shape == (4, 1, 4)]))
            yield block

    search.top_k(queries, blocks(), 3)
    assert max(alive) - alive[0] <= 2


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_rerank_scores_the_candidates_given(keep, monkeypatch):
    rng = np.random.default_rng(9)
    queries, passages = _random(rng, 7, 3, keep=keep), _random(rng, 15, 4, keep=keep)
    rows = rng.integers(-1, 15, (7, 6))
    every = _brute_scores(queries, passages)
    expected = np.where(rows < 0, -np.inf, np.take_along_axis(every, np.maximum(rows, 0), axis=1))
    for budget in (1, 6 * 4 * 4 * 4 * 3, 2**28):
        monkeypatch.setattr(search, "_RERANK_BYTES", budget)
        np.testing.assert_array_equal(search.rerank(queries, passages, rows), expected)


def test_rerank_agrees_with_top_k():
    rng = np.random.default_rng(10)
    queries, passages = _random(rng, 5, 3), _random(rng, 30, 4)
    scores, rows = search.top_k(queries, _cut(passages, 8), 10)
    np.testing.assert_array_equal(search.rerank(queries, passages, rows), scores)


def test_a_sharded_search_is_the_unsharded_one():
    from clir_jax.mesh import make_mesh

    if jax.device_count() == 1:
        pytest.skip("needs several devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    rng = np.random.default_rng(11)
    queries, passages = _random(rng, 4, 2), _random(rng, 29, 3)
    expected, order = _brute_top_k(queries, passages, 6)
    before = search._merge._cache_size()
    with jax.set_mesh(make_mesh(data=jax.device_count() // 2, fsdp=2)):
        scores, rows = search.top_k(queries, _cut(passages, 10), 6)
        again = search.rerank(queries, passages, rows)
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(again, expected)
    assert search._merge._cache_size() == before + 1


def test_errors_say_what_to_do():
    ones = Embeddings(np.ones((2, 1, 3), np.float32), np.ones((2, 1), bool))
    wide = Embeddings(np.ones((2, 1, 4), np.float32), np.ones((2, 1), bool))
    three = Embeddings(np.ones((3, 1, 3), np.float32), np.ones((3, 1), bool))
    nan = Embeddings(-np.full((2, 1, 3), np.nan, np.float32), np.ones((2, 1), bool))
    for call, words in [
        (lambda: search.top_k(ones, [ones], 0), "k is 0; ask for at least 1"),
        (lambda: search.top_k(ones, [], 1), "no passage; give at least one block"),
        (lambda: search.top_k(ones, [wide], 1), "width 3 and passage vectors 4"),
        (lambda: search.top_k(ones, [ones, three], 1), "has 3 passages and the first one allows 2"),
        (lambda: search.top_k(ones, [ones, nan], 1), "query row 0 is not a number"),
        (lambda: search.rerank(ones, wide, np.zeros((2, 1), int)), "width 3"),
        (
            lambda: search.rerank(ones, ones, np.array([[0], [2]])),
            "row 2 is not in the corpus of 2",
        ),
        (lambda: search.rerank(ones, ones, np.array([[-2], [0]])), "row -2 is not in the corpus"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
