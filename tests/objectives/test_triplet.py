"""The triplet loss against torch, and its masks against a loop."""

import numpy as np
import pytest
import torch

from clir_jax.objectives.base import ModelFacts
from clir_jax.objectives.triplet import Triplet
from tests.objectives.answers import batch, embeddings, loss, max_sim

DISTANCES = {
    "cosine": lambda x, y: 1 - (x * y).sum(-1),
    "l2": lambda x, y: ((x - y) ** 2).sum(-1),
}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_triplets_are_those_of_torch(distance, reduction):
    rng = np.random.default_rng(0)
    told = {"query": embeddings(rng, 6, 1), "passages": embeddings(rng, 6, 2, 1)}
    ids = np.arange(12).reshape(6, 2)
    members = batch(np.ones(6), ranking_passage_ids=ids, ranking_known=ids[:, :1])
    objective = Triplet(margin=0.5, distance=distance, reduction=reduction)
    value, metrics, _ = loss(objective, told, {}, members)
    anchor = torch.tensor(told["query"].vectors[:, 0])
    positive, negative = (torch.tensor(told["passages"].vectors[:, n, 0]) for n in (0, 1))
    theirs = torch.nn.TripletMarginWithDistanceLoss(
        distance_function=DISTANCES[distance], margin=0.5, reduction="none"
    )(anchor, positive, negative)
    np.testing.assert_allclose(value, float(getattr(theirs, reduction)()), rtol=1e-5)
    assert 0 < float((theirs > 0).float().mean()) < 1, "a hinge that is never bent tests nothing"
    np.testing.assert_allclose(metrics["violations"], float((theirs > 0).float().mean()))


def test_padding_and_known_passages_make_no_triplets():
    rng = np.random.default_rng(1)
    told = {"query": embeddings(rng, 3, 3), "passages": embeddings(rng, 3, 4, 2)}
    ids = [[1, 2, 3, -1], [4, 5, 4, 6], [7, 8, 9, 10]]
    members = batch([1, 0.5, 0], ranking_passage_ids=ids, ranking_known=[[1, 3], [4, -1], [7, -1]])
    s = np.array([[max_sim(*told.values(), b, b, n) for n in range(4)] for b in range(3)])
    terms = {(b, n): max(0, s[b, n] - s[b, 0] + 1) for b, n in [(0, 1), (1, 1), (1, 3)]}
    expected = terms[0, 1] + 0.5 * (terms[1, 1] + terms[1, 3])
    value, _, gradient = loss(Triplet(margin=1.0), told, {}, members)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    value, _, _ = loss(Triplet(margin=1.0, reduction="mean"), told, {}, members)
    np.testing.assert_allclose(value, expected / 2, rtol=1e-5)
    assert not gradient["passages"][0, 2:].any()
    assert not gradient["passages"][2].any()


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Triplet(margin=-0.1), "Triplet: margin is -0.1; it must be 0 or above"),
        (lambda: Triplet(distance="dot"),
         "Triplet: distance is 'dot'; write one of ('cosine', 'l2')"),
        (lambda: Triplet(reduction="none"),
         "Triplet: reduction is 'none'; write one of ('sum', 'mean')"),
        (lambda: Triplet(distance="l2").check(ModelFacts(True, 4), {}),
         'Triplet: distance is "l2", between one vector a text, and the student is a '
         'late-interaction retriever with one a token; set distance="cosine"'),
    ],
)  # fmt: skip
def test_what_does_not_fit(build, sentence):
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == sentence
