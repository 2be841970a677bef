"""Run files: what is written is what every tool reads."""

import math
import os

import ir_measures
import numpy as np
import pytest

from clir_jax.evaluation import runs


def _write(tmp_path, text, name="file.txt"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_run_is_written_in_the_trec_form(tmp_path):
    path = tmp_path / "a.trec"
    runs.write_run(path, {"q2": [("x", 0.5), ("ü", 2.0)], "q1": [("y", -1.25)]}, "my-tag")
    assert path.read_text(encoding="utf-8") == (
        "q2 Q0 ü 1 2.0 my-tag\nq2 Q0 x 2 0.5 my-tag\nq1 Q0 y 1 -1.25 my-tag\n"
    )
    assert os.listdir(tmp_path) == ["a.trec"]


def test_scores_come_back_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=300), rng.normal(size=300) * 1e-30, [1e30, 0.1]])
    run = {"q": [(f"d{i}", float(s)) for i, s in enumerate(scores.astype(np.float32))]}
    runs.write_run(tmp_path / "a", run, "t")
    read = dict(runs.read_run(tmp_path / "a")["q"])
    assert {d: np.float32(s) for d, s in read.items()} == {d: np.float32(s) for d, s in run["q"]}


def test_ties_keep_their_order_in_the_file_and_in_other_tools(tmp_path):
    # "b" before "a" before "c": trec_eval would say c, b, a; the MS MARCO script a, b, c.
    run = {"q": [("b", 1.0), ("a", 1.0), ("c", 1.0 + 1e-12), ("z", 3.0), ("e", -math.inf)]}
    runs.write_run(tmp_path / "a", run, "t")
    assert [d for d, _ in runs.read_run(tmp_path / "a")["q"]] == ["z", "b", "a", "c"]
    others = list(ir_measures.read_trec_run(str(tmp_path / "a")))
    for document, rank in (("z", 1), ("b", 2), ("a", 3), ("c", 4)):
        judged = [ir_measures.Qrel("q", document, 1)]
        trec_eval, marco = ir_measures.RR, ir_measures.RR @ 10
        for measure in (trec_eval, marco):
            assert ir_measures.calc_aggregate([measure], judged, others)[measure] == 1 / rank


def test_ranked_against_sorting():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 5, 40).astype(float)
    expected = sorted(range(40), key=lambda i: (-scores[i], i))
    result = runs.ranked([(str(i), s) for i, s in enumerate(scores)])
    assert [int(d) for d, _ in result] == expected
    falling = np.array([s for _, s in result])
    assert (np.diff(falling) < 0).all()
    np.testing.assert_allclose(falling, scores[expected], atol=1e-4)
    np.testing.assert_array_equal(falling, falling.astype(np.float32))


@pytest.mark.parametrize(
    ("run", "tag", "words"),
    [
        ({"q 1": [("d", 1.0)]}, "t", "query id 'q 1' is empty or holds white space"),
        ({"q": [("d\t1", 1.0)]}, "t", "document id"),
        ({"q": [("", 1.0)]}, "t", "document id '' is empty"),
        ({"q": [("d\u00a01", 1.0)]}, "t", "document id"),
        ({"q": [("d", 1.0)]}, "two words", "the tag 'two words'"),
        ({"q": [("d", 1.0), ("d", 2.0)]}, "t", "query 'q', document 'd' is ranked twice"),
        ({"q": [("d", math.nan)]}, "t", "query 'q', document 'd' scores nan"),
        ({"q": [("c", 1.0), ("d", 1e39)]}, "t", "document 'd' scores 1e\\+39"),
    ],
)
def test_what_the_format_cannot_carry_is_refused(tmp_path, run, tag, words):
    path = _write(tmp_path, "before", "a.trec")
    with pytest.raises(ValueError, match=words) as error:
        runs.write_run(path, {"fine": [("d", 1.0)], **run}, tag)
    assert "a.trec" in str(error.value)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.trec"]


def test_a_run_of_another_tool_is_read(tmp_path):
    path = _write(
        tmp_path, "q1\tQ0\ta\t1\t1e0\tx\r\n\nq2 Q0 b 7 3 x\nq1 Q0 c 2 2.5 x\nq1 Q0 b 3 1 x\n"
    )
    assert runs.read_run(path) == {"q1": [("c", 2.5), ("a", 1.0), ("b", 1.0)], "q2": [("b", 3.0)]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q Q0 d 1 2.0 t\nq Q0 d 1 2.0\n", "line 2: 5 columns; a run has six"),
        ("q Q0 d 1 high t\n", "line 1: the score 'high' is not a number"),
        ("q Q0 d 1 nan t\n", "line 1: the score 'nan' is not a number"),
        ("q Q0 d 1 2 t\n\nq Q0 d 2 1 t\n", "line 3: document 'd' comes twice for query 'q'"),
    ],
)
def test_a_bad_run_is_refused_with_its_line(tmp_path, text, words):
    with pytest.raises(ValueError, match=words) as error:
        runs.read_run(_write(tmp_path, text))
    assert "file.txt" in str(error.value)
