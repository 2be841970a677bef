"""The encoder against torch, and what it promises about rows, padding, packing and dtypes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clir_jax.mesh import make_mesh
from clir_jax.models.encoder import Encoder, EncoderConfig

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,  # ten times the usual: errors show
}
BERT = EncoderConfig(**SIZES)
XLMR = EncoderConfig(
    **SIZES, model_type="xlm-roberta", type_vocab_size=1, layer_norm_eps=1e-5, hidden_act="relu"
)
CONFIGS = pytest.mark.parametrize("config", [BERT, XLMR], ids=["bert", "xlm-roberta"])


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@functools.cache
def _encoder(config):
    """An encoder whose weights NumPy draws: compiling the initialisation takes longer."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)

    def draw(path, leaf):
        values = random.normal(0, config.initializer_range, leaf.shape)
        scale = path[-2].key == "scale"
        return jnp.asarray(values + scale, leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, params))


# The tests compile much and compute little.
_quick = functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)


@_quick
def _jitted(graphdef, params, ids, mask, kwargs):
    return nnx.merge(graphdef, params)(ids, mask, **kwargs)


def _run(encoder, ids, mask, **kwargs):
    return _jitted(*nnx.split(encoder), ids, mask, kwargs)


def _batch(config, lengths=(9, 14, 1, 6), width=14, seed=0):
    draw = np.random.default_rng(seed).integers(3, config.vocab_size, (len(lengths), width))
    mask = np.arange(width)[None] < np.array(lengths)[:, None]
    return jnp.asarray(np.where(mask, draw, config.pad_token_id), jnp.int32), jnp.asarray(mask)


@_quick
def _gradient(graphdef, params, ids, mask, kwargs):
    def loss(params):
        out = nnx.merge(graphdef, params)(ids, mask, **kwargs).astype(jnp.float32)
        return jnp.sum(jnp.sin(3 * out), where=mask[..., None])

    return jax.grad(loss)(params)


def _gradients(encoder, ids, mask, **kwargs):
    return _gradient(*nnx.split(encoder), ids, mask, kwargs)


def _assert_close(a, b, atol):
    for path, x in jax.tree_util.tree_leaves_with_path(a):
        y = b
        for key in path:
            y = y[key.key] if isinstance(key, jax.tree_util.DictKey) else y[...]
        np.testing.assert_allclose(x, y, atol=atol, err_msg=jax.tree_util.keystr(path))


@CONFIGS
def test_seeded_output_of_a_row_is_its_own(config):
    encoder = _encoder(config)
    ids, mask = _batch(config)
    seeds = jnp.array([4, 5, 6, 4], jnp.uint32)
    whole = _run(encoder, ids, mask, row_seeds=seeds)
    alone = _run(encoder, ids[1:2], mask[1:2], row_seeds=seeds[1:2])
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-5)
    order = jnp.array([2, 0, 3, 1])
    moved = _run(encoder, ids[order], mask[order], row_seeds=seeds[order])
    np.testing.assert_allclose(moved, whole[order], atol=1e-5)
    other = _run(encoder, ids, mask, row_seeds=seeds.at[1].set(jnp.uint32(9)))
    assert jnp.abs(other[1] - whole[1]).max() > 0.1
    np.testing.assert_allclose(other[0], whole[0], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "seeded"), [(BERT, True), (XLMR, False)], ids=["bert-dropout", "xlm-roberta"]
)
def test_padding_changes_neither_output_nor_gradient(config, seeded):
    encoder = _encoder(config)
    ids, mask = _batch(config, lengths=(9, 5, 1), width=9)
    wide = [(0, 0), (0, 7)]
    ids2 = jnp.pad(ids, wide, constant_values=config.pad_token_id)
    mask2 = jnp.pad(mask, wide)
    seeds = jnp.arange(3, dtype=jnp.uint32) if seeded else None
    short, long = (_run(encoder, i, m, row_seeds=seeds) for i, m in ((ids, mask), (ids2, mask2)))
    np.testing.assert_allclose(long[:, :9][mask], short[mask], atol=2e-6)
    _assert_close(
        _gradients(encoder, ids2, mask2, row_seeds=seeds),
        _gradients(encoder, ids, mask, row_seeds=seeds),
        atol=2e-3,  # of gradients whose size is about 100
    )


