"""What mteb is given: the rankings of brute force, and vectors where a text has one."""

import dataclasses

import numpy as np
import pytest

from clir_jax.evaluation.mteb import DenseSearcher, Searcher, for_mteb
from clir_jax.evaluation.retrieval import TextEncoder
from clir_jax.mesh import make_mesh
from clir_jax.models.exports import export
from tests.interop.backbones import SPECS, tiny

CORPUS = [
    {"id": "a", "title": "Lake", "text": "Victoria lies in Kenya"},
    {"id": "b", "title": None, "text": "rain"},
    {"id": "c", "title": "", "text": "the towns by the river, and the fish"},
    {"id": "d", "text": "who wrote it in 1969"},
]
READ = ["Lake Victoria lies in Kenya", *(row["text"] for row in CORPUS[1:])]
QUERIES = [{"id": "q", "text": "where is it"}, {"id": "r", "text": "fish", "instruction": "now"}]
ASKED = ["where is it", "fish now"]


@pytest.fixture(scope="module", params=["dense", "late interaction"])
def searcher(request):
    encoder = TextEncoder.of(tiny("bert", SPECS[request.param]), make_mesh())
    made = (DenseSearcher if request.param == "dense" else Searcher)(encoder, "meta")
    made.index(CORPUS, task_metadata=None, num_proc=1)
    return made


@pytest.fixture(scope="module")
def expected(searcher):
    """The scores of ASKED and READ, computed by hand."""
    return by_hand(searcher.encoder)


def by_hand(encoder):
    """MaxSim of every query and passage, each encoded by itself, in two loops."""
    asked = [encoder.queries([text]) for text in ASKED]
    read = [next(encoder.passages([text]))[1] for text in READ]
    kept = [[x.vectors[0][x.mask[0]] for x in side] for side in (asked, read)]
    return np.array([[(q @ p.T).max(axis=1).sum() for p in kept[1]] for q in kept[0]])


def test_rankings_are_those_of_brute_force(searcher, expected):
    found = searcher.search(QUERIES, top_k=3, hf_split="test", encode_kwargs={})
    for row, own in zip(("q", "r"), expected, strict=True):
        order = np.argsort(-own)[:3]
        assert list(found[row]) == ["abcd"[i] for i in order]
        np.testing.assert_allclose(list(found[row].values()), own[order], rtol=1e-5)
    lists = {"q": ["d", "a"], "r": ["a", "b", "c"]}
    again = searcher.search(QUERIES, top_k=2, top_ranked=lists)
    for row, own in zip(("q", "r"), expected, strict=True):
        order = sorted(lists[row], key=lambda name: -own["abcd".index(name)])[:2]
        assert list(again[row]) == order
    assert searcher.mteb_model_meta == "meta"


BLANK = [
    {"id": "e", "title": "", "text": ""},
    {"id": "f", "text": " \t\n"},
    {"id": "g", "title": " ", "text": "\u200b"},  # which the vocabulary drops
    {"id": "h", "text": "."},
]


@pytest.mark.parametrize("kind", ["dense", "late interaction"])
def test_what_has_no_text_is_not_found(kind):
    # Of "." nothing is kept where neither punctuation nor special tokens are.
    spec = SPECS[kind]
    if spec.late_interaction:
        spec = dataclasses.replace(spec, content_only=True)
    encoder = TextEncoder.of(tiny("bert", spec), make_mesh())
    expected = dict(zip("abcd", by_hand(encoder)[0].tolist(), strict=True))
    if kind == "dense":
        (query,) = encoder.queries(ASKED[:1]).vectors[:, 0]
        (((_, block),),) = [list(encoder.passages(["."]))]
        expected["h"] = float(query @ block.vectors[0, 0])
    searcher = Searcher(encoder, "meta")
    searcher.index([*BLANK, *CORPUS])
    queries = [{"id": "n", "text": " "}, {"id": "o", "text": "", "instruction": ""}, QUERIES[0]]
    found = searcher.search(queries, top_k=8)
    assert found.keys() == {"n", "o", "q"}
    assert found["n"] == found["o"] == {}
    assert found["q"] == pytest.approx(expected, rel=1e-5)
    assert list(found["q"]) == sorted(expected, key=expected.get, reverse=True)
    lists = {"n": ["a"], "q": ["e", "g", "b"]}
    again = searcher.search(queries, top_k=8, top_ranked=lists)
    assert again == {"n": {}, "o": {}, "q": {"b": pytest.approx(expected["b"], rel=1e-5)}}
    assert searcher.search(queries[:2], top_k=8) == {"n": {}, "o": {}}
    searcher.index(BLANK[:3])
    assert searcher.search(queries, top_k=8) == {"n": {}, "o": {}, "q": {}}


def test_a_text_without_a_piece_has_the_vector_of_sentence_transformers(tmp_path):
    library = pytest.importorskip("sentence_transformers", minversion="6")
    model = tiny("bert", SPECS["dense"])
    export(model, "sentence-transformers", tmp_path / "model", "mine")
    theirs = library.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    searcher = DenseSearcher(TextEncoder.of(model, make_mesh()), "meta")
    texts = ["", READ[0], "  ", "\u200b", READ[2]]
    for kind, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        ours = searcher.encode([{"text": texts[:2]}, {"text": texts[2:]}], prompt_type=kind)
        np.testing.assert_allclose(ours, encode(texts), atol=1e-6)
        assert np.abs(ours[0] - ours[1]).max() > 1e-3


def test_only_one_vector_a_text_is_encoded(searcher, expected):
    dense = isinstance(searcher, DenseSearcher)
    assert dense == hasattr(searcher, "encode") == hasattr(searcher, "similarity")
    if not dense:
        return
    batches = [{"text": READ[:3]}, {"text": READ[3:]}]
    passages = searcher.encode(batches, prompt_type="document", batch_size=3)
    queries = searcher.encode([{"text": ASKED}], prompt_type="query")
    np.testing.assert_allclose(searcher.similarity(queries, passages), expected, rtol=1e-5)
    pairs = searcher.similarity_pairwise(queries, passages[:2])
    np.testing.assert_allclose(pairs, np.diag(expected[:, :2]), rtol=1e-5)
    np.testing.assert_array_equal(searcher.encode([{"text": ASKED}]), queries)


def test_what_is_no_text_is_refused(searcher):
    with pytest.raises(ValueError, match=r"^mteb: query 'q' has no text but \[\]; choose a task"):
        searcher.search([{"id": "q", "text": []}], top_k=1)
    with pytest.raises(ValueError, match=r"^mteb: passage 'z' is to be reranked and is not in"):
        searcher.search(QUERIES, top_k=1, top_ranked={"q": ["z"]})


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mteb.models", None)
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    with pytest.raises(ImportError, match=r"^mteb is not installed; run `pip install"):
        for_mteb("anywhere")
