"""Distillation of scores against torch, list by list."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from clir_jax.models.requests import Relevance, Scores
from clir_jax.objectives.distillation import MarginMSE, RelevanceDistillation
from tests.objectives.answers import batch, embeddings, loss, max_sim

IDS = [[1, 2, 3], [4, 5, -1], [2, 6, 7], [8, 1, 9]]
WEIGHT = [1.0, 0.5, 1.0, 0.0]


@pytest.fixture(scope="module")
def told():
    """Answers of a student and a teacher of another width and length, and the records' scores."""
    rng = np.random.default_rng(0)
    student = {"query": embeddings(rng, 4, 3), "passages": embeddings(rng, 4, 3, 5)}
    teacher = {
        "query": embeddings(rng, 4, 2, width=6),
        "passages": embeddings(rng, 4, 3, 4, width=6),
    }
    for parts in (student, teacher):  # equal ids are equal text
        passages = parts["passages"]
        for target, source in (((2, 0), (0, 1)), ((3, 1), (0, 0))):
            passages.vectors[target], passages.mask[target] = (
                passages.vectors[source],
                passages.mask[source],
            )
    stored = 3 * rng.normal(size=(4, 3))
    return student, teacher, batch(WEIGHT, ranking_passage_ids=IDS, ranking_scores=stored)


def _scores(parts, b, members):
    return np.array([max_sim(parts["query"], parts["passages"], b, c, n) for c, n in members])


def _members(b, in_batch):
    """The places of the passages that question b is compared on."""
    if not in_batch:
        return [(b, n) for n in range(3) if IDS[b][n] >= 0]
    first = {}
    for place in np.ndindex(3, 3):  # the last row has weight 0
        first.setdefault(IDS[place[0]][place[1]], place)
    return [place for number, place in first.items() if number >= 0]


def _divergence(ours, theirs, temperature, of_teacher):
    q, p = (
        functional.log_softmax(torch.tensor(x) / t, dim=0)
        for x, t in ((ours, temperature), (theirs, of_teacher))
    )
    return temperature**2 * float(functional.kl_div(q, p, reduction="sum", log_target=True))


@pytest.mark.parametrize(
    "objective",
    [
        RelevanceDistillation(),
        RelevanceDistillation(temperature=0.5, teacher_temperature=3.0),
        RelevanceDistillation(teacher_kind="stored"),
        RelevanceDistillation(in_batch=True),
    ],
    ids=["as published", "two temperatures", "stored", "in batch"],
)
def test_relevance_is_the_divergence_of_torch(told, objective):
    student, teacher, members = told
    total, agree = 0.0, 0.0
    for b, weight in enumerate(WEIGHT):
        places = _members(b, objective.in_batch)
        ours, theirs = (_scores(parts, b, places) for parts in (student, teacher))
        if objective.teacher_kind == "stored":
            theirs = np.array([members.labels["ranking.scores"][c, n] for c, n in places])
        own = objective.teacher_temperature or objective.temperature
        total += weight * _divergence(ours, theirs, objective.temperature, own)
        agree += weight * (np.argmax(ours) == np.argmax(theirs))
    asked = {} if objective.teacher_kind == "stored" else teacher
    value, metrics, gradient = loss(objective, student, asked, members)
    np.testing.assert_allclose(value, total / sum(WEIGHT), rtol=1e-5)
    np.testing.assert_allclose(metrics["agreement"], agree / sum(WEIGHT), rtol=1e-6)
    assert not gradient["query"][3].any()
    assert not gradient["passages"][3].any()
    if not objective.in_batch:
        assert not gradient["passages"][1, 2].any()
    assert gradient["passages"][2].any()


def test_l2_doubles_differences(told):
    student, teacher, members = told
    cosine, _, _ = loss(RelevanceDistillation(temperature=1.0), student, teacher, members)
    l2, _, _ = loss(
        RelevanceDistillation(temperature=2.0, similarity="l2"), student, teacher, members
    )
    np.testing.assert_allclose(l2, 4 * cosine, rtol=1e-5)
    # Stored scores are not touched: the student's alone are doubled.
    places = _members(0, False)
    ours, theirs = _scores(student, 0, places), members.labels["ranking.scores"][0]
    expected = _divergence(2 * ours - 2 * student["query"].mask[0].sum(), theirs, 2.0, 2.0)
    objective = RelevanceDistillation(teacher_kind="stored", similarity="l2")
    only_first = batch([1, 0, 0, 0], ranking_passage_ids=IDS, **{
        "ranking_scores": members.labels["ranking.scores"]
    })  # fmt: skip
    np.testing.assert_allclose(loss(objective, student, {}, only_first)[0], expected, rtol=1e-5)


