"""T5 and mT5 against torch, and what they promise about rows, padding, files and decoding."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from clir_jax.mesh import make_mesh, shardings
from clir_jax.models.t5 import T5Config
from clir_jax.models.t5_files import (
    KNOWN_T5,
    abstract_t5,
    load_t5,
    load_t5_config,
    save_t5,
)
from clir_jax.ops.relative_position import position_buckets
from clir_jax.tree import paths

SIZES = {
    "vocab_size": 60,
    "d_model": 16,
    "d_kv": 6,  # 3 heads of 6 are not 16 wide
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
}
# Name, torch's class, its options, and whether the head gets weights of its own.
KINDS = {
    "t5-1.0": ("T5", {"feed_forward_proj": "relu"}, False),
    "t5-1.1": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True),
    "mt5": ("MT5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True),
    "mt5-tied": ("MT5", {"feed_forward_proj": "gated-gelu"}, False),
}
LENGTHS = (13, 5, 1, 9), (6, 7, 2, 1)  # of sources and of targets


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@functools.cache
def _theirs(kind):
    """A torch model whose weights are large enough for its parts to be told apart."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    family, options, own_head = KINDS[kind]
    make_config = getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(
        make_config(**SIZES, **options, decoder_start_token_id=0)
    )
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn(60, 16))
    for name, parameter in model.named_parameters():
        noise = 1.0 if "relative" in name else 0.2 if "norm" in name else 0.05
        parameter.data += noise * torch.randn_like(parameter)
    return model.eval()


@functools.cache
def _batch():
    random = np.random.default_rng(0)
    made = []
    for lengths in LENGTHS:
        width = max(lengths)
        mask = np.arange(width)[None] < np.array(lengths)[:, None]
        ids = np.where(mask, random.integers(2, 60, mask.shape), 0)
        made += [ids.astype(np.int32), mask]
    return made


def _their_logits(model, source, mask, target):
    import torch

    with torch.no_grad():
        return model(
            input_ids=torch.tensor(source).long(),
            attention_mask=torch.tensor(mask).long(),
            decoder_input_ids=model._shift_right(torch.tensor(target).long()),
        ).logits.numpy()


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, source, mask, target, row_seeds=None):
    model = nnx.merge(graphdef, params)
    inputs = jnp.pad(target, [(0, 0), (1, 0)])[:, :-1]  # the start token is 0
    encoded = model.encode(source, mask, row_seeds)
    return model.logits(model.decode(inputs, encoded, mask, row_seeds))


@functools.cache
def _ours(kind, directory, **overrides):
    _theirs(kind).save_pretrained(directory)
    config, params = load_t5(directory, **overrides)
    # The two families compute alike: one compiled program serves both.
    return config, abstract_t5(dataclasses.replace(config, model_type="t5"))[0], params


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    directory = tmp_path_factory.mktemp("t5")
    return lambda kind: _ours(kind, directory / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_torchs_and_survive_the_way_back(ours, tmp_path, kind):
    import transformers

    config, graphdef, params = ours(kind)
    assert config.tie_word_embeddings == ("head" not in params) == (not KINDS[kind][2])
    source, mask, target, scored = _batch()
    expected = _their_logits(_theirs(kind), source, mask, target)
    found = np.asarray(_logits(graphdef, params, source, mask, target))
    assert np.abs(expected[scored]).max() > 2
    assert np.abs(found - expected)[scored].max() <= 1e-4
    # Alone and without padding, a row is what it was.
    alone = _their_logits(_theirs(kind), source[1:2, :5], mask[1:2, :5], target[1:2])
    np.testing.assert_allclose(found[1:2], alone, atol=1e-4)

    save_t5(tmp_path, config, params)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(_theirs(kind))
    np.testing.assert_array_equal(_their_logits(again, source, mask, target), expected)
    loaded, copy = load_t5(tmp_path)
    assert loaded == config
    jax.tree.map(np.testing.assert_array_equal, copy, params)


@pytest.mark.parametrize("both_sides", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 10), (16, 20), (64, 256)])
def test_buckets_are_torchs(torch, buckets, distance, both_sides):
    from transformers.models.t5.modeling_t5 import T5Attention

    place = torch.arange(700)
    expected = T5Attention._relative_position_bucket(
        place[None] - place[:, None], both_sides, buckets, distance
    )
    found = position_buckets(700, buckets, distance, both_sides=both_sides)
    np.testing.assert_array_equal(found, expected.numpy())


