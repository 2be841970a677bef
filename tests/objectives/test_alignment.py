"""The transport objective: declarations, loss against a loop, what must not matter to it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clir_jax.objectives.transport import OptimalTransport
from jax.sharding import NamedSharding

from clir_jax.mesh import ROWS, make_mesh
from clir_jax.models.requests import Embeddings, EncodeQuery
from clir_jax.objectives.base import Ask, Batch, ModelFacts, Objective

# [CLS] and [Q] in front, [SEP] behind, then [MASK]s: content is what lies between.
_FRONT = 2


def _text(rng, rows, tokens, size=6, dtype=np.float64):
    """Vectors and mask of random texts, and which tokens are content."""
    lengths = rng.integers(1, tokens - 3, size=(rows, 1))
    position = np.arange(tokens)
    content = (position >= _FRONT) & (position < _FRONT + lengths)
    mask = position < _FRONT + lengths + 2
    vectors = rng.normal(size=(rows, tokens, size)) * mask[:, :, None]
    return vectors.astype(dtype), mask, content


def _case(rows=4, seed=0, dtype=np.float64, weight=None):
    """Answers and batch with every label, of texts of unequal length."""
    rng = np.random.default_rng(seed)
    texts = {
        "student.other": _text(rng, rows, 9, dtype=dtype),
        "student.english": _text(rng, rows, 8, dtype=dtype),
        "teacher.english": _text(rng, rows, 7, dtype=dtype),
    }
    answers = {n: Embeddings(jnp.asarray(v), jnp.asarray(m)) for n, (v, m, _) in texts.items()}
    labels = {f"{n}.content": jnp.asarray(c) for n, (_, _, c) in texts.items()}
    for name, (_, mask, _) in texts.items():
        labels[f"{name}.idf"] = jnp.asarray(rng.uniform(1, 9, size=mask.shape), dtype)
    weight = np.ones(rows) if weight is None else np.asarray(weight)
    student = {"other": answers["student.other"], "english": answers["student.english"]}
    batch = Batch({}, {}, jnp.asarray(weight, jnp.float32), labels)
    return student, {"english": answers["teacher.english"]}, batch


def _loop_side(vectors, mask, content, idf, objective, row):
    """One row of one side, token by token in NumPy: cost of content, cost of special tokens."""
    (s, t), (sm, tm), (sc, tc), (si, ti) = (
        [np.asarray(x)[row] for x in pair] for pair in (vectors, mask, content, idf)
    )
    ours, theirs = np.flatnonzero(sm & sc), np.flatnonzero(tm & tc)
    s, t = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (s, t))
    cost = np.array([[1 - s[i] @ t[j] for j in theirs] for i in ours])
    a, b = np.ones(len(ours)), np.ones(len(theirs))
    if objective.marginals == "idf":
        a, b = si[ours], ti[theirs]
    a, b = a / a.sum(), b / b.sum()
    kernel, u = np.exp(-cost / objective.epsilon), np.ones(len(a))
    for _ in range(20000):
        v = (b / (kernel.T @ u)) ** objective.tau_teacher
        u = (a / (kernel @ v)) ** objective.tau_student
    plan = u[:, None] * kernel * v
    pairs = list(zip(np.flatnonzero(sm & ~sc), np.flatnonzero(tm & ~tc), strict=False))
    specials = np.mean([1 - s[i] @ t[j] for i, j in pairs])
    return (plan * cost).sum(), specials


# Enough where the English side adds nothing but compilation.
ALONE = OptimalTransport(english_weight=0.0)
OBJECTIVES = {
    "default": OptimalTransport(),
    "everything": OptimalTransport(
        marginals="idf",
        english_weight=0.3,
        tau_student=0.95,
        tau_teacher=0.9,
        specials_weight=0.5,
    ),
    "other alone": ALONE,
}


@functools.partial(jax.jit, static_argnums=0)
def _loss(objective, student, teacher, batch):
    return objective.loss(student, teacher, batch)


def _precise(objective):
    """The same objective, with a solver that runs until it has converged."""
    return dataclasses.replace(objective, epsilon=0.1, iterations=20000, threshold=1e-13)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_matches_a_loop(name):
    objective = _precise(OBJECTIVES[name])
    weight = [1.0, 0.5, 2.0]
    with jax.enable_x64(True):
        student, teacher, batch = _case(rows=3, weight=weight)
        loss, metrics = _loss(objective, student, teacher, batch)
        assert loss.dtype == jnp.float64
        expected, target = 0.0, teacher["english"]
        for side in objective.student:
            ours = student[side]
            of = [f"student.{side}", "teacher.english"]
            rows = [
                _loop_side(
                    (ours.vectors, target.vectors),
                    (ours.mask, target.mask),
                    [batch.labels[f"{n}.content"] for n in of],
                    [batch.labels[f"{n}.idf"] for n in of],
                    objective,
                    row,
                )
                for row in range(3)
            ]
            cost, specials = np.average(rows, axis=0, weights=weight)
            assert metrics[f"cost_{side}"] == pytest.approx(cost, rel=1e-9)
            assert metrics[f"specials_{side}"] == pytest.approx(specials, rel=1e-9)
            side_weight = objective.english_weight if side == "english" else 1.0
            expected += side_weight * (cost + objective.specials_weight * specials)
    assert loss == pytest.approx(expected, rel=1e-9)
    assert ("cost_english" in metrics) == (name != "other alone")


def test_asks_and_labels_follow_the_options():
    content = {"content": False, "length": 64}
    other = Ask(EncodeQuery, ("bitext.other",), **content)
    english = Ask(EncodeQuery, ("bitext.english",), **content)
    objective = OptimalTransport()
    assert isinstance(objective, Objective)
    assert objective.student == {"other": other, "english": english}
    assert objective.teacher == {"english": english}
    assert objective.token_labels == (
        "student.other.content",
        "student.english.content",
        "teacher.english.content",
    )

    alone = dataclasses.replace(ALONE, specials_weight=0.0, marginals="idf", length=None)
    assert alone.student == {"other": Ask(EncodeQuery, ("bitext.other",), content=True)}
    assert alone.teacher == {"english": Ask(EncodeQuery, ("bitext.english",), content=True)}
    assert alone.token_labels == ("student.other.idf", "teacher.english.idf")


def test_only_the_declared_labels_are_read():
    for objective in (OBJECTIVES["everything"], ALONE):
        student, teacher, batch = _case(dtype=np.float32)
        declared = {n: batch.labels[n] for n in objective.token_labels}
        student = {n: student[n] for n in objective.student}
        bare = Batch({}, {}, batch.weight, declared)
        loss, _ = _loss(objective, student, teacher, bare)
        assert 0 < loss < np.inf
        for name in declared:
            fewer = Batch({}, {}, batch.weight, {n: v for n, v in declared.items() if n != name})
            with pytest.raises(ValueError, match=f"no label '{name}'"):
                _loss(objective, student, teacher, fewer)


def test_without_specials_every_kept_vector_is_content():
    objective = dataclasses.replace(ALONE, specials_weight=0.0)
    student, teacher, batch = _case(dtype=np.float32)
    loss, metrics = _loss(objective, student, teacher, Batch({}, {}, batch.weight, {}))
    assert not any(name.startswith("specials") for name in metrics)
    masks = {"student.other": student["other"].mask, "teacher.english": teacher["english"].mask}
    everything = {f"{name}.content": mask for name, mask in masks.items()}
    same, _ = _loss(
        dataclasses.replace(ALONE, specials_weight=9.0),
        student,
        teacher,
        Batch({}, {}, batch.weight, everything),
    )
    assert loss == pytest.approx(float(same), rel=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def _graded(objective, student, teacher, batch):
    """Loss and metrics, and the gradient of the student's vectors by name."""

    def loss(vectors):
        answers = {n: Embeddings(v, student[n].mask) for n, v in vectors.items()}
        return objective.loss(answers, teacher, batch)

    return jax.value_and_grad(loss, has_aux=True)({n: e.vectors for n, e in student.items()})


