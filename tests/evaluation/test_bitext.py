"""Accuracy and margin F1 of translation pairs, against loops and values by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from clir_jax.config import Evaluate
from clir_jax.data.collections import BitextPairs, Retrieval
from clir_jax.data.reading import DataError
from clir_jax.evaluation import retrieval
from clir_jax.evaluation.bitext import accuracy, best_f1, measure_pairs, mined
from clir_jax.evaluation.retrieval import TextEncoder
from clir_jax.mesh import make_mesh
from clir_jax.models.requests import EncodePassage, EncodeQuery
from clir_jax.models.retriever import Dense
from tests.training.workshop import LATE, by_hand, retriever, sentence

K = 4


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Twenty pairs; one English sentence is translated twice, and so is one of the others."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(3)
    rows = [(sentence(rng, 2, 7), sentence(rng, 2, 7)) for _ in range(20)]
    # A translation is like its sentence more often than not, so that figures are not all 0.
    rows = [(english, english if n % 3 else other) for n, (english, other) in enumerate(rows)]
    rows[7] = (rows[2][0], rows[7][1])
    rows[9] = (rows[9][0], rows[4][1])
    lines = [f"{n}\t{english}\t{other}\n" for n, (english, other) in enumerate(rows)]
    (folder / "pairs.tsv").write_text("".join(lines) + lines[0])
    return rows, BitextPairs("pairs.tsv", "sw").open(str(folder))


def test_pairs_are_of_distinct_sentences(pairs):
    rows, opened = pairs
    assert sorted(opened.english) == sorted({english for english, _ in rows})
    assert sorted(opened.other) == sorted({other for _, other in rows})
    assert [(opened.english[e], opened.other[o]) for o, e in opened.pairs] == rows
    assert len(opened.english) == len(opened.other) == 19


def scores_of(model, asked, searched):
    """Mean over the query's vectors of the best product, a loop over all pairs."""
    queries = [v[m] for v, m in by_hand(model, EncodeQuery, asked)]
    passages = [v[m] for v, m in by_hand(model, EncodePassage, searched)]
    return np.array([[(q @ p.T).max(axis=1).mean() for p in passages] for q in queries])


def values_by_hand(forward, backward, gold):
    """The definitions, over all pairs of sentences at once."""
    ways = []
    for scores, right in ((forward, gold), (backward, {(y, x) for x, y in gold})):
        best = scores.argmax(axis=1)
        ways.append(np.mean([(x, y) in right for x, y in enumerate(best)]))
    one, other = (np.sort(s, axis=1)[:, -K:].mean(axis=1) for s in (forward, backward))
    proposed = {}
    for x in range(len(one)):
        near = np.argsort(-forward[x])[:K]
        margins = {(x, y): forward[x, y] / (one[x] / 2 + other[y] / 2) for y in near}
        pair = max(margins, key=margins.get)
        proposed[pair] = margins[pair]
    for y in range(len(other)):
        near = np.argsort(-backward[y])[:K]
        margins = {(x, y): backward[y, x] / (one[x] / 2 + other[y] / 2) for x in near}
        pair = max(margins, key=margins.get)
        proposed[pair] = max(margins[pair], proposed.get(pair, 0))
    found = []
    for pair in sorted(proposed, key=proposed.get, reverse=True):
        if all(pair[0] != x and pair[1] != y for x, y in found):
            found.append(pair)
    f1 = []
    for threshold in {proposed[pair] for pair in found}:
        above = {pair for pair in found if proposed[pair] >= threshold}
        hits = len(above & gold)
        precision, recall = hits / len(above), hits / len(gold)
        f1.append(2 * precision * recall / (precision + recall) if hits else 0)
    return [*ways, max(f1)]


