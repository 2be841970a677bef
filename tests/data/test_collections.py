"""Evaluation sets, against files written by hand."""

import gzip
import json
import os

import pytest

from clir_jax.data import demo
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import AtlasRetrieval, BitextRetrieval, Retrieval
from clir_jax.data.reading import DataError

REAL = os.path.join(os.path.dirname(__file__), "../../../shared/data")


@pytest.fixture
def folder(tmp_path):
    corpus = [{"_id": f"d{i}", "title": f"t{i}", "text": f"x{i}"} for i in range(50)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (tmp_path / "q.tsv").write_text("q1\ta\tA\nq2\tb\tB\nq3\tc\tC\n")
    (tmp_path / "r.trec").write_text("q3 0 d7 1\nq1 0 d40 2\nq1 0 d3 0\n")
    return tmp_path


RETRIEVAL = Retrieval("c.jsonl", "q.tsv", "r.trec", "sw", name="small")


def test_retrieval(folder):
    found = RETRIEVAL.open(str(folder))
    assert (found.name, found.language) == ("small", "sw")
    assert found.passage_ids == [f"d{i}" for i in range(50)]
    assert found.passages == [f"t{i} x{i}" for i in range(50)]
    assert (found.query_ids, found.queries) == (["q1", "q3"], ["a", "c"])
    assert found.qrels == {"q1": {"d40": 2, "d3": 0}, "q3": {"d7": 1}}
    assert found.report.read == 2
    assert found.report.skipped == {"query without a judged passage": 1}


def test_another_column(folder):
    found = Retrieval("c.jsonl", "q.tsv", "r.trec", "en", query_column=2).open(str(folder))
    assert found.queries == ["A", "C"]


@pytest.mark.parametrize("sample", [1, 3, 4, 20, 49, 50, 1000])
def test_a_sample_keeps_what_is_judged(folder, sample):
    retrieval = Retrieval("c.jsonl", "q.tsv", "r.trec", "sw", sample=sample)
    found = retrieval.open(str(folder))
    assert len(found.passage_ids) == len(found.passages) == min(50, max(3, sample))
    assert {"d3", "d7", "d40"} <= set(found.passage_ids)
    order = [int(passage[1:]) for passage in found.passage_ids]
    assert order == sorted(order)
    assert found.passages[0] == f"t{order[0]} x{order[0]}"
    assert retrieval.open(str(folder)).passage_ids == found.passage_ids


@pytest.fixture
def pooled(folder):
    """The corpus in two other languages, one of which has a passage more."""
    for language, count in (("de", 50), ("sw", 51)):
        rows = [{"_id": f"d{i}", "text": f"{language}{i}"} for i in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"c.{language}.jsonl").write_text(text)
    return folder


def pool(**options):
    translations = {"de": "c.de.jsonl", "sw": "c.sw.jsonl"}
    own = {"language": "sw", "translations": translations} | options
    return Retrieval("c.jsonl", "q.tsv", "r.trec", **own)


@pytest.mark.parametrize(
    ("options", "first", "third"),
    [
        ({}, {"d40", "de:d40", "sw:d40"}, {"d7", "de:d7", "sw:d7"}),
        ({"relevant": "own"}, {"sw:d40"}, {"sw:d7"}),
        ({"relevant": "own", "language": "en"}, {"d40"}, {"d7"}),
        ({"relevant": "language"}, *[{f"sw:d{i}" for i in range(51)}] * 2),
        ({"relevant": "language", "language": "en"}, *[{f"d{i}" for i in range(50)}] * 2),
    ],
)
def test_a_pool_of_languages_and_what_counts_in_it(pooled, options, first, third):
    retrieval = pool(**options)
    found = retrieval.open(str(pooled))
    text = dict(zip(found.passage_ids, found.passages, strict=True))
    assert len(text) == 50 + 50 + 51
    assert (text["d8"], text["de:d8"], text["sw:d50"]) == ("t8 x8", "de8", "sw50")
    assert found.query_ids == ["q1", "q3"]
    assert {name for name, gain in found.qrels["q1"].items() if gain} == first
    assert {name for name, gain in found.qrels["q3"].items() if gain} == third
    assert retrieval.files() == ("c.jsonl", "q.tsv", "r.trec", "c.de.jsonl", "c.sw.jsonl")


def test_a_sample_of_a_pool_has_what_is_judged_in_every_language(pooled):
    found = pool(sample=20, relevant="language").open(str(pooled))
    judged = {f"{x}d{n}" for x in ("", "de:", "sw:") for n in (3, 7, 40)}
    assert len(found.passage_ids) == 20
    assert judged <= set(found.passage_ids)
    own = {name for name in found.passage_ids if name.startswith("sw:")}
    assert set(found.qrels["q1"]) == set(found.qrels["q3"]) == own


@pytest.mark.parametrize(
    ("file", "row", "sentence"),
    [
        (
            "c.de.jsonl",
            {"_id": "d0", "text": "x"},
            'c.de.jsonl: there is no passage "d7", which is judged; translate it',
        ),
        (
            "c.jsonl",
            {"_id": "de:d9", "text": "x"},
            'c.de.jsonl: the passage "d9" would be "de:d9", which c.jsonl has; rename it there',
        ),
    ],
)
def test_a_pool_that_does_not_fit_together(pooled, file, row, sentence):
    with open(pooled / file, "w" if file == "c.de.jsonl" else "a") as written:
        written.write(json.dumps(row) + "\n")
    with pytest.raises(DataError) as error:
        pool().open(str(pooled))
    assert str(error.value) == sentence
    assert pool(on_bad_record="skip").open(str(pooled)).report.skipped.keys() & {
        "passage without a translation",
        "duplicate passage id",
    }


def test_samples_differ_from_the_first_lines(folder):
    found = Retrieval("c.jsonl", "q.tsv", "r.trec", "sw", sample=20).open(str(folder))
    assert {int(passage[1:]) for passage in found.passage_ids} & set(range(25, 50)) - {40}


def test_compressed_files(folder):
    for name in ("c.jsonl", "q.jsonl", "r.trec"):
        if name == "q.jsonl":
            rows = ({"_id": f"q{n}", "text": text} for n, text in enumerate("abc", 1))
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        else:
            content = (folder / name).read_bytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    found = Retrieval("c.jsonl.gz", "q.jsonl.gz", "r.trec.gz", "sw", name="small").open(str(folder))
    assert found == RETRIEVAL.open(str(folder))


def test_an_unknown_id(folder):
    with open(folder / "r.trec", "a") as file:
        file.write("q2 0 e1 1\n")
    with pytest.raises(DataError) as error:
        RETRIEVAL.open(str(folder))
    assert str(error.value) == ('r.trec:4: the passage "e1" is not in the corpus; correct the id')
    skipping = Retrieval("c.jsonl", "q.tsv", "r.trec", "sw", on_bad_record="skip")
    assert skipping.open(str(folder)).report.skipped == {
        "unknown passage": 1,
        "query without a judged passage": 1,
    }


def test_the_built_in_data():
    found = AtlasRetrieval("sw", "dev").open("")
    questions = demo.questions("sw", "dev")
    assert found.queries == [question.text for question in questions]
    assert len(found.passages) == len(set(found.passage_ids)) == len(demo.passages())
    assert all(set(judged) <= set(found.passage_ids) for judged in found.qrels.values())
    assert found.qrels[questions[3].id] == {questions[3].passage_id: 1}


def test_held_out_bitext(tmp_path):
    pairs = [(f"e{i}", f"o{i}") for i in range(20)] + [("e0", "o20"), ("e21", "o1")]
    rows = (f"{i}\t{english}\t{other}\n" for i, (english, other) in enumerate(pairs))
    (tmp_path / "b.tsv").write_text("".join(rows))
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps({"_id": x, "text": x}) + "\n" for x in ("e0", "e1", "far", "e5"))
    )
    found = BitextRetrieval("b.tsv", "sw", 21, distractors="c.jsonl").open(str(tmp_path))
    held_out = BitextTSV("b.tsv", "sw", 21, "held_out").open(str(tmp_path))
    expected = {}
    for i in range(len(held_out)):
        expected.setdefault(held_out[i].other, set()).add(held_out[i].english)
    text = dict(zip(found.passage_ids, found.passages, strict=True))
    names = dict(zip(found.query_ids, found.queries, strict=True))
    relevant = {names[q]: {text[p] for p in judged} for q, judged in found.qrels.items()}
    assert relevant == expected
    assert len(set(found.passages)) == len(found.passages)
    assert set(found.passages) == {r for rs in expected.values() for r in rs} | {
        "e0", "e1", "far", "e5",
    }  # fmt: skip
    assert text["distractor-far"] == "far"
    assert found.report.read == len(expected)
    assert found.report.skipped == {"not set aside by hold_out": 1}
    assert {"e0", "o20", "e21"} & set(found.passages + found.queries)
    for n, name in enumerate(("b.en", "b.sw")):
        (tmp_path / name).write_text("".join(f"{pair[n]}\n" for pair in pairs))
    aligned = BitextRetrieval("b.sw", "sw", 21, distractors="c.jsonl", english="b.en")
    assert aligned.open(str(tmp_path)) == found
    assert aligned.files() == ("b.en", "b.sw", "c.jsonl")


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Retrieval("c", "q", "r", "sw", sample=0), "Retrieval.sample is 0; write a number"),
        (lambda: BitextRetrieval("b", "sw", 0), "BitextRetrieval.hold_out is 0; write how many"),
        (lambda: pool(relevant="all"), "Retrieval.relevant is 'all'; write one of"),
        (
            lambda: Retrieval("c", "q", "r", "sw", relevant="own"),
            "Retrieval.relevant is 'own' and there are no translations to choose from; name some",
        ),
    ],
)
def test_options_out_of_range(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.skipif(not os.path.isdir(REAL), reason="no real collection here")
def test_real_collections():
    found = Retrieval(
        "retrieval/corpus.en.jsonl",
        "retrieval/afriqa/dev/queries.zul-en.tsv",
        "retrieval/afriqa/dev/qrels.zul-en.trec",
        "zu",
        sample=1000,
    ).open(REAL)
    assert len(found.passages) == 1000
    assert len(found.queries) > 200
    assert all(set(judged) <= set(found.passage_ids) for judged in found.qrels.values())
