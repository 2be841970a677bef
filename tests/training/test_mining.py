"""Hard negatives, against a search of everything by hand."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest

from clir_jax.config import Mine
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import Retrieval
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.reading import DataError
from clir_jax.training import mining
from clir_jax.training.artifacts import records_source
from clir_jax.training.mining import mine
from tests.training.workshop import (
    CORPUS,
    RANKINGS,
    Killed,
    Workshop,
    bytes_of,
    kill_at,
    retriever,
    scores_by_hand,
    write_data,
)

DEPTH, NEGATIVES = 9, 4


@pytest.fixture(scope="module")
def model():
    return retriever()


def shop_of(folder, model, name="a model", **settings):
    settings = {
        "source": RANKINGS,
        "corpus": CORPUS,
        "negatives": NEGATIVES,
        "depth": DEPTH,
    } | settings
    work = Mine("mined", name, **settings)
    return Workshop(folder, (work,), model), work


def mined(folder):
    lines = (folder / "artifacts" / "mined" / "records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def bm25_by_hand(queries, passages):
    """The formula of ``evaluation.bm25``, term by term."""
    texts = [re.findall(r"\w+", text.lower()) for text in passages]
    mean = sum(map(len, texts)) / len(texts)

    def term(word, own):
        holding = sum(word in text for text in texts)
        rare = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        count = own.count(word)
        return rare * count / (count + 1.2 * (1 - 0.75 + 0.75 * len(own) / mean))

    asked = [re.findall(r"\w+", text.lower()) for text in queries]
    return np.array([[sum(term(w, own) for w in words) for own in texts] for words in asked])


@pytest.mark.parametrize("name", ["a model", "bm25"])
def test_negatives_are_drawn_from_the_first_that_nobody_calls_relevant(
    tmp_path, model, name, monkeypatch
):
    monkeypatch.setattr(mining, "_BLOCK", 4)
    rows, passages = write_data(tmp_path)
    queries = [row["query"] for row in rows]
    if name == "bm25":
        scores = bm25_by_hand(queries, passages)
    else:
        scores = scores_by_hand(model, queries, passages)
    shop, work = shop_of(tmp_path, model, name)
    mine(work, shop.place("mined"))
    found = mined(tmp_path)
    assert len(found) == len(rows)
    drawn_from = 0
    for n, (row, line) in enumerate(zip(rows, found, strict=True)):
        assert line["query"] == row["query"]
        assert line["queries"] == row["queries"]
        assert line["positives"] == row["positives"]
        same = [other for other in rows if other["query"] == row["query"]]
        relevant = {text for other in same for text in other["positives"]}
        order = np.argsort(-scores[n], kind="stable")[:DEPTH]
        first = [passages[i] for i in order if name != "bm25" or scores[n][i] > 0]
        left = [text for text in first if text not in relevant]
        assert len(line["negatives"]) == min(NEGATIVES, len(left))
        places = [left.index(text) for text in line["negatives"]]
        assert places == sorted(set(places))
        drawn_from += max(places, default=0) >= NEGATIVES
    assert drawn_from > len(rows) / 2, "they are not always the very first"
    records = records_source(tmp_path / "artifacts" / "mined").open("")
    assert len(records) == len(rows)
    assert not records.scored
    assert shop.progressed[-1] == (len(rows), len(rows))


def test_the_draw_is_of_the_seed_and_the_record_alone(tmp_path, monkeypatch):
    write_data(tmp_path)
    drawn = {}
    for seed, block in ((0, 4), (0, 100), (1, 100)):
        monkeypatch.setattr(mining, "_BLOCK", block)
        shop, work = shop_of(tmp_path, None, "bm25", negatives=2, depth=20)
        shop.seed = seed
        mine(work, shop.place("mined"))
        drawn[seed, block] = [line["negatives"] for line in mined(tmp_path)]
    assert shop.said == ["artifact mined is built again: its seed changed"]
    assert drawn[0, 4] == drawn[0, 100]
    differ = [a != b for a, b in zip(drawn[0, 100], drawn[1, 100], strict=True)]
    assert sum(differ) > len(differ) / 2
    # Two records with one question have draws of their own.
    assert drawn[0, 4][0] != drawn[0, 4][-2]


@pytest.mark.parametrize("name", ["a model", "bm25"])
def test_a_kill_changes_nothing(tmp_path, model, name, monkeypatch):
    monkeypatch.setattr(mining, "_BLOCK", 3)
    write_data(tmp_path)
    shop, work = shop_of(tmp_path, model, name)
    place = shop.place("mined")
    mine(work, place)
    whole, calls = bytes_of(place.directory), len(shop.progressed)
    for call in range(1, calls + 1):
        (place.directory / "about.json").unlink()
        with pytest.raises(Killed):
            mine(work, shop.place("mined", kill_at(call)))
        assert "content" not in json.loads((place.directory / "about.json").read_text())
        shop.progressed.clear()
        mine(work, place)
        assert bytes_of(place.directory) == whole
    assert shop.progressed[0] == (11, 11), "the last kill came when all was written"
    assert len(shop.said) == calls


def test_the_corpus_may_be_rankings_or_an_evaluation_set(tmp_path):
    _, passages = write_data(tmp_path)
    listed = [{"_id": str(n), "text": text} for n, text in enumerate(passages)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(one) + "\n" for one in listed))
    (tmp_path / "q.tsv").write_text("q\tnothing\n")
    (tmp_path / "r.trec").write_text("q 0 1 1\n")
    question = {"query": "x", "positives": passages[:1], "negatives": passages[1:]}
    (tmp_path / "one.jsonl").write_text(json.dumps(question))
    corpora = (
        CORPUS,
        Retrieval("c.jsonl", "q.tsv", "r.trec", "en"),
        RankingJSONL("one.jsonl"),
    )
    found = []
    for corpus in corpora:
        shop, work = shop_of(tmp_path, None, "bm25", corpus=corpus)
        mine(work, shop.place("mined"))
        found.append(mined(tmp_path))
    assert found[0] == found[1] == found[2]
    (tmp_path / "pairs.tsv").write_text("1\tone\tmoja\n")
    shop, work = shop_of(tmp_path, None, "bm25", corpus=BitextTSV("pairs.tsv", "sw"))
    with pytest.raises(DataError) as error:
        mine(work, shop.place("mined"))
    assert str(error.value) == (
        "work mined: its corpus gives bitext records; give text, rankings or an evaluation set"
    )


def test_records_with_few_negatives_are_kept_and_told(tmp_path):
    rows = [
        {"query": "red fox", "positives": ["a red fox"], "negatives": ["old"]},
        {"query": "whale", "positives": ["the whale"]},
    ]
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.txt").write_text("a red fox\na fox\nthe whale\nred, red\na bear\n")
    shop, work = shop_of(tmp_path, None, "bm25")
    mine(work, shop.place("mined"))
    assert [sorted(line["negatives"]) for line in mined(tmp_path)] == [["a fox", "red, red"], []]
    said = "artifact mined: 2 of 2 records have fewer than 4 negatives, 1 of them none"
    assert shop.said == [said]
    (tmp_path / "corpus.txt").write_text("a bear\nthe whale\n")
    with pytest.raises(DataError) as error:
        mine(work, shop.place("mined"))
    assert str(error.value) == (
        "work mined: bm25 finds no passage for any question but those known to be relevant; search "
        "another corpus, deeper, or with another model"
    )


def test_what_makes_it_stale(tmp_path, model):
    rows, _ = write_data(tmp_path)
    shop, work = shop_of(tmp_path, model, "bm25")
    mine(work, shop.place("mined"))
    (tmp_path / "model" / "weights").write_text("bm25 has none")
    mine(work, shop.place("mined"))
    assert shop.said == []
    with open(tmp_path / "corpus.txt", "a") as file:
        file.write("one more\n")
    mine(work, shop.place("mined"))
    with open(tmp_path / "rankings.jsonl", "a") as file:
        file.write(json.dumps(rows[0]) + "\n")
    mine(work, shop.place("mined"))
    reasons = [line.removeprefix("artifact mined is built again: ") for line in shop.said]
    assert [one for one in reasons if one.startswith("its")] == [
        "its corpus changed",
        "its source changed",
    ]


def test_a_model_that_is_broken(tmp_path, model):
    write_data(tmp_path)
    nothing = jax.tree.map(lambda x: x * np.float32(np.nan), model.params)
    shop, work = shop_of(tmp_path, dataclasses.replace(model, params=nothing))
    with pytest.raises(DataError) as error:
        mine(work, shop.place("mined"))
    assert str(error.value) == (
        "work mined: the model 'a model' answers with numbers that are not finite; look for where "
        "its training went wrong, or name another"
    )
