"""Bitext, plain text, the built-in data and mixtures, against files written by hand."""

import concurrent.futures
import dataclasses
import glob
import json
import os
import time

import numpy as np
import pytest

from clir_jax.data import demo
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.rankings import RankingJSONL, TriplesTSV
from clir_jax.data.reading import DataError
from clir_jax.data.records import Bitext, Text
from clir_jax.data.sources import Atlas, Mixture, TextLines

REAL = os.path.join(os.path.dirname(__file__), "../../../shared/data/bitext")


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def everything(records):
    return [records[i] for i in range(len(records))]


def test_bitext_reads_what_the_file_says(tmp_path):
    content = '\ufeffa\tGood "morning\tHabari\r\nb\t  two  \t"mbili"\r\n\tthree\ttatu\x85x'
    write(tmp_path, "x.tsv", content)
    records = BitextTSV("x.tsv", "sw").open(str(tmp_path))
    assert everything(records) == [
        Bitext(0, 'Good "morning', "Habari", "sw"),
        Bitext(1, "  two  ", '"mbili"', "sw"),
        Bitext(2, "three", "tatu\x85x", "sw"),
    ]
    assert records[-1] == records[2]
    assert records.report.read == 3
    assert records.kind is Bitext
    assert records.languages == ("sw",)
    with pytest.raises(IndexError):
        records[3]


def test_a_pattern_reads_its_files_in_order(tmp_path):
    write(tmp_path, "sw/b.tsv", "1\tb1\tx\n2\tb2\ty\n")
    write(tmp_path, "sw/a.tsv", "1\ta1\tz")
    records = BitextTSV("sw/*.tsv", "sw").open(str(tmp_path))
    assert [record.english for record in everything(records)] == ["a1", "b1", "b2"]
    assert BitextTSV(str(tmp_path / "sw/*.tsv"), "sw").open("/nowhere")[2].other == "y"


def test_pairs_that_share_a_side_share_an_id(tmp_path):
    pairs = [("a", "x"), ("b", "y"), ("a", "z"), ("c", "z"), ("y", "a"), ("c", "w"), ("B", "Y")]
    write(tmp_path, "x.tsv", "".join(f"{i}\t{e}\t{o}\n" for i, (e, o) in enumerate(pairs)))
    records = BitextTSV("x.tsv", "sw").open(str(tmp_path))
    assert [record.id for record in everything(records)] == [0, 1, 0, 0, 4, 0, 6]
    assert records.ids.dtype == np.int32


