"""Token alignment distillation: declarations, losses against loops, what must not matter to it."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from scipy.optimize import linear_sum_assignment

from clir_jax.mesh import ROWS, make_mesh
from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.base import Ask, Batch, ModelFacts, Objective
from clir_jax.ops.alignment import Assignment, Attention, Greedy, Sinkhorn

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
    aligner = objective.aligner
    kernel, u = np.exp(-cost / aligner.epsilon), np.ones(len(a))
    for _ in range(20000):
        v = (b / (kernel.T @ u)) ** aligner.tau_teacher
        u = (a / (kernel @ v)) ** aligner.tau_student
    plan = u[:, None] * kernel * v
    pairs = list(zip(np.flatnonzero(sm & ~sc), np.flatnonzero(tm & ~tc), strict=False))
    specials = np.mean([1 - s[i] @ t[j] for i, j in pairs])
    return (plan * cost).sum(), specials


# Enough where the English side adds nothing but compilation.
ALONE = TokenAlignmentDistillation(query_weight=1.0)
OBJECTIVES = {
    "default": TokenAlignmentDistillation(),
    "everything": TokenAlignmentDistillation(
        Sinkhorn(tau_student=0.95, tau_teacher=0.9),
        marginals="idf",
        query_weight=0.7,
        specials_weight=0.5,
    ),
    "other alone": ALONE,
}


@functools.partial(jax.jit, static_argnums=0)
def _loss(objective, student, teacher, batch):
    return objective.loss(student, teacher, batch)


def _precise(objective):
    """The same objective, with a solver that runs until it has converged."""
    exact = {"epsilon": 0.1, "iterations": 20000, "threshold": 1e-13}
    aligner = dataclasses.replace(objective.aligner, **exact)
    return dataclasses.replace(objective, aligner=aligner)


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
            share = objective.query_weight
            side_weight = 1 - share if side == "english" else share
            expected += side_weight * (cost + objective.specials_weight * specials)
    assert loss == pytest.approx(expected, rel=1e-9)
    assert ("cost_english" in metrics) == (name != "other alone")


def test_asks_and_labels_follow_the_options():
    content = {"content": False, "length": 64}
    other = Ask(EncodeQuery, ("bitext.other",), **content)
    english = Ask(EncodeQuery, ("bitext.english",), **content)
    objective = TokenAlignmentDistillation()
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
    names = TokenAlignmentDistillation().token_labels
    batch = Batch({}, {}, jnp.ones(3), dict.fromkeys(names, jnp.asarray(content)))
    loss, metrics = _loss(
        TokenAlignmentDistillation(),
        {"other": answer, "english": answer},
        {"english": answer},
        batch,
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
        objective = dataclasses.replace(ALONE, aligner=Sinkhorn(**options))
        return _loss(objective, student, teacher, batch)[1]

    sharp, blurred = metrics(iterations=2000), metrics(epsilon=50.0)
    content = teacher["english"].mask & batch.labels["teacher.english.content"]
    assert 1 <= sharp["spread_other"] < blurred["spread_other"]
    # At the limit every student token is spread over the whole sentence.
    assert blurred["spread_other"] == pytest.approx(float(content.sum(axis=1).mean()), rel=0.01)
    assert sharp["error_other"] < 0.01
    assert metrics(tau_student=0.5, tau_teacher=0.5)["error_other"] > 0.3


def test_gradient_steps_bring_the_student_to_the_teacher():
    student, teacher, batch = _case(dtype=np.float32)
    graded = functools.partial(_graded, TokenAlignmentDistillation(specials_weight=1.0))
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


def _facts(size=128, late=True, **others):
    return ModelFacts(late_interaction=late, embedding_size=size, **others)


IN_ORDER = TokenAlignmentDistillation(english="passage", english_pairs="in_order")
LOWER = TokenAlignmentDistillation(layer=6)


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "said"),
    [
        (ALONE, _facts(64), _facts(), "student's have 64 numbers where the teacher's have 128"),
        (ALONE, _facts(late=False), _facts(), "aligns tokens, and the student is a dense retr"),
        (ALONE, _facts(), _facts(late=False), "aligns tokens, and the teacher is a dense retr"),
        (ALONE, _facts(query_form="a"), _facts(query_form="b"), "of queries in order, .* are a wh"),
        (
            IN_ORDER,
            _facts(passage_form="a"),
            _facts(passage_form="b"),
            "of passages in order.* are a where the teacher's are b; give both the same passage_m",
        ),
        (
            dataclasses.replace(IN_ORDER, slots="all"),
            _facts(passage_form="a"),
            _facts(passage_form="b"),
            "all slots of passages in order.* are a where .* are b; .* english_pairs='aligned'",
        ),
        (
            IN_ORDER,
            _facts(vocabulary="x"),
            _facts(vocabulary="y"),
            "english_pairs is 'in_order', and the student's tokenizer.*write english_pairs='ali",
        ),
        (LOWER, _facts(layers=12), _facts(layers=4), "layer is 6, and the teacher has 4; write at"),
        (
            LOWER,
            _facts(layers=6, hidden_size=384),
            _facts(layers=6, hidden_size=768),
            "the student's layers are 384 wide where the teacher's are 768",
        ),
    ],
)
def test_check_refuses_what_cannot_be_aligned(objective, student, teacher, said):
    with pytest.raises(ValueError, match=said):
        objective.check(student, {"teacher": teacher})


def test_check_takes_what_fits_or_is_not_known_yet():
    ALONE.check(_facts(passage_form="a"), {"teacher": _facts(passage_form="b")})
    IN_ORDER.check(_facts(vocabulary="x"), {"teacher": _facts()})
    IN_ORDER.check(_facts(vocabulary="x"), {"teacher": _facts(vocabulary="x")})
    bare = dataclasses.replace(IN_ORDER, specials_weight=0.0)
    bare.check(_facts(query_form="a"), {"teacher": _facts(query_form="b")})
    LOWER.check(_facts(layers=6, hidden_size=8), {"teacher": _facts(layers=12, hidden_size=8)})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"marginals": "tf"}, "marginals is 'tf'; it must be one of"),
        ({"distance": "l2"}, "distance is 'l2'; it must be one of"),
        ({"english": "document"}, "english is 'document'; it must be one of"),
        ({"english_pairs": "first"}, "english_pairs is 'first'; it must be one of"),
        ({"slots": "kept"}, "slots is 'kept'; it must be one of"),
        ({"query_weight": 0.0}, "query_weight is 0.0; it must be above 0 and at most 1"),
        ({"specials_weight": -0.1}, "specials_weight is -0.1; it must be 0 or above"),
        ({"null": 0.0}, "null is 0.0; it must be above 0, or None"),
        ({"layer": 0}, "layer is 0; it must be 1 or above, or None"),
        ({"slots": "all", "marginals": "idf"}, "marginals is 'idf'; it must be 'uniform' with"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        TokenAlignmentDistillation(**options)


PUBLISHED = TokenAlignmentDistillation(
    Greedy(), "mse", 0.3, "passage", "in_order", slots="all", length=None
)


def _swapped(teacher, student):
    """The teacher's vectors at the places of the student's tokens, by the published swaps."""
    lengths = np.linalg.norm(teacher, axis=1)[:, None] * np.linalg.norm(student, axis=1)[None]
    left, rows = 1 - teacher @ student.T / (lengths + 1e-8), teacher.copy()
    for _ in rows:
        i, j = np.unravel_index(np.argmin(left), left.shape)
        for both in (rows, left):
            both[[i, j]] = both[[j, i]]
        left[j, :] = left[:, j] = np.inf
    return rows


@pytest.mark.parametrize("distance", ["mse", "l1"])
def test_published_form_is_the_published_equation(distance):
    rng = np.random.default_rng(0)

    def vectors(tokens):
        made = rng.normal(size=(6, tokens, 8))
        made /= np.linalg.norm(made, axis=-1, keepdims=True)
        made[:, 0] = 0  # XLM-R's first token
        made[rng.random(6) < 0.5, tokens - 3 :] = made[0, -1]  # padding, which keeps a vector
        return made

    s_q, t_q, s_p, t_p = vectors(12), vectors(12), vectors(15), vectors(15)
    with jax.enable_x64(True):
        # Masks say otherwise, and are not listened to.
        answers = [
            Embeddings(jnp.asarray(v), jnp.asarray(rng.random(v.shape[:2]) < 0.5))
            for v in (s_q, s_p, t_q, t_p)
        ]
        student = dict(zip(("other", "english"), answers[:2], strict=True))
        teacher = dict(zip(("english", "passage"), answers[2:], strict=True))
        objective = dataclasses.replace(PUBLISHED, distance=distance)
        batch = Batch({}, {}, jnp.ones(6), {})
        (loss, _), gradient = _graded(objective, student, teacher, batch)
    aligned = np.stack([_swapped(t, s) for t, s in zip(t_q, s_q, strict=True)])
    expected = 0.0
    sides = {"other": (0.3, s_q - aligned), "english": (0.7, s_p - t_p)}
    for name, (share, difference) in sides.items():
        if distance == "mse":
            expected += share * np.mean(difference**2)
            slope = 2 * difference
        else:
            expected += share * np.mean(np.abs(difference))
            slope = np.sign(difference)
        np.testing.assert_allclose(gradient[name], share * slope / difference.size, atol=1e-15)
    assert loss == pytest.approx(expected, rel=1e-13)


def test_published_form_asks_for_queries_and_passages_of_the_models_own_length():
    query, passage = (
        Ask(kind, ("bitext.english",), length=None) for kind in (EncodeQuery, EncodePassage)
    )
    other = Ask(EncodeQuery, ("bitext.other",), length=None)
    assert PUBLISHED.student == {"other": other, "english": passage}
    assert PUBLISHED.teacher == {"english": query, "passage": passage}
    assert PUBLISHED.token_labels == ()
    alone = dataclasses.replace(PUBLISHED, query_weight=1.0)
    assert alone.student == {"other": other}
    assert alone.teacher == {"english": query}


def test_any_aligner_distance_and_form_match_a_loop():
    objective = TokenAlignmentDistillation(
        Assignment(), "l1", 0.6, "passage", "in_order", null=1.1, specials_weight=0.2
    )
    with jax.enable_x64(True):
        student, teacher, batch = _case(rows=3)
        labels = batch.labels | {"teacher.passage.content": batch.labels["teacher.english.content"]}
        teacher = teacher | {"passage": teacher["english"]}
        loss, _ = _loss(objective, student, teacher, Batch({}, {}, batch.weight, labels))
    y, t_mask = np.asarray(teacher["english"].vectors), np.asarray(teacher["english"].mask)
    t_content = np.asarray(labels["teacher.english.content"])
    expected = dict.fromkeys(("other", "english"), 0.0)
    for name, r in itertools.product(expected, range(3)):
        x, mask = np.asarray(student[name].vectors)[r], np.asarray(student[name].mask)[r]
        content = np.asarray(labels[f"student.{name}.content"])[r]
        l1 = np.abs(x[:, None] - y[r][None]).mean(axis=-1)
        ours, theirs = np.flatnonzero(content), np.flatnonzero(t_content[r])
        pairs = list(zip(ours, theirs, strict=False))
        count = len(pairs)
        if name == "other":
            units = (v / np.linalg.norm(v, axis=-1)[:, None] for v in (x[ours], y[r][theirs]))
            cost = 1 - np.inner(*units)
            found = zip(*linear_sum_assignment(np.minimum(cost, 1.1)), strict=True)
            pairs = [(ours[i], theirs[j]) for i, j in found if cost[i, j] <= 1.1]
        expected[name] += sum(l1[pair] for pair in pairs) / count / 3
        special = np.flatnonzero(mask & ~content), np.flatnonzero(t_mask[r] & ~t_content[r])
        expected[name] += 0.2 * l1[special].mean() / 3
    assert loss == pytest.approx(0.6 * expected["other"] + 0.4 * expected["english"], rel=1e-12)


def test_agreement_gives_all_mass_to_pairs_that_choose_each_other():
    cost = jnp.array([[[0.1, 0.2, 0.9], [0.3, 0.15, 0.8], [0.05, 0.6, 0.7]]])
    third = jnp.full((1, 3), 1 / 3)
    both = [
        TokenAlignmentDistillation(Attention(0.1), agreement=agreement).plan(cost, third, third)
        for agreement in (False, True)
    ]
    # Tokens 0 and 2 both choose 0, which prefers 2; 1 and 1 choose each other; nobody takes 2.
    own = np.exp((1 - np.asarray(cost[0])) / 0.1)
    own /= 3 * own.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(both[0][0], own, rtol=1e-4)
    kept = np.where([[0, 0, 0], [0, 1, 0], [1, 0, 0]], own, 0)
    np.testing.assert_allclose(both[1][0], kept / kept.sum(), rtol=1e-4)


def test_the_plan_may_come_from_a_layer_and_the_loss_does_not():
    objective = dataclasses.replace(ALONE, aligner=Greedy(), layer=3, specials_weight=0.0)
    ask = {"content": True, "length": 64}
    assert objective.student["other_layer"] == Ask(EncodeQuery, ("bitext.other",), layer=3, **ask)
    assert objective.teacher["english_layer"].layer == 3
    assert set(objective.student) | set(objective.teacher) == {
        "other", "other_layer", "english", "english_layer",
    }  # fmt: skip
    rng = np.random.default_rng(0)
    x, y, lower = (jnp.asarray(rng.normal(size=(2, 5, n)), jnp.float32) for n in (8, 8, 16))
    mask, order = jnp.ones((2, 5), bool), np.array([3, 0, 4, 1, 2])
    student = {"other": Embeddings(x, mask), "other_layer": Embeddings(lower[:, order], mask)}
    teacher = {"english": Embeddings(y, mask), "english_layer": Embeddings(lower, mask)}
    batch = Batch({}, {}, jnp.ones(2), {})
    (loss, _), gradient = _graded(objective, student, teacher, batch)
    matched = np.asarray(y)[:, order]
    cosine = (np.asarray(x) * matched).sum(-1)
    cosine /= np.linalg.norm(x, axis=-1) * np.linalg.norm(matched, axis=-1)
    assert loss == pytest.approx(np.mean(1 - cosine), rel=1e-5)
    assert (gradient["other_layer"] == 0).all()
    assert np.abs(gradient["other"]).max() > 1e-3


def test_a_side_in_order_asks_no_layer():
    objective = dataclasses.replace(IN_ORDER, layer=2)
    assert set(objective.student) == {"other", "english", "other_layer"}
    assert set(objective.teacher) == {"english", "passage", "english_layer"}
    assert set(dataclasses.replace(objective, english_pairs="aligned").teacher) == {
        "english", "passage", "english_layer", "passage_layer",
    }  # fmt: skip


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
