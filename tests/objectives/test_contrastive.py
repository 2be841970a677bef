"""Contrastive losses against loops over plain numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clir_jax.config import Task
from clir_jax.data.sources import Atlas
from clir_jax.models.requests import Embeddings, Relevance, Scores
from clir_jax.objectives.base import Batch, weighted_mean
from clir_jax.objectives.contrastive import InfoNCE, ListwiseSoftmax, PairwiseSoftmax
from clir_jax.objectives.language import SemanticContrastive
from clir_jax.objectives.rankings import in_batch_candidates


def _answers(rng, rows, passages, width=4):
    def unit(*shape):
        x = rng.normal(size=shape)
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    query = Embeddings(unit(rows, 1, width), np.ones((rows, 1), bool))
    listed = Embeddings(unit(rows, passages, 1, width), np.ones((rows, passages, 1), bool))
    return {"query": query, "passages": listed}


def _batch(ids, known, weight):
    labels = {"ranking.passage_ids": np.int32(ids), "ranking.known": np.int32(known)}
    return Batch({}, {}, np.float32(weight), labels)


def _loss(objective, answers, batch):
    return objective.loss(*jax.tree.map(jnp.asarray, (answers, {}, batch)))


def _info_nce_by_loop(answers, batch, temperature, in_batch):
    query = np.float64(answers["query"].vectors[:, 0])
    passages = np.float64(answers["passages"].vectors[:, :, 0])
    ids, known = batch.labels["ranking.passage_ids"], batch.labels["ranking.known"]
    total, right = 0.0, 0.0
    for b, weight in enumerate(batch.weight):
        if weight == 0:
            continue
        own = query[b] @ passages[b, 0] / temperature
        scores, seen = [own], {int(ids[b, 0]), *map(int, known[b])} if in_batch else set()
        for c in range(len(query)) if in_batch else [b]:
            for n in range(passages.shape[1]):
                if (c, n) == (b, 0) or ids[c, n] < 0 or batch.weight[c] == 0:
                    continue
                if in_batch and int(ids[c, n]) in seen:
                    continue
                seen |= {int(ids[c, n])} if in_batch else set()
                scores.append(query[b] @ passages[c, n] / temperature)
        total += weight * (np.log(np.exp(scores).sum()) - own)
        right += weight * (own >= max(scores))
    return total / sum(batch.weight), right / sum(batch.weight)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_info_nce_is_the_loop(in_batch, temperature):
    rng = np.random.default_rng(0)
    answers = _answers(rng, 6, 3)
    # Duplicates between and within lists, known positives elsewhere, short lists, a padding row;
    # all copies of an id hold the same vector, as equal text would.
    ids = [[1, 2, 3], [2, 1, -1], [4, 2, 2], [5, 6, 1], [1, 7, 8], [9, 10, 2]]
    known = [[1, 4], [2, -1], [4, -1], [5, 10], [1, -1], [9, -1]]
    batch = _batch(ids, known, [1, 1, 0.5, 1, 1, 0])
    by_id = {}
    vectors = answers["passages"].vectors
    for place in np.ndindex(6, 3):
        vectors[place] = by_id.setdefault(ids[place[0]][place[1]], vectors[place])
    loss, metrics = _loss(InfoNCE(temperature, in_batch), answers, batch)
    expected, accuracy = _info_nce_by_loop(answers, batch, temperature, in_batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)


def test_info_nce_by_hand():
    # One query, scores 1 (positive) and 0: log(1 + e^-1).
    query = Embeddings(np.float32([[[1, 0]]]), np.ones((1, 1), bool))
    passages = Embeddings(np.float32([[[[1, 0]], [[0, 1]]]]), np.ones((1, 2, 1), bool))
    batch, answers = _batch([[0, 1]], [[0]], [1]), {"query": query, "passages": passages}
    loss, _ = _loss(InfoNCE(), answers, batch)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-1.0)), rtol=1e-6)
    pairwise, metrics = _loss(PairwiseSoftmax(), answers, batch)
    np.testing.assert_allclose(pairwise, np.log1p(np.exp(-1.0)), rtol=1e-6)
    assert float(metrics["accuracy"]) == 1.0


def test_a_tie_is_not_first():
    # Every vector alike: the loss is that of guessing, and so is what ranks first.
    same = Embeddings(np.ones((2, 1, 1), np.float32), np.ones((2, 1), bool))
    lists = Embeddings(np.ones((2, 2, 1, 1), np.float32), np.ones((2, 2, 1), bool))
    batch = _batch([[0, 1], [2, 3]], [[0], [2]], [1, 1])
    told = {"query": same, "passages": lists, "relevance": Scores(np.ones((2, 2), np.float32))}
    pairs = {"english": same, "other": same}
    of_pairs = Batch({}, {}, np.ones(2, np.float32), {"bitext.id": np.int32([0, 1])})
    for objective, answers, members, candidates in (
        (InfoNCE(), told, batch, 4),
        (ListwiseSoftmax(), told, batch, 2),
        (SemanticContrastive(), pairs, of_pairs, 3),
    ):
        loss, metrics = _loss(objective, answers, members)
        assert float(loss) == pytest.approx(np.log(candidates), rel=1e-6)
        assert float(metrics["accuracy"]) == 0.0


def test_pairwise_softmax_takes_each_negative_alone():
    rng = np.random.default_rng(1)
    answers = _answers(rng, 3, 3)
    batch = _batch([[1, 2, 3], [4, 5, -1], [6, 7, 8]], [[1], [4], [6]], [1, 1, 0])
    query, passages = (np.float64(answers[k].vectors[..., 0, :]) for k in ("query", "passages"))
    s = np.einsum("be,bne->bn", query, passages)
    first = np.mean([np.log1p(np.exp(s[0, n] - s[0, 0])) for n in (1, 2)])
    second = np.log1p(np.exp(s[1, 1] - s[1, 0]))
    loss, _ = _loss(PairwiseSoftmax(), answers, batch)
    np.testing.assert_allclose(loss, (first + second) / 2, rtol=1e-6)


def test_rows_of_weight_0_have_no_gradient_and_no_say():
    rng = np.random.default_rng(2)
    answers = _answers(rng, 4, 2)
    batch = _batch(np.arange(8).reshape(4, 2), np.arange(0, 8, 2)[:, None], [1, 1, 1, 0])

    def loss(vectors):
        parts = {name: Embeddings(vectors[name], answers[name].mask) for name in vectors}
        return _loss(InfoNCE(), parts, batch)[0]

    gradient = jax.grad(loss)({name: jnp.asarray(part.vectors) for name, part in answers.items()})
    assert np.all(np.asarray(gradient["query"])[3] == 0)
    assert np.all(np.asarray(gradient["passages"])[3] == 0)
    assert np.any(np.asarray(gradient["passages"])[2] != 0)


def test_a_batch_of_padding_has_loss_0():
    answers = _answers(np.random.default_rng(3), 2, 2)
    batch = _batch([[0, 1], [2, 3]], [[0], [2]], [0, 0])
    for objective in (InfoNCE(), PairwiseSoftmax()):
        assert float(_loss(objective, answers, batch)[0]) == 0.0


def test_candidates_keep_the_own_positive_though_a_copy_came_first():
    ids = jnp.array([[5, 6], [5, 7]])
    got = in_batch_candidates(ids, jnp.array([[5], [5]]), jnp.ones(2))
    np.testing.assert_array_equal(got, [[1, 1, 0, 1], [0, 1, 1, 1]])


def test_weighted_mean_and_bad_temperature():
    assert float(weighted_mean(jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0]))) == 2.0
    with pytest.raises(ValueError, match=r"temperature is 0\.0; it must be above 0"):
        InfoNCE(temperature=0.0)


def test_known_passages_are_no_negatives_of_a_list_either():
    rng = np.random.default_rng(4)
    answers = _answers(rng, 1, 4)
    # Passage 2 is known to be relevant, and the last is the positive again: passage 3 is left.
    batch = _batch([[1, 2, 3, 1]], [[1, 2]], [1])
    s = np.float64(answers["query"].vectors[0, 0] @ answers["passages"].vectors[0, :, 0].T)
    expected = np.log1p(np.exp(s[2] - s[0]))
    np.testing.assert_allclose(_loss(PairwiseSoftmax(), answers, batch)[0], expected, rtol=1e-5)
    lists = InfoNCE(in_batch=False)
    np.testing.assert_allclose(_loss(lists, answers, batch)[0], expected, rtol=1e-5)


def test_a_loss_on_lists_wants_negatives():
    assert [InfoNCE().least_passages, InfoNCE(in_batch=False).least_passages] == [1, 2]
    source = Atlas("ranking", "en")
    with pytest.raises(ValueError, match=r"passages is 1; .* at least 2: without negatives"):
        Task(PairwiseSoftmax(), {"ranking": source})


def test_listwise_softmax_is_the_loop():
    rng = np.random.default_rng(0)
    ids = [[1, 2, 3, 4], [5, 6, -1, -1], [1, 7, 1, 8], [9, 2, 3, 4]]
    known = [[1, -1], [5, -1], [1, 8], [9, -1]]
    batch = _batch(ids, known, [1, 0.5, 2, 0])
    scores = rng.normal(size=(4, 4)).astype(np.float32)
    # Padding, copies of the positive and what is known to be relevant are no candidates.
    candidates = [[0, 1, 2, 3], [0, 1], [0, 1]]
    losses, right = [], []
    for own, columns in zip(np.float64(scores) / 0.5, candidates, strict=False):
        losses.append(np.log(np.exp(own[columns]).sum()) - own[0])
        right.append(own[0] >= own[columns].max())
    objective = ListwiseSoftmax(temperature=0.5, query="query.en")
    (ask,) = objective.student.values()
    assert (ask.kind, ask.texts) == (Relevance, ("ranking.query.en", "ranking.passages"))
    loss, metrics = _loss(objective, {"relevance": Scores(scores)}, batch)
    assert float(loss) == pytest.approx(np.average(losses, weights=[1, 0.5, 2]), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(np.average(right, weights=[1, 0.5, 2]))
    with pytest.raises(ValueError, match="temperature is 0"):
        ListwiseSoftmax(temperature=0.0)
    with pytest.raises(ValueError, match="query is 'passages'; write"):
        ListwiseSoftmax(query="passages")
