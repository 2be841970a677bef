"""DPR's JSON, against files written by hand."""

import gzip
import json

import pytest

from clir_jax.data.dpr import DPRJSON
from clir_jax.data.reading import DataError
from clir_jax.data.records import Passage, Ranking


def context(title, text):
    return {"title": title, "text": text, "score": 12.5, "title_score": 0, "passage_id": "7"}


GOOD = {
    "dataset": "nq_dev",
    "question": "who?",
    "answers": ["me"],
    "positive_ctxs": [context("One", "first"), context("", "second")],
    "negative_ctxs": [context("N", "easy")],
    "hard_negative_ctxs": [{"text": "hard"}, context("One", "first")],
}
SPARE = {"question": "who?", "positive_ctxs": [{"title": "", "text": "other"}]}


def write(folder, records, name="x.json"):
    content = json.dumps(records, indent=4, ensure_ascii=False).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def everything(records):
    return [records[i] for i in range(len(records))]


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_records(tmp_path, name):
    write(tmp_path, [GOOD, SPARE], name)
    one, second, hard, other = (
        Passage(0, "One first"),
        Passage(1, "second"),
        Passage(2, "hard"),
        Passage(4, "other"),
    )
    records = DPRJSON(name, "sw").open(str(tmp_path))
    assert everything(records) == [
        Ranking(0, {"sw": "who?"}, (one, second), (hard, one), None, (0, 1, 4)),
        Ranking(0, {"sw": "who?"}, (other,), (), None, (0, 1, 4)),
    ]
    assert (records.languages, records.scored, records.report.read) == (("sw",), False, 2)
    (first, _) = everything(DPRJSON(name, negatives="all").open(str(tmp_path)))
    assert [passage.text for passage in first.negatives] == ["hard", "One first", "N easy"]
    assert DPRJSON(name).files() == (name,)


def test_a_pattern_names_several_files(tmp_path):
    write(tmp_path, [GOOD], "a.json")
    write(tmp_path, [SPARE], "b.json.gz")
    records = DPRJSON("?.json*").open(str(tmp_path))
    assert [record.positives[0].text for record in everything(records)] == ["One first", "other"]


BAD = [
    ({"positive_ctxs": []}, "no positive",
     '"positive_ctxs" is empty; name at least one relevant passage'),
    ({"positive_ctxs": ...}, "missing key",
     'the object has no "positive_ctxs"; write {"question": "…", "positive_ctxs": […], '
     '"hard_negative_ctxs": […], "negative_ctxs": […]}'),
    ({"question": " "}, "blank text", 'the "question" is blank; write text or remove the record'),
    ({"question": 5}, "wrong JSON type", '"question" is a number; write a string'),
    ({"question": "\ud800"}, "not Unicode text",
     '"question" holds half a surrogate pair (\\ud800 to \\udfff); remove it'),
    ({"positive_ctxs": ["first"]}, "wrong JSON type",
     '"positive_ctxs" holds a string; write {"title": "…", "text": "…"}'),
    ({"positive_ctxs": [{"title": "One"}]}, "missing key",
     'in "positive_ctxs", the object has no "text"; write {"title": "…", "text": "…"}'),
    ({"hard_negative_ctxs": [{"title": None, "text": "x"}]}, "wrong JSON type",
     'in "hard_negative_ctxs", "title" is null; write a string'),
    ({"hard_negative_ctxs": [{"title": "", "text": "\u200b"}]}, "blank text",
     'in "hard_negative_ctxs", title and text are blank; write text or leave it out'),
    ({"hard_negative_ctxs": {}}, "wrong JSON type",
     '"hard_negative_ctxs" is an object; write a list'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason", "sentence"), BAD)
def test_a_bad_record_is_an_error_or_is_left_out(tmp_path, change, reason, sentence):
    bad = {key: value for key, value in (SPARE | change).items() if value is not ...}
    content = json.dumps([SPARE, bad, SPARE])
    (tmp_path / "x.json").write_text(content.replace('}, {"question', '},\n{"question'))
    with pytest.raises(DataError) as error:
        DPRJSON("x.json").open(str(tmp_path))
    assert str(error.value) == f"x.json:2 (record 2): {sentence}"
    records = DPRJSON("x.json", on_bad_record="skip").open(str(tmp_path))
    assert [record.positives[0].text for record in everything(records)] == ["other", "other"]
    assert records.report.skipped == {reason: 1}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ('{"question": x}', "the record is not JSON (Expecting value at column 14); write one "
         "object a record"),
        ('{"a": 1,\n }', None),
        ('["a"]', "the record is JSON but not an object; write {...}"),
        ('{"question": "\xff"}', "the record is not JSON ('utf-8' codec can't decode byte 0xff in "
         "position 14: invalid start byte); write one object a record"),
    ],
)  # fmt: skip
def test_a_record_that_is_no_object(tmp_path, record, sentence):
    content = f"[{json.dumps(SPARE)},\n{record}]".encode("latin-1")
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError) as error:
        DPRJSON("x.json").open(str(tmp_path))
    if sentence is None:  # Python's versions word it differently
        assert " of its line " in str(error.value)
    else:
        assert str(error.value) == f"x.json:2 (record 2): {sentence}"
    assert len(DPRJSON("x.json", on_bad_record="skip").open(str(tmp_path))) == 1


def test_negatives_that_are_not_read_are_not_checked(tmp_path):
    write(tmp_path, [SPARE | {"negative_ctxs": ["text only"]}])
    assert len(DPRJSON("x.json").open(str(tmp_path))) == 1
    with pytest.raises(DataError, match='"negative_ctxs" holds a string'):
        DPRJSON("x.json", negatives="all").open(str(tmp_path))


def test_negatives_are_hard_or_all():
    with pytest.raises(ValueError) as error:
        DPRJSON("x.json", negatives="easy")
    assert str(error.value) == 'DPRJSON.negatives is \'easy\'; write "hard" or "all"'
