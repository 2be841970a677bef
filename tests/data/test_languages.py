"""Mixing languages: shares of batches, and the language of each question and passage."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from clir_jax.data.bitext import BitextTSV
from clir_jax.data.buckets import count_lengths
from clir_jax.data.languages import InLanguages
from clir_jax.data.pipeline import task_dataset
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.reading import DataError
from clir_jax.data.sources import Mixture, TextLines
from clir_jax.models.requests import EncodePassage, EncodeQuery
from clir_jax.objectives.base import Ask
from tests.data.test_pipeline import Words

QUESTIONS, LANGUAGES, TOLD = 12, ("sw", "en", "hi"), ("en", "es")
ASKS = {
    "q": Ask(EncodeQuery, ("ranking.query",)),
    "p": Ask(EncodePassage, ("ranking.passages",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve questions in three languages, with two passages each in two."""
    folder = tmp_path_factory.mktemp("languages")
    rows = [
        {
            "queries": {x: f"q{i}{x}" for x in LANGUAGES},
            "positives": [f"p{i}en"],
            "negatives": [f"n{i}en", f"m{i}en"],
            "scores": [3, 2, 1],
        }
        for i in range(QUESTIONS)
    ]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for x in TOLD:
        passages = [{"_id": f"{n}{i}", "text": f"{n}{i}{x}"} for i in range(12) for n in "pnm"]
        (folder / f"{x}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    return folder


RANKINGS = RankingJSONL("r.jsonl", "sw")
CORPORA = {x: f"{x}.jsonl" for x in TOLD}


def read(folder, source, steps, batch_size=12):
    """What each row of some steps reads: the question, its passages, and the labels of the row."""
    words = Words()
    sources = {"ranking": source.open(str(folder))}
    batches = task_dataset(
        ASKS, {}, sources, {"student": words}, batch_size=batch_size, seed=0, passages=3
    )
    for step in range(steps):
        batch = batches[step]
        for row in range(batch_size):
            query, passages = (batch["student"][name].tokens.ids[row] for name in ASKS)
            labels = {name: values[row] for name, values in batch["labels"].items()}
            yield words.read(query), [words.read(ids) for ids in passages], labels


def test_batches_hold_languages_in_proportion_also_those_without_bitext(tmp_path):
    for name, count in (("sw", 40), ("so", 9)):
        lines = [f"{i}\t{name}en{i}\t{name}{i}\n" for i in range(count)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    for name, count in (("sw", 30), ("yo", 5)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}text{i}\n" for i in range(count)))
    words = Words()
    bitext = Mixture(tuple(BitextTSV(f"{x}.tsv", x) for x in ("sw", "so")), (3.0, 1.0))
    text = Mixture(tuple(TextLines(f"{x}.txt", x) for x in ("sw", "yo")), (1.0, 1.0))
    batches = task_dataset(
        {"other": Ask(EncodeQuery, ("bitext.other",)), "text": Ask(EncodeQuery, ("text.text",))},
        {},
        {"bitext": bitext.open(str(tmp_path)), "text": text.open(str(tmp_path))},
        {"student": words},
        batch_size=16,
        seed=0,
    )
    for step in range(6):
        read = {
            name: collections.Counter(words.read(ids)[:2] for ids in request.tokens.ids)
            for name, request in batches[step]["student"].items()
        }
        assert abs(read["other"]["so"] - 4) <= 1
        assert read["text"] == {"sw": 8, "yo": 8}, "equal weights take turns"


def test_a_temperature_makes_weights_of_sizes(tmp_path):
    for name, count in (("a", 400), ("b", 25), ("c", 1)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i}\n" for i in range(count)))
    parts = tuple(TextLines(f"{x}.txt", x) for x in "abc")

    def weights(temperature):
        opened = Mixture(parts, temperature=temperature).open(str(tmp_path))
        return np.array(opened.weights) / sum(opened.weights)

    np.testing.assert_allclose(weights(1.0), np.array([400, 25, 1]) / 426)
    np.testing.assert_allclose(weights(2.0), np.array([20, 5, 1]) / 26)
    np.testing.assert_allclose(weights(1e9), np.ones(3) / 3, atol=1e-6)


def test_a_language_by_chance_for_each_record(folder):
    source = InLanguages(RANKINGS, ("sw", "hi"), CORPORA)
    seen = collections.Counter()
    for query, passages, labels in read(folder, source, 60):
        i = int(labels["ranking.query_id"])
        (told,) = {text[-2:] for text in passages}
        assert query in (f"q{i}sw", f"q{i}hi")
        assert passages[0] == f"p{i}{told}"
        assert sorted(text[0] for text in passages) == ["m", "n", "p"]
        # Ids and scores are of the passage, in whatever language it is read.
        known = {"p": 3, "n": 2, "m": 1}
        assert labels["ranking.scores"].tolist() == [known[text[0]] for text in passages]
        assert labels["ranking.passage_ids"].tolist() == [
            3 * i + "pnm".index(text[0]) for text in passages
        ]
        seen[query[-2:], told] += 1
    assert set(seen) == {(q, p) for q in ("sw", "hi") for p in TOLD}
    assert all(130 < count < 230 for count in seen.values())


def test_a_language_by_chance_for_each_passage(folder):
    source = InLanguages(RANKINGS, ("sw",), CORPORA, mix="passage")
    rows = list(read(folder, source, 30))
    assert {query[-2:] for query, _, _ in rows} == {"sw"}
    mixed = sum(len({text[-2:] for text in passages}) == 2 for _, passages, _ in rows)
    assert 0.6 < mixed / len(rows) < 0.9, "three in four lists of three have both"


@pytest.mark.parametrize("languages", [LANGUAGES, ("sw", "en")])
def test_round_robin_reads_every_pair_of_languages_once_an_epoch(folder, languages):
    source = InLanguages(RANKINGS, languages, CORPORA, mix="round_robin")
    turns = 2 * len(languages)
    records = source.open(str(folder))
    assert len(records) == turns * QUESTIONS
    rows = list(read(folder, source, turns))
    found = collections.Counter((query, passages[0]) for query, passages, _ in rows)
    assert found == {
        (f"q{i}{asked}", f"p{i}{told}"): 1
        for i in range(QUESTIONS)
        for asked in languages
        for told in TOLD
    }
    assert {len({text[-2:] for text in passages}) for _, passages, _ in rows} == {1}
    # Without corpora passages stay as they are, and a turn is a language of the question.
    alone = InLanguages(RANKINGS, ("hi", "sw"), mix="round_robin")
    found = collections.Counter((q, passages[0][-2:]) for q, passages, _ in read(folder, alone, 2))
    assert found == {(f"q{i}{x}", "en"): 1 for i in range(QUESTIONS) for x in ("hi", "sw")}


@pytest.mark.parametrize("mix", ["record", "passage", "round_robin"])
def test_passages_are_read_in_every_language_that_is_named(folder, mix):
    words = Words()
    asks = {x: Ask(EncodePassage, (f"ranking.passages.{x}",)) for x in TOLD}
    asks |= {"any": Ask(EncodePassage, ("ranking.passages",))}
    whole = InLanguages(RANKINGS, ("sw",), CORPORA, mix)
    sources = {"ranking": Mixture((whole, whole), (1.0, 1.0)).open(str(folder))}
    tokenizers = {"student": words}
    batch = task_dataset(asks, {}, sources, tokenizers, batch_size=12, seed=0, passages=3)[0]
    told = {
        name: [[words.read(ids) for ids in row] for row in request.tokens.ids]
        for name, request in batch["student"].items()
    }
    drawn = set()
    for english, spanish, either in zip(told["en"], told["es"], told["any"], strict=True):
        names = [text.removesuffix("en") for text in english]
        assert [name[0] for name in names] in (list("pnm"), list("pmn"))
        assert len({name[1:] for name in names}) == 1
        assert spanish == [f"{name}es" for name in names]
        assert [text[:-2] for text in either] == names
        drawn |= {text[-2:] for text in either}
    assert drawn == set(TOLD), "an ask that names no language is as before"


def test_a_mixture_has_passages_in_the_languages_of_all_its_parts(folder):
    part = InLanguages(RANKINGS, (), CORPORA)
    ask = {"p": Ask(EncodePassage, ("ranking.passages.es",))}
    english = dataclasses.replace(part, corpora={"en": "en.jsonl"})
    for other, sentence in (
        (english, 'is not a field of a ranking record; write "passages.en"'),
        (RANKINGS, '"passages.es": the languages of passages are not known; put an InLanguages'),
    ):
        sources = {"ranking": Mixture((part, other)).open(str(folder))}
        with pytest.raises(ValueError, match=sentence):
            task_dataset(ask, {}, sources, {"student": Words()}, batch_size=2, seed=0)


def test_rows_depend_on_the_seed_and_their_number_only(folder):
    source = InLanguages(RANKINGS, (), CORPORA, mix="passage")
    records = source.open(str(folder))
    words = Words()

    def step(number):
        batches = task_dataset(
            ASKS, {}, {"ranking": records}, {"student": words}, batch_size=4, seed=3, passages=3
        )
        return [batches[number]["student"][name].tokens.ids for name in ASKS]

    forward = [step(number) for number in range(4)]
    for number in (3, 1, 0, 2):
        for one, again in zip(forward[number], step(number), strict=True):
            np.testing.assert_array_equal(one, again)


def test_widths_hold_every_language(tmp_path):
    row = {"queries": {"sw": "a", "en": "b"}, "positives": ["one"], "negatives": ["two"]}
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    for name, longer in (("en", ""), ("es", " and three more")):
        texts = [{"_id": text, "text": text + longer} for text in ("one", "two")]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in texts))
    asks = ASKS | {"es": Ask(EncodePassage, ("ranking.passages.es",))}
    for mix in ("record", "round_robin"):
        records = InLanguages(RANKINGS, (), CORPORA, mix).open(str(tmp_path))
        for passages in (1, 2):
            lengths = count_lengths(records, asks, dict.fromkeys(asks, Words()), passages)
            assert lengths.needed[0, lengths.column["es"]] == 5
            if mix == "record":
                assert lengths.needed[0, lengths.column["p"]] == 5