FORM = "write id<TAB>English<TAB>other"
BAD_BITEXT = [
    ("1\ta", 2, f"the line has 2 fields, not 3; {FORM}", "wrong number of fields"),
    ("one", 2, f"the line has 1 field, not 3; {FORM}", "wrong number of fields"),
    ("1\ta\tb\tc", 2, f"the line has 4 fields, not 3; {FORM}", "wrong number of fields"),
    ("", 2, f"the line has 1 field, not 3; {FORM}", "wrong number of fields"),
    ("1\t\tb", 2, "the English field is blank; write text or remove the line", "blank text"),
    ("1\ta\t", 2, "the other field is blank; write text or remove the line", "blank text"),
    ("1\t \u3000\tb", 2, "the English field is blank; write text or remove the line", "blank text"),
    ("1\ta\t\u200b\ufeff", 2, "the other field is blank; write text or remove the line",
     "blank text"),
    ("1\ta\tb\0", 2, "the line holds a NUL byte; write the file as UTF-8, not UTF-16 or binary",
     "NUL byte"),
    (b"1\ta\xff\tb", 2, "byte 4 of the line (0xff) is not UTF-8; convert the file to UTF-8",
     "not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("line", "number", "sentence", "reason"), BAD_BITEXT)
def test_a_bad_line_is_an_error_or_is_left_out(tmp_path, line, number, sentence, reason, last, end):
    raw = line if isinstance(line, bytes) else line.encode()
    # An empty last line is no line but the end of the one before; one with a space is a line.
    rows = (
        [b"0\tgood\tnzuri", raw or b" "] if last else [b"0\tgood\tnzuri", raw, b"2\tlast\tmwisho"]
    )
    write(tmp_path, "sw/x.tsv", end.join(rows))
    with pytest.raises(DataError) as error:
        BitextTSV("sw/*.tsv", "sw").open(str(tmp_path))
    assert str(error.value) == f"sw/x.tsv:{number}: {sentence}"
    records = BitextTSV("sw/*.tsv", "sw", on_bad_record="skip").open(str(tmp_path))
    kept = [record.english for record in everything(records)]
    assert kept == (["good"] if last else ["good", "last"])
    assert records.report.skipped == {reason: 1}
    assert records.report.read == len(kept)
    assert records.report.places == [f"sw/x.tsv:{number}: {sentence}"]


def test_only_bad_lines(tmp_path):
    write(tmp_path, "x.tsv", "one\ntwo\n")
    with pytest.raises(DataError) as error:
        BitextTSV("x.tsv", "sw", on_bad_record="skip").open(str(tmp_path))
    assert str(error.value) == (
        "x.tsv: no record is left to read; left out: 2 x wrong number of fields"
    )


def shared_pairs(tmp_path, n=400):
    rng = np.random.default_rng(3)
    rows = [f"{i}\ten{rng.integers(300)}\tsw{rng.integers(900)}\n" for i in range(n)]
    return write(tmp_path, "x.tsv", "".join(rows))


@pytest.mark.parametrize("hold_out", [1, 37, 100])
def test_held_out_pairs_share_no_text_with_training(tmp_path, hold_out):
    path = shared_pairs(tmp_path)
    train = everything(BitextTSV(path, "sw", hold_out).open(str(tmp_path)))
    held_out = everything(BitextTSV(path, "sw", hold_out, "held_out").open(str(tmp_path)))
    assert len(held_out) == hold_out
    assert len(train) == 400 - hold_out
    for side in ("english", "other"):
        assert not {getattr(r, side) for r in train} & {getattr(r, side) for r in held_out}
    both = sorted((r.english, r.other) for r in train + held_out)
    whole = everything(BitextTSV(path, "sw").open(str(tmp_path)))
    assert both == sorted((r.english, r.other) for r in whole)
    assert held_out == everything(
        BitextTSV(path, "sw", hold_out, "held_out").open(str(tmp_path))
    ), "the choice is the same every time"


def test_limit_is_a_nested_choice_that_leaves_held_out_alone(tmp_path):
    path = shared_pairs(tmp_path)

    def pairs(limit, part="train"):
        opened = BitextTSV(path, "sw", 50, part, limit=limit).open(str(tmp_path))
        return [(record.english, record.other) for record in everything(opened)]

    small, large, whole = pairs(20), pairs(100), pairs(None)
    assert (len(small), len(large), len(pairs(10**6))) == (20, 100, 350)
    assert set(small) < set(large) < set(whole)
    assert small != whole[:20]
    assert small == [pair for pair in whole if pair in set(small)]
    assert len(pairs(7, "held_out")) == 7
    report = BitextTSV(path, "sw", 50, limit=20).open(str(tmp_path)).report
    assert report.read == 20
    assert report.skipped == {"set aside by hold_out": 50, "beyond limit": 330}


@pytest.mark.parametrize("hold_out", [3, 4])
def test_what_cannot_be_held_out(tmp_path, hold_out):
    write(tmp_path, "x.tsv", "1\ta\tx\n2\ta\ty\n3\tb\tz\n")
    with pytest.raises(DataError) as error:
        BitextTSV("x.tsv", "sw", hold_out).open(str(tmp_path))
    assert str(error.value) == (
        f"x.tsv: hold_out={hold_out} cannot be set aside from 3 pairs in 2 groups that share no "
        "sentence and leave pairs to train on; hold out fewer"
    )


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: BitextTSV("x", "sw", part="test"), "BitextTSV.part is 'test'; write \"train\""),
        (lambda: BitextTSV("x", "sw", part="held_out"), "BitextTSV.hold_out is 0 for part 'held_"),
        (lambda: BitextTSV("x", "sw", hold_out=-1), "BitextTSV.hold_out is -1 for part 'train'"),
        (lambda: BitextTSV("x", "sw", limit=0), "BitextTSV.limit is 0; write a number of pairs"),
        (lambda: Atlas("bitexts", "sw"), 'Atlas.part is \'bitexts\'; write "bitext", "ranking" or'),
        (lambda: Atlas("bitext", "sw", "dev"), "Atlas.split is 'dev' for part 'bitext'; write"),
        (lambda: Mixture(()), "Mixture.sources is empty; name at least one source"),
        (
            lambda: Mixture((Mixture((Atlas("text", "sw"),)),)),
            "Mixture.sources holds a Mixture; name its sources instead",
        ),
        (
            lambda: Mixture((Atlas("text", "sw"),), (1.0, 2.0)),
            "Mixture.weights is (1.0, 2.0) for 1 sources; write one positive number for each",
        ),
        (
            lambda: Mixture((Atlas("text", "sw"),), (0.0,)),
            "Mixture.weights is (0.0,) for 1 sources; write one positive number for each",
        ),
    ],
)
def test_options_out_of_range(build, sentence):
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value).startswith(sentence)