@pytest.mark.parametrize("name", ["default", "everything"])
def test_rows_of_weight_0_count_nowhere(name):
    graded = functools.partial(_graded, OBJECTIVES[name])
    case = _case(rows=4, dtype=np.float32, weight=[1, 2, 0, 0])
    (loss, metrics), gradient = graded(*jax.tree.map(lambda x: x[:2], case))

    # A padding row may also be a text without any token, on either side.
    student, teacher, batch = case
    other, english = student["other"], teacher["english"]
    student = student | {"other": Embeddings(other.vectors, other.mask.at[3].set(False))}
    teacher = {"english": Embeddings(english.vectors, english.mask.at[2].set(False))}
    (padded_loss, padded_metrics), padded_gradient = graded(student, teacher, batch)
    assert padded_loss == pytest.approx(float(loss), rel=1e-5)
    assert metrics.keys() == padded_metrics.keys()
    for key, value in metrics.items():
        assert padded_metrics[key] == pytest.approx(float(value), rel=1e-4, abs=1e-6)
    for side in OBJECTIVES[name].student:
        real, padded = gradient[side], padded_gradient[side]
        assert np.abs(real).max() > 1e-3
        np.testing.assert_allclose(padded[:2], real, atol=1e-6)
        assert (padded[2:] == 0).all()


