"""Judged collections, triples and scored lists, against files written by hand."""

import json

import pytest

from clir_jax.data.rankings import Beir, RankingJSONL, TriplesTSV
from clir_jax.data.reading import DataError
from clir_jax.data.records import Passage, Ranking


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else lines(content))


def lines(rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def everything(records):
    return [records[i] for i in range(len(records))]


CORPUS = [
    {"_id": "d1", "title": "One", "text": "first"},
    {"_id": "d2", "title": "", "text": "second"},
    {"_id": "d3", "text": "third"},
    {"_id": "d4", "title": "Only a title", "text": " "},
    {"_id": "d5", "title": "One", "text": "first", "more": 5},
]
QUERIES = "q1\tswali moja\tquestion one\nq2\tswali mbili\tquestion two\nq3\tswali moja\tagain\n"
QRELS = "q1 0 d1 1\nq1 0 d2 0\nq3\t0\td4\t2\nq3 0 d5 1\nq1 0 d3 1\n"
BEIR = Beir("c.jsonl", "q.tsv", "r.trec", "sw", translations={"en": 2})


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, c__jsonl=CORPUS, q__tsv=QUERIES, r__trec=QRELS)
    return tmp_path


def test_a_judged_collection(folder):
    records = BEIR.open(str(folder))
    one, third = Passage(0, "One first"), Passage(1, "third")
    assert everything(records) == [
        Ranking(
            query_id=0,
            queries={"sw": "swali moja", "en": "question one"},
            positives=(one, third),
            negatives=(),
            scores=None,
            known=(0, 1, 2),
        ),
        Ranking(
            query_id=0,
            queries={"sw": "swali moja", "en": "again"},
            positives=(Passage(2, "Only a title"), one),
            negatives=(),
            scores=None,
            known=(0, 1, 2),
        ),
    ]
    assert records.languages == ("sw", "en")
    assert not records.scored
    assert records.report.read == 2
    assert records.report.skipped == {"query without a relevant passage": 1}


def test_a_share_of_the_queries(folder):
    names = [f"q{n}" for n in range(9)]
    write(folder, q__tsv="\n".join(f"{name}\task {name}" for name in names))
    write(folder, r__trec="\n".join(f"{name} 0 d1 1" for name in names))
    files = ("c.jsonl", "q.tsv", "r.trec")
    asked = {}
    for share in (0.3, 0.5, 1.0):
        records = Beir(*files, share=share).open(str(folder))
        asked[share] = [record.queries["en"] for record in everything(records)]
        assert records.report.skipped.get("beyond share", 0) == 9 - len(asked[share])
    assert [len(own) for own in asked.values()] == [3, 5, 9]
    assert set(asked[0.3]) < set(asked[0.5]) < set(asked[1.0])
    assert asked[0.5] == sorted(asked[0.5])  # in the order of the file
    with pytest.raises(ValueError, match=r"Beir.share is 0.0; write a number above 0 and at most"):
        Beir(*files, share=0.0)


def test_the_files_of_beir(folder):
    queries = [{"_id": "q1", "text": "one", "metadata": {}}, {"_id": "q2", "text": "two"}]
    write(folder, q__jsonl=queries, en__tsv="q2\ttwo in English\nq1\tone in English")
    write(folder, r__tsv="query-id\tcorpus-id\tscore\nq1\td3\t1\nq2\td1\t-1\n")
    beir = Beir("c.jsonl", "q.jsonl", "r.tsv", "sw", translations={"en": "en.tsv"})
    (record,) = everything(beir.open(str(folder)))
    assert record.queries == {"sw": "one", "en": "one in English"}
    assert [passage.text for passage in record.positives] == ["third"]
    write(folder, r__tsv="q2\td1\t1\n")
    (record,) = everything(beir.open(str(folder)))
    assert record.queries["sw"] == "two", "a file without a header loses no line"


