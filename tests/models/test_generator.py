"""Generators against torch: likelihoods, and texts written greedily, on beams and by chance."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clir_jax.mesh import make_mesh, put_rows
from clir_jax.models import generator as generators
from clir_jax.models.generator import Beam, Generator, Greedy, Sample, generate, search
from clir_jax.models.generator_files import abstract_generator
from clir_jax.models.requests import EncodeQuery, Likelihood, Tokens
from clir_jax.models.t5 import T5, T5Config
from clir_jax.models.t5_files import save_t5
from clir_jax.ops.decoding import sample
from clir_jax.training.step import Chunking, answer

CONFIG = T5Config(
    vocab_size=23,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_layers=2,
    num_heads=4,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    scale_decoder_outputs=False,
    dropout_rate=0.2,
)
SPEC = Generator(source_length=12, target_length=14)
ROWS = 8
GREEDY = Greedy()


@functools.cache
def _model():
    """A generator whose weights NumPy draws: some of its texts end soon, some late, some never."""
    graphdef, target = abstract_generator(SPEC, CONFIG)
    random = np.random.default_rng(2)

    def draw(path, leaf):
        names = [getattr(key, "key", None) for key in path]
        values = random.normal(size=leaf.shape)
        if "scale" in names:
            values = 1 + 0.2 * values
        elif "kernel" in names:
            values *= 2.0 / np.sqrt(leaf.shape[-2])
        elif "position_bias" in names:
            values *= 5
        elif "head" in names:
            values *= 0.35
            values[CONFIG.eos_token_id] *= 1.5
        return jnp.asarray(values, leaf.dtype)

    return graphdef, jax.tree_util.tree_map_with_path(draw, target)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("generator")
    save_t5(directory, CONFIG, _model()[1]["t5"])
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(directory).eval()


def _text(lengths, seed, width=None):
    mask = np.arange(width or max(lengths))[None] < np.array(lengths)[:, None]
    ids = np.random.default_rng(seed).integers(2, CONFIG.vocab_size, mask.shape)
    return Tokens(np.where(mask, ids, 0).astype(np.int32), mask, mask)


SOURCE = _text((12, 3, 7, 1, 9, 12, 5, 2), seed=0)
IDS = np.arange(ROWS, dtype=np.uint32) + np.uint32(100)


@functools.partial(jax.jit, static_argnums=3)
def _write(params, source, ids, decoding, seed=0):
    return generate(_model()[0], params, source, ids, decoding, seed)


def _generated(source=SOURCE, ids=IDS, decoding=GREEDY, seed=0):
    return jax.tree.map(np.asarray, _write(_model()[1], source, ids, decoding, seed))


@functools.cache
def _greedy():
    return _generated()


@jax.jit
def _likelihood(params, request, row_seeds=None):
    return nnx.merge(_model()[0], params)(request, row_seeds)


def _torch_log_probs(model, source, target):
    import torch

    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(source.ids).long(),
            attention_mask=torch.tensor(source.mask).long(),
            labels=torch.tensor(target.ids).long(),
        ).logits
        chosen = torch.tensor(target.ids).long()[..., None]
        return torch.log_softmax(logits, -1).gather(2, chosen)[..., 0].numpy()


def test_likelihoods_are_torchs_padded_and_not(theirs):
    target = _text((6, 2, 9, 1, 9, 3, 4, 5), seed=1, width=11)
    found = _likelihood(_model()[1], Likelihood(SOURCE, target))
    expected = _torch_log_probs(theirs, SOURCE, target)
    np.testing.assert_array_equal(found.mask, target.keep)
    np.testing.assert_allclose(found.log_probs, np.where(target.keep, expected, 0), atol=1e-4)
    row, source = slice(2, 3), Tokens(*(x[2:3, :7] for x in jax.tree.leaves(SOURCE)))
    alone = _torch_log_probs(theirs, source, Tokens(*(x[row, :9] for x in jax.tree.leaves(target))))
    np.testing.assert_allclose(found.log_probs[2, :9], alone[0], atol=1e-4)


def test_scores_of_all_tokens_are_made_in_pieces(monkeypatch):
    target = jnp.asarray(_text((6, 2, 9, 1, 9, 3, 4, 5), seed=1).ids)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, 9, 16)), jnp.float32)
    graphdef, params = _model()

    def loss(params, hidden):
        told = nnx.merge(graphdef, params)._log_probs(hidden, target)
        return jnp.sum(told * jnp.cos(jnp.arange(9.0))[None])

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    value, whole = jax.jit(gradient)(params, hidden)
    monkeypatch.setattr(generators, "_LOGITS_AT_ONCE", 23 * 10)
    pieces = jax.jit(lambda *arguments: gradient(*arguments))
    assert "tensor<72x23x" not in pieces.lower(params, hidden).as_text()
    again, parts = pieces(params, hidden)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), parts, whole)
    assert jnp.abs(whole[0]["t5"]["head"]["embedding"][...]).max() > 1


def test_the_step_answers_lists_of_passages_on_eight_devices():
    passages = jax.tree.map(lambda x: np.stack([x, x[::-1]], axis=1), SOURCE)
    target = _text((6, 2, 9, 1, 9, 3, 4, 5), seed=1)
    question = jax.tree.map(lambda x: np.stack([x, x], axis=1), target)
    graphdef, params = _model()

    def score(params, request):
        return answer(graphdef, params, {"q": request}, None, Chunking(2 * 21))["q"]

    with jax.set_mesh(make_mesh(4, 2, 1)):
        told = jax.jit(score)(params, Likelihood(passages, question))
    for n in range(2):
        source = jax.tree.map(lambda x, n=n: np.ascontiguousarray(x[:, n]), passages)
        expected = _likelihood(params, Likelihood(source, target))
        np.testing.assert_allclose(told.log_probs[:, n], expected.log_probs, atol=1e-4)
    with pytest.raises(TypeError, match="asked for EncodeQuery, and a generator answers"):
        nnx.merge(graphdef, params).tower(EncodeQuery)


def _torch_texts(model, **options):
    import torch

    with torch.no_grad():
        out = model.generate(
            torch.tensor(SOURCE.ids).long(),
            attention_mask=torch.tensor(SOURCE.mask).long(),
            max_new_tokens=SPEC.target_length,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    ids = np.zeros((ROWS, SPEC.target_length), np.int64)
    ids[:, : out.sequences.shape[1] - 1] = out.sequences[:, 1:].numpy()
    ended = np.cumsum(ids == CONFIG.eos_token_id, axis=1) - (ids == CONFIG.eos_token_id) > 0
    return np.where(ended, 0, ids), out  # on beams they pad with the end token


def _check_written(written):
    """Texts are as long as they say, and as likely as the model finds them when it reads them."""
    lengths = written.mask.sum(axis=1)
    ends = written.ids == CONFIG.eos_token_id
    first = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, SPEC.target_length)
    np.testing.assert_array_equal(lengths, first)
    assert (written.ids[~written.mask] == CONFIG.pad_token_id).all()
    text = Tokens(written.ids, written.mask, written.mask)
    told = _likelihood(_model()[1], Likelihood(SOURCE, text))
    np.testing.assert_allclose(written.log_prob, told.log_probs.sum(axis=1), rtol=1e-4)


def test_greedy_texts_are_torchs(theirs):
    expected, _ = _torch_texts(theirs, num_beams=1)
    found = _greedy()
    np.testing.assert_array_equal(found.ids, expected)
    lengths = found.mask.sum(axis=1)
    assert len(set(lengths)) > 3
    assert lengths.max() == SPEC.target_length
    _check_written(found)


@pytest.mark.parametrize(
    "decoding",
    [
        Beam(beams=3, length_penalty=2.0),
        Beam(beams=4, length_penalty=-0.5, early_stopping=True),
    ],
)
def test_texts_on_beams_are_torchs(theirs, decoding):
    expected, out = _torch_texts(
        theirs,
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        early_stopping=decoding.early_stopping,
    )
    found = _generated(decoding=decoding)
    np.testing.assert_array_equal(found.ids, expected)
    lengths = found.mask.sum(axis=1)
    scores = found.log_prob / lengths.astype(np.float32) ** decoding.length_penalty
    np.testing.assert_allclose(scores, out.sequences_scores.numpy(), rtol=1e-4)
    assert (found.ids != _greedy().ids).any()
    _check_written(found)


def test_cached_is_uncached():
    graphdef, params = _model()

    @jax.jit
    def uncached(params, source):
        t5 = nnx.merge(graphdef, params).t5
        encoded = t5.encode(source.ids, source.mask)

        def step(tokens, place, state):
            hidden = t5.decode(tokens[:, 0, :-1], encoded, source.mask)
            return t5.logits(jax.lax.dynamic_slice_in_dim(hidden, place, 1, axis=1)), state

        def keep(state, parents):
            return state

        return search(step, None, keep, ROWS, SPEC.target_length, CONFIG, GREEDY)

    whole = uncached(params, jax.tree.map(jnp.asarray, SOURCE))
    np.testing.assert_array_equal(_greedy().ids, whole.ids)
    np.testing.assert_allclose(_greedy().log_prob, whole.log_prob, rtol=1e-4)


def test_bfloat16_is_close_read_and_written():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    graphdef = abstract_generator(SPEC, config)[0]

    @jax.jit
    def run(params):
        model = nnx.merge(graphdef, params)
        written = model.generate(SOURCE, GREEDY)
        text = Tokens(written.ids, written.mask, written.mask)
        return written, model(Likelihood(SOURCE, text)).log_probs

    written, told = run(_model()[1])
    text = jax.tree.map(np.asarray, Tokens(written.ids, written.mask, written.mask))
    exact = _likelihood(_model()[1], Likelihood(SOURCE, text)).log_probs
    assert told.dtype == jnp.float32
    # These weights are far apart, and so are a few scores; the usual one is not.
    assert 1e-3 < jnp.abs(told - exact)[text.mask].mean() < 0.1
    np.testing.assert_allclose(written.log_prob, told.sum(axis=1), rtol=0.05)


def test_rows_are_written_as_if_alone_on_any_mesh():
    decoding = Sample(temperature=0.9, top_k=12, top_p=0.95)
    found = _generated(decoding=decoding)
    order = np.array([3, 0, 7, 1, 2, 6, 5, 4])
    moved = _generated(jax.tree.map(lambda x: x[order], SOURCE), IDS[order], decoding)
    np.testing.assert_array_equal(moved.ids, found.ids[order])
    other = _generated(decoding=decoding, seed=1)
    assert (other.ids[:, :3] != found.ids[:, :3]).any(axis=1).sum() > 4
    alike = _generated(
        ids=np.full_like(IDS, 7),
        source=jax.tree.map(lambda x: x[:1].repeat(8, 0), SOURCE),
        decoding=decoding,
    )
    assert (alike.ids == alike.ids[:1]).all()  # equal prompts with equal ids
    mesh = make_mesh(4, 2, 1)
    with jax.set_mesh(mesh):
        spread = _write(_model()[1], put_rows(SOURCE, mesh), put_rows(IDS, mesh), decoding, 0)
        assert {s.data.shape for s in spread.ids.addressable_shards} == {(1, SPEC.target_length)}
    np.testing.assert_array_equal(spread.ids, found.ids)
    _check_written(found)


def test_several_texts_of_a_source_are_those_of_the_source_several_times(monkeypatch):
    decoding, ids = Sample(temperature=0.9, top_k=12), np.arange(16, dtype=np.uint32)
    apart = _generated(jax.tree.map(lambda x: x[:4].repeat(4, 0), SOURCE), ids, decoding)
    encode, encoded = T5.encode, []

    def spy(model, ids, *more):
        encoded.append(ids.shape)
        return encode(model, ids, *more)

    monkeypatch.setattr(T5, "encode", spy)
    few, mesh = jax.tree.map(lambda x: x[:4], SOURCE), make_mesh(4, 1, 1, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        found = _write(
            _model()[1], put_rows(few, mesh), put_rows(ids.reshape(4, 4), mesh), decoding, 0
        )
    np.testing.assert_array_equal(found.ids, apart.ids)
    assert len(np.unique(apart.ids[:4], axis=0)) > 2
    assert encoded == [(1, 12)]  # once on each device


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.7, 4, None), (1.3, 6, 0.8), (1, None, 0.5)],
)
def test_draws_have_the_probabilities_of_torchs_warpers(temperature, top_k, top_p):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as warpers

    logits = np.random.default_rng(0).normal(0, 1.5, (2, 9)).astype(np.float32)
    scores = warpers.TemperatureLogitsWarper(float(temperature))(None, torch.tensor(logits))
    if top_k is not None:
        scores = warpers.TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        scores = warpers.TopPLogitsWarper(top_p)(None, scores)
    expected = torch.softmax(scores, -1).numpy()
    draws = 4000
    many = np.repeat(logits, draws, axis=0)
    keys = jax.random.split(jax.random.key(0), 2 * draws)
    options = {"temperature": float(temperature), "top_k": top_k, "top_p": top_p}
    drawn = np.asarray(jax.jit(functools.partial(sample, **options))(many, keys))
    for row in range(2):
        counts = collections.Counter(drawn[row * draws : (row + 1) * draws].tolist())
        shares = np.array([counts[token] / draws for token in range(9)])
        assert (shares[expected[row] == 0] == 0).all()
        np.testing.assert_allclose(shares, expected[row], atol=0.03)


def test_sampling_without_a_key_and_wrong_values_are_refused():
    with pytest.raises(ValueError, match="Sample draws by chance; give a random key"):
        search(print, None, print, ROWS, SPEC.target_length, CONFIG, Sample())
    for change, message in (
        (lambda: Sample(temperature=0.0), "temperature is 0.0; write a number above 0"),
        (lambda: Sample(top_k=0), "top_k is 0; write a whole number of at least 1, or None"),
        (lambda: Sample(top_p=1.5), "top_p is 1.5; write a number above 0 and at most 1"),
        (lambda: Beam(beams=0), "beams is 0; write a whole number of at least 1"),
        (lambda: Generator(source_length=1), "source_length is 1; write a whole number"),
        (lambda: Generator(prompt="Ask!"), r"prompt is 'Ask!'; write a text with \{passage\}"),
        (lambda: dataclasses.replace(SPEC, prompt="{passage}{passage}"), "in it once"),
    ):
        with pytest.raises(ValueError, match=message):
            change()
