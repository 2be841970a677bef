"""Similarity of sentences against loops, cosine by cosine."""

import jax
import numpy as np

from clir_jax.ops.similarity import sentence_similarity


def _sentences(rng, count, tokens):
    mask = np.arange(tokens) < rng.integers(1, tokens + 1, count)[:, None]
    vectors = rng.normal(size=(count, tokens, 3)).astype(np.float32)
    return np.where(mask[..., None], vectors, 0), mask


def test_similarity_is_the_mean_of_best_cosines_both_ways():
    rng = np.random.default_rng(0)
    for wide, narrow in ((4, 3), (1, 1)):
        x, x_mask = _sentences(rng, 5, wide)
        y, y_mask = _sentences(rng, 6, narrow)
        got = np.asarray(jax.jit(sentence_similarity)(x, x_mask, y, y_mask))
        for a in range(5):
            for b in range(6):
                own, other = x[a][x_mask[a]], y[b][y_mask[b]]
                lengths = np.outer(*(np.linalg.norm(v, axis=1) for v in (own, other)))
                cosine = own @ other.T / lengths
                expected = (cosine.max(axis=1).mean() + cosine.max(axis=0).mean()) / 2
                np.testing.assert_allclose(got[a, b], expected, atol=1e-6)