@pytest.mark.parametrize("spec", [LATE, Dense(query_length=12, passage_length=12)])
def test_a_retriever_is_measured_both_ways(pairs, spec, monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK_ROWS", 8)
    opened, mesh = pairs[1], make_mesh(devices=jax.devices()[:1])
    model, told = retriever(spec), []
    encoder = TextEncoder.of(model, mesh)
    values = measure_pairs(encoder, opened, lambda *now: told.append(now))
    forward = scores_of(model, opened.other, opened.english)
    backward = scores_of(model, opened.english, opened.other)
    expected = values_by_hand(forward, backward, set(opened.pairs))
    assert list(values) == ["accuracy xx->en", "accuracy en->xx", "margin F1"]
    np.testing.assert_allclose(list(values.values()), expected, atol=1e-9)
    assert min(expected) > 0.2
    assert max(expected) < 1
    assert told[-1] == (38, 38)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_mined_pair_uses_up_its_sentences():
    # Scores of one matrix, read both ways. Neighbourhoods of two: rows .85 and .75, columns .9, .7.
    scores = np.array([[0.9, 0.8], [0.9, 0.6]])
    rows = np.array([[0, 1], [0, 1]])
    found = mined(scores, rows, scores.T.copy(), rows)
    assert [pair for _, pair in found] == [(1, 0), (0, 1)]
    # 0.9 / (.75 / 2 + .9 / 2), and 0.8 / (.85 / 2 + .7 / 2).
    np.testing.assert_allclose([margin for margin, _ in found], [0.9 / 0.825, 0.8 / 0.775])


def test_neighbourhoods_that_score_nothing_are_not_divided_by():
    nothing, rows = np.zeros((2, 1)), np.zeros((2, 1), int)
    assert mined(nothing, rows, nothing, rows) == [(0.0, (0, 0))]


def test_the_threshold_takes_equal_margins_together():
    found = [(3.0, (0, 0)), (2.0, (1, 1)), (2.0, (2, 9)), (1.0, (3, 9))]
    gold = [(0, 0), (1, 1)]
    # One pair: 2 * 1 / (1 + 2); three pairs: 2 * 2 / (3 + 2). The first two alone would give 1.
    assert best_f1(found, gold) == pytest.approx(4 / 5)
    assert best_f1(found[2:], gold) == 0
    assert best_f1(found[:2], [*gold, *gold]) == 1


def test_each_translation_of_a_sentence_is_right():
    assert accuracy(np.array([[1, 0], [0, 1]]), [(0, 0), (0, 1), (1, 1)]) == 0.5


def test_one_pair(pairs):
    opened, mesh = pairs[1], make_mesh(devices=jax.devices()[:1])
    one = dataclasses.replace(
        opened, english=opened.english[:1], other=opened.other[:1], pairs=[(0, 0)]
    )
    assert set(measure_pairs(TextEncoder.of(retriever(), mesh), one).values()) == {1.0}


def test_held_out_pairs_of_two_files(tmp_path):
    (tmp_path / "x.en").write_text("".join(f"one {n}\n" for n in range(9)))
    (tmp_path / "x.sw").write_text("".join(f"moja {n}\n" for n in range(9)))
    some = BitextPairs("x.sw", "sw", hold_out=5, limit=3, english="x.en")
    assert some.files() == ("x.en", "x.sw")
    opened = some.open(str(tmp_path))
    assert opened.report.skipped == {"not set aside by hold_out": 4, "beyond limit": 2}
    assert [opened.english[e][-1] == opened.other[o][-1] for o, e in opened.pairs] == [True] * 3
    with pytest.raises(DataError) as error:
        dataclasses.replace(some, hold_out=9).open(str(tmp_path))
    assert "hold_out=9 cannot be set aside" in str(error.value)
    with pytest.raises(ValueError) as error:
        BitextPairs("x.tsv", "sw", limit=0)
    assert str(error.value) == "BitextTSV.limit is 0; write a number of pairs, or None"


def test_what_selects_a_checkpoint():
    sets = {
        "pairs": BitextPairs("p.tsv", "sw"),
        "sw": Retrieval("c.jsonl", "q.tsv", "qrels", "sw"),
    }
    assert Evaluate(sets).selection == "accuracy xx->en pairs"
    assert Evaluate(sets, best="MRR@10 sw").selection == "RR@10 sw"
    assert Evaluate(sets, best="margin F1 pairs").selection == "margin F1 pairs"
    choices = [
        *(f"'{metric} pairs'" for metric in ("accuracy xx->en", "accuracy en->xx", "margin F1")),
        *(f"'{metric} sw'" for metric in ("nDCG@10", "RR@10", "R@100")),
    ]
    for wrong in ("nDCG@10 pairs", "F1 pairs"):
        with pytest.raises(ValueError) as error:
            Evaluate(sets, best=wrong)
        told = f"evaluate: best is {wrong!r}; write one of {', '.join(choices)}"
        assert str(error.value) == told
