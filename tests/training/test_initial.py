"""The model a stage starts from: a directory, a stage, nothing, and with another vocabulary."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clir_jax.config import (
    FromStage,
    ReplaceVocabulary,
    Run,
    Scratch,
    Stage,
    Task,
    TrainVocabulary,
)
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import AtlasRetrieval, Retrieval
from clir_jax.data.gold_alignment import GoldAlignment
from clir_jax.data.judgements import passage_text
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import TriplesTSV
from clir_jax.data.sources import Mixture, TextLines
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.models import formats
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.exports import export
from clir_jax.models.hub import abstract_encoder, save_encoder
from clir_jax.models.requests import EncodePassage
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.models.tokenizer import ROLES, TextTokenizer, wordpiece
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.training.initial import initial_model, load_model, texts_of
from clir_jax.training.positions import Itinerary
from clir_jax.tree import paths

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROLE_OF = dict(zip(ROLES, ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), strict=True))
PIECES = [*SPECIAL, "a", "##a", "cat", "dog", "##s", "sat", "aaa"]
LATE = LateInteraction(dimension=4, query_length=8, passage_length=12, expansion=False)
CONFIG = EncoderConfig(
    vocab_size=len(PIECES),
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
    initializer_range=0.5,
)
EMBEDDING = "encoder/embeddings/word/embedding"


def _tokenizer(pieces):
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    return TextTokenizer(wordpiece(vocabulary, lowercase=True), ROLE_OF)


def _encoder(directory, pieces=PIECES, seed=0):
    """Write a plain encoder as Hugging Face would; returns its parameters by path."""
    config = dataclasses.replace(CONFIG, vocab_size=len(pieces))
    random = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), abstract_encoder(config)[1]
    )
    save_encoder(directory, config, state)
    _tokenizer(pieces).save(directory)
    return paths(state)


def _saved(directory, spec=LATE, seed=0):
    """Write a retriever, as an earlier stage does; returns its parameters by path."""
    _encoder(directory.with_name("plain"), seed=seed)
    loaded = formats.start_retriever(directory.with_name("plain"), spec, seed=seed)
    formats.save_retriever(
        directory, spec, loaded.encoder_config, loaded.params, loaded.tokenizer, loaded.skiplist
    )
    return paths(loaded.params)


def _run(tmp_path, init, model=LATE, **options):
    """A run with two stages; the second is the one that starts from ``init``."""
    tasks = (Task(InfoNCE(), {"ranking": TriplesTSV("train.tsv")}, batch_size=2),)
    scratch = Scratch(CONFIG)
    vocabulary = TrainVocabulary((TextLines("text.txt", "en"),), size=60)
    first = Stage("first", LATE, scratch, tasks, steps=1, vocabulary=vocabulary)
    second = Stage("second", model, init, tasks, steps=1, **options)
    return Run("test", (first, second), seed=3, data_root=str(tmp_path))


def _initial(run, run_dir):
    itinerary = Itinerary(run, run_dir)
    second = itinerary.positions[1]
    return initial_model(run, itinerary.bound(second, second.item))


def _same(told, expected):
    assert told.keys() == expected.keys()
    for path, leaf in told.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_a_plain_encoder_gets_markers_and_a_projection(tmp_path):
    encoder = _encoder(tmp_path / "plain")
    run = _run(tmp_path, str(tmp_path / "plain"))
    loaded = _initial(run, tmp_path)
    told = paths(loaded.params)
    assert loaded.spec == LATE
    assert loaded.tokenizer.size == len(PIECES) + 2
    assert loaded.encoder_config.vocab_size == len(PIECES) + 2
    for path, leaf in encoder.items():
        np.testing.assert_array_equal(told[f"encoder/{path}"][: len(leaf)], leaf, err_msg=path)
    assert told["projection/kernel"].shape == (8, 4)
    _same(paths(_initial(run, tmp_path).params), told)  # a resumed stage makes the same again
    other = paths(_initial(dataclasses.replace(run, seed=4), tmp_path).params)
    assert (other["projection/kernel"] != told["projection/kernel"]).any()


def test_arithmetic_is_of_the_stage_and_parameters_stay_float32(tmp_path):
    _encoder(tmp_path / "plain")
    loaded = _initial(_run(tmp_path, str(tmp_path / "plain"), dtype="bfloat16"), tmp_path)
    assert loaded.encoder_config.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype("float32")}


def test_from_scratch_the_vocabulary_is_trained_and_weights_follow_the_seed(tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat.\nA dog sat!\nCats and dogs.\n")
    run = _run(tmp_path, "unused")
    loaded = initial_model(run, run.stages[0])
    told = paths(loaded.params)
    assert {"[Q] ", "[D] ", "cat"} <= loaded.tokenizer.vocabulary().keys() | {
        token.content for token in loaded.tokenizer.backend.get_added_tokens_decoder().values()
    }
    assert told[EMBEDDING].shape == (loaded.tokenizer.size, 8)
    assert loaded.encoder_config.vocab_size == loaded.tokenizer.size
    assert loaded.encoder_config.pad_token_id == loaded.tokenizer.id("pad")
    assert {loaded.tokenizer.backend.token_to_id(c) for c in ".!"} == set(loaded.skiplist)
    _same(paths(initial_model(run, run.stages[0]).params), told)
    other = initial_model(dataclasses.replace(run, seed=9), run.stages[0])
    assert (paths(other.params)[EMBEDDING] != told[EMBEDDING]).any()


@pytest.mark.parametrize(("which", "folder"), [("best", "model"), ("last", "last")])
def test_from_a_stage_its_best_or_its_last_model(tmp_path, which, folder):
    run = _run(tmp_path, FromStage("first", which))
    first = tmp_path / "stages" / "01-first"
    saved = {name: _saved(first / name, seed=n) for n, name in enumerate(("model", "last"))}
    assert (saved["model"][EMBEDDING] != saved["last"][EMBEDDING]).any()
    _same(paths(_initial(run, tmp_path).params), saved[folder])
    _same(paths(load_model(str(first / folder)).params), saved[folder])


def test_a_retriever_may_be_trained_on_with_other_lengths(tmp_path):
    saved = _saved(tmp_path / "model")
    longer = dataclasses.replace(LATE, query_length=10, passage_length=16)
    loaded = _initial(_run(tmp_path, str(tmp_path / "model"), longer), tmp_path)
    assert loaded.spec == longer
    assert loaded.model.spec == longer
    _same(paths(loaded.params), saved)


def test_a_retriever_that_is_read_in_another_way_is_told(tmp_path):
    saved = _saved(tmp_path / "model")
    other = dataclasses.replace(LATE, passage_length=16, skip_punctuation=False)
    told = r"^init .*model: .* saved there: skip_punctuation is False and was True; set model to"
    with pytest.warns(UserWarning, match=told):
        loaded = _initial(_run(tmp_path, str(tmp_path / "model"), other), tmp_path)
    assert loaded.spec == other
    _same(paths(loaded.params), saved)


@pytest.mark.parametrize("saved", ["with a projection", "without"])
def test_another_librarys_retriever_that_is_read_in_another_way_is_told(tmp_path, saved):
    spec = Dense(
        projection=4 if saved == "with a projection" else None,
        query_length=8,
        passage_length=12,
        query_prompt="query: ",
    )
    model = tmp_path / "model"
    _saved(model, spec)
    export(formats.load_retriever(model), "sentence-transformers", tmp_path / "theirs", "mine")
    told = r"theirs: .*: pooling is 'cls' and was 'mean'; query_prompt is '' and was 'query: '; set"
    with pytest.warns(UserWarning, match=told):
        load_model(
            str(tmp_path / "theirs"), dataclasses.replace(spec, pooling="cls", query_prompt="")
        )
    load_model(str(tmp_path / "theirs"), dataclasses.replace(spec, query_length=9))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            dataclasses.replace(LATE, dimension=3),
            "parameters; set model to the saved one",
        ),
        (dataclasses.replace(LATE, dimension=None), "has other parameters"),
        (dataclasses.replace(LATE, projection_bias=True), "has other parameters"),
        (Dense(query_length=8, passage_length=12), "has other parameters"),
        (dataclasses.replace(LATE, query_marker="[ask] "), "lacks the markers"),
        (dataclasses.replace(LATE, passage_length=17), "17"),
    ],
)
def test_a_retriever_of_other_parameters_is_refused(tmp_path, spec, told):
    _saved(tmp_path / "model")
    with pytest.raises(ValueError, match=told):
        _initial(_run(tmp_path, str(tmp_path / "model"), spec), tmp_path)


def test_another_vocabulary_keeps_the_vectors_of_shared_pieces(tmp_path):
    saved = _saved(tmp_path / "model")
    pieces = [*SPECIAL, "mat", "sat", "cats", "cat"]
    (tmp_path / "vocabulary.txt").write_text("\n".join(pieces))
    vocabulary = ReplaceVocabulary("vocabulary.txt")
    run = _run(tmp_path, str(tmp_path / "model"), vocabulary=vocabulary)
    loaded = _initial(run, tmp_path)
    told, old = paths(loaded.params), saved[EMBEDDING]
    assert loaded.tokenizer.size == len(pieces) + 2
    new = told.pop(EMBEDDING)
    assert new.shape == (len(pieces) + 2, 8)
    id_of = loaded.tokenizer.backend.token_to_id
    for piece in (*SPECIAL, "sat", "cat"):
        np.testing.assert_array_equal(new[id_of(piece)], old[PIECES.index(piece)], err_msg=piece)
    composed = (old[PIECES.index("cat")] + old[PIECES.index("##s")]) / 2
    np.testing.assert_allclose(new[id_of("cats")], composed, rtol=1e-6)
    for place, marker in enumerate(("[Q] ", "[D] ")):
        row = old[len(PIECES) + place]
        np.testing.assert_array_equal(new[id_of(marker)], row, err_msg=marker)
    del saved[EMBEDDING]
    _same(told, saved)
    # Text of shared pieces is embedded as before.
    before = formats.load_retriever(tmp_path / "model")
    for text in ("cat sat", "sat"):
        np.testing.assert_allclose(_vectors(loaded, text), _vectors(before, text), rtol=1e-5)


def test_a_vocabulary_is_trimmed_to_what_the_data_use(tmp_path):
    saved = _saved(tmp_path / "model")
    (tmp_path / "text.txt").write_text("cat sat\ndogs\n")
    vocabulary = ReplaceVocabulary("model", trim_to=(TextLines("text.txt", "en"),))
    run = _run(tmp_path, str(tmp_path / "model"), vocabulary=vocabulary)
    loaded = _initial(run, tmp_path)
    kept = loaded.tokenizer.vocabulary()
    assert {"cat", "sat", "dog", "##s", "a", "##a"} <= kept.keys()  # letters stay
    assert "aaa" not in kept
    new = paths(loaded.params)[EMBEDDING]
    assert len(new) == loaded.tokenizer.size == len(PIECES) + 2 - 1
    for piece, place in kept.items():
        row = saved[EMBEDDING][[*PIECES, "[Q] ", "[D] "].index(piece)]
        np.testing.assert_array_equal(new[place], row, err_msg=piece)
    before = formats.load_retriever(tmp_path / "model")
    for text in ("cat sat", "dogs"):
        np.testing.assert_allclose(_vectors(loaded, text), _vectors(before, text), rtol=1e-5)


def _vectors(loaded, text):
    tokenizer = RequestTokenizer(loaded.tokenizer, loaded.spec, skiplist=loaded.skiplist)
    tokens = tokenizer.tokenize(EncodePassage, [text])
    out = loaded.model(tokens, row_seeds=None)
    return np.asarray(out.vectors)[np.asarray(out.mask)]


def test_what_does_not_exist_is_named(tmp_path):
    for name in ("./nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(FileNotFoundError, match=r"nowhere.*no such directory"):
            _initial(_run(tmp_path, name), tmp_path)
    _saved(tmp_path / "model")
    vocabulary = ReplaceVocabulary("./missing")
    with pytest.raises(FileNotFoundError, match="missing"):
        _initial(_run(tmp_path, str(tmp_path / "model"), vocabulary=vocabulary), tmp_path)


def test_a_teacher_must_be_a_whole_retriever(tmp_path):
    _encoder(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"plain: no clir_jax\.json, modules\.json or .* here"):
        load_model(str(tmp_path / "plain"))


def test_every_text_of_every_kind_of_data(tmp_path):
    (tmp_path / "text.txt").write_text("one\ntwo\n")
    (tmp_path / "bitext.tsv").write_text("1\tcat\tpaka\n2\tdog\tmbwa\n")
    (tmp_path / "train.tsv").write_text("where\there\tthere\n")
    for name, texts in {"en": ("here", "there"), "sw": ("hapa", "pale")}.items():
        lines = [json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    languages = InLanguages(
        TriplesTSV("train.tsv"), corpora={x: f"{x}.jsonl" for x in ("en", "sw")}
    )
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "d", "title": "T", "text": "body"}))
    (tmp_path / "queries.tsv").write_text("q\twhat\n")
    (tmp_path / "qrels").write_text("q 0 d 1\n")
    gold = {"id": "1", "src": ["red", "cat"], "tgt": ["paka"], "sure": [[1, 0]], "possible": []}
    (tmp_path / "gold.jsonl").write_text(json.dumps(gold))
    text, whole = TextLines("text.txt", "en"), passage_text("T", "body")
    expected = [
        (text, ["one", "two"]),
        (Mixture((text, text)), ["one", "two", "one", "two"]),
        (BitextTSV("bitext.tsv", "sw"), ["cat", "paka", "dog", "mbwa"]),
        (TriplesTSV("train.tsv"), ["where", "here", "there"]),
        (languages, ["where", "here", "hapa", "there", "pale"]),
        (Retrieval("corpus.jsonl", "queries.tsv", "qrels", "en"), [whole, "what"]),
        (GoldAlignment("gold.jsonl", "sw"), ["red cat", "paka"]),
    ]
    for origin, texts in expected:
        told = [
            text.replace("\n", " ").replace(". ", " ") for text in texts_of(origin, str(tmp_path))
        ]
        assert told == texts, origin
    assert sum(1 for _ in texts_of(AtlasRetrieval("sw", "dev"), ".")) > 1000