def test_a_mixture_of_rankings_in_languages(folder):
    part = InLanguages(RANKINGS, ("hi",), CORPORA)
    other = InLanguages(RANKINGS, ("en",))
    opened = Mixture((part, other)).open(str(folder))
    assert opened[0].query_id == opened[QUESTIONS].query_id
    assert opened[0].positives[0].id == opened[QUESTIONS].positives[0].id
    assert [opened[n].asked for n in (0, QUESTIONS)] == [("hi",), ("en",)]
    assert opened[0].positives[0].texts == {"en": "p0en", "es": "p0es"}
    assert opened[QUESTIONS].positives[0].texts == {}


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: InLanguages(RANKINGS, mix="batch"),
         "InLanguages.mix is 'batch'; write one of ('record', 'passage', 'round_robin')"),
        (lambda: InLanguages(Mixture((RANKINGS,))),
         "InLanguages.source is a Mixture; put an InLanguages around each of its sources instead"),
        (lambda: InLanguages(RANKINGS, mix="passage"),
         'InLanguages.mix is "passage" and there are no corpora; name the passages of each '
         'language, or write mix="record"'),
        (lambda: InLanguages(RANKINGS, ("sw", "sw")),
         "InLanguages.queries is ('sw', 'sw'); write every language once, and give the sources of "
         "a Mixture weights to read one more often"),
        (lambda: Mixture((RANKINGS,), (1.0,), temperature=2.0),
         "Mixture.temperature is 2.0 and weights is (1.0,); write a positive number without "
         "weights, or None"),
        (lambda: Mixture((RANKINGS,), temperature=0.0),
         "Mixture.temperature is 0.0 and weights is None; write a positive number without "
         "weights, or None"),
    ],
)  # fmt: skip
def test_options_out_of_range(build, sentence):
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == sentence


def test_what_is_missing_is_named(folder):
    (folder / "few.jsonl").write_text('{"_id": "p0", "text": "p0es"}\n')
    (folder / "t.txt").write_text("text\n")
    source = InLanguages(RANKINGS, (), CORPORA)
    changes = [
        ({"queries": ("sw", "so")},
         'InLanguages.queries names "so", in which not every record of the source has its '
         "question; those are sw, en, hi"),
        ({"corpora": {"en": "few.jsonl"}},
         "few.jsonl: 36 of the 36 passages of the source are not in it, word for word; name the "
         'corpus "en" that they were taken from'),
        ({"corpora": {"en": "en.jsonl", "es": "few.jsonl"}},
         "which en.jsonl has and the source reads; translate it (35 are missing)"),
        ({"source": TextLines("t.txt", "en")},
         "InLanguages.source gives Text records; give a source of Ranking records"),
    ]  # fmt: skip
    for change, sentence in changes:
        with pytest.raises(DataError) as error:
            dataclasses.replace(source, **change).open(str(folder))
        assert str(error.value).endswith(sentence)
