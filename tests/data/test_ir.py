"""Data sets of ``ir_datasets``, in files of the publishers' forms that its own classes read."""

import concurrent.futures
import itertools
import json
import subprocess
import sys
from typing import NamedTuple

import pytest

from clir_jax.data.collections import IRDatasetRetrieval
from clir_jax.data.ir import IRDataset
from clir_jax.data.reading import DataError
from clir_jax.data.records import Passage, Ranking

ADVICE = 'write on_bad_record="skip" to leave it out'
NUMBERS = itertools.count()


class Asked(NamedTuple):
    query_id: str
    title: str
    ht_title: str

    def default_text(self):
        return self.title


class Bare(NamedTuple):
    doc_id: str
    body: str


DOCS = "d1\tfirst\nd2\tsecond\nd3\tthird\nd4\tfirst\n"
QUERIES = "q1\tquestion one\tswali moja\nq2\tquestion two\tswali mbili\nq3\tquestion one\tswali\n"
QRELS = "q1 0 d1 1\nq1 0 d2 0\nq3 0 d3 2\nq3 0 d4 1\n"
PAIRS = "q1\td1\td2\nq2\td3\td1\nq3\td2\td4\n"
SCORED = "q1 Q0 d3 1 9.5 x\nq1 Q0 d1 2 8.5 x\nq1 Q0 d2 3 -1 x\nq3 Q0 d1 1 4 x\n"


def register(folder, **files):
    """Register files by kind, as ``ir_datasets`` does its own; kinds not given are lacking."""
    import ir_datasets
    from ir_datasets import formats

    makers = {
        "docs": lambda place: formats.TsvDocs(place),
        "bare": lambda place: formats.TsvDocs(place, doc_cls=Bare),
        "queries": lambda place: formats.TsvQueries(place, query_cls=Asked),
        "qrels": lambda place: formats.TrecQrels(place, {}),
        "docpairs": lambda place: formats.TsvDocPairs(place),
        "scoreddocs": lambda place: formats.TrecScoredDocs(place),
    }
    name = f"tiny{next(NUMBERS)}/train"
    parts = []
    for kind, content in files.items():
        path = folder / f"{name.replace('/', '-')}.{kind}"
        if content is not None:
            path.write_text(content)
        parts.append(makers[kind](ir_datasets.util.LocalDownload(path)))
    ir_datasets.registry.register(name, ir_datasets.Dataset(*parts))
    return name


def judged(folder, **files):
    return register(folder, **({"docs": DOCS, "queries": QUERIES, "qrels": QRELS} | files))


def everything(records):
    return [records[i] for i in range(len(records))]


def refused(source):
    with pytest.raises(DataError) as error:
        source.open("")
    return str(error.value)


def test_docpairs(tmp_path):
    name = judged(tmp_path, docpairs=PAIRS)
    first, second, third = Passage(0, "first"), Passage(1, "second"), Passage(2, "third")
    expected = [
        Ranking(0, {"en": "question one"}, (first,), (second,), None, (0, 1)),
        Ranking(1, {"en": "question two"}, (third,), (first,), None, (2,)),
        Ranking(0, {"en": "question one"}, (second,), (first,), None, (0, 1)),
    ]
    records = IRDataset(name).open("")
    assert everything(records) == expected
    assert (records.languages, records.scored, records.report.read) == (("en",), False, 3)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(records.__getitem__, [0, 1, 2] * 50)) == expected * 50
    assert len(IRDataset(name, use="docpairs", limit=2).open("")) == 2


def test_judgements_in_two_languages(tmp_path):
    source = IRDataset(judged(tmp_path), "sw", "ht_title", {"en": "title"})
    records = source.open("")
    first, second, third = Passage(0, "first"), Passage(1, "second"), Passage(2, "third")
    assert everything(records) == [
        Ranking(0, {"sw": "swali moja", "en": "question one"}, (first,), (second,), None, (0,)),
        Ranking(1, {"sw": "swali", "en": "question one"}, (third, first), (), None, (0, 2)),
    ]
    assert records.languages == ("sw", "en")
    assert records.report.skipped == {"query without a relevant passage": 1}
    assert IRDataset(judged(tmp_path), limit=1).open("").report.skipped == {
        "beyond limit": 1,
        "query without a relevant passage": 1,
    }


def test_what_was_retrieved(tmp_path):
    name = judged(tmp_path, scoreddocs=SCORED)

    def read(**options):
        records = IRDataset(name, use="scoreddocs", **options).open("")
        texts = [
            tuple([passage.text for passage in side] for side in (r.positives, r.negatives))
            for r in everything(records)
        ]
        return texts, [record.scores for record in everything(records)], records

    texts, scores, _ = read()
    # Of q3, d1 was retrieved and not judged; that its text is d4's is known from the text alone.
    assert texts == [(["first"], ["third", "second"]), (["third", "first"], ["first"])]
    assert scores == [None, None]
    texts, scores, records = read(scores=True)
    assert texts == [(["first"], ["third", "second"])]
    assert scores == [(8.5, 9.5, -1.0)]
    assert records.scored
    assert records.report.skipped == {"query without a relevant passage": 2}


