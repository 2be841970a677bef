"""Questions for passages: what is written, what is left out, and what a kill does not change."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from clir_jax.config import Generate
from clir_jax.config_files import ConfigError
from clir_jax.data.answers import AnswerWriter
from clir_jax.data.prompts import PromptTokenizer
from clir_jax.data.reading import DataError
from clir_jax.data.sources import TextLines
from clir_jax.models.generator import Beam, Sample
from clir_jax.training import filtering, generating
from clir_jax.training.artifacts import records_source
from clir_jax.training.blocks import RECORDS
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


def _model(config=generators.CONFIG, **spec):
    model = generators._generator(config)
    spec = {"source_length": 30, "languages": LANGUAGES} | spec
    return dataclasses.replace(model, spec=dataclasses.replace(model.spec, **spec))


def _shop(folder, texts, **options):
    (folder / "corpus.txt").write_text("".join(text + "\n" for text in texts))
    return Workshop(folder, (WORK,), options.pop("model", None) or _model(), **options)


def test_every_question_is_the_model_asked_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "_BLOCK", 2)
    monkeypatch.setattr(generating, "_ROWS", 8)
    # As many embeddings as pieces, so that some questions come to an end.
    model = _model(dataclasses.replace(generators.CONFIG, vocab_size=5))
    texts = ["a b", "b b a a b a b a b b a a b a b a b b a a b a b", "b", "a a", "a b", "b a"]
    work = dataclasses.replace(WORK, each=6, decoding=Sample(4.0))
    shop = _shop(tmp_path, texts, model=model, seed=5)
    # A kill between two blocks: the first is not written again.
    with pytest.raises(Killed):
        generate(work, shop.place("asked", kill_at(2)))
    written = tmp_path / "artifacts/asked+written" / RECORDS
    first = [json.loads(line)["questions"] for line in written.read_text().splitlines()]
    generate(work, shop.place("asked"))
    assert shop.progressed[0] == (2, 10)
    generate(work, shop.place("other"))
    for part in ("", "+written"):
        asked, other = (tmp_path / f"artifacts/{name}{part}" for name in ("asked", "other"))
        assert bytes_of(asked) == bytes_of(other) != {}
    # Alone: a row of its own, with the key that its number gives.
    prompts, key, asked = PromptTokenizer(model.tokenizer, model.spec), jax.random.key(5), {}
    alone = jax.jit(
        lambda source, key: nnx.merge(model.graphdef, model.params).generate(
            source, Sample(4.0), key[None]
        )
    )
    for number, text in enumerate(dict.fromkeys(texts)):
        asked[text] = {language: [] for language in LANGUAGES}
        for place, language in enumerate(LANGUAGES):
            source, _ = prompts.sources([text], [language])
            for n in range(6):
                told = alone(source, jax.random.fold_in(key, (number * 2 + place) * 6 + n))
                ids, mask = map(np.asarray, told[:2])
                whole = 1 in ids[0][mask[0]].tolist()  # the end token
                question = model.tokenizer.decode(ids, mask)[0]
                asked[text][language].append(question if whole else None)
    assert first == list(asked.values())[:2]
    expected, kept = [], {language: [] for language in LANGUAGES}
    for text, own in asked.items():  # neither unfinished, nor empty, nor written before
        good = {
            x: [q for q in dict.fromkeys(own[x]) if q and set(q) & set("ab") and q not in kept[x]]
            for x in LANGUAGES
        }
        for sw, en in zip(good["sw"], good["en"], strict=False):
            kept["sw"].append(sw)
            kept["en"].append(en)
            expected.append({"query": sw, "queries": {"en": en}, "positives": [text]})
    assert _lines(tmp_path) == expected
    assert 2 < len(expected) < 6 * len(asked)
    assert any(None in own["sw"] for own in asked.values())
    assert any("1 of them cut to fit the prompt" in line for line in shop.said)


FILTER = {"round_trip": "bm25", "round_trip_depth": 1, "round_trip_languages": ("en",)}


def test_what_is_left_out_is_counted(tmp_path, monkeypatch):
    written = {
        "whales swim": {"sw": ["nyangumi"], "en": ["which whales swim?"]},
        "a long goat": {"sw": ["mbuzi"], "en": ["?!"]},
        "salt and bread": {"sw": ["nyangumi"], "en": ["is salt bread?"]},
        "hills": {"sw": ["vilima"], "en": ["do whales swim?"]},
        "seas": {"sw": ["mbuzi"], "en": ["where are seas?"]},
        "rivers": {"sw": [None], "en": ["where are rivers?"]},
    }
    _scripted(monkeypatch, written)
    shop = _shop(tmp_path, written)
    generate(dataclasses.replace(WORK, **FILTER), shop.place("asked"))
    assert _lines(tmp_path) == [
        {
            "query": "nyangumi",
            "queries": {"en": "which whales swim?"},
            "positives": ["whales swim"],
        },
        # Its question was written before, for a passage that has no record.
        {"query": "mbuzi", "queries": {"en": "where are seas?"}, "positives": ["seas"]},
    ]
    assert shop.said[-2].splitlines() == [
        "artifact asked: 6 passages, 1 of them cut to fit the prompt",
        "sw  6 questions written, 1 unfinished, 1 written before, 2 left over; 0.0% of 5 find "
        "their passage in the first 1 of bm25",
        "en  6 questions written, 1 empty, 1 not found again, 2 left over; 80.0% of 5 find their "
        "passage in the first 1 of bm25",
    ]
    assert shop.said[-1] == "artifact asked: 2 of 6 records are kept"
    path = tmp_path / "artifacts/asked/about.json"
    about = json.loads(path.read_text())
    assert about["facts"]["questions"]["en"] == {
        "written": 6, "empty": 1, "searched": 5, "found": 4, "not found again": 1, "left over": 2
    }  # fmt: skip
    opened = records_source(tmp_path / "artifacts/asked").open("/")
    assert opened.languages == LANGUAGES
    # A kill just before the end: all of it is there, and nothing is written again.
    whole = bytes_of(path.parent)
    path.write_text(json.dumps({key: about[key] for key in ("format", "settings", "inputs")}))
    with monkeypatch.context() as patched:
        patched.setattr(generating, "_write", None)
        generate(dataclasses.replace(WORK, **FILTER), shop.place("asked"))
    assert bytes_of(path.parent) == whole
    assert shop.said[2:] == shop.said[:2]
    with pytest.raises(DataError, match=r"no record is left \(sw  6 questions written, 1 unfin"):
        generate(
            dataclasses.replace(WORK, **FILTER | {"round_trip_languages": None}),
            shop.place("asked"),
        )


@pytest.mark.parametrize("searched", [1, 4096])
def test_a_question_that_is_lost_takes_no_other_with_it(tmp_path, monkeypatch, searched):
    monkeypatch.setattr(filtering, "_SEARCHED", searched)
    written = {
        # The first does not find its passage, and does not keep its question from the second.
        "goats climb": {"sw": ["wapi", "nani"], "en": ["where do whales swim?", "do goats climb?"]},
        "whales swim": {"sw": ["", "lini"], "en": ["where do whales swim?", "when do whales swim"]},
        # Each language loses another question, and a record is left of the two that remain.
        "salt and bread": {"sw": [None, "mkate"], "en": ["is salt bread?", None]},
        # Twice for one passage, and once more for another.
        "lakes rest": {"sw": ["ziwa", "ziwa"], "en": ["do lakes rest?", "which lakes rest?"]},
        "seas rest": {"sw": ["ziwa", "bahari"], "en": ["do seas rest?", "which seas rest?"]},
    }
    _scripted(monkeypatch, written)
    shop = _shop(tmp_path, written)
    generate(dataclasses.replace(WORK, each=2, **FILTER), shop.place("asked"))
    assert [
        (row["query"], row["queries"]["en"], *row["positives"]) for row in _lines(tmp_path)
    ] == [
        ("wapi", "do goats climb?", "goats climb"),
        ("lini", "where do whales swim?", "whales swim"),
        ("mkate", "is salt bread?", "salt and bread"),
        ("ziwa", "do lakes rest?", "lakes rest"),
        ("bahari", "do seas rest?", "seas rest"),
    ]
    counts = json.loads((tmp_path / "artifacts/asked/about.json").read_text())["facts"]["questions"]
    for told in counts.values():
        lost = ("empty", "unfinished", "not found again", "written before", "left over")
        assert told["written"] - sum(told.get(what, 0) for what in lost) == 5
    assert (counts["sw"]["written before"], counts["sw"]["left over"]) == (2, 1)
    assert (counts["en"]["not found again"], counts["en"]["left over"]) == (1, 3)


def test_another_filter_writes_no_question_again(tmp_path, monkeypatch):
    written = {"whales swim": {"sw": ["nani"], "en": ["who?"]}}
    _scripted(monkeypatch, written)
    shop, work = _shop(tmp_path, written), dataclasses.replace(WORK, **FILTER)
    with pytest.raises(DataError, match="no record is left"):
        generate(work, shop.place("asked"))
    with monkeypatch.context() as patched:
        patched.setattr(generating, "_write", None)
        generate(dataclasses.replace(work, round_trip_languages=()), shop.place("asked"))
        assert len(_lines(tmp_path)) == 1
        whole = bytes_of(tmp_path / "artifacts/asked")
        generate(dataclasses.replace(WORK), shop.place("asked"))
    again = [line for line in shop.said if "built again" in line]
    assert again == [
        'artifact asked is built again: its round_trip_languages changed from ["en"] to []',
        'artifact asked is built again: its round_trip changed from "bm25" to null; lines removed: '
        "1",
    ]
    assert whole["records.jsonl"] == bytes_of(tmp_path / "artifacts/asked")["records.jsonl"]
    # What was written is not what another seed writes.
    shop.seed = 1
    generate(dataclasses.replace(WORK), shop.place("asked"))
    assert shop.said[-4:-2] == [
        "artifact asked-written is built again: its seed changed; lines removed: 1",
        "artifact asked is built again: its seed changed; lines removed: 1",
    ]


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
        load_model=lambda name, _: model if name == "other" else _model(),
    )
    generate(work, place)
    assert [row["query"] for row in _lines(tmp_path)] == [asked[n] for n in kept]
    assert (
        "sw  2 questions written, 1 not found again; 50.0% of 2 find their passage" in shop.said[0]
    )


def test_another_filter_encodes_no_passage_again(tmp_path, monkeypatch):
    model, texts = retriever(), ["lake.", "mover una.", "tuke lana river."]
    # Every passage is asked what finds the next one first.
    asked = texts[1:] + texts[:1]
    assert not (scores_by_hand(model, asked, texts).argmax(axis=1) == np.arange(3)).any()
    _scripted(monkeypatch, {a: {"sw": [q], "en": [q]} for a, q in zip(texts, asked, strict=True)})
    shop = _shop(tmp_path, texts)
    monkeypatch.chdir(tmp_path)

    def place(name):
        loaded = {"model": _model(), "other": model}
        return dataclasses.replace(shop.place(name), load_model=lambda name, _: loaded[name])

    encoded, append = [], AnswerWriter.append

    def note(writer, own, answers):
        encoded.extend(own)
        append(writer, own, answers)

    monkeypatch.setattr(AnswerWriter, "append", note)
    work = dataclasses.replace(WORK, round_trip="other", round_trip_depth=1)
    with pytest.raises(DataError, match="no record is left"):
        generate(work, place("asked"))
    assert sorted(encoded) == sorted(texts)
    work = dataclasses.replace(work, round_trip_depth=3)
    generate(work, dataclasses.replace(place("asked"), run=None))  # a command may do it too
    assert len(encoded) == 3
    assert not list(tmp_path.glob("artifacts/*encoded*"))
    generate(work, place("other"))
    folders = [tmp_path / "artifacts" / name for name in ("asked", "other")]
    assert bytes_of(folders[0]) == bytes_of(folders[1])
    assert len(encoded) == 6


def test_a_language_it_was_not_trained_for_is_told_by_every_work(tmp_path):
    model = _model(dataclasses.replace(generators.CONFIG, vocab_size=5), languages=("sw",))
    shop = _shop(tmp_path, ["a b", "b a", "a a b"], model=model)
    for name in ("asked", "other"):
        work = dataclasses.replace(WORK, name=name, languages=("so", "sw", "ha"), each=4)
        shop.works = (work,)
        generate(work, shop.place(name))
    sentence = (
        "the generator was trained for sw, not for so (Somali), ha (Hausa); do not rely on what it "
        "writes or scores there"
    )
    told = [line for line in shop.said if "trained" in line]
    assert told == [f"artifact asked: {sentence}", f"artifact other: {sentence}"]


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
        ({"round_trip_depth": 5}, "round_trip_depth is 5, and nothing is searched; name a ret"),
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
