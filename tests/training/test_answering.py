"""Stored answers of a teacher, against asking it about one text at a time."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from clir_jax.config import EncodeTeacher, Task
from clir_jax.config_files import ConfigError
from clir_jax.data.answers import Answers
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.sources import Mixture
from clir_jax.mesh import make_mesh
from clir_jax.models.requests import EncodePassage, EncodeQuery, Relevance
from clir_jax.models.retriever import Dense
from clir_jax.objectives.base import Ask
from clir_jax.training import answering
from clir_jax.training.answering import encode_teacher
from tests.training.workshop import (
    LATE,
    RANKINGS,
    Killed,
    Workshop,
    by_hand,
    bytes_of,
    kill_at,
    retriever,
    write_data,
)

WORK = EncodeTeacher("stored", "train", "task")
ASKS = {
    "query": Ask(EncodeQuery, ("ranking.query",)),
    "english": Ask(EncodeQuery, ("ranking.query.en",), content=True),
    "passages": Ask(EncodePassage, ("ranking.passages",), length=20),
    "other": Ask(EncodePassage, ("ranking.passages",), model="nobody"),
    "pairs": Ask(EncodePassage, ("bitext.english",), length=9, layer=1),
}


@dataclasses.dataclass(frozen=True)
class Listening:
    """An objective that asks its teachers and learns nothing."""

    asks: tuple = tuple(ASKS)

    @property
    def student(self):
        return {}

    @property
    def teacher(self):
        return {name: ASKS[name] for name in self.asks}

    @property
    def token_labels(self):
        return ()

    @property
    def least_passages(self):
        return 1

    def check(self, student, teachers):
        pass

    def loss(self, student, teacher, batch):
        raise NotImplementedError


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(answering, "_WINDOW", 8)
    monkeypatch.setattr(answering, "_BLOCK_ROWS", 4)
    monkeypatch.setattr(answering, "_WIDTH_STEP", 8)


def shop_of(folder, model, mesh=None, **changed):
    rows, _ = write_data(folder)
    pairs = [(row["positives"][0], row["query"]) for row in rows]
    lines = (f"{n}\t{english}\t{other}\n" for n, (english, other) in enumerate(pairs))
    (folder / "pairs.tsv").write_text("".join(lines))
    (folder / "more.jsonl").write_text('{"query": "mola", "positives": ["ri mo."]}\n')
    sources = {
        "ranking": RANKINGS,
        "bitext": BitextTSV("pairs.tsv", "sw"),
    }
    task = Task(Listening(), sources, {"teacher": "a model", "nobody": "none"}, name="task")
    task = dataclasses.replace(task, **changed)
    return Workshop(folder, (WORK,), model, (task,), mesh), rows


def asked(rows):
    passages = [text for row in rows for text in (*row["positives"], *row["negatives"])]
    return {
        "query": [text for row in rows for text in (row["query"], row["queries"]["en"])],
        "english": [row["queries"]["en"] for row in rows],
        "passages": passages,
        "pairs": [row["positives"][0] for row in rows],
    }


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [(LATE, (1, 1, 1)), (LATE, (2, 2, 2)), (Dense(query_length=12, passage_length=40), (1, 1, 1))],
)
def test_answers_are_those_of_the_model_in_float16(tmp_path, spec, sizes, small_blocks):
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    model = retriever(spec, mesh)
    shop, rows = shop_of(tmp_path, model, mesh)
    place = shop.place("stored")
    encode_teacher(WORK, place)
    folders = sorted(path.name for path in place.directory.iterdir() if path.is_dir())
    assert folders == ["english", "pairs", "passages", "query"]
    for name, texts in asked(rows).items():
        ask = ASKS[name]
        stored = Answers.open(place.directory / name)
        assert len(stored) == len(set(texts)), "each text is stored once"
        width = ask.length or (12 if ask.kind is EncodeQuery else 40)
        found = stored(texts, width)
        how = {"layer": ask.layer, "content": ask.content, "length": ask.length}
        direct = by_hand(model, ask.kind, texts, **how)
        for vectors, mask, (expected, kept) in zip(found.vectors, found.mask, direct, strict=True):
            assert mask.tolist() == kept.tolist()
            rounded = np.where(kept[:, None], expected, 0).astype(np.float16)
            # Other programs may round the last bit of float32, and so of float16, the other way.
            np.testing.assert_allclose(vectors, rounded, rtol=2**-10, atol=1e-6)
    assert shop.progressed[-1] == (44, 44)


def test_a_kill_changes_nothing(tmp_path, small_blocks):
    shop, _ = shop_of(tmp_path, retriever())
    place = shop.place("stored")
    encode_teacher(WORK, place)
    whole, calls = bytes_of(place.directory), len(shop.progressed)
    assert calls > 15
    for call in (1, 2, 3, 4, calls // 2, calls - 1, calls):
        (place.directory / "about.json").unlink()
        with pytest.raises(Killed):
            encode_teacher(WORK, shop.place("stored", kill_at(call)))
        shop.progressed.clear()
        encode_teacher(WORK, place)
        assert bytes_of(place.directory) == whole
        assert len(shop.progressed) == calls - call + (call == calls)


def test_a_question_is_stored_in_all_languages_of_its_part(tmp_path, small_blocks):
    both = Mixture((RANKINGS, RankingJSONL("more.jsonl", "sw")))
    task = {"objective": Listening(("query",)), "sources": {"ranking": both}}
    shop, rows = shop_of(tmp_path, retriever(), teachers={"teacher": "a model"}, **task)
    place = shop.place("stored")
    encode_teacher(WORK, place)
    stored = Answers.open(place.directory / "query")
    texts = [*asked(rows)["query"], "mola"]
    assert len(stored) == len(set(texts))
    stored(texts, 12)


def test_a_passage_is_stored_in_all_its_languages(tmp_path, small_blocks):
    _, texts = write_data(tmp_path)
    told = {"en": texts, "sw": [f"mola {text}" for text in texts]}
    for name, own in told.items():
        lines = [json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(own)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    both = InLanguages(RANKINGS, corpora={name: f"{name}.jsonl" for name in told})
    task = {"objective": Listening(("passages",)), "sources": {"ranking": both}}
    shop, rows = shop_of(tmp_path, retriever(), teachers={"teacher": "a model"}, **task)
    place = shop.place("stored")
    encode_teacher(WORK, place)
    read = set(asked(rows)["passages"])
    wanted = [own[texts.index(text)] for own in told.values() for text in read]
    stored = Answers.open(place.directory / "passages")
    assert len(stored) == len(wanted)
    stored(wanted, 20)


def test_what_makes_it_stale(tmp_path, small_blocks):
    task = {"objective": Listening(("english",)), "sources": {"ranking": RANKINGS}}
    shop, rows = shop_of(tmp_path, retriever(), teachers={"teacher": "a model"}, **task)

    def reason():
        shop.said.clear()
        encode_teacher(WORK, shop.place("stored"))
        return [line.removeprefix("artifact stored is built again: its ") for line in shop.said]

    assert reason() == []
    (tmp_path / "model" / "weights").write_text("others")
    assert reason() == ["teacher changed"]
    with open(tmp_path / "rankings.jsonl", "a") as file:
        file.write(json.dumps(rows[0]) + "\n")
    assert reason() == ["source ranking changed"]
    (task,) = shop.tasks
    shop.tasks = (dataclasses.replace(task, objective=Listening(("query",))),)
    assert reason() == ["questions to the teacher changed"]
    shop.tasks = (dataclasses.replace(shop.tasks[0], batch_size=4),)
    assert reason() == []


def test_pairs_of_texts_are_refused(tmp_path, monkeypatch):
    ask = Ask(Relevance, ("ranking.query", "ranking.passages"))
    monkeypatch.setitem(ASKS, "relevance", ask)
    task = {"objective": Listening(("relevance",)), "sources": {"ranking": RANKINGS}}
    shop, _ = shop_of(tmp_path, None, teachers={"teacher": "a model"}, **task)
    with pytest.raises(ConfigError) as error:
        encode_teacher(WORK, shop.place("stored"))
    assert str(error.value) == (
        "stages.stored: the ask 'relevance' of train.task is about pairs of texts, whose answers "
        "this version does not store; leave this work out"
    )