def test_a_real_row_without_tokens_costs_nothing():
    student, teacher, batch = _case(dtype=np.float32)
    other = student["other"]
    blank = student | {"other": Embeddings(jnp.zeros_like(other.vectors), other.mask & False)}
    (loss, metrics), gradient = _graded(ALONE, blank, teacher, batch)
    assert loss == metrics["cost_other"] == 0
    assert (gradient["other"] == 0).all()
    unweighted = dataclasses.replace(batch, weight=jnp.zeros(4))
    loss, _ = _loss(ALONE, student, teacher, unweighted)
    assert loss == 0


def test_wider_padding_changes_nothing():
    with jax.enable_x64(True):
        student, teacher, batch = _case()
        graded = functools.partial(_graded, OBJECTIVES["everything"])
        (loss, metrics), gradient = jax.device_get(graded(student, teacher, batch))

        def widen(x):
            return jnp.pad(x, [(0, 0), (0, 3)] + [(0, 0)] * (x.ndim - 2))

        student, teacher, labels = jax.tree.map(widen, (student, teacher, batch.labels))
        wide = dataclasses.replace(batch, labels=labels)
        (wide_loss, wide_metrics), wide_gradient = jax.device_get(graded(student, teacher, wide))
    assert wide_loss == pytest.approx(loss, rel=1e-12)
    for key, value in metrics.items():
        assert wide_metrics[key] == pytest.approx(value, rel=1e-9, abs=1e-14)
    for side, narrow in gradient.items():
        np.testing.assert_allclose(wide_gradient[side][:, :-3], narrow, atol=1e-13)
        assert (wide_gradient[side][:, -3:] == 0).all()


def test_a_student_that_says_what_the_teacher_says_costs_nothing():
    rng = np.random.default_rng(0)
    vectors, mask, content = _text(rng, 3, 9, size=64, dtype=np.float32)
    answer = Embeddings(jnp.asarray(vectors), jnp.asarray(mask))
    names = OptimalTransport().token_labels
    batch = Batch({}, {}, jnp.ones(3), dict.fromkeys(names, jnp.asarray(content)))
    loss, metrics = _loss(
        OptimalTransport(), {"other": answer, "english": answer}, {"english": answer}, batch
    )
    assert loss == pytest.approx(0, abs=1e-5)
    for side in ("other", "english"):
        assert metrics[f"cost_{side}"] == pytest.approx(0, abs=1e-5)
        assert metrics[f"specials_{side}"] == pytest.approx(0, abs=1e-6)
        assert metrics[f"error_{side}"] < 1e-3
        assert metrics[f"spread_{side}"] == pytest.approx(1, abs=1e-4)


