"""Rows as records, against rows written by hand."""

import dataclasses

import numpy as np
import pytest

from clir_jax.data.columns import check_columns, open_rows
from clir_jax.data.reading import DataError
from clir_jax.data.records import Bitext, Passage, Ranking, Text


@dataclasses.dataclass
class Rows:
    """Rows in memory, as ``columns.Rows``; ``read`` counts the rows that were read."""

    cells: dict
    name: str = "pairs train"
    read: int = 0

    @property
    def columns(self):
        return tuple(self.cells)

    def __len__(self):
        return len(next(iter(self.cells.values())))

    def reader(self, columns):
        def read(rows):
            self.read += len(rows)
            return [[self.cells[name][row] for name in columns] for row in rows]

        return read


def opened(cells, kind="bitext", columns=None, language="sw", on_bad_record="error"):
    return open_rows(Rows(cells), kind, columns or {}, language, on_bad_record)


def test_bitext_in_columns_of_other_names():
    cells = {"en": ["a", b"b", "a"], "t.sw": ["x", "y", "z"], "n": [1, 2, 3]}
    records = opened(cells, columns={"english": "en", "other": "t.sw"})
    assert [records[i] for i in range(3)] == [
        Bitext(0, "a", "x", "sw"),
        Bitext(1, "b", "y", "sw"),
        Bitext(0, "a", "z", "sw"),
    ]
    assert records.ids.dtype == np.int32


def test_the_language_may_lie_in_a_column():
    cells = {"text": ["a", "b", "c"], "language": ["so", b"so", "sw"]}
    records = opened(cells, "text", language=None, on_bad_record="skip")
    assert [records[0], records[1]] == [Text(0, "a", "so"), Text(1, "b", "so")]
    assert records.report.skipped == {"another language": 1}
    assert opened(cells, "text", language="sw")[0] == Text(0, "a", "sw")


def test_a_ranking_as_sentence_transformers_has_it():
    negatives = {f"negative_{n}": [f"n{n}", f"m{n}"] for n in (10, 2, 1)}
    cells = {"query": ["q", "r"], "positive": ["p", "n10"], **negatives}
    columns = {"positives": "positive", "negatives": "negative_*"}
    records = opened(cells, "ranking", columns)
    assert records[0] == Ranking(
        query_id=0,
        queries={"sw": "q"},
        positives=(Passage(0, "p"),),
        negatives=(Passage(1, "n1"), Passage(2, "n2"), Passage(3, "n10")),
        scores=None,
        known=(0,),
    )
    # The same text has the same id, whatever it is to the question.
    assert records[1].positives == (Passage(3, "n10"),)
    assert not records.scored


def test_a_ranking_of_lists_with_scores_and_another_language():
    cells = {
        "query": ["q", "r"],
        "english": ["Q", "R"],
        "positives": [["p1", "p2"], ["p2"]],
        "negatives": [[], ["n"]],
        "scores": [[1.5, 2], [0.5, -3.0]],
    }
    records = opened(cells, "ranking", {"query.en": "english"})
    assert records[0].queries == {"sw": "q", "en": "Q"}
    assert records[0].scores == (1.5, 2.0)
    assert records[1].negatives == (Passage(3, "n"),)
    assert records[1].scores == (0.5, -3.0)
    assert records.languages == ("sw", "en")
    assert records.scored


def test_only_the_row_asked_for_is_read():
    rows = Rows({"text": [str(n) for n in range(3000)]})
    records = open_rows(rows, "text", {}, "sw", "error")
    assert rows.read == 3000
    assert records[2999].text == "2999"
    assert rows.read == 3001


