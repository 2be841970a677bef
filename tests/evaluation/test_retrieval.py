"""Retrieval with a model: the same ranking as encoding and scoring everything at once."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from clir_jax.data import demo
from clir_jax.data.collections import AtlasRetrieval, Collection
from clir_jax.data.reading import Intake
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.evaluation import retrieval as module
from clir_jax.evaluation.retrieval import Kept, TextEncoder, measure, measure_bm25, search
from clir_jax.mesh import make_mesh, shardings
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery
from clir_jax.models.retriever import Dense, LateInteraction, Retriever
from clir_jax.models.tokenizer import add_markers
from clir_jax.models.vocabulary import train_wordpiece


@pytest.fixture(scope="module")
def atlas():
    whole = AtlasRetrieval("en", "test").open("")
    rng = np.random.default_rng(0)
    queries = sorted(rng.choice(len(whole.query_ids), 12, replace=False))
    ids = [whole.query_ids[i] for i in queries]
    wanted = {p for query in ids for p in whole.qrels[query]}
    rows = [i for i, p in enumerate(whole.passage_ids) if p in wanted or i % 20 == 0]
    return dataclasses.replace(
        whole,
        passage_ids=[whole.passage_ids[i] for i in rows],
        passages=[whole.passages[i] for i in rows],
        query_ids=ids,
        queries=[whole.queries[i] for i in queries],
        qrels={query: whole.qrels[query] for query in ids},
    )


def _encoder(spec, mesh):
    tokenizer = train_wordpiece([p.text for p in demo.passages()[:300]], 700, lowercase=True)
    tokenizer, _ = add_markers(tokenizer, spec)
    config = EncoderConfig(
        vocab_size=tokenizer.size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
    )
    graphdef, params = nnx.split(Retriever(spec, config, rngs=nnx.Rngs(0)))
    params = jax.device_put(params, shardings(params, mesh))
    return TextEncoder(graphdef, params, RequestTokenizer(tokenizer, spec), mesh)


def _by_hand(encoder, collection):
    """Scores of every query and passage, one text at a time, by the plain formula."""
    params = jax.device_put(jax.device_get(encoder.params), jax.devices()[0])
    model = jax.jit(lambda params, request: nnx.merge(encoder.graphdef, params)(request))

    def vectors(kind, text):
        out = jax.device_get(model(params, encoder.tokenizer.tokenize(kind, [text])))
        return out.vectors[0][out.mask[0]]

    passages = [vectors(EncodePassage, text) for text in collection.passages]
    queries = [vectors(EncodeQuery, text) for text in collection.queries]
    return np.array([[(q @ p.T).max(axis=1).sum() for p in passages] for q in queries])


@pytest.mark.parametrize(
    "spec",
    [
        LateInteraction(dimension=8, query_length=24, passage_length=64),
        Dense(query_length=24, passage_length=64),
    ],
)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_rankings_are_those_of_all_at_once(spec, sizes, atlas, monkeypatch):
    # Several blocks, the last one short, and several sorted windows.
    monkeypatch.setattr(module, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(module, "_BLOCKS_AHEAD", 2)
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    encoder = _encoder(spec, mesh)
    done = []
    measured = measure(encoder, {"a": atlas}, ["RR@10"], 20, lambda n, total: done.append(n))
    scores = _by_hand(encoder, atlas)
    best = np.sort(scores, axis=1)[:, ::-1][:, :20]
    place = {p: i for i, p in enumerate(atlas.passage_ids)}
    for i, query in enumerate(atlas.query_ids):
        ranking = measured["a"].run[query]
        np.testing.assert_allclose([s for _, s in ranking], best[i], atol=1e-4)
        own = [scores[i, place[p]] for p, _ in ranking]
        np.testing.assert_allclose(own, best[i], atol=1e-4)
        assert len({p for p, _ in ranking}) == 20
    assert done[-1] == len(atlas.passages)


def test_collections_over_one_corpus_share_one_pass(atlas):
    spec = LateInteraction(dimension=8, query_length=24, passage_length=64)
    encoder = _encoder(spec, make_mesh(devices=jax.devices()[:1]))
    half = dataclasses.replace(
        atlas,
        query_ids=atlas.query_ids[:5],
        queries=atlas.queries[:5],
        qrels={q: atlas.qrels[q] for q in atlas.query_ids[:5]},
    )
    totals = set()
    both = measure(
        encoder, {"all": atlas, "half": half}, ["RR@10"], 5, lambda n, total: totals.add(total)
    )
    assert totals == {len(atlas.passages)}
    assert both["half"].run == {q: both["all"].run[q] for q in half.query_ids}


def test_bm25_is_a_system_like_the_others(atlas):
    measured = measure_bm25(atlas, ["RR@10", "R@100"], 20)
    assert measured.values["RR@10"] > 0.5
    assert measured.run.keys() == set(atlas.query_ids)


@pytest.mark.parametrize("fitting", [2, 1, 0])
def test_passages_are_kept_in_memory_up_to_a_number_of_bytes(fitting, atlas, monkeypatch):
    """Two windows of two blocks; a second search encodes again the windows that had no room."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(module, "_BLOCKS_AHEAD", 2)
    spec = LateInteraction(dimension=8, query_length=24, passage_length=64)
    encoder = _encoder(spec, make_mesh(devices=jax.devices()[:1]))
    texts, windows, window = atlas.passages[:64], [], TextEncoder._window
    by_windows = list(encoder.passages(texts))
    a_window = sum(block.vectors.nbytes + block.mask.nbytes for _, block in by_windows[:2])

    def counting(self, texts):
        windows.append(len(texts))
        return window(self, texts)

    monkeypatch.setattr(TextEncoder, "_window", counting)
    keeping = dataclasses.replace(encoder, kept=Kept(a_window * fitting))
    for calls in (2, 2 + (2 - fitting)):
        told = list(keeping.passages(texts))
        assert len(windows) == calls
        for (rows, block), (expected, whole) in zip(told, by_windows, strict=True):
            np.testing.assert_array_equal(rows, expected)
            np.testing.assert_array_equal(block.vectors, whole.vectors)
            np.testing.assert_array_equal(block.mask, whole.mask)


def test_a_passage_without_a_kept_token_is_found_by_nobody(monkeypatch):
    queries = Embeddings(np.eye(2, dtype=np.float32)[:, None], np.ones((2, 1), bool))
    vectors = np.array([[[1.0, 0.0]], [[9.0, 9.0]], [[0.0, 2.0]]], np.float32)
    passages = Embeddings(vectors, np.array([[True], [False], [True]]))
    monkeypatch.setattr(TextEncoder, "queries", lambda self, texts: queries)
    monkeypatch.setattr(TextEncoder, "passages", lambda self, texts: [(np.arange(3), passages)])
    encoder = object.__new__(TextEncoder)
    object.__setattr__(encoder, "mesh", make_mesh(devices=jax.devices()[:1]))
    report = Intake().finish(2, "test")
    texts = {"passage_ids": ["a", "b", "c"], "passages": ["x", ".", "y"]}
    texts |= {"query_ids": ["1", "2"], "queries": ["p", "q"]}
    asked = Collection(name="c", language="en", qrels={}, report=report, **texts)
    assert search(encoder, [asked], 3, lambda done: None) == [
        {"1": [("a", 1.0), ("c", 0.0)], "2": [("c", 2.0), ("a", 0.0)]}
    ]