def test_a_row_of_padding_is_finite_with_its_gradient():
    encoder = _encoder(BERT)
    ids, mask = _batch(BERT, lengths=(5, 0), width=5)
    assert jnp.isfinite(_run(encoder, ids, mask)).all()
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(_gradients(encoder, ids, mask)))


@CONFIGS
def test_packed_texts_equal_separate_rows(config):
    encoder = _encoder(config)
    ids, mask = _batch(config, lengths=(9, 4, 6), width=9)
    rows = _run(encoder, ids, mask)
    lengths = [9, 4, 6]
    packed = jnp.concatenate([row[:n] for row, n in zip(ids, lengths, strict=True)])[None]
    packed = jnp.pad(packed, [(0, 0), (0, 3)], constant_values=config.pad_token_id)
    segments = jnp.asarray(np.repeat([1, 2, 3, 0], [*lengths, 3])[None], jnp.int32)
    out = _run(encoder, packed, segments > 0, segment_ids=segments)
    expected = jnp.concatenate([row[:n] for row, n in zip(rows, lengths, strict=True)])
    np.testing.assert_allclose(out[0, :19], expected, atol=1e-5)
    first = 0 if config.model_type == "bert" else config.pad_token_id + 1
    places = np.concatenate([first + np.arange(n) for n in [*lengths, 3]])[None]
    given = _run(encoder, packed, segments > 0, segment_ids=segments, positions=jnp.asarray(places))
    np.testing.assert_allclose(given[0, :19], expected, atol=1e-5)


def test_positions_and_token_types_are_read():
    encoder = _encoder(BERT)
    ids, mask = _batch(BERT)
    plain = _run(encoder, ids, mask)
    places = jnp.broadcast_to(jnp.arange(14)[None], ids.shape)
    np.testing.assert_allclose(_run(encoder, ids, mask, positions=places), plain, atol=1e-5)
    assert jnp.abs(_run(encoder, ids, mask, positions=places + 1) - plain).max() > 0.1
    zeros = jnp.zeros_like(ids)
    np.testing.assert_allclose(_run(encoder, ids, mask, token_types=zeros), plain, atol=1e-5)
    assert jnp.abs(_run(encoder, ids, mask, token_types=zeros + 1) - plain).max() > 0.1


def test_dropout_sites_and_layers_differ_and_the_rate_is_right():
    config = dataclasses.replace(BERT, attention_probs_dropout_prob=0.0)
    ids, mask = _batch(config)
    seeds = jnp.arange(4, dtype=jnp.uint32)
    both = _run(_encoder(config), ids, mask, row_seeds=seeds)
    probs = dataclasses.replace(BERT, hidden_dropout_prob=0.0)
    only_probs = _run(_encoder(probs), ids, mask, row_seeds=seeds)
    plain = _run(_encoder(BERT), ids, mask)
    assert jnp.abs(both - plain).max() > 0.1
    assert jnp.abs(only_probs - plain).max() > 0.1
    off = dataclasses.replace(probs, attention_probs_dropout_prob=0.0)
    np.testing.assert_array_equal(_run(_encoder(off), ids, mask, row_seeds=seeds), plain)


def test_remat_gives_the_same_gradient():
    ids, mask = _batch(BERT)
    seeds = jnp.arange(4, dtype=jnp.uint32)
    kept = _gradients(_encoder(BERT), ids, mask, row_seeds=seeds)
    again = _encoder(dataclasses.replace(BERT, remat=True))
    _assert_close(_gradients(again, ids, mask, row_seeds=seeds), kept, atol=2e-3)


def test_layers_are_laid_out_on_one_cpu_and_looped_over_elsewhere():
    def loops(devices):
        with jax.set_mesh(make_mesh(devices=jax.devices()[:devices])):
            return _jitted.lower(*nnx.split(_encoder(BERT)), *_batch(BERT), {}).as_text()

    assert "stablehlo.while" not in loops(1)
    assert "stablehlo.while" in loops(2)