BAD_BEIR = [
    ("c.jsonl", {"_id": "d1", "text": "x"}, 6, "duplicate passage id",
     'the passage id "d1" was used before (c.jsonl:1); ids are unique'),
    ("c.jsonl", {"_id": "d9", "title": "", "text": "\u200b"}, 6, "blank text",
     "title and text are blank; give the passage text or remove the line"),
    ("c.jsonl", {"_id": "", "text": "x"}, 6, "blank id",
     'the "_id" is blank; give the passage one'),
    ("c.jsonl", {"_id": 9, "text": "x"}, 6, "wrong JSON type", '"_id" is a number; write a string'),
    ("c.jsonl", {"_id": "d9", "text": None}, 6, "wrong JSON type",
     '"text" is null; write a string'),
    ("c.jsonl", {"_id": "d9", "title": ["x"], "text": "x"}, 6, "wrong JSON type",
     '"title" is a list; write a string'),
    ("c.jsonl", {"_id": "d9", "title": "x"}, 6, "missing key",
     'the object has no "text"; write {"_id": "…", "title": "…", "text": "…"}'),
    ("c.jsonl", '{"_id": "d9", "text": "x}', 6, "bad JSON",
     "the line is not JSON (Unterminated string at column 23); "
     "write one object a line"),
    ("c.jsonl", '["d9"]', 6, "wrong JSON type", "the line is JSON but not an object; write {...}"),
    ("c.jsonl", "", 6, "bad JSON",
     "the line is not JSON (Expecting value at column 1); write one object a line"),
    ("c.jsonl", '{"_id": "d9", "text": "\\ud800"}', 6, "not Unicode text",
     '"text" holds half a surrogate pair (\\ud800 to \\udfff); remove it'),
    ("q.tsv", "q4\ttext", 4, "wrong number of fields",
     "the line has 2 fields, not at least 3; write id<TAB>text<TAB>column 2"),
    ("q.tsv", "q4\t \tx", 4, "blank text",
     "the text field is blank; write text or remove the line"),
    ("q.tsv", "q4\tx\t", 4, "blank text",
     "the column 2 field is blank; write text or remove the line"),
    ("q.tsv", "\tx\ty", 4, "blank text", "the id field is blank; write text or remove the line"),
    ("q.tsv", "q2\tx\ty", 4, "duplicate query id",
     'the query id "q2" was used before (q.tsv:2); ids are unique'),
    ("r.trec", "q1 0 d7 1", 6, "unknown passage",
     'the passage "d7" is not in the corpus; correct the id'),
    ("r.trec", "q9 0 d1 1", 6, "unknown query",
     'the query "q9" is not in the queries; correct the id'),
    ("r.trec", "q1 0 d1", 6, "bad relevance",
     'the relevance "d1" is not a whole number; write 0, 1, …'),
    ("r.trec", "q1 d1", 6, "wrong number of fields",
     "the line has 2 fields; write query 0 passage relevance, or query<TAB>passage<TAB>relevance"),
    ("r.trec", "q1 0 d1 0.5", 6, "bad relevance",
     'the relevance "0.5" is not a whole number; write 0, 1, …'),
    ("r.trec", "q1 0 d1 0", 6, "judged twice",
     'the passage "d1" was judged 1 for the query "q1" before and is 0 here; '
     "keep one of the lines"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "number", "reason", "sentence"), BAD_BEIR)
def test_a_bad_line_is_an_error_or_is_left_out(folder, name, line, number, reason, sentence):
    expected = everything(BEIR.open(str(folder)))
    with open(folder / name, "a") as file:
        file.write(lines([line]))
    with pytest.raises(DataError) as error:
        BEIR.open(str(folder))
    assert str(error.value) == f"{name}:{number}: {sentence}"
    skipping = Beir("c.jsonl", "q.tsv", "r.trec", "sw", 1, {"en": 2}, "skip")
    records = skipping.open(str(folder))
    assert everything(records) == expected
    assert records.report.skipped[reason] == 1
    assert records.report.places == [f"{name}:{number}: {sentence}"]


def test_a_query_that_is_not_translated(folder):
    write(folder, en__tsv="q1\tone in English\n")
    beir = Beir("c.jsonl", "q.tsv", "r.trec", "sw", translations={"en": "en.tsv"})
    with pytest.raises(DataError) as error:
        beir.open(str(folder))
    assert str(error.value) == ('en.tsv: there is no query "q3", which r.trec judges; translate it')


def test_a_repeated_judgement_is_no_fault(folder):
    with open(folder / "r.trec", "a") as file:
        file.write("q1 0 d1 1\n")
    assert len(BEIR.open(str(folder))[0].positives) == 2


