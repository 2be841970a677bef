"""The masks of dropout: random enough, and functions of seed, salt and place only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clir_jax.ops.dropout import dropout, hash32, row_bits


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def _bits(rows=64, size=4096, salt=3, first_seed=0):
    seeds = jnp.arange(first_seed, first_seed + rows, dtype=jnp.uint32)
    return np.asarray(row_bits((rows, size), seeds, salt, (1,)))


def _kept(bits, rate=0.5):
    return (bits >= np.uint32(rate * 2**32)).astype(np.float64)


def test_hash_is_one_to_one_and_flips_half_of_the_bits():
    x = np.arange(2**13, dtype=np.uint32) * np.uint32(65521)
    assert len(np.unique(hash32(jnp.asarray(x)))) == len(x)
    for bit in range(32):
        flipped = np.asarray(hash32(jnp.asarray(x))) ^ np.asarray(
            hash32(jnp.asarray(x ^ np.uint32(1 << bit)))
        )
        per_output = [np.mean((flipped >> np.uint32(out)) & 1) for out in range(32)]
        assert np.abs(np.array(per_output) - 0.5).max() < 0.06


def test_bits_are_uniform():
    bits = _bits()
    counts = np.bincount((bits >> 24).ravel(), minlength=256)
    expected = bits.size / 256
    chi_square = np.sum((counts - expected) ** 2 / expected)
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_kept_in_every_row_is_binomial(rate):
    share = _kept(_bits(rows=512), rate).mean(axis=1)
    deviation = (share - (1 - rate)) / np.sqrt(rate * (1 - rate) / 4096)
    assert abs(deviation).max() < 5
    assert 0.85 < deviation.var() < 1.15
    assert abs(deviation.mean()) < 5 / np.sqrt(512)


def _correlation(a, b):
    a, b = a - 0.5, b - 0.5
    return abs(4 * (a * b).mean()) * np.sqrt(a.size)  # in standard deviations


def test_rows_salts_and_neighbours_are_independent():
    kept = _kept(_bits())
    assert _correlation(kept[:-1], kept[1:]) < 4  # consecutive seeds
    for shift in (1, 2, 3, 32, 384):
        assert _correlation(kept[:, shift:], kept[:, :-shift]) < 4
        # Consecutive seeds do not give one sequence of bits from shifted starts.
        assert _correlation(kept[1:, shift:], kept[:-1, :-shift]) < 4
    for salt in (0, 1, 2, 4, 2**16 + 3):
        assert _correlation(kept, _kept(_bits(salt=salt))) < 4
    # Seed and salt do not play the same part.
    assert _correlation(_kept(_bits(1, salt=7, first_seed=5)), _kept(_bits(1, 4096, 5, 7))) < 4


def test_pairs_of_neighbours_are_uniform():
    bits = _bits()
    for axis in (0, 1):
        a, b = (np.moveaxis(bits, axis, 0)[part] >> 28 for part in (slice(1, None), slice(-1)))
        counts = np.bincount((a * 16 + b).ravel(), minlength=256)
        expected = a.size / 256
        chi_square = np.sum((counts - expected) ** 2 / expected)
        assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


def test_mask_depends_on_row_seed_and_place_only():
    x = jax.random.normal(jax.random.key(0), (5, 12, 8))
    seeds = jnp.array([7, 8, 9, 7, 2**32 - 1], jnp.uint32)
    whole = dropout(x, 0.5, seeds, 1)
    np.testing.assert_array_equal(dropout(x[2:3], 0.5, seeds[2:3], 1)[0], whole[2])
    np.testing.assert_array_equal(dropout(x[:, :9], 0.5, seeds, 1), whole[:, :9])
    np.testing.assert_array_equal(whole[0] == 0, whole[3] == 0)  # equal seeds, equal masks
    assert not np.array_equal(whole[0] == 0, whole[1] == 0)
    jitted = jax.jit(lambda x, seeds, salt: dropout(x, 0.5, seeds, salt))
    np.testing.assert_array_equal(jitted(x, seeds, jnp.uint32(1)), whole)


def test_fixed_strides_keep_masks_where_two_axes_are_padded():
    x = jnp.ones((2, 3, 10, 10))
    seeds = jnp.arange(2, dtype=jnp.uint32)
    strides = (1 << 24, 1 << 12, 1)
    whole = dropout(x, 0.3, seeds, 0, strides=strides)
    part = dropout(x[:, :, :6, :6], 0.3, seeds, 0, strides=strides)
    np.testing.assert_array_equal(part, whole[:, :, :6, :6])


def test_scale_keeps_the_mean_dtype_and_gradient():
    seeds = jnp.arange(4, dtype=jnp.uint32)
    x = jnp.ones((4, 50, 50), jnp.bfloat16)
    y = dropout(x, 0.2, seeds, 0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32).mean(), 1.0, atol=0.02)
    gradient = jax.grad(lambda x: dropout(x, 0.2, seeds, 0).astype(jnp.float32).sum())(x)
    np.testing.assert_array_equal(gradient, y)  # d y / d x is the scaled mask


def test_off_is_the_identity_and_a_bad_rate_is_refused():
    x = jnp.ones((2, 3))
    assert dropout(x, 0.5, None, 0) is x
    assert dropout(x, 0.0, jnp.zeros(2, jnp.uint32), 0) is x
    with pytest.raises(ValueError, match=r"rate is 1.0; write a number from 0"):
        dropout(x, 1.0, jnp.zeros(2, jnp.uint32), 0)