def test_text_lines(tmp_path):
    write(tmp_path, "x.txt", "\ufeffone\t1\r\ntwo\r\none\t1\r\n")
    records = TextLines("x.txt", "so").open(str(tmp_path))
    assert everything(records) == [
        Text(0, "one\t1", "so"),
        Text(1, "two", "so"),
        Text(0, "one\t1", "so"),
    ]


def test_a_blank_text_line(tmp_path):
    write(tmp_path, "x.txt", "one\n \u00a0\n\nfour\n")
    with pytest.raises(DataError) as error:
        TextLines("x.txt", "so").open(str(tmp_path))
    assert str(error.value) == "x.txt:2: the line is blank; write one text a line"
    records = TextLines("x.txt", "so", on_bad_record="skip").open(str(tmp_path))
    assert [record.text for record in everything(records)] == ["one", "four"]
    assert records.report.skipped == {"blank text": 2}


def test_the_built_in_data():
    bitext = Atlas("bitext", "sw").open("")
    pairs = demo.bitext("sw")
    assert len(bitext) == len(pairs)
    assert (bitext[7].english, bitext[7].other) == (pairs[7].english, pairs[7].other)
    ranking = Atlas("ranking", "sw", "dev").open("")
    question = demo.questions("sw", "dev")[5]
    record = ranking[5]
    assert record.queries == {"sw": question.text, "en": question.english}
    assert next(iter(record.queries)) == "sw"
    assert ranking.languages == ("sw", "en")
    (passage,) = (p for p in demo.passages() if p.id == question.passage_id)
    assert record.positives[0].text == f"{passage.title} {passage.text}"
    assert record.positives[0].id in record.known
    assert record.negatives == ()
    english = Atlas("ranking", "en", "dev").open("")
    assert english.languages == ("en",)
    assert list(english[0].queries) == ["en"]
    assert Atlas("text", "en").open("")[0].text.startswith(demo.passages()[0].title)
    assert Atlas("text", "sw").open("")[7].text == pairs[7].other
    with pytest.raises(ValueError, match="swa"):
        Atlas("text", "swa").open("")


