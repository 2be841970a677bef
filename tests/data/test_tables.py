"""Tables of several files, and JSON lines, on their own (all faults in test_sources, _rankings)."""

import json
import random

import pytest

from clir_jax.data.reading import Intake, is_blank
from clir_jax.data.tables import json_kind, open_lines, open_tsv, parse_object, text_key

PIECES = ["a", " ", "\u3000", "\u200b", "ñ", "你", '"', "\r", "\t", "\t", "x"]


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_random_tables_keep_the_lines_that_a_loop_keeps(tmp_path, seed, more):
    rng = random.Random(seed)
    names, rows = [], []
    for n in range(3):
        own = ["".join(rng.choices(PIECES, k=rng.randrange(1, 12))) for _ in range(40)]
        own.append("x\ty\tz")
        (tmp_path / f"{n}.tsv").write_bytes("\n".join(own).encode())
        rows += own
        names += [f"{n}.tsv:{line}" for line in range(1, 42)]
    intake = Intake("skip")
    table = open_tsv(str(tmp_path), "*.tsv", "a<TAB>b<TAB>c", (0, 2), intake, more=more)
    expected = []
    for name, row in zip(names, rows, strict=True):
        row = row.removesuffix("\r")
        fields = row.split("\t")
        if (len(fields) == 3 or (more and len(fields) > 3)) and not (
            is_blank(fields[0]) or is_blank(fields[2])
        ):
            expected.append((name, row))
    assert [(table.place(i), table.text(i)) for i in range(len(table))] == expected
    assert [raw.decode() for raw in table.raws()] == [row for _, row in expected]
    assert sum(intake.report.skipped.values()) == len(rows) - len(expected) > 0 < len(expected)


def test_a_file_without_any_tab(tmp_path):
    (tmp_path / "x.tsv").write_text("one\n")
    intake = Intake("skip")
    assert len(open_tsv(str(tmp_path), "x.tsv", "a<TAB>b", (0,), intake)) == 0
    assert len(open_tsv(str(tmp_path), "x.tsv", "a", (0,), Intake())) == 1


def test_lines_may_be_blank_unless_a_sentence_is_given(tmp_path):
    (tmp_path / "x.txt").write_text("one\n\nthree")
    assert len(open_lines(str(tmp_path), "x.txt", Intake())) == 3
    assert len(open_lines(str(tmp_path), "x.txt", Intake("skip"), "blank")) == 2


def test_parse_object_gives_what_json_gives(tmp_path):
    value = {"a": "é\u2028", "b": [1, "x", None], "c": {"d": "e"}, "other": 1.5}
    (tmp_path / "x.jsonl").write_text(json.dumps(value, ensure_ascii=False))
    table = open_lines(str(tmp_path), "x.jsonl", Intake())
    assert parse_object(table, 0, {"a": str, "b": list, "c": dict}, ("a",), Intake()) == value


def test_json_kinds_in_words():
    values = [None, True, 1, 1.5, "x", [], {}]
    words = ["null", "true", "a number", "a number", "a string", "a list", "an object"]
    assert [json_kind(value) for value in values] == words


def test_keys_are_equal_for_equal_text_only():
    texts = ["a", "b", "é", "e\u0301", "a ", "A", "你"]
    assert len({text_key(text) for text in texts}) == len(texts)
    assert text_key("".join(["a", "b"])) == hash(b"ab")
