"""Retrievers against torch: Hugging Face's encoder, and the rest written out by hand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.hub import encoder_tensors
from clir_jax.models.requests import (
    EncodePassage,
    EncodeQuery,
    Likelihood,
    Relevance,
    Tokens,
)
from clir_jax.models.retriever import (
    Dense,
    LateInteraction,
    Retriever,
    spec_from_dict,
    spec_to_dict,
)

CONFIG = EncoderConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=24,
    hidden_dropout_prob=0.2,
    initializer_range=0.3,
)
LATE = LateInteraction(dimension=6, query_length=8, passage_length=12)
DENSE = Dense(query_length=8, passage_length=12)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def _tokens(rows=5, width=9, seed=0):
    """Rows of several lengths; some attended tokens are not kept, some kept are not attended."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 50, (rows, width)).astype(np.int32)
    mask = np.arange(width)[None] < rng.integers(3, width + 1, (rows, 1))
    keep = mask & (rng.random((rows, width)) < 0.7)
    keep[:, 0] = True
    keep[0, -1] = True
    mask[0, -1] = False
    return Tokens(ids, mask, keep)


def _model(spec, config=CONFIG, seed=0):
    model = Retriever(spec, config, rngs=nnx.Rngs(seed))
    if model.projection is not None and model.projection.bias is not None:
        bias = model.projection.bias[...]
        model.projection.bias.set_value(jnp.linspace(-1.0, 1.0, bias.size, dtype=bias.dtype))
    return model


@jax.jit
def _run(model, request, row_seeds=None):
    return model(request, row_seeds)


def _torch_hidden(torch, model, tokens, layer=-1):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel(
        transformers.BertConfig(**CONFIG.to_hf()), add_pooling_layer=False
    ).eval()
    tensors = encoder_tensors(nnx.state(model.encoder))
    state = {name: torch.tensor(value.copy()) for name, value in tensors}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in m or "token_type_ids" in m for m in missing)
    with torch.no_grad():
        return theirs(
            input_ids=torch.tensor(tokens.ids.astype(np.int64)),
            attention_mask=torch.tensor(tokens.mask.astype(np.int64)),
            output_hidden_states=True,
        ).hidden_states[layer]


def _linear(torch, model, x):
    kernel = torch.tensor(np.array(model.projection.kernel[...]))
    bias = model.projection.bias
    return torch.nn.functional.linear(
        x, kernel.T, None if bias is None else torch.tensor(np.array(bias[...]))
    )


@pytest.mark.parametrize(
    "spec", [LATE, dataclasses.replace(LATE, projection_bias=True), LateInteraction(None, 8, 12)]
)
def test_late_interaction_equals_torch(spec):
    torch = pytest.importorskip("torch")
    model, tokens = _model(spec), _tokens()
    x = _torch_hidden(torch, model, tokens)
    x = x if spec.dimension is None else _linear(torch, model, x)
    x = torch.nn.functional.normalize(x, p=2, dim=-1) * torch.tensor(tokens.keep)[:, :, None]
    answer = _run(model, EncodePassage(tokens))
    assert answer.vectors.shape == (5, 9, model.embedding_size)
    np.testing.assert_allclose(answer.vectors, x.numpy(), atol=1e-5)
    np.testing.assert_array_equal(answer.mask, tokens.keep)
    assert (np.asarray(answer.vectors)[~tokens.keep] == 0).all()


@pytest.mark.parametrize(
    ("pooling", "options"),
    [
        ("mean", {}),
        ("cls", {"normalize": False}),
        ("max", {"projection": 6, "projection_activation": "tanh"}),
        ("mean", {"projection": 20, "projection_bias": False}),
    ],
)
def test_dense_equals_torch(pooling, options):
    torch = pytest.importorskip("torch")
    spec = dataclasses.replace(DENSE, pooling=pooling, **options)
    model, tokens = _model(spec), _tokens()
    hidden, keep = _torch_hidden(torch, model, tokens), torch.tensor(tokens.keep)[:, :, None]
    x = {
        "mean": (hidden * keep).sum(1) / keep.sum(1),
        "cls": hidden[:, 0],
        "max": hidden.masked_fill(~keep, -1e9).max(1).values,
    }[pooling]
    if spec.projection is not None:
        x = _linear(torch, model, x)
    x = torch.tanh(x) if spec.projection_activation == "tanh" else x
    x = torch.nn.functional.normalize(x, dim=-1) if spec.normalize else x
    answer = _run(model, EncodeQuery(tokens))
    assert answer.vectors.shape == (5, 1, model.embedding_size)
    np.testing.assert_allclose(answer.vectors[:, 0], x.numpy(), atol=1e-5)
    assert answer.mask.shape == (5, 1)
    assert answer.mask.all()


@pytest.mark.parametrize(("spec", "layer"), [(LATE, 1), (DENSE, 2)])
def test_a_layer_of_either_kind_equals_torch(spec, layer):
    torch = pytest.importorskip("torch")
    model, tokens = _model(spec), _tokens()
    x = torch.nn.functional.normalize(_torch_hidden(torch, model, tokens, layer), p=2, dim=-1)
    answer = jax.jit(lambda request: model(request, layer=layer))(EncodeQuery(tokens))
    np.testing.assert_allclose(answer.vectors, x.numpy() * tokens.keep[:, :, None], atol=1e-5)
    np.testing.assert_array_equal(answer.mask, tokens.keep)


