"""A retriever's directory: equal after a round trip, read by transformers, whole or not there."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file

import clir_jax.models.formats as formats
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.mesh import make_mesh, shardings
from clir_jax.models.encoder import Encoder, EncoderConfig
from clir_jax.models.formats import (
    FILE,
    abstract_retriever,
    load_retriever,
    replace_embeddings,
    resize_embeddings,
    save_retriever,
    start_retriever,
)
from clir_jax.models.hub import save_encoder
from clir_jax.models.requests import EncodePassage, EncodeQuery
from clir_jax.models.retriever import Dense, LateInteraction, Retriever
from clir_jax.models.tokenizer import ROLES, TextTokenizer, add_markers, wordpiece
from clir_jax.models.vocabulary import trim

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "заяц", "how", "many", "cat", "##s", ","]
PIECES += ["a", "##a"]
BERT = dict(zip(ROLES, ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), strict=True))
CONFIG = EncoderConfig(
    vocab_size=len(PIECES),
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
    initializer_range=0.3,
)
LATE = LateInteraction(dimension=4, query_length=8, passage_length=10)
SPECS = [
    LATE,
    LateInteraction(None, 8, 10, content_only=True),
    Dense("mean", 3, "tanh", query_length=8, passage_length=10, query_prompt="how "),
    Dense("cls", query_length=8, passage_length=10),
]


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def tokenizer():
    return TextTokenizer(wordpiece({p: i for i, p in enumerate(PIECES)}, lowercase=True), BERT)


@jax.jit
def run(model, request):
    return model(request)


def made(spec, seed=0):
    """A retriever that was never on disk: specification, configuration, state, tokenizer."""
    words, _ = add_markers(tokenizer(), spec)
    config = dataclasses.replace(CONFIG, vocab_size=words.size)
    model = Retriever(spec, config, rngs=nnx.Rngs(seed))
    if model.projection is not None and model.projection.bias is not None:
        model.projection.bias.set_value(jnp.array([0.5, -1.0, 2.0]))
    return spec, config, nnx.state(model), words


def encoder_directory(path):
    encoder = Encoder(CONFIG, rngs=nnx.Rngs(5))
    save_encoder(path, CONFIG, nnx.state(encoder))
    tokenizer().save(path)
    return encoder


@pytest.mark.parametrize("spec", SPECS)
def test_saved_and_loaded_again_it_is_the_same(tmp_path, spec):
    spec, config, params, words = made(spec)
    save_retriever(tmp_path / "new" / "model", spec, config, params, words)
    loaded = load_retriever(tmp_path / "new" / "model")
    assert (loaded.spec, loaded.encoder_config) == (spec, config)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(loaded.params), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    before = RequestTokenizer(words, spec)
    after = RequestTokenizer(loaded.tokenizer, loaded.spec, skiplist=loaded.skiplist)
    assert before.skiplist == after.skiplist
    model = nnx.merge(abstract_retriever(spec, config)[0], params)
    for kind in (EncodeQuery, EncodePassage):
        requests = [t.tokenize(kind, ["how many cats, a", "a"]) for t in (before, after)]
        for a, b in zip(*map(jax.tree.leaves, requests), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(
            run(model, requests[0]).vectors, run(loaded.model, requests[1]).vectors
        )


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[2]])
def test_transformers_loads_the_encoder_and_the_tokenizer(tmp_path, spec):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    spec, config, params, words = made(spec)
    save_retriever(tmp_path / "model", spec, config, params, words)
    path = str(tmp_path / "model")
    theirs = transformers.AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    batch = transformers.AutoTokenizer.from_pretrained(path)(
        ["how many cats", "a, a"], padding="max_length", max_length=7, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = theirs(**batch).last_hidden_state
    requests = RequestTokenizer(words, Dense(query_length=7))
    tokens = requests.tokenize(EncodeQuery, ["how many cats", "a, a"]).tokens
    np.testing.assert_array_equal(tokens.ids, batch["input_ids"].numpy())
    model = nnx.merge(abstract_retriever(spec, config)[0], params)
    ours = jax.jit(lambda e, t: e(t.ids, t.mask))(model.encoder, jax.tree.map(jnp.asarray, tokens))
    np.testing.assert_allclose(ours[tokens.mask], hidden.numpy()[tokens.mask], atol=1e-5)
    linear = load_file(tmp_path / "model" / "1_Dense" / "model.safetensors")
    x = torch.nn.functional.linear(
        hidden,
        torch.tensor(linear["linear.weight"]),
        torch.tensor(linear["linear.bias"]) if "linear.bias" in linear else None,
    )
    ours = jax.jit(lambda m, h: m.projection(h))(model, jnp.asarray(hidden.numpy()))
    np.testing.assert_allclose(ours, x.numpy(), atol=1e-5)
    assert ("linear.bias" in linear) == isinstance(spec, Dense)


def test_overrides_and_shardings(tmp_path):
    spec, config, params, words = made(LATE)
    save_retriever(tmp_path / "m", spec, dataclasses.replace(config, remat=True), params, words)
    assert load_retriever(tmp_path / "m").encoder_config.remat
    loaded = load_retriever(tmp_path / "m", dtype="bfloat16", remat=False)
    assert (loaded.encoder_config.dtype, loaded.encoder_config.remat) == ("bfloat16", False)
    mesh = make_mesh(devices=jax.devices()[:1])
    _, target = abstract_retriever(spec, config)
    one = SingleDeviceSharding(jax.devices()[0])
    for places in (shardings(target, mesh), one):
        loaded = load_retriever(tmp_path / "m", shardings=places)
        expected = [one] * 99 if places is one else jax.tree.leaves(places)
        for a, b, place in zip(
            jax.tree.leaves(params), jax.tree.leaves(loaded.params), expected, strict=False
        ):
            np.testing.assert_array_equal(a, b)
            assert b.sharding == place


def test_start_retriever_from_an_encoder(tmp_path):
    encoder = encoder_directory(tmp_path)
    started = start_retriever(tmp_path, LATE, seed=1)
    words = started.tokenizer
    assert words.size == started.encoder_config.vocab_size == len(PIECES) + 2
    new = np.asarray(started.params["encoder"]["embeddings"]["word"]["embedding"].get_value())
    old = np.asarray(encoder.embeddings.word.embedding[...])
    np.testing.assert_array_equal(new[:-2], old)
    assert (new[-1] != new[-2]).all()
    np.testing.assert_array_equal(
        started.model.encoder.layers.mlp.up.kernel[...], encoder.layers.mlp.up.kernel[...]
    )
    kernel = started.model.projection.kernel[...]
    assert kernel.shape == (8, 4)
    assert 0 < np.abs(kernel).max() <= 8**-0.5
    for seed, equal in ((1, True), (2, False)):
        again = start_retriever(tmp_path, LATE, seed=seed).model.projection.kernel[...]
        assert np.array_equal(kernel, again) == equal
    assert words.pieces(started.skiplist) == [","]
    requests = RequestTokenizer(words, LATE, skiplist=started.skiplist)
    answer = run(started.model, requests.tokenize(EncodeQuery, ["how many cats"]))
    norms = np.linalg.norm(answer.vectors, axis=-1)
    np.testing.assert_allclose(norms, np.ones((1, 8)), atol=1e-5)
    dense = start_retriever(tmp_path, Dense(query_length=8, passage_length=8))
    assert dense.encoder_config == CONFIG
    assert dense.model.projection is None


def test_replaced_embeddings_follow_a_trimmed_vocabulary(tmp_path):
    spec, config, params, words = made(LATE)
    small, kept = trim(words, ["how many a"])
    table = np.asarray(params["encoder"]["embeddings"]["word"]["embedding"].get_value())[kept]
    config2, encoder = replace_embeddings(config, params["encoder"], table, small)
    assert config2.vocab_size == small.size < config.vocab_size
    assert params["encoder"]["embeddings"]["word"]["embedding"].get_value().shape[0] == words.size
    changed = dict(params) | {"encoder": encoder}
    save_retriever(tmp_path / "m", spec, config2, nnx.State(changed), small)
    loaded = load_retriever(tmp_path / "m")
    model = nnx.merge(abstract_retriever(spec, config)[0], params)
    full = RequestTokenizer(words, spec).tokenize(EncodePassage, ["how many a"])
    less = RequestTokenizer(loaded.tokenizer, spec).tokenize(EncodePassage, ["how many a"])
    assert (full.tokens.ids != less.tokens.ids).any()
    np.testing.assert_allclose(run(loaded.model, less).vectors, run(model, full).vectors, atol=1e-6)
    with pytest.raises(ValueError, match=r"the new table is \(3, 5\).*width 8"):
        replace_embeddings(config, params["encoder"], np.zeros((3, 5)))
    roberta = dataclasses.replace(config, model_type="xlm-roberta", pad_token_id=1)
    with pytest.raises(ValueError, match="padding is token 0"):
        replace_embeddings(roberta, params["encoder"], table, small)
    assert resize_embeddings(config, params["encoder"], 3)[0] is config


def test_saving_again_replaces_and_a_failure_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model"
    save_retriever(path, *made(LATE))
    (path / "left_over").write_text("x")
    save_retriever(path, *made(SPECS[3], seed=1))
    assert load_retriever(path).spec == SPECS[3]
    assert not (path / "1_Dense").exists()
    assert not (path / "left_over").exists()
    before = {f.name: f.read_bytes() for f in path.iterdir()}

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(formats, "write_json", broken)
    with pytest.raises(OSError, match="disk full"):
        save_retriever(path, *made(LATE, seed=2))
    assert {f.name: f.read_bytes() for f in path.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # no temporary directory stays


def test_nothing_else_is_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else than a retriever"):
        save_retriever(tmp_path, *made(LATE))
    with pytest.raises(FileExistsError, match="something else than a retriever"):
        save_retriever(tmp_path / "thesis.txt", *made(LATE))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save_retriever(tmp_path / "empty", *made(LATE))
    assert (tmp_path / "empty" / FILE).is_file()


def test_errors_say_what_to_write(tmp_path):
    encoder_directory(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"no clir_jax\.json, .* here.*or train one from it"):
        load_retriever(tmp_path / "encoder")
    spec, config, params, words = made(LATE)
    with pytest.raises(ValueError, match="15 tokens and the encoder 13 embeddings"):
        save_retriever(tmp_path / "m", spec, CONFIG, params, words)
    good = tmp_path / "good"
    save_retriever(good, spec, config, params, words)
    about = json.loads((good / FILE).read_text())

    def changed(**values):
        path = tmp_path / "changed"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(good, path)
        content = {k: v for k, v in (about | values).items() if v != "absent"}
        (path / FILE).write_text(json.dumps(content))
        return path

    for values, message in (
        ({"format": 2}, "format is 2 and this version of clir_jax reads 1"),
        ({"markers": [13, 5]}, r"saved as tokens \[13, 5\] and are \[13, 14\]"),
        ({"skiplist": "absent"}, "no 'skiplist'"),
        ({"retriever": {"kind": "sparse"}}, r"clir_jax\.json: retriever: kind is 'sparse'"),
        (
            {"retriever": about["retriever"] | {"dimension": 5}},
            r"linear.weight': \(4, 8\)} and .* needs {'linear.weight': \(5, 8\)}",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load_retriever(changed(**values))
    path = changed()
    (path / FILE).write_text("{")
    with pytest.raises(ValueError, match="this is not JSON"):
        load_retriever(path)
    path = changed()
    weights = load_file(path / "1_Dense" / "model.safetensors")
    weights["linear.bias"] = np.zeros(4, np.float32)  # a tensor that nothing would use
    save_file(weights, path / "1_Dense" / "model.safetensors")
    with pytest.raises(ValueError, match=r"linear\.bias"):
        load_retriever(path)