def test_step_by_step_is_all_at_once(ours):
    _, graphdef, params = ours("t5-1.0")
    source, mask, target, _ = _batch()
    beams = np.stack([target, target[:, ::-1]], axis=1)  # two texts that read one source

    @jax.jit
    def steps(params, source, mask, beams):
        model = nnx.merge(graphdef, params)
        fixed, cache = model.begin(model.encode(source, mask), mask, 7, beams=2)

        def body(cache, place):
            hidden, cache = model.step(beams[:, :, place], place, fixed, cache)
            return cache, hidden

        _, hidden = jax.lax.scan(body, cache, jnp.arange(7))
        return model.logits(hidden)

    found = steps(params, source, mask, np.pad(beams, [(0, 0), (0, 0), (1, 0)])[:, :, :-1])
    for beam in range(2):
        whole = _logits(graphdef, params, source, mask, np.ascontiguousarray(beams[:, beam]))
        np.testing.assert_allclose(found[:, :, beam].swapaxes(0, 1), whole, atol=2e-5)


def test_gradients_are_torchs_with_padding_and_remat(ours, torch, tmp_path):
    config, _, params = ours("mt5")
    again = dataclasses.replace(config, remat=True)
    rows = [np.pad(x, [(0, 0), (0, 3)]) for x in _batch()]
    source, mask, target, scored = rows

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = _logits(abstract_t5(again)[0], params, source, mask, target)
        return jnp.sum(jax.nn.log_softmax(logits)[:, :, 3], where=scored)

    save_t5(tmp_path, config, gradient(params))  # under torch's names
    found = load_file(tmp_path / "model.safetensors")
    model = _theirs("mt5")
    source, mask, target, scored = (torch.tensor(x) for x in _batch())
    logits = model(
        input_ids=source.long(),
        attention_mask=mask.long(),
        decoder_input_ids=model._shift_right(target.long()),
    ).logits
    torch.log_softmax(logits, -1)[..., 3][scored].sum().backward()
    expected = {name: p.grad.numpy() for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.abs(value).max() > 0, name
        np.testing.assert_allclose(found[name], value, atol=1e-3, rtol=1e-3, err_msg=name)


def test_dropout_of_a_row_is_its_own_and_padding_changes_nothing(ours):
    _, graphdef, params = ours("mt5")
    (source, mask, target, scored), seeds = _batch(), jnp.array([4, 5, 6, 4], jnp.uint32)
    dropped = _logits(graphdef, params, source, mask, target, seeds)
    assert jnp.abs(dropped - _logits(graphdef, params, source, mask, target))[scored].max() > 0.5
    order = np.array([2, 0, 3, 1])
    moved = _logits(graphdef, params, source[order], mask[order], target[order], seeds[order])
    np.testing.assert_allclose(moved, dropped[order], atol=5e-5)
    other = _logits(graphdef, params, source, mask, target, seeds.at[1].set(jnp.uint32(9)))
    assert jnp.abs(other[1] - dropped[1]).max() > 0.1
    wide = [np.pad(x, [(0, 0), (0, 3)]) for x in (source, mask, target)]
    padded = _logits(graphdef, params, *wide, seeds)[:, : target.shape[1]]
    np.testing.assert_allclose(padded[scored], dropped[scored], atol=5e-5)


def test_dropout_sites_are_apart(ours):
    # Salts that met would drop the same places twice: every site has a number of its own.
    _, graphdef, params = ours("mt5")
    model = nnx.merge(graphdef, params)
    encoder, decoder = model.encoder, model.decoder
    assert encoder.last_salt(0) == 1 + 6 * 2
    assert decoder.last_salt(encoder.last_salt(0) + 1) == 14 + 1 + 6 * 3


def test_float64_by_configuration_and_by_parameters(ours):
    config, graphdef, params = ours("t5-1.0")
    source, mask, target, scored = _batch()
    exact = _logits(graphdef, params, source, mask, target)
    with pytest.raises(ValueError, match="needs JAX's 64-bit mode"):
        abstract_t5(dataclasses.replace(config, dtype="float64"))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        found = _logits(graphdef, wide, source, mask, target)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found[scored], exact[scored], atol=2e-5)


