"""Plain text, the built-in data and mixtures, against files written by hand."""

import dataclasses
import json

import pytest

from clir_jax.data import demo
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.rankings import RankingJSONL, TriplesTSV
from clir_jax.data.reading import DataError
from clir_jax.data.records import Text
from clir_jax.data.sources import Atlas, CorpusJSONL, Mixture, TextLines


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def everything(records):
    return [records[i] for i in range(len(records))]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
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


def test_a_corpus_without_questions(tmp_path):
    lines = [{"_id": "a", "title": "Sea", "text": "whales"}, {"_id": "b", "text": "goats"}]
    rows = [*lines, {"_id": "c", "title": "", "text": "Sea whales"}]
    write(tmp_path, "c.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    records = CorpusJSONL("c.jsonl").open(str(tmp_path))
    assert everything(records) == [
        Text(0, "Sea whales", "en"),
        Text(1, "goats", "en"),
        Text(0, "Sea whales", "en"),
    ]
    assert list(records.titled()) == [("Sea whales", "Sea"), ("goats", ""), ("Sea whales", "")]
    write(tmp_path, "c.jsonl", json.dumps(lines[0]) + "\n" + json.dumps({"_id": "a", "text": "x"}))
    with pytest.raises(DataError, match=r'c.jsonl:2: the passage id "a" was used before'):
        CorpusJSONL("c.jsonl").open(str(tmp_path))
    assert len(CorpusJSONL("c.jsonl", on_bad_record="skip").open(str(tmp_path))) == 1


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