def test_passages_of_another_id(tmp_path):
    queries = judged(tmp_path)
    english = register(tmp_path, bare=DOCS.replace("first", "English"))
    source = IRDataset(queries, corpus=english, passage_field="body")
    assert source.open("")[0].positives[0].text == "English"
    found = IRDatasetRetrieval(queries, "en", corpus=english, passage_field="body").open("")
    assert found.passages == ["English", "second", "third", "English"]


def test_an_evaluation_set(tmp_path):
    name = judged(tmp_path)
    found = IRDatasetRetrieval(name, "sw", "ht_title", name="tiny").open("")
    assert (found.name, found.language) == ("tiny", "sw")
    assert found.passage_ids == ["d1", "d2", "d3", "d4"]
    assert found.passages == ["first", "second", "third", "first"]
    assert (found.query_ids, found.queries) == (["q1", "q3"], ["swali moja", "swali"])
    assert found.qrels == {"q1": {"d1": 1, "d2": 0}, "q3": {"d3": 2, "d4": 1}}
    assert found.report.read == 2
    assert found.report.skipped == {"query without a judged passage": 1}


def test_a_sample_keeps_what_is_judged(tmp_path):
    docs = "".join(f"d{n}\ttext {n}\n" for n in range(1, 40))
    found = IRDatasetRetrieval(judged(tmp_path, docs=docs), "en", sample=10).open("")
    assert len(found.passage_ids) == 10
    assert {"d1", "d2", "d3", "d4"} < set(found.passage_ids)
    assert found.passages == [f"text {passage[1:]}" for passage in found.passage_ids]


