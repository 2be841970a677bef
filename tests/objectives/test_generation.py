"""Objectives with a generator against torch, row by row."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from clir_jax.models.requests import Likelihood, TokenScores
from clir_jax.objectives.distillation import RelevanceDistillation
from clir_jax.objectives.generation import (
    GeneratorContrastive,
    QueryAlignment,
    SequenceLikelihood,
)
from tests.objectives.answers import batch, embeddings, loss, max_sim

IDS, KNOWN = [[1, 2, 3], [4, 5, -1], [2, 6, 7], [8, 1, 9]], [[1], [4], [7], [8]]
WEIGHT = [1.0, 0.5, 1.0, 0.0]
MEMBERS = batch(WEIGHT, ranking_passage_ids=IDS, ranking_known=KNOWN)


def _log_probs(seed, *shape):
    rng = np.random.default_rng(seed)
    mask = np.arange(shape[-1]) < rng.integers(1, shape[-1] + 1, shape[:-1])[..., None]
    values = np.where(mask, -rng.exponential(size=shape), 0).astype(np.float32)
    return TokenScores(values, mask)


def _means(told):
    return [[row[on].mean() for row, on in zip(*own, strict=True)] for own in _pairs(told)]


def _sums(told):
    return [[row[on].sum() for row, on in zip(*own, strict=True)] for own in _pairs(told)]


def _pairs(told):
    return zip(told.log_probs.astype(np.float64), told.mask, strict=True)


def _weighted(values):
    return np.dot(WEIGHT, values) / np.sum(WEIGHT)


def test_sequence_likelihood_is_the_cross_entropy_of_torch():
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 5, 9)))
    target = torch.from_numpy(np.random.default_rng(1).integers(0, 9, (4, 5)))
    mask = np.arange(5) < np.array([[5], [1], [3], [2]])
    found = functional.log_softmax(logits, -1).gather(2, target[..., None])[..., 0].numpy()
    told = TokenScores(np.where(mask, found, 0).astype(np.float32), mask)
    expected = [functional.cross_entropy(x[on], t[on]).item()
                for x, t, on in zip(logits, target, mask, strict=True)]  # fmt: skip
    value, metrics = SequenceLikelihood().loss({"likelihood": told}, {}, MEMBERS)
    assert value == pytest.approx(_weighted(expected), abs=1e-6)
    assert metrics["perplexity"] == pytest.approx(np.exp(_weighted(expected)), abs=1e-4)


@pytest.mark.parametrize(("reduction", "scores"), [("mean", _means), ("sum", _sums)])
def test_the_contrastive_loss_is_the_cross_entropy_of_torch(reduction, scores):
    told = _log_probs(0, 4, 3, 5)
    objective = GeneratorContrastive(temperature=0.3, reduction=reduction)
    total, right = [], []
    for row, (own, ids, known) in enumerate(zip(scores(told), IDS, KNOWN, strict=True)):
        # The third row's third passage is known to be relevant; the second has two passages.
        kept = [0] + [n for n in (1, 2) if ids[n] >= 0 and ids[n] not in known]
        assert len(kept) == (2 if row in (1, 2) else 3)
        logits = torch.tensor(own)[kept] / 0.3
        total.append(functional.cross_entropy(logits, torch.tensor(0)).item())
        right.append(logits.argmax().item() == 0)
    value, metrics = objective.loss({"likelihood": told}, {}, MEMBERS)
    assert value == pytest.approx(_weighted(total), abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(_weighted(right), abs=1e-6)


def test_distillation_of_a_generator_is_that_of_its_means():
    rng, told = np.random.default_rng(0), _log_probs(1, 4, 3, 5)
    student = {"query": embeddings(rng, 4, 3), "passages": embeddings(rng, 4, 3, 5)}
    options = {"temperature": 1.0, "teacher_temperature": 0.1}
    live = RelevanceDistillation(teacher_kind="generator", teacher_query="query", **options)
    total = []
    for b, (own, ids) in enumerate(zip(_means(told), IDS, strict=True)):
        kept = [n for n in range(3) if ids[n] >= 0]
        ours = [max_sim(student["query"], student["passages"], b, b, n) for n in kept]
        q = functional.log_softmax(torch.tensor(ours), 0)
        p = functional.log_softmax(torch.tensor(own)[kept] / 0.1, 0)
        total.append(functional.kl_div(q, p, reduction="sum", log_target=True).item())
    value, _, _ = loss(live, student, {"likelihood": told}, MEMBERS)
    assert value == pytest.approx(_weighted(total), abs=1e-5)
    assert live.teacher["likelihood"].texts == (
        "ranking.query",
        "ranking.passages",
        "ranking.language.query",
    )


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(3)
    student = {name: embeddings(rng, 4, 3) for name in ("reference", "query")}
    student["passages"] = embeddings(rng, 4, 3, 5)
    told = {name: _log_probs(n, 4, 3, 5) for n, name in enumerate(student) if n < 2}
    for own in told.values():
        own.log_probs[:, 0] *= 0.01  # it is surer of the positive than a guess
    return student, told


@pytest.mark.parametrize(
    "objective",
    [
        QueryAlignment(temperature=0.7, confidence_temperature=0.5),
        QueryAlignment(confidence="none", stop_gradient=False),
    ],
    ids=["gated", "ungated"],
)
def test_alignment_is_the_gated_divergence_of_torch(asked, objective):
    student, teacher = asked
    gated = objective.confidence == "generator"
    gates, total, agree = [], [], []
    for b, ids in enumerate(IDS):
        kept = [n for n in range(3) if ids[n] >= 0]
        p, q = (
            functional.log_softmax(
                torch.tensor([max_sim(student[x], student["passages"], b, b, n) for n in kept])
                / objective.temperature,
                0,
            )
            for x in ("reference", "query")
        )
        sure = 1.0
        if gated:
            left, right = (
                functional.softmax(torch.tensor(_means(teacher[x])[b])[kept] / 0.5, 0)
                for x in ("reference", "query")
            )
            sure = torch.minimum(left, right)[0].item()
            assert sure > 1 / len(kept)
        gates.append(sure)
        total.append(functional.kl_div(q, p, reduction="sum", log_target=True).item())
        agree.append(p.argmax().item() == q.argmax().item())
    if gated:  # a threshold between two rows that count
        low, high = sorted(gates[:3])[:2]
        threshold = (low + high) / 2
        gates = [c if c >= threshold else 0.0 for c in gates]
        assert gates[:3].count(0.0) == 1
        objective = QueryAlignment(temperature=0.7, confidence_temperature=0.5, threshold=threshold)
    value, metrics, gradient = loss(objective, student, teacher if gated else {}, MEMBERS)
    assert value == pytest.approx(_weighted(np.multiply(gates, total)), abs=1e-5)
    assert metrics["gate"] == pytest.approx(_weighted(gates), abs=1e-5)
    assert metrics["agreement"] == pytest.approx(_weighted(agree), abs=1e-6)
    # Only the other question learns, unless both are to; passages learn through it.
    assert np.any(gradient["query"])
    assert np.any(gradient["reference"]) != gated


@pytest.mark.parametrize("listed", [[1, 2, 3], [1, 2, -1], [1, -1, -1]])
def test_a_generator_that_knows_nothing_or_finds_another_passage_opens_no_gate(asked, listed):
    student, _ = asked
    members = batch([1.0] * 4, ranking_passage_ids=[listed] * 4, ranking_known=[[1]] * 4)
    mask = np.ones((4, 3, 1), bool)
    several = listed[1] >= 0  # of a single passage there is nothing to be sure of
    for told, gate in (([-2, -2, -2], 0), ([-9, -1, -9], 0), ([-1, -9, -9], float(several))):
        values = TokenScores(np.array([told] * 4, np.float32)[..., None], mask)
        _, metrics, _ = loss(
            QueryAlignment(), student, {"reference": values, "query": values}, members
        )
        assert metrics["gate"] == pytest.approx(gate, abs=1e-5)


def test_what_is_asked():
    translate = SequenceLikelihood("bitext.other", "bitext.english").student["likelihood"]
    assert (translate.kind, translate.texts) == (
        Likelihood,
        ("bitext.other", "bitext.english", "bitext.language.other"),
    )
    assert QueryAlignment(confidence="none").teacher == {}
    assert QueryAlignment(reference="query", query="query.sw").teacher["query"].texts == (
        "ranking.query.sw",
        "ranking.passages",
        "ranking.language.query.sw",
    )


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: SequenceLikelihood("query"), "target is 'query'; write \"source.field\""),
        (lambda: SequenceLikelihood("bitext.other"), "write two fields of one source"),
        (lambda: GeneratorContrastive(query="passages"), "query is 'passages'; write \"query\""),
        (lambda: GeneratorContrastive(temperature=0.0), "temperature is 0.0; it must be above 0"),
        (lambda: GeneratorContrastive(reduction="max"), "reduction is 'max'; write one of"),
        (lambda: QueryAlignment(query="query.en"), "are both 'query.en'; write two languages"),
        (lambda: QueryAlignment(threshold=2.0), "threshold is 2.0; write a number from 0 to 1"),
        (lambda: QueryAlignment(confidence="always"), "confidence is 'always'; write one of"),
        (
            lambda: QueryAlignment(confidence_temperature=0.0),
            "temperature is 0.0; it must be above 0",
        ),
    ],
)
def test_options_out_of_range(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