@pytest.mark.parametrize(
    ("queries", "column", "sentence"),
    [
        ("q.tsv", 0, "q.tsv: query column 0 is not one; columns count from 1"),
        ("q.jsonl", 2, "q.jsonl: query column 2 is not one; JSON lines have column 1 only"),
    ],
)
def test_a_column_that_cannot_be(folder, queries, column, sentence):
    with pytest.raises(ValueError) as error:
        Beir("c.jsonl", queries, "r.trec", query_column=column).open(str(folder))
    assert str(error.value) == sentence


def test_no_relevant_passage_at_all(folder):
    write(folder, r__trec="q1 0 d1 0\n")
    with pytest.raises(DataError) as error:
        BEIR.open(str(folder))
    assert str(error.value) == (
        "r.trec: no record is left to read; left out: 3 x query without a relevant passage"
    )


def test_triples(tmp_path):
    write(tmp_path, x__tsv='who?\tme\tyou\nwhere?\t"here\tme\nwho?\tus\tyou\n')
    records = TriplesTSV("x.tsv", "sw").open(str(tmp_path))
    me, you = Passage(0, "me"), Passage(1, "you")
    assert everything(records) == [
        Ranking(0, {"sw": "who?"}, (me,), (you,), None, (0, 4)),
        Ranking(1, {"sw": "where?"}, (Passage(2, '"here'),), (me,), None, (2,)),
        Ranking(0, {"sw": "who?"}, (Passage(4, "us"),), (you,), None, (0, 4)),
    ]
    assert records.most_known == 2
    assert records.languages == ("sw",)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a\tb", "the line has 2 fields, not 3; write query<TAB>positive<TAB>negative"),
        (" \tb\tc", "the query field is blank; write text or remove the line"),
        ("a\t\tc", "the positive field is blank; write text or remove the line"),
        ("a\tb\t", "the negative field is blank; write text or remove the line"),
    ],
)
def test_bad_triples(tmp_path, line, sentence):
    write(tmp_path, x__tsv=f"a\tb\tc\n{line}\nd\te\tf\n")
    with pytest.raises(DataError) as error:
        TriplesTSV("x.tsv").open(str(tmp_path))
    assert str(error.value) == f"x.tsv:2: {sentence}"
    assert len(TriplesTSV("x.tsv", on_bad_record="skip").open(str(tmp_path))) == 2


def test_triples_in_two_languages_line_by_line(tmp_path):
    write(tmp_path, x__tsv="nani?\tme\tyou\nwapi?\there\tme\n")
    write(tmp_path, en__tsv="who?\tme\tyou\nwhere?\there\tme\n")
    source = TriplesTSV("x.tsv", "sw", {"en": "en.tsv"})
    records = source.open(str(tmp_path))
    assert records.languages == ("sw", "en")
    assert [record.queries for record in everything(records)] == [
        {"sw": "nani?", "en": "who?"},
        {"sw": "wapi?", "en": "where?"},
    ]
    assert [p.text for p in records[1].positives + records[1].negatives] == ["here", "me"]
    assert source.files() == ("x.tsv", "en.tsv")


@pytest.mark.parametrize(
    ("english", "sentence"),
    [
        (
            "who?\tme\tyou\n",
            "en.tsv: it has 1 lines, and x.tsv, whose queries it translates, has 2; write one line "
            "for each",
        ),
        (
            "who?\tme\tyou\nwhere?\there\tyou\n",
            "en.tsv:2: its passages are not those of x.tsv:2, whose query it translates; write the "
            "same passages in both lines",
        ),
    ],
)
def test_triples_that_are_not_line_by_line(tmp_path, english, sentence):
    write(tmp_path, x__tsv="nani?\tme\tyou\nwapi?\there\tme\n", en__tsv=english)
    with pytest.raises(DataError) as error:
        TriplesTSV("x.tsv", "sw", {"en": "en.tsv"}).open(str(tmp_path))
    assert str(error.value) == sentence


def test_judged_files_whose_options_do_not_fit():
    with pytest.raises(ValueError, match="translations has 'sw', the language; name other lang"):
        Beir("c.jsonl", "q.tsv", "r.trec", "sw", translations={"sw": 2})