def test_a_mixture_shares_ids_and_adds_reports(tmp_path):
    write(tmp_path, "a.tsv", "1\tone\tmoja\n2\ttwo\tmbili\nbad\n")
    write(tmp_path, "b.tsv", "1\tthree\ttatu\n2\ttwo\tlaba\n")
    parts = (BitextTSV("a.tsv", "sw", on_bad_record="skip"), BitextTSV("b.tsv", "so"))
    for weights in (None, (3.0, 1.0)):
        records = Mixture(parts, weights).open(str(tmp_path))
        assert [(r.id, r.english, r.language) for r in everything(records)] == [
            (0, "one", "sw"),
            (1, "two", "sw"),
            (2, "three", "so"),
            (1, "two", "so"),
        ]
        assert records.report.read == 4
        assert records.languages == ("sw", "so")
        assert records.report.skipped == {"wrong number of fields": 1}


def test_a_mixture_of_rankings_knows_what_any_part_knows(tmp_path):
    write(tmp_path, "a.tsv", "q\tone\tx\n")
    row = {"query": "q", "queries": {"sw": "s"}, "positives": ["two"], "negatives": ["one"]}
    write(tmp_path, "b.jsonl", json.dumps(row))
    records = Mixture((TriplesTSV("a.tsv"), RankingJSONL("b.jsonl"))).open(str(tmp_path))
    assert records[0].known == records[1].known == (0, 2)
    assert records[1].negatives[0].id == 0
    assert records[0].query_id == records[1].query_id == 0
    assert records.languages == ("en",), "the languages every record has"
    assert records.most_known == 2


def test_what_does_not_mix(tmp_path):
    write(tmp_path, "a.tsv", "q\tone\tx\n")
    write(tmp_path, "b.jsonl", json.dumps({"query": "q", "positives": ["p"], "scores": [1]}))
    with pytest.raises(DataError, match="source 2 of the mixture gives Text records and source 1"):
        Mixture((TriplesTSV("a.tsv"), TextLines("a.tsv", "en"))).open(str(tmp_path))
    with pytest.raises(DataError, match="source 2 and source 1 of the mixture differ in whether"):
        Mixture((TriplesTSV("a.tsv"), RankingJSONL("b.jsonl"))).open(str(tmp_path))


def test_sources_are_plain_values():
    mixture = Mixture((Atlas("bitext", "sw"), BitextTSV("x", "so", 5)), (1.0, 2.0))
    again = json.loads(json.dumps(dataclasses.asdict(mixture)))
    rebuilt = Mixture(
        (Atlas(**again["sources"][0]), BitextTSV(**again["sources"][1])), tuple(again["weights"])
    )
    assert rebuilt == mixture


def test_a_large_file_opens_in_seconds_and_reads_from_threads(tmp_path):
    n = 200_000
    write(tmp_path, "x.tsv", "".join(f"{i}\tthe sentence {i}\tsentensi ya {i}\n" for i in range(n)))
    start = time.perf_counter()
    records = BitextTSV("x.tsv", "sw", hold_out=1000).open(str(tmp_path))
    assert time.perf_counter() - start < 20  # about 0.6 s when the machine is idle
    whole = BitextTSV("x.tsv", "sw").open(str(tmp_path))
    assert len(records) == n - 1000
    rows = np.random.default_rng(0).integers(0, n, 2000).tolist()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(whole.__getitem__, rows))
    assert [r.english for r in found] == [f"the sentence {i}" for i in rows]


@pytest.mark.skipif(not os.path.isdir(REAL), reason="no real bitext here")
def test_real_bitext_reads_as_python_reads_it():
    records = BitextTSV("*/*.tsv", "xx").open(REAL)
    expected = []
    for name in sorted(glob.glob(f"{REAL}/*/*.tsv")):
        with open(name, encoding="utf-8", newline="\n") as file:
            expected += [line.rstrip("\n").split("\t")[1:] for line in file]
    assert len(records) == len(expected) > 100_000
    for i in range(0, len(records), 97):
        assert [records[i].english, records[i].other] == expected[i]