def test_queries_and_passages_are_one_tower():
    model = _model(LATE)
    assert model.tower(EncodeQuery) == model.tower(EncodePassage)
    a, b = (_run(model, kind(_tokens())).vectors for kind in (EncodeQuery, EncodePassage))
    np.testing.assert_array_equal(a, b)
    for kind in (Relevance, Likelihood):
        with pytest.raises(TypeError, match=f"asked for {kind.__name__}, and a retriever answers"):
            model.tower(kind)


@pytest.mark.parametrize("spec", [LATE, DENSE])
def test_rows_do_not_depend_on_other_rows_also_with_dropout(spec):
    model, tokens = _model(spec), _tokens()
    seeds = jnp.arange(5, dtype=jnp.uint32)
    whole = _run(model, EncodeQuery(tokens), seeds).vectors
    part = jax.tree.map(lambda x: x[2:4], tokens)
    np.testing.assert_allclose(
        _run(model, EncodeQuery(part), seeds[2:4]).vectors, whole[2:4], atol=1e-6
    )
    assert np.abs(whole - _run(model, EncodeQuery(tokens)).vectors).max() > 0.01
    other = _run(model, EncodeQuery(tokens), seeds + jnp.uint32(9)).vectors
    assert np.abs(whole - other).max() > 0.01


@pytest.mark.parametrize("spec", [LATE, dataclasses.replace(DENSE, projection=6)])
def test_gradients_are_finite_where_a_vector_is_zero(spec):
    model, tokens = _model(spec), _tokens()
    zero = dataclasses.replace(tokens, keep=np.zeros_like(tokens.keep))
    model.projection.kernel.set_value(jnp.zeros_like(model.projection.kernel[...]))
    if model.projection.bias is not None:
        model.projection.bias.set_value(jnp.zeros((6,)))
    graphdef, state = nnx.split(model)
    loss = jax.jit(jax.value_and_grad(lambda s, r: nnx.merge(graphdef, s)(r).vectors.sum()))
    for request in (EncodeQuery(tokens), EncodeQuery(zero)):
        value, gradient = loss(state, request)
        assert value == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("spec", [LATE, dataclasses.replace(DENSE, projection=6)])
def test_float64_and_bfloat16(spec):
    tokens = _tokens()
    model = _model(spec)
    single = _run(model, EncodeQuery(tokens)).vectors
    assert single.dtype == jnp.float32
    graphdef, state = nnx.split(model)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: x.astype(jnp.float64), state)
        wide = _run(nnx.merge(graphdef, double), EncodeQuery(tokens)).vectors
        assert wide.dtype == jnp.float64
        config = dataclasses.replace(CONFIG, dtype="float64")
        made = nnx.eval_shape(lambda: Retriever(spec, config, rngs=nnx.Rngs(0)))
        assert {x.dtype for x in jax.tree.leaves(nnx.state(made))} == {jnp.dtype("float64")}
    np.testing.assert_allclose(wide, single, atol=1e-5)
    made = nnx.eval_shape(
        lambda: Retriever(spec, dataclasses.replace(CONFIG, dtype="bfloat16"), rngs=nnx.Rngs(0))
    )
    half = _run(nnx.merge(nnx.split(made)[0], state), EncodeQuery(tokens)).vectors
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, single, atol=0.1)
    assert np.abs(half - single).max() > 1e-6


def test_specifications_are_plain_values():
    for spec in (LATE, dataclasses.replace(DENSE, query_prompt="query: ", projection=4)):
        assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec
    assert (LATE.late_interaction, DENSE.late_interaction) == (True, False)
    assert LATE.embedding_size(16) == 6
    assert LateInteraction(None).embedding_size(16) == DENSE.embedding_size(16) == 16
    assert Dense(projection=3).embedding_size(16) == 3
    assert hash(LATE) != hash(DENSE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(pooling="sum"), "pooling is 'sum'; write one of 'mean', 'cls', 'max'"),
        (lambda: Dense(projection=0), "projection is 0; write a width"),
        (lambda: Dense(projection_activation="tanh"), "there is no projection"),
        (lambda: Dense(query_length=2), "query_length is 2; .* at least 3"),
        (lambda: LateInteraction(dimension=-1), "dimension is -1; write a width"),
        (lambda: LateInteraction(passage_length=3), "passage_length is 3; .* at least 4"),
        (lambda: LateInteraction(query_marker="[D] "), "two different markers"),
        (
            lambda: LateInteraction(expansion=False, attend_to_expansion=True),
            "attend_to_expansion is set and expansion is not",
        ),
        (lambda: spec_from_dict({"kind": "sparse"}), "kind is 'sparse'"),
        (lambda: spec_from_dict({}), "kind is None"),
        (lambda: spec_from_dict({"kind": "dense", "pool": 1}), "dense has no field 'pool'"),
        (lambda: Retriever(LateInteraction(), CONFIG, rngs=nnx.Rngs(0)), "query_length is 32"),
        (
            lambda: Retriever(Dense(query_length=8), CONFIG, rngs=nnx.Rngs(0)),
            "passage_length is 180 and the encoder has positions for 24 tokens",
        ),
    ],
)
def test_errors_say_what_to_write(make, message):
    with pytest.raises(ValueError, match=message):
        make()