def test_triples_whose_options_do_not_fit():
    with pytest.raises(ValueError, match="translations has 'sw', the query_language; name other"):
        TriplesTSV("x.tsv", "sw", {"sw": "en.tsv"})
    with pytest.raises(ValueError, match='would shift them; write on_bad_record="error"'):
        TriplesTSV("x.tsv", "sw", {"en": "en.tsv"}, on_bad_record="skip")


def test_lists_with_scores_and_languages(tmp_path):
    rows = [
        {"query": "a", "positives": ["p"], "negatives": ["n", "m"], "scores": [1, -0.5, 2e3],
         "queries": {"sw": "b", "so": "a"}},
        {"queries": {"so": "d", "en": "c"}, "positives": ["m", "p"], "scores": [0, 1]},
    ]  # fmt: skip
    write(tmp_path, x__jsonl=rows)
    records = RankingJSONL("x.jsonl").open(str(tmp_path))
    p, n, m = Passage(0, "p"), Passage(1, "n"), Passage(2, "m")
    first = {"en": "a", "sw": "b", "so": "a"}
    assert everything(records) == [
        Ranking(0, first, (p,), (n, m), (1.0, -0.5, 2000.0), (0,)),
        Ranking(1, {"en": "c", "so": "d"}, (m, p), (), (0.0, 1.0), (0, 2)),
    ]
    assert [next(iter(record.queries)) for record in everything(records)] == ["en", "en"]
    assert records.languages == ("en", "so")
    assert records.scored


GOOD = {"query": "a", "positives": ["p"], "negatives": ["n"], "scores": [1, 2]}
BAD_LISTS = [
    ({"query": None}, '"query" is null; write a string'),
    ({"query": " "}, '"query" holds a blank text; write text or leave it out'),
    ({"positives": "p"}, '"positives" is a string; write a list'),
    ({"positives": []}, '"positives" is empty; name at least one relevant passage'),
    ({"positives": [1]}, '"positives" holds a number; write strings'),
    ({"negatives": [None]}, '"negatives" holds null; write strings'),
    ({"negatives": [""]}, '"negatives" holds a blank text; write text or leave it out'),
    ({"negatives": ["\ud800"]},
     '"negatives" holds half a surrogate pair (\\ud800 to \\udfff); remove it'),
    ({"queries": {"sw": 5}}, '"queries" holds a number; write strings'),
    ({"queries": {"en": "b"}}, '"query" and "queries" have two texts for "en"; keep one'),
    ({"scores": [1]}, '"scores" has 1 numbers for 2 passages; write one for each'),
    ({"scores": ["1", 2]}, '"scores" holds a string; write numbers'),
    ({"scores": [True, 2]}, '"scores" holds true; write numbers'),
    ({"scores": [float("nan"), 2]}, '"scores" holds nan; write finite float32 numbers'),
    ({"scores": [10**400, 2]}, None),
    ({"scores": ...},
     "the line has no scores and the lines before have scores; all or none have them"),
    ({"query": ...}, 'there is no "query", nor "queries" with "en"; write "query": "…"'),
    ({"positives": ...},
     'the object has no "positives"; write {"query": "…", "queries": {…}, "positives": […], '
     '"negatives": […], "scores": […]}'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BAD_LISTS)
def test_bad_lists(tmp_path, change, sentence):
    bad = {key: value for key, value in (GOOD | change).items() if value is not ...}
    write(tmp_path, x__jsonl=[GOOD, bad, GOOD])
    sentence = sentence or f'"scores" holds {10**400}; write finite float32 numbers'
    with pytest.raises(DataError) as error:
        RankingJSONL("x.jsonl").open(str(tmp_path))
    assert str(error.value) == f"x.jsonl:2: {sentence}"
    records = RankingJSONL("x.jsonl", on_bad_record="skip").open(str(tmp_path))
    assert len(records) == 2
    assert sum(records.report.skipped.values()) == 1


@pytest.mark.parametrize("line", ["[" * 100_000, '{"query": ' + "1" * 5000 + "}", "{'a': 1}"])
def test_json_that_python_cannot_take(tmp_path, line):
    write(tmp_path, x__jsonl=[GOOD, line])
    with pytest.raises(DataError, match=r"^x.jsonl:2: the line is not JSON \(.*\); write one obj"):
        RankingJSONL("x.jsonl").open(str(tmp_path))
