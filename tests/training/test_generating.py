"""Questions for passages: what is written, what is left out, and what a kill does not change."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from clir_jax.config import Generate
from clir_jax.config_files import ConfigError
from clir_jax.data.prompts import PromptTokenizer
from clir_jax.data.reading import DataError
from clir_jax.data.sources import TextLines
from clir_jax.models.generator import Beam, Greedy, Sample
from clir_jax.training import generating
from clir_jax.training.artifacts import RECORDS, records_source
from clir_jax.training.generating import generate
from tests.models import test_generator_files as generators
from tests.training.workshop import Killed, Workshop, bytes_of, kill_at, retriever, scores_by_hand

LANGUAGES = ("sw", "en")
CORPUS = TextLines("corpus.txt", "en")
WORK = Generate("asked", "model", CORPUS, LANGUAGES)


def _lines(folder, name="asked"):
    text = (folder / "artifacts" / name / RECORDS).read_text()
    return [json.loads(line) for line in text.splitlines()]


def _scripted(monkeypatch, written):
    """Let the generator write what a test says, in the place of a model."""

    class Writer:
        def __init__(self, *_):
            pass

        def questions(self, numbers, passages):
            return [written[text] for text in passages], [int("long" in p) for p in passages]

    monkeypatch.setattr(generating, "_Writer", Writer)


def _shop(folder, texts, **options):
    (folder / "corpus.txt").write_text("".join(text + "\n" for text in texts))
    model = options.pop("model", None) or generators._generator()
    return Workshop(folder, (WORK,), model, **options)


def test_every_question_is_the_model_asked_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "_BLOCK", 2)
    monkeypatch.setattr(generating, "_ROWS", 8)
    model = generators._generator()
    spec = dataclasses.replace(model.spec, source_length=30, languages=LANGUAGES)
    model = dataclasses.replace(model, spec=spec)
    texts = ["a b", "b b a a b a b a b b a a b a b a b b a a b a b", "b", "a a", "a b", "b a"]
    work = dataclasses.replace(WORK, each=2, decoding=Sample(4.0, top_k=16))
    shop = _shop(tmp_path, texts, model=model, seed=5)
    # A kill between two blocks: the first is not written again.
    with pytest.raises(Killed):
        generate(work, shop.place("asked", kill_at(2)))
    unfinished = tmp_path / "artifacts/asked/unfinished" / RECORDS
    first = [json.loads(line)["questions"] for line in unfinished.read_text().splitlines()]
    generate(work, shop.place("asked"))
    assert shop.progressed[0] == (2, 10)
    generate(work, shop.place("other"))
    assert bytes_of(tmp_path / "artifacts/asked") == bytes_of(tmp_path / "artifacts/other")
    # Alone: a row of its own, with the key that its number gives.
    prompts, key, written, seen = PromptTokenizer(model.tokenizer, spec), jax.random.key(5), [], {}
    alone = jax.jit(
        lambda source, key: nnx.merge(model.graphdef, model.params).generate(
            source, Sample(4.0, top_k=16), key[None]
        )
    )
    for number, text in enumerate(dict.fromkeys(texts)):
        for n in range(2):
            asked = {}
            for place, language in enumerate(LANGUAGES):
                source, _ = prompts.sources([text], [language])
                told = alone(source, jax.random.fold_in(key, (number * 2 + place) * 2 + n))
                asked[language] = model.tokenizer.decode(*map(np.asarray, told[:2]))[0]
            written.append((text, asked))
    assert len(first) == 2
    assert [{x: own[x][n] for x in LANGUAGES} for own in first for n in range(2)] == [
        asked for _, asked in written[:4]
    ]
    expected = []
    for text, asked in written:  # neither empty nor written before
        fit = all(asked.values()) and not any(asked[x] in seen.get(x, ()) for x in asked)
        for language, question in asked.items():
            seen.setdefault(language, set()).add(question)
        expected += [(text, asked)] if fit else []
    found = [
        (row["positives"][0], {"sw": row["query"], **row["queries"]}) for row in _lines(tmp_path)
    ]
    assert found == expected
    assert 0 < len(found) < len(written)
    assert any("1 of them cut to fit the prompt" in line for line in shop.said)


def test_what_is_left_out_is_counted(tmp_path, monkeypatch):
    written = {
        "whales swim": {"sw": ["nyangumi"], "en": ["which whales swim?"]},
        "a long goat": {"sw": ["mbuzi"], "en": ["?!"]},
        "salt and bread": {"sw": ["nyangumi"], "en": ["is salt bread?"]},
        "hills": {"sw": ["vilima"], "en": ["do whales swim?"]},
        "seas": {"sw": ["mbuzi"], "en": ["where are seas?"]},
    }
    _scripted(monkeypatch, written)
    shop = _shop(tmp_path, written)
    options = {"round_trip": "bm25", "round_trip_depth": 1, "round_trip_languages": ("en",)}
    generate(dataclasses.replace(WORK, **options), shop.place("asked"))
    assert _lines(tmp_path) == [
        {
            "query": "nyangumi",
            "queries": {"en": "which whales swim?"},
            "positives": ["whales swim"],
        },
        # Its question was written before, in a record that is not kept.
        {"query": "mbuzi", "queries": {"en": "where are seas?"}, "positives": ["seas"]},
    ]
    assert shop.said[-2].splitlines() == [
        "artifact asked: 5 passages, 1 of them cut to fit the prompt",
        "sw  5 questions written, 1 written before; 0.0% of 3 find their passage in the first 1 of "
        "bm25",
        "en  5 questions written, 1 empty; 66.7% of 3 find their passage in the first 1 of bm25",
    ]
    assert shop.said[-1] == "artifact asked: 2 of 5 records are kept"
    path = tmp_path / "artifacts/asked/about.json"
    about = json.loads(path.read_text())
    assert about["facts"]["questions"]["en"] == {
        "written": 5, "empty": 1, "searched": 3, "found": 2, "not found again": 1
    }  # fmt: skip
    opened = records_source(tmp_path / "artifacts/asked").open("/")
    assert opened.languages == LANGUAGES
    # A kill just before the end: all of it is there, and nothing is written again.
    whole = bytes_of(path.parent)
    path.write_text(json.dumps({key: about[key] for key in ("format", "settings", "inputs")}))
    with monkeypatch.context() as patched:
        patched.setattr(generating, "_write", None)
        generate(dataclasses.replace(WORK, **options), shop.place("asked"))
    assert bytes_of(path.parent) == whole
    assert shop.said[2:] == shop.said[:2]
    # Only measured.
    options["round_trip_languages"] = ()
    generate(dataclasses.replace(WORK, **options), shop.place("asked"))
    assert len(_lines(tmp_path)) == 3
    with pytest.raises(DataError, match=r"no record is left \(sw  5 questions written, 1 written"):
        generate(
            dataclasses.replace(WORK, **{**options, "round_trip_languages": None}),
            shop.place("asked"),
        )


def test_a_sample_and_a_retriever_for_the_round_trip(tmp_path, monkeypatch):
    model = retriever()
    texts = ["lake.", "mover una.", "tuke lana river."]
    # All three passages are searched, though questions are written for two.
    chosen = np.sort(np.random.default_rng(0).permutation(3)[:2])
    asked = ["lake.", "mover una.", "tuke"]
    first = scores_by_hand(model, asked, texts).argmax(axis=1)
    kept = [n for n in chosen if first[n] == n]
    assert len(kept) == 1
    written = {text: {"sw": [asked[n]], "en": [str(n)]} for n, text in enumerate(texts)}
    _scripted(monkeypatch, written)
    shop = _shop(tmp_path, texts)
    work = dataclasses.replace(
        WORK, sample=2, round_trip="other", round_trip_depth=1, round_trip_languages=("sw",)
    )
    place = dataclasses.replace(
        shop.place("asked"),
        load_model=lambda name, _: model if name == "other" else generators._generator(),
    )
    generate(work, place)
    assert [row["query"] for row in _lines(tmp_path)] == [asked[n] for n in kept]
    assert "sw  2 questions written; 50.0% of 2 find their passage" in shop.said[0]


def test_a_language_it_was_not_trained_for_is_named(tmp_path):
    spec = dataclasses.replace(
        generators.SPEC, source_length=30, languages=("sw",), prompt="a {passage}"
    )
    model = dataclasses.replace(generators._generator(), spec=spec)
    shop = _shop(tmp_path, ["a b"], model=model)
    work = dataclasses.replace(WORK, languages=("so",), decoding=Greedy())
    with pytest.warns(UserWarning, match=r"trained to write in sw, not in so \(Somali\)"):
        generating._Writer(work, model, 0, shop.place("asked").mesh)._prompts.sources(["a"], ["so"])


def test_a_model_that_writes_nothing(tmp_path):
    shop = _shop(tmp_path, ["a"], model=retriever())
    with pytest.raises(ConfigError, match="'model' is a retriever, which writes no questions"):
        generate(WORK, shop.place("asked"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"languages": ()}, "languages is (); it must be at least one language"),
        ({"languages": ("sw", "sw")}, "it must be different languages"),
        ({"each": 0}, "each is 0; it must be at least 1"),
        ({"sample": 0}, "sample is 0; it must be at least 1"),
        ({"each": 2, "decoding": Beam()}, "Beam writes the same question every time; set"),
        ({"round_trip_languages": ()}, "nothing is searched; name a retriever as round_trip"),
        (
            {"round_trip": "bm25", "round_trip_languages": ("so",)},
            "has 'so', and questions are written in en, sw; write some of these",
        ),
    ],
)
def test_options_that_do_not_fit(options, sentence):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(WORK, **options)
    assert sentence in str(error.value)
