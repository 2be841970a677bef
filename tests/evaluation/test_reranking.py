"""What is said of passages that do not fit a generator's prompt."""

import dataclasses

import jax
import numpy as np
import pytest

from clir_jax.data.collections import Collection
from clir_jax.data.pairs import QuestionTokenizer
from clir_jax.data.reading import Report
from clir_jax.evaluation.reranking import PairScorer, rerank_texts
from clir_jax.mesh import make_mesh
from clir_jax.models.requests import Likelihood
from clir_jax.training.kinds import pair_scorer
from tests.models import test_generator_files as generators

WARNING = r"a passage does not fit the generator's prompt of 7 tokens; it is cut at its end"


def _generator(prompt):
    """A generator whose prompt has room for five letters, the end token and a letter of its own."""
    spec = dataclasses.replace(generators.SPEC, source_length=7, prompt=prompt)
    return dataclasses.replace(generators._generator(), spec=spec)


def test_training_is_warned_of_the_first_passage_that_is_cut():
    model = _generator("a {passage}")
    reader = QuestionTokenizer(model.tokenizer, model.spec)
    reader.tokenize(Likelihood, [("a", "a b b a b", "sw")])  # fits: a warning is an error in tests
    with pytest.warns(UserWarning, match=WARNING):
        reader.tokenize(Likelihood, [("a", "a b b a b a", "sw")] * 2)
    reader.tokenize(Likelihood, [("a", "a b b a b a", "sw")])  # once is enough
    with pytest.warns(UserWarning, match=r"trained for sw, not for ha \(Hausa\)") as caught:
        reader.tokenize(Likelihood, [("a", "a b", "ha"), ("a", "a b", "sw"), ("b", "a", "ha")])
    assert len(caught) == 1
    reader.tokenize(Likelihood, [("a", "a b", "ha")])


def test_passages_cut_for_reranking_are_counted(monkeypatch):
    passages = ["a", "b a b a b a", "a b a b a", "b b b b b b b"]
    names = ["w", "x", "y", "z"]
    rows = {"q": names, "r": names[:2]}
    collection = Collection(
        "c", "sw", names, passages, list(rows), ["a", "b"], {q: {"w": 1} for q in rows}, Report()
    )
    scorer = pair_scorer(_generator("b {passage}"), make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setattr(
        PairScorer, "_score", lambda self, request: np.zeros(len(request.source.ids), np.float32)
    )
    candidates = {query: [(name, 0.0) for name in own] for query, own in rows.items()}
    cut = "3 of 6 passages read are cut to fit the prompt"
    for _ in range(2):  # each time, what was read then
        _, messages = rerank_texts(scorer, collection, candidates, lambda done, total: None)
        assert messages == [cut]
    other = dataclasses.replace(collection, language="ha")
    _, (unknown, same) = rerank_texts(scorer, other, candidates, lambda done, total: None)
    assert unknown.startswith("the generator was trained for sw, not for ha (Hausa)")
    assert same == cut
