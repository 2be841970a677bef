"""Objectives on sentence vectors against the other library, and against torch."""

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MSELoss
from torch.nn import functional

from clir_jax.objectives.base import ModelFacts
from clir_jax.objectives.sentences import SentenceDistillation, ThreeTermTransfer
from tests.objectives.answers import batch, embeddings, loss

DENSE, LATE = ModelFacts(False, 4), ModelFacts(True, 4)


class Told(torch.nn.Module):
    """A model of sentence-transformers that answers with what it is given."""

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sentence_distillation_is_that_of_sentence_transformers():
    rng = np.random.default_rng(0)
    student = {name: embeddings(rng, 3, 1) for name in ("other", "english")}
    teacher = {"english": embeddings(rng, 3, 1)}
    ours, _, _ = loss(SentenceDistillation(), student, teacher, batch([1, 1, 1]))
    sides = [{"vectors": torch.tensor(told.vectors[:, 0])} for told in student.values()]
    theirs = MSELoss(Told())(sides, torch.tensor(teacher["english"].vectors[:, 0]))
    np.testing.assert_allclose(ours, float(theirs), rtol=1e-6)


def test_weights_of_rows_and_of_the_english_side():
    rng = np.random.default_rng(1)
    student = {name: embeddings(rng, 3, 1) for name in ("other", "english")}
    teacher = {"english": embeddings(rng, 3, 1)}
    target = teacher["english"].vectors
    error = {k: np.square(v.vectors - target).mean(axis=(1, 2)) for k, v in student.items()}
    weight = np.array([2.0, 1.0, 0.0])
    side = {name: (weight * row).sum() / 3 for name, row in error.items()}
    value, metrics, gradient = loss(
        SentenceDistillation(english_weight=0.25), student, teacher, batch(weight)
    )
    np.testing.assert_allclose(value, (side["other"] + 0.25 * side["english"]) / 1.25, rtol=1e-6)
    np.testing.assert_allclose(metrics["error_english"], side["english"], rtol=1e-6)
    assert not gradient["other"][2].any()
    alone = SentenceDistillation(english_weight=0.0)
    assert list(alone.student) == ["other"]
    value, _, _ = loss(alone, {"other": student["other"]}, teacher, batch(weight))
    np.testing.assert_allclose(value, side["other"], rtol=1e-6)


def test_three_terms_are_those_of_torch():
    rng = np.random.default_rng(2)
    student, teacher = (
        {"query": embeddings(rng, 4, 1), "passages": embeddings(rng, 4, 1, 1)} for _ in range(2)
    )
    weights = (0.5, 2.0, 0.125)
    q, d, t_q, t_d = (
        torch.tensor(told.vectors.reshape(4, 4)) for parts in (student, teacher)
        for told in parts.values()
    )  # fmt: skip
    mse = functional.mse_loss
    terms = (mse(t_q, q), mse(t_d, d), mse(t_d, q))
    members = batch(np.ones(4), ranking_passage_ids=[[3], [1], [4], [1]])
    value, metrics, _ = loss(ThreeTermTransfer(*weights), student, teacher, members)
    expected = 1000 * sum(w * float(term) for w, term in zip(weights, terms, strict=True))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    found = [metrics[name] for name in ("question", "passage", "answer")]
    np.testing.assert_allclose(found, [float(term) for term in terms], rtol=1e-5)


def test_of_a_list_all_passages_are_transferred_and_the_positive_is_the_answer():
    rng = np.random.default_rng(3)
    student, teacher = (
        {"query": embeddings(rng, 2, 1), "passages": embeddings(rng, 2, 3, 1)} for _ in range(2)
    )
    members = batch([1, 0], ranking_passage_ids=[[1, 2, -1], [3, 4, 5]])
    _, metrics, gradient = loss(ThreeTermTransfer(), student, teacher, members)
    gap = student["passages"].vectors - teacher["passages"].vectors
    np.testing.assert_allclose(metrics["passage"], np.square(gap[0, :2]).mean(), rtol=1e-5)
    answer = student["query"].vectors[0] - teacher["passages"].vectors[0, 0]
    np.testing.assert_allclose(metrics["answer"], np.square(answer).mean(), rtol=1e-5)
    assert not gradient["passages"][0, 2].any()
    assert not gradient["passages"][1].any()


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: SentenceDistillation(english_weight=-1.0),
         "SentenceDistillation: english_weight is -1.0; it must be 0 or above"),
        (lambda: SentenceDistillation(read_as="text"),
         "SentenceDistillation: read_as is 'text'; write one of ('query', 'passage')"),
        (lambda: ThreeTermTransfer(answer_weight=-0.1),
         "ThreeTermTransfer: answer_weight is -0.1; it must be 0 or above"),
        (lambda: ThreeTermTransfer(student_query="en"),
         "ThreeTermTransfer: student_query is 'en'; write \"query\" for the language that the "
         'data choose, or "query.en" for one'),
        (lambda: SentenceDistillation().check(LATE, {"teacher": DENSE}),
         "SentenceDistillation compares one vector a text, and the student is a late-interaction "
         "retriever with one a token; make it a dense retriever, or distil tokens with "
         "TokenAlignmentDistillation"),
        (lambda: ThreeTermTransfer().check(DENSE, {"teacher": ModelFacts(False, 6)}),
         "ThreeTermTransfer compares vectors, and the student's have 4 numbers where the teacher's "
         "have 6; give the student the teacher's embedding size"),
    ],
)  # fmt: skip
def test_what_does_not_fit(build, sentence):
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == sentence
