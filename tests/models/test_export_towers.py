"""Model cards of two towers: queries are encoded with the one, passages with the other."""

import dataclasses
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.models.exports import export
from clir_jax.models.requests import EncodePassage, EncodeQuery
from clir_jax.models.retriever import Dense
from tests.interop.backbones import SPECS, tiny

LATE, DENSE = SPECS["late interaction"], SPECS["dense"]
# As in every card.
TEXTS = {EncodeQuery: ["Where is it?"], EncodePassage: ["It is here."]}


def towers(spec, passage_spec=None):
    """A retriever of a BERT for queries and an XLM-R for passages."""
    passage = tiny("xlm-roberta", passage_spec or spec, seed=1)
    return dataclasses.replace(tiny("bert", spec), passage=passage)


def vectors(model, kind):
    """What one tower makes of the card's text, without what does not count."""
    request = RequestTokenizer(model.tokenizer, model.spec, skiplist=model.skiplist).tokenize(
        kind, TEXTS[kind]
    )
    out = jax.jit(lambda params: nnx.merge(model.graphdef, params)(request))(model.params)
    return np.asarray(out.vectors[0])[np.asarray(out.mask[0])]


def codes(directory):
    """The snippets of the card, in order."""
    parts = (directory / "README.md").read_text().split("```python\n")[1:]
    return [part.split("```")[0] for part in parts]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Exports a model and runs a snippet of its card where the card says."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("torch")
    found = pytest.importorskip("transformers")
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()

    def exported(model, layout, number=0):
        export(model, layout, tmp_path / "out", "mine")
        monkeypatch.chdir(tmp_path / "out")
        names = {}
        exec(codes(tmp_path / "out")[number], names)
        return names

    return exported


@pytest.mark.filterwarnings("ignore")  # of other libraries, about each other
@pytest.mark.parametrize(
    ("layout", "number", "spec"),
    [
        ("transformers", 0, LATE),
        ("transformers", 0, DENSE),
        ("pylate", 1, LATE),
        ("sentence-transformers", 0, DENSE),
    ],
)
def test_each_tower_encodes_its_own_texts(run, layout, number, spec):
    model = towers(spec)
    names = run(model, layout, number)
    for side, tower, kind in (
        ("queries", model, EncodeQuery),
        ("passages", model.passage, EncodePassage),
    ):
        (theirs,) = names[side]
        ours = vectors(tower, kind)
        np.testing.assert_allclose(np.atleast_2d(theirs), ours, atol=1e-4)
        # It would show: the other tower makes another vector of the same text.
        other = vectors(model.passage if tower is model else model, kind)
        assert other.shape != ours.shape or np.abs(other - ours).max() > 0.1
    if "scores" in names:
        query, passage = vectors(model, EncodeQuery), vectors(model.passage, EncodePassage)
        score = (query @ passage.T).max(1).sum()
        np.testing.assert_allclose(float(names["scores"]), score, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of other libraries, about each other
@pytest.mark.parametrize("normalized", [(True, False), (False, True)])
def test_vectors_of_any_length_are_compared_by_the_dot_product(run, normalized):
    specs = [Dense(query_length=16, passage_length=16, normalize=unit) for unit in normalized]
    model = towers(*specs)
    names = run(model, "sentence-transformers")
    (query,), (passage,) = vectors(model, EncodeQuery), vectors(model.passage, EncodePassage)
    norms = np.linalg.norm(query), np.linalg.norm(passage)
    assert [abs(norm - 1) < 1e-4 for norm in norms] == list(normalized)
    np.testing.assert_allclose(float(names["scores"]), query @ passage, rtol=1e-4)


def test_pylate_and_colbert_are_given_each_text_to_its_tower(tmp_path, monkeypatch):
    """These libraries are not here (``make test-interop``): what is called is written down."""
    told = []

    class Model:
        def __init__(self, directory, colbert_config=None):
            self.place = directory, colbert_config

        def encode(self, texts, is_query):
            told.append((*self.place, "query" if is_query else "passage", *texts))

        def queryFromText(self, texts):
            self.encode(texts, True)

        def docFromText(self, texts):
            self.encode(texts, False)

    config = types.SimpleNamespace(load_from_checkpoint=lambda place: f"config of {place}")
    for name, content in {
        "pylate": {"models": types.SimpleNamespace(ColBERT=Model)},
        "colbert": {},
        "colbert.infra": {"ColBERTConfig": config},
        "colbert.modeling": {},
        "colbert.modeling.checkpoint": {"Checkpoint": Model},
    }.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**content))
    for layout in ("pylate", "colbert"):
        export(towers(LATE), layout, tmp_path / layout, "mine")
        exec(codes(tmp_path / layout)[0], {})
        assert [(place, side) for place, _, side, _ in told] == [
            ("query", "query"),
            ("passage", "passage"),
        ]
        if layout == "colbert":
            assert [about for _, about, *_ in told] == ["config of query", "config of passage"]
        assert [texts for *_, texts in told] == ["Where is it?", "It is here."]
        told.clear()