def test_the_teachers_own_answers_have_no_loss(told):
    student, _, members = told
    for objective in (RelevanceDistillation(), MarginMSE()):
        value, _, gradient = loss(objective, student, student, members)
        np.testing.assert_allclose(value, 0, atol=1e-6)
        assert all(np.abs(x).max() < 1e-5 for x in gradient.values())


@pytest.mark.parametrize(
    "objective", [RelevanceDistillation(teacher_temperature=0.5), MarginMSE(similarity="l2")]
)
def test_a_cross_encoders_answers_are_taken_as_scores(told, objective):
    student, _, members = told
    stored = dataclasses.replace(objective, teacher_kind="stored")
    scores = {"relevance": Scores(members.labels["ranking.scores"])}
    asking = dataclasses.replace(objective, teacher_kind="cross_encoder")
    (ask,) = asking.teacher.values()
    assert (ask.kind, ask.texts) == (Relevance, ("ranking.query.en", "ranking.passages"))
    expected, found = loss(stored, student, {}, members), loss(asking, student, scores, members)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("kind", ["retriever", "stored"])
def test_margin_mse_is_the_mean_square_of_torch(told, kind):
    student, teacher, members = told
    total, alike = 0.0, 0.0
    for b, weight in enumerate(WEIGHT):
        places = _members(b, False)
        ours, theirs = (_scores(parts, b, places) for parts in (student, teacher))
        if kind == "stored":
            theirs = members.labels["ranking.scores"][b][: len(places)].astype(np.float64)
        margin, wanted = ours[0] - ours[1:], theirs[0] - theirs[1:]
        total += weight * float(functional.mse_loss(torch.tensor(margin), torch.tensor(wanted)))
        alike += weight * np.mean(np.sign(margin) == np.sign(wanted))
    asked = teacher if kind == "retriever" else {}
    value, metrics, gradient = loss(MarginMSE(teacher_kind=kind), student, asked, members)
    np.testing.assert_allclose(value, total / sum(WEIGHT), rtol=1e-5)
    np.testing.assert_allclose(metrics["order"], alike / sum(WEIGHT), rtol=1e-6)
    assert not gradient["passages"][1, 2].any()


def test_what_is_asked():
    objective = RelevanceDistillation(student_query="query.sw", teacher_query="query")
    assert objective.student["query"].texts == ("ranking.query.sw",)
    assert objective.teacher["query"].texts == ("ranking.query",)
    assert MarginMSE(teacher_kind="stored").teacher == {}
    assert [MarginMSE().least_passages, RelevanceDistillation(in_batch=True).least_passages] == [
        2,
        1,
    ]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: RelevanceDistillation(temperature=0.0),
         "RelevanceDistillation: temperature is 0.0; it must be above 0"),
        (lambda: RelevanceDistillation(teacher_temperature=-1.0),
         "RelevanceDistillation: teacher_temperature is -1.0; it must be above 0"),
        (lambda: MarginMSE(teacher_kind="model"),
         "MarginMSE: teacher_kind is 'model'; write one of ('retriever', 'cross_encoder', "
         "'generator', 'stored')"),
        (lambda: MarginMSE(similarity="L2"),
         "MarginMSE: similarity is 'L2'; write one of ('cosine', 'l2')"),
        (lambda: MarginMSE(teacher_query="en"),
         "MarginMSE: teacher_query is 'en'; write \"query\" for the language that the data choose, "
         'or "query.en" for one'),
        (lambda: RelevanceDistillation(in_batch=True, teacher_kind="stored"),
         "RelevanceDistillation: in_batch wants the teacher's scores of other queries' passages, "
         "and stored scores are of the query's own; set in_batch=False, or "
         'teacher_kind="retriever"'),
        *((functools.partial(RelevanceDistillation, in_batch=True, teacher_kind=kind),
           "RelevanceDistillation: in_batch wants the teacher's scores of other queries' passages, "
           f"and {whose} are of the query's own; set in_batch=False, or "
           'teacher_kind="retriever"')
          for kind, whose in (("generator", "a generator's"),
                              ("cross_encoder", "a cross-encoder's"))),
    ],
)  # fmt: skip
def test_options_out_of_range(build, sentence):
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == sentence


def test_records_without_scores_are_refused(told):
    student, _, _ = told
    with pytest.raises(ValueError) as error:
        loss(MarginMSE(teacher_kind="stored"), student, {}, batch(WEIGHT, ranking_passage_ids=IDS))
    assert str(error.value) == (
        'MarginMSE: teacher_kind is "stored" and the records of the source "ranking" have no '
        'scores; give it a source with "scores", or set teacher_kind="retriever"'
    )