def test_the_files_of_beir(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    import ir_datasets
    from ir_datasets.datasets import beir

    corpus = [{"_id": "d1", "title": "One", "text": "x"}, {"_id": "d2", "title": "", "text": "y"}]
    contents = {
        "corpus.jsonl": "".join(json.dumps(row | {"metadata": {}}) + "\n" for row in corpus),
        "queries.jsonl": json.dumps({"_id": "q1", "text": "who?", "metadata": {}}) + "\n",
        "test.tsv": "query-id\tcorpus-id\tscore\nq1\td2\t1\nq1\td1\t1\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    places = [ir_datasets.util.LocalDownload(tmp_path / name) for name in contents]
    name = f"tiny{next(NUMBERS)}/beir"
    parts = (
        beir.BeirDocs("tiny", places[0], beir.BeirTitleDoc),
        beir.BeirQueries("tiny", places[1], ir_datasets.formats.GenericQuery),
        beir.BeirQrels(places[2], {}),
    )
    ir_datasets.registry.register(name, ir_datasets.Dataset(*parts))
    (record,) = everything(IRDataset(name).open(""))
    # A blank title leaves no space before the text, so that equal texts are equal everywhere.
    assert [passage.text for passage in record.positives] == ["y", "One x"]
    assert IRDatasetRetrieval(name, "en").open("").passages == ["One x", "y"]


BAD = [
    ({"qrels": QRELS + "q9 0 d1 1\n"}, "unknown query",
     '{} qrels: there is no query "q9", which is judged; '),
    ({"qrels": QRELS + "q1 0 d9 1\n"}, "unknown passage",
     '{} docs: there is no passage "d9", which {} qrels names; '),
    ({"qrels": QRELS + "q1 0 d1 0\n"}, "judged twice",
     '{} qrels: the passage "d1" is judged 1 and 0 for the query "q1"; '),
    ({"queries": QUERIES + "q4\t \tx\n"}, "blank text",
     '{} queries: the query "q4" has no text, or a blank one; '),
    ({"queries": QUERIES + "q1\tagain\tx\n"}, "duplicate query id",
     '{} queries: the query "q1" comes twice; '),
    ({"docs": DOCS + "d5\t\u200b\n", "qrels": QRELS + "q1 0 d5 1\n"}, "blank text",
     '{} docs: the passage "d5" has no text, or a blank one; '),
    ({"docs": DOCS + "d5\t \n", "qrels": QRELS + "q2 0 d5 1\n"}, "blank text",
     '{} docs: the passage "d5" has no text, or a blank one; '),
]  # fmt: skip


@pytest.mark.parametrize(("files", "reason", "sentence"), BAD)
@pytest.mark.parametrize("kind", ["source", "collection"])
def test_a_bad_record_is_an_error_or_is_left_out(tmp_path, files, reason, sentence, kind):
    def make(name, **options):
        whole = {"language": "sw", "query_field": "title"} | options
        return (IRDataset if kind == "source" else IRDatasetRetrieval)(name, **whole)

    def read(opened):
        return everything(opened) if kind == "source" else (opened.queries, opened.qrels)

    expected = read(make(judged(tmp_path)).open(""))
    name = judged(tmp_path, **files)
    assert refused(make(name)) == sentence.replace("{}", name) + ADVICE
    opened = make(name, on_bad_record="skip").open("")
    assert read(opened) == expected
    assert opened.report.skipped[reason] == 1
    # What judges a blank passage is then left out as well.
    assert opened.report.places[0] == sentence.replace("{}", name) + ADVICE


@pytest.mark.parametrize(
    ("line", "reason", "sentence"),
    [
        ("q9\td1\td2\n", "unknown query", '{} docpairs:4: there is no query "q9"; '),
        ("q1\td1\td9\n", "unknown passage",
         '{} docs: there is no passage "d9", which {} docpairs names; '),
        ("q1\td9\td1\n", "unknown passage",
         '{} docs: there is no passage "d9", which {} docpairs names; '),
    ],
)  # fmt: skip
def test_bad_docpairs(tmp_path, line, reason, sentence):
    expected = everything(IRDataset(judged(tmp_path, docpairs=PAIRS)).open(""))
    name = judged(tmp_path, docpairs=PAIRS + line)
    assert refused(IRDataset(name)) == sentence.replace("{}", name) + ADVICE
    records = IRDataset(name, on_bad_record="skip").open("")
    assert everything(records) == expected
    assert records.report.skipped[reason] == 1


def test_what_an_id_does_not_have(tmp_path):
    import ir_datasets

    whole = judged(tmp_path)
    base = whole.removesuffix("/train")
    ir_datasets.registry.register(base, ir_datasets.Dataset())
    assert refused(IRDataset(base)) == f'"{base}" has no queries in ir_datasets; write "{whole}"'
    assert refused(IRDataset(whole, use="docpairs")) == (
        f'"{whole}" has no docpairs in ir_datasets; write another id'
    )
    assert refused(IRDataset(whole, use="scoreddocs")) == (
        f'"{whole}" has no scoreddocs in ir_datasets; write another id'
    )
    bodiless = register(tmp_path, queries=QUERIES, qrels=QRELS)
    for kind in (IRDataset, IRDatasetRetrieval):
        assert refused(kind(bodiless, language="en")) == (
            f'"{bodiless}" has no docs in ir_datasets; write another id'
        )
    unjudged = register(tmp_path, docs=DOCS, queries=QUERIES)
    assert refused(IRDatasetRetrieval(unjudged, "en")) == (
        f'"{unjudged}" has no qrels in ir_datasets; write another id'
    )


@pytest.mark.parametrize("kind", [IRDataset, IRDatasetRetrieval])
def test_an_id_that_there_is_not(kind):
    assert refused(kind("msmarco-pasage/train", language="en")) == (
        '"msmarco-pasage/train" is not an id of ir_datasets; did you mean "msmarco-passage/train"? '
        "python -m ir_datasets list shows all ids"
    )


def test_fields_that_there_are_not(tmp_path):
    name = judged(tmp_path)
    assert refused(IRDataset(name, query_field="ht_titel")) == (
        f'{name} queries: there is no field "ht_titel"; set query_field to "ht_title" (one of: '
        "query_id, title, ht_title)"
    )
    assert refused(IRDataset(name, translations={"sw": "mt_title"})) == (
        f'{name} queries: there is no field "mt_title"; set translations["sw"] to "ht_title" (one '
        "of: query_id, title, ht_title)"
    )
    bare = register(tmp_path, bare=DOCS, queries=QUERIES, qrels=QRELS)
    assert refused(IRDataset(bare)) == (
        f"{bare} docs: ir_datasets does not say which field is the text; set passage_field to one "
        "of: doc_id, body"
    )


@pytest.mark.parametrize(
    ("kind", "content", "why"),
    [
        ("qrels", "q1 0 d1\n", "RuntimeError: expected 4 columns, got 3"),
        ("queries", "q1\tonly\n", "RuntimeError: expected 3 fields, got 2"),
        ("docs", "d1\ta\tb\n", "RuntimeError: expected 2 fields, got 3"),
        ("qrels", None, "FileNotFoundError: "),
    ],
)
def test_files_that_ir_datasets_cannot_read(tmp_path, kind, content, why):
    name = judged(tmp_path, **{kind: content})
    sentence = refused(IRDataset(name))
    assert sentence.startswith(f"{name}: ir_datasets cannot read its {kind} ({why}")
    assert sentence.endswith("); see to the network, or to the files in $IR_DATASETS_HOME")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: IRDataset("x", use="triples"), "IRDataset.use is 'triples'; write \"docpairs\", "
         '"qrels", "scoreddocs" or "auto"'),
        (lambda: IRDataset("x", scores=True), "IRDataset.scores is True for use 'auto'; write "
         'use="scoreddocs", which has scores'),
        (lambda: IRDataset("x", limit=0), "IRDataset.limit is 0; write a number of records, or "
         "None"),
        (lambda: IRDatasetRetrieval("x", "en", sample=0), "IRDatasetRetrieval.sample is 0; write a "
         "number of passages, or None"),
    ],
)  # fmt: skip
def test_options_out_of_range(build, sentence):
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == sentence


def test_the_package_is_imported_when_it_is_needed():
    code = "import sys, clir_jax.config_parts; sys.exit('ir_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