def test_metrics_tell_a_blurred_plan_and_mass_left_out():
    student, teacher, batch = _case(dtype=np.float32)

    def metrics(**options):
        return _loss(dataclasses.replace(ALONE, **options), student, teacher, batch)[1]

    sharp, blurred = metrics(iterations=2000), metrics(epsilon=50.0)
    content = teacher["english"].mask & batch.labels["teacher.english.content"]
    assert 1 <= sharp["spread_other"] < blurred["spread_other"]
    # At the limit every student token is spread over the whole sentence.
    assert blurred["spread_other"] == pytest.approx(float(content.sum(axis=1).mean()), rel=0.01)
    assert sharp["error_other"] < 0.01
    assert metrics(tau_student=0.5, tau_teacher=0.5)["error_other"] > 0.3


def test_gradient_steps_bring_the_student_to_the_teacher():
    student, teacher, batch = _case(dtype=np.float32)
    graded = functools.partial(_graded, OptimalTransport(specials_weight=1.0))
    (first, _), _ = graded(student, teacher, batch)
    for _ in range(100):
        (loss, _), gradient = graded(student, teacher, batch)
        student = {
            side: Embeddings(answer.vectors - 10.0 * gradient[side], answer.mask)
            for side, answer in student.items()
        }
    # Texts of unequal length keep some cost: one token cannot point two ways.
    assert loss < 0.35 * first


def test_stored_float16_answers_of_the_teacher_serve():
    student, teacher, batch = _case(dtype=np.float32)
    loss, _ = _loss(ALONE, student, teacher, batch)
    english = teacher["english"]
    half = {"english": Embeddings(english.vectors.astype(jnp.float16), english.mask)}
    stored, _ = _loss(ALONE, student, half, batch)
    assert stored.dtype == jnp.float32
    assert stored == pytest.approx(float(loss), rel=1e-3)


def test_both_solvers_give_one_loss():
    student, teacher, batch = _case(dtype=np.float32)
    ours, otts = (
        _loss(
            dataclasses.replace(ALONE, solver=s, iterations=500, threshold=1e-5),
            student,
            teacher,
            batch,
        )[0]
        for s in ("sinkhorn", "ott")
    )
    assert ours == pytest.approx(float(otts), rel=1e-4)


def _facts(size, late=True):
    return ModelFacts(late_interaction=late, embedding_size=size)


def test_check_takes_token_retrievers_of_one_size():
    OptimalTransport().check(_facts(128), {"teacher": _facts(128)})


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        (_facts(64), _facts(128), "the student's have 64 numbers where the teacher's have 128"),
        (_facts(64, late=False), _facts(64), "the student is a dense retriever"),
        (_facts(64), _facts(64, late=False), "the teacher is a dense retriever"),
    ],
)
def test_check_refuses_what_cannot_be_aligned(student, teacher, said):
    with pytest.raises(ValueError, match=said):
        OptimalTransport().check(student, {"teacher": teacher})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"tau_student": 2.0}, "taus are 2.0 and 1.0"),
        ({"solver": "ipot"}, "solver is 'ipot'"),
        ({"marginals": "tf"}, "marginals is 'tf'"),
        ({"english_weight": -1.0}, "english_weight is -1.0"),
        ({"specials_weight": -0.1}, "specials_weight is -0.1"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        OptimalTransport(**options)


def test_eight_devices_agree_with_one():
    objective, mesh = OBJECTIVES["everything"], make_mesh(data=4, fsdp=2)
    with jax.enable_x64(True):
        case = _case(rows=16, weight=np.r_[np.ones(13), np.zeros(3)])
        (loss, metrics), gradient = _graded(objective, *case)
        with jax.set_mesh(mesh):
            rows = jax.device_put(case, NamedSharding(mesh, ROWS))
            (loss_8, metrics_8), gradient_8 = _graded(objective, *rows)
        assert len(gradient_8["other"].sharding.device_set) == 8
        assert loss_8 == pytest.approx(float(loss), rel=1e-12)
        for key, value in metrics.items():
            assert metrics_8[key] == pytest.approx(float(value), rel=1e-10, abs=1e-14)
        for side, expected in gradient.items():
            np.testing.assert_allclose(gradient_8[side], expected, atol=1e-13)
            assert np.abs(expected).max() > 1e-3
