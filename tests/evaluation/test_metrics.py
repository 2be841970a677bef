"""Metrics against values worked out by hand and the formulas written out."""

import logging
import math

import numpy as np
import pytest

from clir_jax.evaluation import metrics

QRELS = {"q1": {"a": 1, "b": 2}, "q2": {"c": 1}, "q3": {"d": 1}, "q4": {"e": 0}}
RUN = {
    "q1": [("a", 3.0), ("x", 2.0), ("b", 1.0)],
    "q2": [("x", 3.0), ("c", 2.0)],
    "q4": [("e", 1.0)],
    "q9": [("a", 1.0)],
}


def _by_hand(qrels, run, cutoff):
    """nDCG, RR and R at a cutoff, for one query, from the textbook formulas."""
    gains = [max(qrels.get(d, 0), 0) for d, _ in sorted(run, key=lambda x: -x[1])][:cutoff]
    ideal = sorted((g for g in qrels.values() if g > 0), reverse=True)[:cutoff]
    dcg, best = (sum(g / math.log2(i + 2) for i, g in enumerate(x)) for x in (gains, ideal))
    first = next((i for i, g in enumerate(gains) if g > 0), None)
    relevant = sum(g > 0 for g in qrels.values())
    return (
        dcg / best if best else 0.0,
        0.0 if first is None else 1 / (first + 1),
        sum(g > 0 for g in gains) / relevant if relevant else 0.0,
    )


def test_values_worked_out_by_hand():
    # q1: gains 1, 0, 2 of an ideal 2, 1; q2: second place; q3 is not in the run; q4 lacks relevant.
    ndcg1 = (1 + 2 / 2) / (2 + 1 / math.log2(3))
    ndcg2 = 1 / math.log2(3)
    result = metrics.evaluate_queries(QRELS, RUN, ["nDCG@10", "RR@10", "R@2"])
    assert result.values == pytest.approx(
        {"nDCG@10": (ndcg1 + ndcg2) / 4, "RR@10": 1.5 / 4, "R@2": 1.5 / 4}
    )
    assert result.per_query["nDCG@10"] == pytest.approx(
        {"q1": ndcg1, "q2": ndcg2, "q3": 0, "q4": 0}
    )
    assert result.per_query["R@2"] == {"q1": 0.5, "q2": 1.0, "q3": 0.0, "q4": 0.0}
    assert result.missing == ("q3",)
    assert result.unjudged == ("q9",)
    assert result.irrelevant == ("q4",)


def test_random_runs_match_the_formulas():
    rng = np.random.default_rng(0)
    documents = [f"d{i}" for i in range(30)]
    qrels = {
        f"q{q}": {d: int(rng.integers(-1, 4)) for d in rng.choice(documents, 8, replace=False)}
        for q in range(20)
    }
    run = {
        q: [(d, float(rng.integers(0, 4))) for d in rng.permutation(documents)[:20]] for q in qrels
    }
    result = metrics.evaluate_queries(qrels, run, ["nDCG@5", "RR@5", "R@5"])
    for query, judged in qrels.items():
        expected = _by_hand(judged, run[query], 5)
        got = [result.per_query[m][query] for m in ("nDCG@5", "RR@5", "R@5")]
        assert got == pytest.approx(expected), query
    for name, value in result.values.items():
        assert value == pytest.approx(np.mean(list(result.per_query[name].values())))


@pytest.mark.parametrize("gap", [0.0, 1e-12])
def test_all_metrics_see_one_order_of_ties(gap):
    # ir-measures itself puts "b" third for nDCG and first for RR@10 here.
    run = {"q": [("e", 1.0), ("b", 1.0 + gap), ("f", 1.0)]}
    values = metrics.evaluate_run({"q": {"b": 1}}, run, ["nDCG@10", "RR@10", "RR", "Success@1"])
    assert values == pytest.approx(
        {"nDCG@10": 1 / math.log2(3), "RR@10": 0.5, "RR": 0.5, "Success@1": 0.0}
    )


def test_queries_absent_from_the_run_count_zero():
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"b": 1}, "q4": {"b": 1}}
    run = {"q1": [("a", 1.0)], "q2": [], "q3": [("b", -math.inf)]}
    result = metrics.evaluate_queries(qrels, run, ["nDCG@10", "RR@10", "R@100", "RR"])
    assert set(result.values.values()) == {0.25}
    assert result.missing == ("q2", "q3", "q4")
    assert set(metrics.evaluate_queries(qrels, {}, ["nDCG@10", "RR@10"]).values.values()) == {0.0}


def test_what_was_not_measured_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        metrics.evaluate_run(QRELS, RUN, ["RR@10"])
    assert (
        "1 queries of the run have no judgements and are in no mean, for example 'q9'"
        in caplog.text
    )
    assert "1 queries are judged but not in the run and count 0, for example 'q3'" in caplog.text
    assert "1 queries have no relevant document and count 0, for example 'q4'" in caplog.text


def test_aliases_are_accepted_and_told(caplog):
    with caplog.at_level(logging.WARNING):
        values = metrics.evaluate_run(
            {"q": {"a": 1}}, {"q": [("a", 1.0)]}, ["MRR@10", "RR@10", "Recall@5"]
        )
    assert values == {"RR@10": 1.0, "R@5": 1.0}
    assert "'MRR@10' is reported as 'RR@10'" in caplog.text
    caplog.clear()
    assert metrics.metric_name("nDCG@10") == "nDCG@10"
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ndcg@10", "did you mean 'nDCG@10'"),
        ("mrr@10", "did you mean 'RR@10'"),
        ("recall@5", "did you mean 'R@5'"),
        ("hits@3", "did you mean 'Success@3'"),
        ("ndcg_cut_10", "did you mean 'nDCG'"),
        ("qqqq", "known are nDCG@10"),
        ("R", "whole number as the cutoff"),
        ("nDCG@ten", "whole number as the cutoff"),
        ("nDCG(foo=1)@10", "cannot be read"),
        ("RR@0", "cutoff of 1 or more"),
        ("", "cannot be read"),
    ],
)
def test_unknown_metrics_are_refused_in_a_sentence(name, words):
    with pytest.raises(ValueError, match=words) as error:
        metrics.evaluate_run({"q": {"a": 1}}, {}, [name])
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


def test_judgements_of_another_collection_are_refused():
    with pytest.raises(ValueError, match="the run has 'q1', the qrels 'x'"):
        metrics.evaluate_run({"x": {"a": 1}}, {"q1": [("a", 1.0)]}, ["RR@10"])
    with pytest.raises(ValueError, match="no query has judgements"):
        metrics.evaluate_run({}, {"q1": [("a", 1.0)]}, ["RR@10"])
