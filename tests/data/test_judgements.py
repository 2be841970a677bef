"""Corpora, queries and judgements on their own (through ``Beir`` in test_rankings)."""

import pytest

from clir_jax.data.judgements import Corpus, Queries, passage_text, read_qrels
from clir_jax.data.reading import DataError, Intake


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Nairobi", "A city.", "Nairobi A city."),
        ("", "A city.", "A city."),
        (" \u200b", "A city.", "A city."),
        ("Nairobi", "", "Nairobi"),
        ("", " ", ""),
    ],
)
def test_passage_text(title, text, expected):
    assert passage_text(title, text) == expected


def test_a_corpus_in_several_files(tmp_path):
    (tmp_path / "2.jsonl").write_text('{"_id": "b", "text": "two"}\r\n')
    (tmp_path / "1.jsonl").write_text('\ufeff{"_id": "a", "title": "T", "text": "one"}')
    corpus = Corpus(str(tmp_path), "?.jsonl", Intake())
    assert {name: corpus.text(row) for name, row in corpus.rows.items()} == {
        "a": "T one",
        "b": "two",
    }
    (tmp_path / "3.jsonl").write_text('{"_id": "a", "text": "again"}')
    with pytest.raises(DataError) as error:
        Corpus(str(tmp_path), "?.jsonl", Intake())
    assert str(error.value) == (
        '3.jsonl:1: the passage id "a" was used before (1.jsonl:1); ids are unique'
    )


def test_queries_by_column(tmp_path):
    (tmp_path / "q.tsv").write_text('1\t"moja\tone\textra\r\n2\tmbili\ttwo\n')
    queries = Queries(str(tmp_path), "q.tsv", (1, 2), Intake())
    read = {name: (queries.text(n), queries.text(n, 2)) for name, n in queries.rows.items()}
    assert read == {"1": ('"moja', "one"), "2": ("mbili", "two")}


@pytest.mark.parametrize(
    "content",
    [
        "q1 0 d1 2\nq1 0 d2 0\nq2 0 d1 -1\n",
        "q1\tQ0\td1\t2\r\nq1\tQ0\td2\t0\r\nq2\tQ0\td1\t-1",
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n",
        "q1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n",
    ],
)
def test_four_forms_of_judgements(tmp_path, content):
    (tmp_path / "r").write_bytes(content.encode())
    found = read_qrels(str(tmp_path), "r", {"q1", "q2"}, {"d1", "d2"}, Intake())
    assert found == {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}


def test_ids_with_spaces_need_tabs(tmp_path):
    (tmp_path / "r").write_text("q 1\td 1\t1\n")
    assert read_qrels(str(tmp_path), "r", {"q 1"}, {"d 1"}, Intake()) == {"q 1": {"d 1": 1}}


@pytest.mark.parametrize("number", ["१", "1.0", "", "--1", "1e3"])
def test_a_judgement_is_a_whole_number(tmp_path, number):
    (tmp_path / "r").write_text(f"q\td\t1\nq\td\t{number}\n")
    with pytest.raises(DataError) as error:
        read_qrels(str(tmp_path), "r", {"q"}, {"d"}, Intake())
    assert str(error.value) == (
        f'r:2: the relevance "{number}" is not a whole number; write 0, 1, …'
    )