@CONFIGS
def test_bfloat16_is_close_and_parameters_stay_float32(config):
    config = dataclasses.replace(config, initializer_range=0.05)
    encoder = _encoder(dataclasses.replace(config, dtype="bfloat16"))
    ids, mask = _batch(config)
    out = _run(encoder, ids, mask)
    assert out.dtype == jnp.bfloat16
    params = jax.tree.leaves(nnx.state(encoder))
    assert {leaf.dtype for leaf in params} == {jnp.dtype("float32")}
    exact = _run(_encoder(config), ids, mask)
    np.testing.assert_allclose(out.astype(jnp.float32)[mask], exact[mask], atol=0.06)
    gradients = jax.tree.leaves(_gradients(encoder, ids, mask, row_seeds=jnp.arange(4, dtype="u4")))
    assert all(g.dtype == jnp.float32 and jnp.isfinite(g).all() for g in gradients)


def test_float64_by_configuration_and_by_parameters():
    ids, mask = _batch(BERT)
    expected = _run(_encoder(BERT), ids, mask)
    with pytest.raises(ValueError, match="needs JAX's 64-bit mode"):
        _encoder(dataclasses.replace(BERT, dtype="float64"))
    graphdef, params = nnx.split(_encoder(BERT))
    with jax.enable_x64(True):
        assert (
            _run(_encoder(dataclasses.replace(BERT, dtype="float64")), ids, mask).dtype
            == jnp.float64
        )
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        out = _jitted(graphdef, wide, ids, mask, {})
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, expected, atol=2e-5)


def test_parameters_are_stacked_and_have_readable_names():
    state = nnx.to_flat_state(nnx.state(_encoder(BERT)))
    shapes = {"/".join(path): leaf.shape for path, leaf in state}
    assert shapes["embeddings/word/embedding"] == (101, 48)
    assert shapes["layers/attention/query/kernel"] == (2, 48, 48)
    assert shapes["layers/mlp/down/kernel"] == (2, 96, 48)
    assert shapes["layers/mlp/norm/scale"] == (2, 48)
    assert len(shapes) == 21


def test_initial_weights_have_the_configured_spread():
    small = dataclasses.replace(BERT, vocab_size=1000, initializer_range=0.02)
    encoder = Encoder(small, rngs=nnx.Rngs(0))
    assert 0.019 < encoder.embeddings.word.embedding[...].std() < 0.021
    kernels = encoder.layers.mlp.up.kernel[...]
    assert 0.019 < kernels.std() < 0.021
    assert not jnp.array_equal(kernels[0], kernels[1])
    assert (encoder.layers.mlp.norm.scale[...] == 1).all()


def test_too_long_rows_are_refused():
    ids = jnp.ones((1, 39), jnp.int32)
    assert (BERT.max_length, XLMR.max_length) == (40, 38)
    with pytest.raises(ValueError, match="rows of 39 tokens, but the position table serves 38"):
        _run(_encoder(XLMR), ids, ids > 0)
    assert _run(_encoder(BERT), ids, ids > 0).shape == (1, 39, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "model_type is 't5'; write one of 'bert', 'roberta', 'xlm-roberta'"),
        ({"dtype": "float16"}, "dtype is 'float16'; write one of 'float32', 'bfloat16', 'float64'"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; write one of 'gelu', 'gelu_new', 'relu'"),
        ({"num_attention_heads": 5}, "hidden_size 48 is not divisible by num_attention_heads 5"),
        ({"vocab_size": 0}, "vocab_size is 0; write a whole number of at least 1"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0; write a number from 0"),
    ],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BERT, **change)


@CONFIGS
def test_config_survives_json(config):
    config = dataclasses.replace(config, bos_token_id=0, eos_token_id=2)
    written = json.loads(json.dumps(config.to_hf()))
    assert EncoderConfig.from_hf(written) == config
    changed = EncoderConfig.from_hf(written, dtype="bfloat16", remat=True)
    assert changed == dataclasses.replace(config, dtype="bfloat16", remat=True)
    assert hash(changed) != hash(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "electra"}, "model_type is 'electra'; this encoder computes 'bert'"),
        ({"position_embedding_type": "relative_key"}, "which this encoder does not compute"),
        ({"is_decoder": True}, "is_decoder is True, which this encoder does not compute"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
    ],
)
def test_other_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_hf(BERT.to_hf() | change)


def test_missing_sizes_are_named():
    content = BERT.to_hf()
    del content["vocab_size"], content["hidden_size"]
    with pytest.raises(ValueError, match=r"config.json: no vocab_size, hidden_size; write"):
        EncoderConfig.from_hf(content)
    content = XLMR.to_hf() | {"pad_token_id": None}
    assert EncoderConfig.from_hf(content).pad_token_id == 1  # Hugging Face's own default
