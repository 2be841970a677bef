"""LangCL's losses against loops and torch, fairness against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn import functional

from clir_jax.objectives.language import (
    LanguageContrastive,
    LanguageFairness,
    SemanticContrastive,
    language_balance,
)
from tests.objectives.answers import batch, embeddings, loss, max_sim

IDS, WEIGHT = [0, 1, 0, 3, 4], [1.0, 1.0, 0.5, 1.0, 0.0]


@pytest.fixture(scope="module", params=[(1, 1, 1), (3, 2, 4)], ids=["dense", "late interaction"])
def told(request):
    """Both sides of five pairs and five sentences of their own."""
    rng = np.random.default_rng(0)
    names = ("english", "other", "text")
    return {n: embeddings(rng, 5, width) for n, width in zip(names, request.param, strict=True)}


def _similarity(told, a, b):
    """Of two sentences, each a name and a row: the mean of best cosines, both ways."""
    x, y = (np.float64(told[n].vectors[row][told[n].mask[row]]) for n, row in (a, b))
    cosine = x @ y.T
    return (cosine.max(axis=1).mean() + cosine.max(axis=0).mean()) / 2


def test_semantic_contrastive_is_the_loop(told):
    total, right = 0.0, 0.0
    pairs = {name: told[name] for name in ("english", "other")}
    sides = [(name, row) for row in range(5) for name in pairs]
    for name, row in sides:
        partner = ("other" if name == "english" else "english", row)
        candidates = [partner] + [k for k in sides if IDS[k[1]] != IDS[row] and WEIGHT[k[1]]]
        scores = np.array([_similarity(told, (name, row), k) for k in candidates]) / 0.1
        total += WEIGHT[row] * (np.log(np.exp(scores).sum()) - scores[0])
        right += WEIGHT[row] * (scores[0] >= scores.max())
    members = batch(WEIGHT, bitext_id=IDS)
    value, metrics, gradient = loss(SemanticContrastive(temperature=0.1), pairs, {}, members)
    np.testing.assert_allclose(value, total / (2 * sum(WEIGHT)), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], right / (2 * sum(WEIGHT)), rtol=1e-6)
    assert not gradient["english"][4].any()
    assert gradient["english"][3].any()


@pytest.mark.parametrize("text", [False, True])
def test_language_contrastive_is_the_loop(told, text):
    names = ("english", "other", "text") if text else ("english", "other")
    total, count, gaps = 0.0, 0.0, 0.0
    for b in range(5):
        for name in names:
            for row in range(5):
                if name != "text" and IDS[row] == IDS[b]:
                    continue
                first, second = (
                    _similarity(told, (side, b), (name, row)) for side in ("english", "other")
                )
                p = 1 / (1 + np.exp((second - first) / 0.2))
                weight = WEIGHT[b] * WEIGHT[row]
                total -= weight * (np.log(p) + np.log(1 - p))
                gaps += weight * abs(first - second)
                count += weight
    parts = {name: told[name] for name in names}
    objective = LanguageContrastive(temperature=0.2, text=text)
    value, metrics, gradient = loss(objective, parts, {}, batch(WEIGHT, bitext_id=IDS))
    np.testing.assert_allclose(value, total / count, rtol=1e-5)
    np.testing.assert_allclose(metrics["gap"], gaps / count, rtol=1e-5)
    for name in names:
        assert not gradient[name][4].any()
        assert gradient[name][3].any()


def test_the_balance_is_least_exactly_where_similarities_agree():
    rng = np.random.default_rng(1)
    a, gap = rng.normal(size=(2, 1, 200))
    one = jnp.ones((1, 1))
    balance = jax.jit(jax.vmap(lambda x, y: language_balance(x[None, None], y[None, None], one)))
    least = 2 * np.log(2)
    np.testing.assert_allclose(balance(a[0], a[0]), least, rtol=1e-6)
    values = np.asarray(balance(a[0], a[0] + gap[0]))
    assert (values[np.abs(gap[0]) > 0.01] > least).all()
    np.testing.assert_allclose(balance(a[0] + 7, a[0] + gap[0] + 7), values, rtol=1e-5)


def test_the_gradient_of_the_balance_is_p_minus_p():
    a, b = np.random.default_rng(2).normal(size=(2, 3, 4)).astype(np.float32)
    weight = np.ones((3, 4), np.float32)
    weight[0, 1] = 0
    compiled = jax.jit(jax.value_and_grad(language_balance, argnums=(0, 1)))
    value, (to_a, to_b) = compiled(a, b, weight)
    p = np.exp(np.float64(a)) / (np.exp(np.float64(a)) + np.exp(np.float64(b)))
    np.testing.assert_allclose(to_a, weight * (p - (1 - p)) / 11, atol=1e-6)
    np.testing.assert_allclose(to_b, -to_a, atol=1e-7)
    # Twice the cross-entropy of a choice of two, both of them right.
    logits = torch.tensor(np.stack([a, b], axis=-1)[weight > 0])
    entropy = functional.cross_entropy(logits, torch.full_like(logits, 0.5))
    np.testing.assert_allclose(value, 2 * float(entropy), rtol=1e-6)
    assert float(compiled(a, b, np.zeros_like(weight))[0]) == 0


@pytest.mark.parametrize("in_batch", [False, True])
def test_fairness_is_the_divergence_of_scipy(in_batch):
    rng = np.random.default_rng(3)
    queries = ("query", "query.en", "query.hi")
    told = {name: embeddings(rng, 3, 2) for name in queries}
    told["passages"] = embeddings(rng, 3, 3, 4)
    ids, weight = [[1, 2, 3], [4, 5, -1], [6, 7, 8]], [1.0, 0.5, 0.0]
    total, agree = 0.0, 0.0
    for b in range(3):
        rows = range(2) if in_batch else [b]
        places = [(c, n) for c in rows for n in range(3) if ids[c][n] >= 0]
        scores = [
            [max_sim(told[name], told["passages"], b, c, n) for c, n in places] for name in queries
        ]
        p = np.exp(np.array(scores) / 0.5)
        p /= p.sum(axis=1, keepdims=True)
        mean = p.mean(axis=0)
        total += weight[b] * np.mean([(own * np.log(own / mean)).sum() for own in p])
        agree += weight[b] * (len(set(p.argmax(axis=1))) == 1)
        if b == 0:
            two = p[:2]
    members = batch(weight, ranking_passage_ids=ids)
    objective = LanguageFairness(queries, 0.5, in_batch)
    value, metrics, gradient = loss(objective, told, {}, members)
    np.testing.assert_allclose(value, total / 1.5, rtol=1e-4)
    np.testing.assert_allclose(metrics["agreement"], agree / 1.5, rtol=1e-6)
    assert not gradient["passages"][1, 2].any()
    assert not gradient["query.hi"][2].any()
    del told["query.hi"]
    first = batch([1, 0, 0], ranking_passage_ids=ids)
    if not in_batch:
        value, _, _ = loss(LanguageFairness(queries[:2], 0.5), told, {}, first)
        np.testing.assert_allclose(value, jensenshannon(*two) ** 2, rtol=1e-4)


def test_fairness_of_one_question_between_languages_of_its_passages():
    rng = np.random.default_rng(5)
    told = {"query": embeddings(rng, 2, 2)}
    languages = ("passages.en", "passages.de")
    for name, width in zip(languages, (4, 3), strict=True):
        told[name] = embeddings(rng, 2, 3, width)
    ids, weight = [[1, 2, 3], [4, 5, -1]], [1.0, 0.5]
    total = 0.0
    for b, count in enumerate((3, 2)):
        p, q = (
            np.exp([max_sim(told["query"], told[x], b, b, n) / 0.5 for n in range(count)])
            for x in languages
        )
        total += weight[b] * jensenshannon(p, q) ** 2  # scipy makes them add up to 1
    objective = LanguageFairness(("query",), 0.5, passages=languages)
    members = batch(weight, ranking_passage_ids=ids)
    value, _, gradient = loss(objective, told, {}, members)
    np.testing.assert_allclose(value, total / 1.5, rtol=1e-4)
    assert gradient["passages.de"][1, 0].any()
    assert not gradient["passages.de"][1, 2].any()
    # The same passages in both.
    told["passages.de"] = told["passages.en"]
    value, metrics, _ = loss(objective, told, {}, members)
    np.testing.assert_allclose(value, 0, atol=1e-7)
    assert metrics["agreement"] == 1


def test_fairness_is_0_where_all_languages_agree():
    rng = np.random.default_rng(4)
    query = embeddings(rng, 2, 1)
    told = {"query": query, "query.en": query, "passages": embeddings(rng, 2, 3, 1)}
    members = batch([1, 1], ranking_passage_ids=[[1, 2, 3], [4, 5, 6]])
    value, metrics, gradient = loss(LanguageFairness(), told, {}, members)
    np.testing.assert_allclose(value, 0, atol=1e-7)
    assert metrics["agreement"] == 1
    assert max(np.abs(x).max() for x in gradient.values()) < 1e-6


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: SemanticContrastive(temperature=0.0),
         "SemanticContrastive: temperature is 0.0; it must be above 0"),
        (lambda: LanguageContrastive(read_as="passages"),
         "LanguageContrastive: read_as is 'passages'; write one of ('query', 'passage')"),
        (lambda: LanguageFairness(temperature=-1.0),
         "LanguageFairness: temperature is -1.0; it must be above 0"),
        (lambda: LanguageFairness(("query.en", "query.en")),
         "LanguageFairness: queries is ('query.en', 'query.en') and passages is ('passages',); "
         'write each once and at least two of either, as in queries=("query", "query.en")'),
        (lambda: LanguageFairness(("query",)),
         "LanguageFairness: queries is ('query',) and passages is ('passages',); "
         'write each once and at least two of either, as in queries=("query", "query.en")'),
        (lambda: LanguageFairness(passages=("de", "en")),
         "LanguageFairness: passages is 'de'; write \"passages\" for the language that the data "
         'choose, or "passages.en" for one'),
        (lambda: LanguageFairness(("query", "en")),
         "LanguageFairness: queries is 'en'; write \"query\" for the language that the data "
         'choose, or "query.en" for one'),
    ],
)  # fmt: skip
def test_options_out_of_range(build, sentence):
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == sentence