def test_every_parameter_has_a_place_on_the_mesh():
    mesh = make_mesh(2, 2, 2)
    for name in ("google/mt5-base", "t5-base"):
        _, target = abstract_t5(load_t5_config(name))
        placed = {path: s.spec for path, s in paths(shardings(target, mesh)).items()}
        large = [path for path, leaf in paths(target).items() if leaf.size > 1e5]
        assert all(any(placed[path]) for path in large)
        assert placed["decoder/layers/cross_attention/key/kernel"] == P(None, "fsdp", "tensor")
        assert placed["decoder/layers/mlp/down/kernel"] == P(None, "tensor", "fsdp")
        assert placed["embeddings/word/embedding"] == P(None, ("fsdp", "tensor"))
    sizes = {
        "google/mt5-base": 582_401_280,
        "google/mt5-small": 300_176_768,
        "t5-base": 222_903_552,
    }
    for name, size in sizes.items():  # as published
        _, target = abstract_t5(load_t5_config(name))
        assert sum(leaf.size for leaf in jax.tree.leaves(target)) == size
    assert len(KNOWN_T5) == 18


def test_parameters_go_to_their_shardings(ours, tmp_path):
    config, _, params = ours("mt5")
    save_t5(tmp_path, config, params)
    places = shardings(abstract_t5(config)[1], make_mesh(2, 2, 2))
    _, loaded = load_t5(tmp_path, shardings=places)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, loaded, places))


def _edit(directory, change):
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors) or tensors, directory / "model.safetensors")


def test_copies_are_known_and_differences_are_listed(ours, tmp_path):
    config, _, params = ours("t5-1.0")
    save_t5(tmp_path, config, params)
    shared = load_file(tmp_path / "model.safetensors")["shared.weight"]
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    _edit(tmp_path, lambda t: t | {name: shared.copy() for name in copies})
    loaded, copy = load_t5(tmp_path, dtype="bfloat16", remat=True)
    assert loaded == dataclasses.replace(config, dtype="bfloat16", remat=True)
    jax.tree.map(np.testing.assert_array_equal, copy, params)

    def spoil(tensors):
        del tensors["decoder.block.1.layer.1.EncDecAttention.k.weight"]
        tensors["encoder.block.2.layer.0.layer_norm.weight"] = np.zeros(16, np.float32)
        tensors["lm_head.weight"] = np.zeros((61, 16), np.float32)

    _edit(tmp_path, spoil)
    message = (
        f"{tmp_path}: the weights do not fit config.json: "
        "missing decoder.block.1.layer.1.EncDecAttention.k.weight; "
        "unexpected encoder.block.2.layer.0.layer_norm.weight; "
        "of another shape lm_head.weight (61, 16) instead of (60, 16); "
        "take both files from one model, or leave tensors out with load_t5(ignore=...)"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        load_t5(tmp_path)


def test_a_missing_head_is_not_made_up(ours, tmp_path):
    config, _, params = ours("mt5")
    save_t5(tmp_path, config, params)
    _edit(tmp_path, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"missing lm_head.weight; take both files"):
        load_t5(tmp_path)


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_config_survives_json(kind):
    config = T5Config(**SIZES, model_type=kind, feed_forward_proj="gated-gelu")
    config = dataclasses.replace(
        config, tie_word_embeddings=False, scale_decoder_outputs=False, dropout_rate=0.0
    )
    written = json.loads(json.dumps(config.to_hf()))
    assert T5Config.from_hf(written) == config
    changed = T5Config.from_hf(written, dtype="bfloat16", remat=True)
    assert changed == dataclasses.replace(config, dtype="bfloat16", remat=True)
    assert hash(changed) != hash(config)
    published = {"model_type": kind} | SIZES  # early files say no more
    loaded = T5Config.from_hf(published)
    assert (loaded.gated, loaded.scale_decoder_outputs) == (kind == "mt5", kind == "t5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'; a generator is one of 't5', 'mt5'"),
        ({"feed_forward_proj": "gated-silu"}, "'gated-silu'; write one of 'relu', 'gated-gelu'"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id is \[1, 2\]; write the one token"),
        ({"eos_token_id": 60}, "eos_token_id is 60 and vocab_size 60; write a token"),
        ({"d_kv": 0}, "d_kv is 0; write a whole number of at least 1"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; write a number from 0"),
        ({"relative_attention_max_distance": 4}, "relative_attention_max_distance 4; write"),
        ({"d_model": None}, "config.json: no d_model; write the values"),
    ],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        T5Config.from_hf(T5Config(**SIZES).to_hf() | change)
