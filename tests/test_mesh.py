"""The mesh, its rules, and code that runs per device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clir_jax.mesh import (
    ROWS,
    look_up,
    make_mesh,
    put_rows,
    replicated,
    row_shards,
    rowwise,
    shardings,
)
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import abstract_retriever
from clir_jax.models.hub import load_config
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.tree import paths


def test_sizes_must_make_the_devices():
    assert dict(make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert row_shards(make_mesh(2, 2, 2)) == 4
    with pytest.raises(ValueError, match=r"data 3 x fsdp 1 x tensor 1 does not make the 8 devices"):
        make_mesh(3)
    with pytest.raises(ValueError, match="set data=-1"):
        make_mesh(fsdp=3)


def test_rules_cover_every_parameter_of_every_kind():
    for config in (load_config("bert-base-uncased"), load_config("xlm-roberta-base")):
        for spec in (LateInteraction(), Dense(projection=64, projection_activation="tanh")):
            _, params = abstract_retriever(spec, config)
            placed = paths(shardings(params, make_mesh(2, 2, 2)))
            assert placed.keys() == paths(params).keys()
            word = placed["encoder/embeddings/word/embedding"].spec
            assert word == P(None, ("fsdp", "tensor"))
            assert placed["encoder/layers/attention/query/kernel"].spec == P(None, "fsdp", "tensor")
            assert placed["encoder/layers/mlp/down/kernel"].spec == P(None, "tensor", "fsdp")
            # Whatever is large is split.
            large = [p for p, leaf in paths(params).items() if leaf.size > 1e6]
            assert len(large) >= 6
            split = [p for p in large if any(placed[p].spec)]
            assert set(large) - set(split) <= {"encoder/embeddings/position/embedding"}


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(ValueError, match=r"the parameter head/weight \[2, 3\]; add a pattern"):
        shardings({"head": {"weight": jnp.zeros((2, 3))}}, make_mesh())


def test_an_axis_that_does_not_divide_stays_whole():
    config = EncoderConfig(
        vocab_size=11, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=20, max_position_embeddings=190,
    )  # fmt: skip
    _, params = abstract_retriever(LateInteraction(dimension=5), config)
    placed = paths(shardings(params, make_mesh(fsdp=8)))
    assert placed["encoder/embeddings/word/embedding"].spec == P(None, None)
    assert placed["projection/kernel"].spec == P(None, None)


def test_rowwise_gives_each_device_its_rows_and_reduces_the_shared_gradient():
    seen = []

    def f(w, x):
        seen.append(x.shape)
        return jnp.tanh(x @ w)

    rng = np.random.default_rng(0)
    w, x = (rng.normal(size=s).astype(np.float32) for s in ((3, 2), (16, 3)))
    expected = jax.grad(lambda w: jnp.tanh(x @ w).sum())(jnp.asarray(w))
    mesh = make_mesh(4, 2, 1)
    with jax.set_mesh(mesh):
        rows = put_rows(x, mesh)
        out, gradient = jax.jit(lambda w, x: (rowwise(f, w, x), jax.grad(_total(f))(w, x)))(w, rows)
        assert (2, 3) in seen
        assert out.sharding.spec == ROWS
        whole = jax.jit(replicated)(out)
        assert all(shard.data.shape == (16, 2) for shard in whole.addressable_shards)
    np.testing.assert_allclose(out, np.tanh(x @ w), atol=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def _total(f):
    return lambda w, x: rowwise(f, w, x).sum()


def test_rowwise_inside_rowwise_is_local():
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        x = put_rows(np.arange(8.0, dtype=np.float32), mesh)
        nested = jax.jit(
            lambda x: rowwise(lambda _, a: rowwise(lambda _, b: b + 1, None, a), None, x)
        )(x)
    np.testing.assert_array_equal(nested, np.arange(8) + 1)


def test_look_up_is_indexing_on_every_mesh():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 16)).astype(np.float32)
    ids = rng.integers(0, 20, (8, 5)).astype(np.int32)
    for sizes in ((8, 1, 1), (1, 8, 1), (2, 2, 2)):
        with jax.set_mesh(make_mesh(*sizes)):
            np.testing.assert_array_equal(jax.jit(look_up)(table, ids), table[ids])
