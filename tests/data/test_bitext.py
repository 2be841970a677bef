"""Bitext, against files written by hand."""

import concurrent.futures
import glob
import gzip
import os
import time

import numpy as np
import pytest

from clir_jax.data.bitext import BitextMoses, BitextTSV
from clir_jax.data.reading import DataError
from clir_jax.data.records import Bitext

REAL = os.path.join(os.path.dirname(__file__), "../../../shared/data/bitext")


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
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


def moses(tmp_path, english, other, **options):
    write(tmp_path, "OPUS.en-sw.en", english)
    write(tmp_path, "OPUS.en-sw.sw", other)
    source = BitextMoses("OPUS.en-sw.en", "OPUS.en-sw.sw", "sw", **options)
    return source.open(str(tmp_path))


def test_aligned_files(tmp_path):
    records = moses(tmp_path, '\ufeffGood\t"morning\r\ntwo\r\ntwo', "Habari\nmbili\nmbili mbili\n")
    assert everything(records) == [
        Bitext(0, 'Good\t"morning', "Habari", "sw"),
        Bitext(1, "two", "mbili", "sw"),
        Bitext(1, "two", "mbili mbili", "sw"),
    ]
    assert (records.languages, records.report.read) == (("sw",), 3)
    assert BitextMoses("x.en", "x.sw", "sw").files() == ("x.en", "x.sw")


def test_patterns_pair_corpora_by_name(tmp_path):
    for corpus in "ba":
        write(tmp_path, f"{corpus}/{corpus}.en-sw.en.gz", f"{corpus}1\n{corpus}2\n")
        write(tmp_path, f"{corpus}/{corpus}.en-sw.sw", f"{corpus}3\n{corpus}4\n")
    source = BitextMoses("*/*.en.gz", "*/*.sw", "sw")
    pairs = [(r.english, r.other) for r in everything(source.open(str(tmp_path)))]
    assert pairs == [("a1", "a3"), ("a2", "a4"), ("b1", "b3"), ("b2", "b4")]
    write(tmp_path, "c/c.en-sw.sw", "c3")
    with pytest.raises(DataError) as error:
        source.open(str(tmp_path))
    assert str(error.value) == (
        "*/*.en.gz names 2 files and */*.sw 3; name a file of each language for every corpus"
    )
    write(tmp_path, "c/d.en-sw.en.gz", "d1")
    with pytest.raises(DataError) as error:
        source.open(str(tmp_path))
    assert str(error.value) == (
        "c/d.en-sw.en.gz and c/c.en-sw.sw are paired by their order, but not by their names; give "
        "them equal names but for the last ending, or a source each in a Mixture"
    )


@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
def test_aligned_files_have_equally_many_lines(tmp_path, on_bad_record):
    with pytest.raises(DataError) as error:
        moses(tmp_path, "one\ntwo\n\n", "moja\nmbili\n", on_bad_record=on_bad_record)
    assert str(error.value) == (
        "OPUS.en-sw.en has 3 lines and OPUS.en-sw.sw has 2; line i of one must translate line i of "
        "the other"
    )


BLANK = "the line is blank; write text, or remove it from both files"


@pytest.mark.parametrize(
    ("english", "other", "place", "reason"),
    [
        ("", "b", f"OPUS.en-sw.en:2: {BLANK}", "blank text"),
        ("a", " \u200b", f"OPUS.en-sw.sw:2: {BLANK}", "blank text"),
        ("\u3000", "", f"OPUS.en-sw.en:2: {BLANK}", "blank text"),
        (b"a\xff", "b", "OPUS.en-sw.en:2: byte 2 of the line (0xff) is not UTF-8; convert the file "
         "to UTF-8", "not UTF-8"),
        (b"\xff", "", "OPUS.en-sw.en:2: byte 1 of the line (0xff) is not UTF-8; convert the file "
         "to UTF-8", "not UTF-8"),
        ("a", "b\0", "OPUS.en-sw.sw:2: the line holds a NUL byte; write the file as UTF-8, not "
         "UTF-16 or binary", "NUL byte"),
    ],
)  # fmt: skip
def test_a_bad_line_takes_its_pair_along(tmp_path, english, other, place, reason):
    english = english if isinstance(english, bytes) else english.encode()
    contents = b"one\n" + english + b"\nthree", f"moja\n{other}\ntatu\n"
    with pytest.raises(DataError) as error:
        moses(tmp_path, *contents)
    assert str(error.value) == place
    records = moses(tmp_path, *contents, on_bad_record="skip")
    pairs = [(record.english, record.other) for record in everything(records)]
    assert pairs == [("one", "moja"), ("three", "tatu")]
    assert records.report.skipped == {reason: 1}
    assert records.report.places == [place]


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_both_forms_set_the_same_pairs_aside(tmp_path, part):
    path = shared_pairs(tmp_path)
    rows = [line.split("\t") for line in (tmp_path / path).read_text().splitlines()]
    options = {"hold_out": 37, "part": part, "limit": 30}
    aligned = moses(tmp_path, *("".join(f"{row[n]}\n" for row in rows) for n in (1, 2)), **options)
    assert everything(aligned) == everything(BitextTSV(path, "sw", **options).open(str(tmp_path)))
    assert len(aligned) == 30


@pytest.mark.parametrize(
    "source", [BitextTSV, lambda *xs, **options: BitextMoses("y", *xs, **options)]
)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"part": "test"}, '.part is \'test\'; write "train" or "held_out"'),
        (
            {"part": "held_out"},
            ".hold_out is 0 for part 'held_out'; write how many pairs to set aside",
        ),
        ({"hold_out": -1}, ".hold_out is -1 for part 'train'; write how many pairs to set aside"),
        ({"limit": 0}, ".limit is 0; write a number of pairs, or None"),
    ],
)
def test_options_out_of_range(source, options, sentence):
    with pytest.raises(ValueError) as error:
        source("x", "sw", **options)
    kind = "BitextTSV" if source is BitextTSV else "BitextMoses"
    assert str(error.value) == kind + sentence