MEND = 'correct the record, or set on_bad_record="skip" to leave it out'
BAD = [
    ("bitext", {"english": " \u200b"}, "blank text", f'the column "english" is blank; {MEND}'),
    ("bitext", {"other": None}, "wrong type", f'the column "other" holds null, not text; {MEND}'),
    (
        "bitext",
        {"other": b"ab\xff"},
        "not UTF-8",
        f'byte 3 (0xff) of the column "other" is not UTF-8; {MEND}',
    ),
    (
        "ranking",
        {"positives": []},
        "no positive",
        f'the column "positives" names no relevant passage; {MEND}',
    ),
    (
        "ranking",
        {"negatives": ["n", 3]},
        "wrong type",
        f'the column "negatives" holds a number, not text; {MEND}',
    ),
    ("ranking", {"query": ""}, "blank text", f'the column "query" is blank; {MEND}'),
    (
        "ranking",
        {"scores": [1.0]},
        "wrong number of scores",
        f'the column "scores" has 1 scores for 2 passages; {MEND}',
    ),
    (
        "ranking",
        {"scores": [1.0, float("nan")]},
        "score not finite",
        f'the column "scores" holds nan, no finite float32 number; {MEND}',
    ),
    (
        "ranking",
        {"scores": [1.0, b"2"]},
        "wrong type",
        f'the column "scores" holds text, not numbers; {MEND}',
    ),
]
GOOD = {
    "bitext": {"english": "a", "other": "b"},
    "ranking": {"query": "q", "positives": ["p"], "negatives": ["n"], "scores": [1.0, 0.0]},
}


@pytest.mark.parametrize(("kind", "bad", "reason", "sentence"), BAD)
def test_a_bad_record_is_an_error_or_is_left_out(kind, bad, reason, sentence):
    cells = {name: [good, bad.get(name, good), good] for name, good in GOOD[kind].items()}
    with pytest.raises(DataError) as error:
        opened(cells, kind)
    assert str(error.value) == f"pairs train[1]: {sentence}"
    records = opened(cells, kind, on_bad_record="skip")
    assert len(records) == 2
    assert records.report.skipped == {reason: 1}
    assert records.report.places == [f"pairs train[1]: {sentence}"]
    # Record 1 is row 2 now, which is good.
    assert vars(records[1]).keys() == vars(records[0]).keys()


@pytest.mark.parametrize(
    ("cells", "kind", "columns", "language", "sentence"),
    [
        (
            {"english": ["a"], "non_english": ["b"]},
            "bitext",
            {},
            "sw",
            'there is no column "other" for other; write columns={"other": "non_english"} '
            "(one of: english, non_english)",
        ),
        (
            {"query": ["q"], "answer": ["a"], "negative_1": ["n"]},
            "ranking",
            {"positives": "answer", "negatives": "negtive_*"},
            "sw",
            'there is no column "negtive_*" for negatives; write columns={"negatives": '
            '"negative_1"} (one of: query, answer, negative_1)',
        ),
        (
            {"text": ["a"]},
            "text",
            {},
            None,
            'no column says in which language the records are; set language="…"',
        ),
        (
            {"text": ["a"], "lang": ["so"]},
            "text",
            {"language": "langs"},
            None,
            'there is no column "langs" for language; write columns={"language": "lang"} '
            "(one of: text, lang)",
        ),
        ({}, "text", {}, "sw", "it has no columns of text; name another data set"),
        (
            {"query": ["q"], "positives": ["p"]},
            "ranking",
            {"query.sw": "query"},
            "sw",
            'the question in "sw" is in query and in query.sw; leave the second out of columns',
        ),
        ({"text": []}, "text", {}, "sw", "no record is left to read; left out: none"),
    ],
)
def test_rows_that_are_no_records(cells, kind, columns, language, sentence):
    with pytest.raises(DataError) as error:
        opened(cells, kind, columns, language)
    assert str(error.value) == f"pairs train: {sentence}"


@pytest.mark.parametrize(
    ("kind", "columns", "sentence"),
    [
        ("pairs", {}, 'S.kind is \'pairs\'; write "bitext", "ranking" or "text"'),
        (
            "ranking",
            {"positive": "p"},
            'S.columns names "positive", which is no field of a ranking record; write "positives" '
            "(one of: query, positives, negatives, scores, language)",
        ),
        (
            "bitext",
            {"query.en": "p"},
            'S.columns names "query.en", which is no field of a bitext record; write "other" '
            "(one of: english, other, language)",
        ),
    ],
)
def test_options_that_mean_nothing(kind, columns, sentence):
    with pytest.raises(ValueError) as error:
        check_columns("S", kind, columns)
    assert str(error.value) == sentence
