"""Hard negatives, against a search of everything by hand."""

import dataclasses
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest

from clir_jax.config import Mine, Score
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import Retrieval
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.reading import DataError
from clir_jax.evaluation import retrieval
from clir_jax.evaluation.retrieval import TextEncoder
from clir_jax.models.requests import EncodePassage, EncodeQuery
from clir_jax.training import mining, negatives, searchers
from clir_jax.training.artifacts import records_source
from clir_jax.training.mining import mine
from tests.training.workshop import (
    CORPUS,
    RANKINGS,
    Killed,
    Workshop,
    by_hand,
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
    total = len(rows) + (name != "bm25") * len(passages)
    assert shop.progressed[-1] == (total, total)
    assert [done for done, _ in shop.progressed] == sorted(done for done, _ in shop.progressed)


def test_the_draw_is_of_the_seed_and_the_record_alone(tmp_path, monkeypatch):
    write_data(tmp_path)
    drawn = {}
    for seed, block in ((0, 4), (0, 100), (1, 100)):
        monkeypatch.setattr(mining, "_BLOCK", block)
        shop, work = shop_of(tmp_path, None, "bm25", negatives=2, depth=20)
        shop.seed = seed
        mine(work, shop.place("mined"))
        drawn[seed, block] = [line["negatives"] for line in mined(tmp_path)]
    again = [line for line in shop.said if "built again" in line]
    assert again == ["artifact mined is built again: its seed changed; lines removed: 11"]
    assert drawn[0, 4] == drawn[0, 100]
    differ = [a != b for a, b in zip(drawn[0, 100], drawn[1, 100], strict=True)]
    assert sum(differ) > len(differ) / 2
    # Two records with one question have draws of their own.
    assert drawn[0, 4][0] != drawn[0, 4][-2]


def test_bm25_holds_a_bounded_number_of_passages(tmp_path, monkeypatch):
    _, passages = write_data(tmp_path)
    find, asking = searchers.LexicalSearcher.find, []

    def counted(searcher, asked, *more):
        asking.append(len(asked))
        return find(searcher, asked, *more)

    monkeypatch.setattr(searchers.LexicalSearcher, "find", counted)
    outcomes = []
    for bound, expected in ((2**23, 9), (3 * len(passages), 3), (1, 1)):
        asking.clear()
        monkeypatch.setattr(mining, "_FOUND", bound)
        # No question finds more than the whole corpus, however deep it looks.
        shop, work = shop_of(tmp_path, None, "bm25", depth=100_000)
        place = shop.place("mined")
        mine(work, place)
        assert max(asking) == expected
        outcomes.append(((place.directory / "records.jsonl").read_bytes(), shop.said))
        shutil.rmtree(place.directory)
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("name", ["a model", "bm25"])
def test_a_kill_changes_nothing(tmp_path, model, name, monkeypatch):
    monkeypatch.setattr(mining, "_BLOCK", 6)
    monkeypatch.setattr(retrieval, "_BLOCK_ROWS", 12)
    monkeypatch.setattr(retrieval, "_BLOCKS_AHEAD", 2)
    _, passages = write_data(tmp_path)
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
    total = 11 + (name != "bm25") * len(passages)
    assert shop.progressed[-1] == (total, total)
    assert not (place.directory / "unfinished").exists()


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
    # The fox's words are in three passages, one of them known; the whale's in the known one only.
    assert shop.said == [
        "artifact mined: 4 passages found, of these\n"
        "  2  known to be relevant\n"
        "  0  more than are kept\n"
        "  2  negatives",
        "artifact mined: 2 of 2 records have fewer than 4 negatives, 1 of them none",
    ]
    shop, work = shop_of(tmp_path, None, "bm25", drop_empty=True)
    mine(work, shop.place("mined"))
    assert [line["query"] for line in mined(tmp_path)] == ["red fox"]
    assert shop.said[-1] == (
        "artifact mined: 2 of 2 records have fewer than 4 negatives, 1 of them none, which are "
        "left out"
    )
    about = json.loads((tmp_path / "artifacts/mined/about.json").read_text())
    assert about["facts"]["records"] == 1
    assert about["facts"]["passages"] == {
        "known to be relevant": 2,
        "more than are kept": 0,
        "negatives": 2,
    }
    (tmp_path / "corpus.txt").write_text("a bear\nthe whale\n")
    for _ in range(2):
        with pytest.raises(DataError) as error:
            mine(work, shop.place("mined"))
        assert str(error.value) == (
            "work mined: no question is left a negative of the 1 passages that bm25 finds (1 known "
            "to be relevant); search another corpus, deeper, with another model or with fewer "
            "filters"
        )


def test_what_makes_it_stale(tmp_path, model):
    rows, _ = write_data(tmp_path)
    shop, work = shop_of(tmp_path, model, "bm25")
    mine(work, shop.place("mined"))
    (tmp_path / "model" / "weights").write_text("bm25 has none")
    mine(work, shop.place("mined"))
    assert not [line for line in shop.said if "built again" in line]
    with open(tmp_path / "corpus.txt", "a") as file:
        file.write("one more\n")
    mine(work, shop.place("mined"))
    with open(tmp_path / "rankings.jsonl", "a") as file:
        file.write(json.dumps(rows[0]) + "\n")
    mine(work, shop.place("mined"))
    again = "artifact mined is built again: "
    assert [line.removeprefix(again) for line in shop.said if line.startswith(again)] == [
        "its corpus changed; lines removed: 11",
        "its source changed; lines removed: 11",
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


JUDGED = Retrieval("c.jsonl", "q.tsv", "r.trec", "en")
OPTIONS = {
    "window": {"skip": 3, "sampling": "top"},
    "english": {"query_language": "en", "sampling": "top"},
    "margin": {"margin": 0.4},
    "relative": {"max_relative": 0.98, "sampling": "top"},
    "hard": {"negatives": 2, "hard": 2, "sampling": "top"},
    "kinds": {"negatives": 3, "hard": 1, "semi_hard": 2, "semi_hard_margin": 0.7},
    "judge": {"judge": "bm25", "judge_max_relative": 0.5, "judge_language": "en"},
    "documents": {"other_documents": True, "duplicates": 0.3},
}


def judged_data(folder):
    """As ``write_data``, and the passages as an evaluation set, two or three of one title.

    The last passage of the first question is not in the corpus.
    """
    rows, passages = write_data(folder)
    rows[0]["positives"] = ["ver tuke lana. moun riun"]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        {"_id": str(n), "title": "" if n % 4 == 0 else f"lake{n % 13}", "text": text}
        for n, text in enumerate(passages)
    ]
    (folder / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "q.tsv").write_text("q\tnothing\n")
    (folder / "r.trec").write_text("q 0 1 1\n")
    texts = [f"{line['title']} {line['text']}".strip() for line in lines]
    for row in rows:
        row["positives"] = [
            texts[passages.index(text)] if text in passages else text for text in row["positives"]
        ]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows, texts, [line["title"] for line in lines]


def all_scores(model, name, questions, texts):
    """Of questions and passages, from vectors as they are stored."""
    if name == "bm25":
        return bm25_by_hand(questions, texts)
    asked = [v[m] for v, m in by_hand(model, EncodeQuery, questions)]
    stored = [v[m].astype(np.float16) for v, m in by_hand(model, EncodePassage, texts)]
    return np.array(
        [[(q @ p.astype(np.float32).T).max(axis=1).sum() for p in stored] for q in asked]
    )


def allowed_by_rules(work, row, rows, texts, titles, scores, judge):
    """Of one record, the passages that may be its negatives by kind, one at a time.

    ``scores`` and ``judge`` are those of all passages, and behind them of those that only rankings
    have.
    """
    corpus = range(len(titles))
    order = sorted(
        (n for n in corpus if work.model != "bm25" or scores[n] > 0), key=lambda n: -scores[n]
    )
    same = [other for other in rows if other["query"] == row["query"]]
    known = {text for other in same for text in other["positives"]}
    own = [texts.index(text) for text in row["positives"]]
    lowest, judged = min(scores[n] for n in own), min(judge[n] for n in own)
    kinds = {"hard": [], "semi": [], "any": []}
    for n in order[work.skip : work.depth]:
        s = scores[n]
        if texts[n] in known:
            continue
        if work.margin is not None and s > lowest - work.margin:
            continue
        if work.max_relative is not None and s > lowest - (1 - work.max_relative) * abs(lowest):
            continue
        if work.judge is not None and judge[n] > work.judge_max_relative * judged:
            continue
        if (
            work.other_documents
            and titles[n]
            and titles[n] in [titles[i] for i in own if i in corpus]
        ):
            continue
        if work.duplicates is not None:
            mine_, others = (
                set(re.findall(r"\w+", texts[n])),
                [set(re.findall(r"\w+", t)) for t in known],
            )
            if any(len(mine_ & one) / len(mine_ | one) >= work.duplicates for one in others):
                continue
        kinds["any"].append(n)
        if s > lowest:
            kinds["hard"].append(n)
        elif work.semi_hard and lowest - work.semi_hard_margin < s < lowest:
            kinds["semi"].append(n)
    if work.hard or work.semi_hard:
        return [(kinds["hard"], work.hard), (kinds["semi"], work.semi_hard)]
    return [(kinds["any"], work.negatives)]


@pytest.mark.parametrize("name", ["a model", "bm25"])
def test_every_option_against_a_loop(tmp_path, model, name, monkeypatch):
    monkeypatch.setattr(searchers, "_COLUMNS", 5)  # lists are of up to 20
    rows, texts, titles = judged_data(tmp_path)
    more = [text for row in rows for text in row["positives"] if text not in texts]
    every = [*texts, *dict.fromkeys(more)]
    english = [row["queries"]["en"] for row in rows]
    scores = {
        "": all_scores(model, name, [row["query"] for row in rows], every),
        "en": all_scores(model, name, english, every),
    }
    judges = all_scores(model, "bm25", english, every)
    changed = {}
    for what, options in OPTIONS.items():
        settings = {"corpus": JUDGED, "depth": 20, "negatives": 3} | options
        shop, work = shop_of(tmp_path, model, name, **settings)
        mine(work, shop.place("mined"))
        changed[what] = 0
        # BM25's statistics are of all passages that it may have to score.
        compared = {"margin", "max_relative", "hard", "judge"} & options.keys()
        own = (
            scores
            if name != "bm25" or compared
            else {
                language: all_scores(model, name, asked, texts)
                for language, asked in (("", [row["query"] for row in rows]), ("en", english))
            }
        )
        for n, (row, line) in enumerate(zip(rows, mined(tmp_path), strict=True)):
            table = own[work.query_language][n]
            padded = np.append(table, np.zeros(len(every) - len(table)))
            rules = allowed_by_rules(work, row, rows, every, titles, padded, judges[n])
            found = [every.index(text) for text in line["negatives"]]
            ranks = [-padded[i] for i in found]
            assert ranks == sorted(ranks)
            for allowed, count in rules:
                taken = [i for i in found if i in allowed]
                assert len(taken) == min(count, len(allowed)), (what, n)
                if work.sampling == "top":
                    assert taken == allowed[:count], (what, n)
            assert len(found) == sum(min(count, len(allowed)) for allowed, count in rules)
            plain = allowed_by_rules(
                Mine("x", name, RANKINGS, CORPUS, depth=20), row, rows, every, titles, padded,
                judges[n],
            )  # fmt: skip
            changed[what] += [allowed for allowed, _ in rules] != [allowed for allowed, _ in plain]
        counted = json.loads((tmp_path / "artifacts/mined/counts.json").read_text())["0"]
        kept = [len(line["negatives"]) for line in mined(tmp_path)]
        assert counted["negatives"] == sum(kept)
        if name != "bm25":
            assert sum(counted.values()) == 20 * len(rows)
    assert all(count for what, count in changed.items() if what != "english"), changed


def test_passages_are_encoded_once(tmp_path, model, monkeypatch):
    monkeypatch.setattr(mining, "_BLOCK", 4)
    _, passages = write_data(tmp_path)
    encoded, whole = [], TextEncoder.passages

    def counting(self, texts, done=0):
        for places, block in whole(self, texts, done):
            encoded.extend(texts[place] for place in places)
            yield places, block

    monkeypatch.setattr(retrieval, "_BLOCK_ROWS", 8)
    monkeypatch.setattr(TextEncoder, "passages", counting)
    shop, work = shop_of(tmp_path, model)
    with pytest.raises(Killed):  # in the second of four blocks of passages
        mine(work, shop.place("mined", kill_at(2)))
    assert len(encoded) == 16
    del encoded[8:]
    mine(work, shop.place("mined"))
    assert sorted(encoded) == sorted(passages)


def test_words_are_compared_without_case_width_and_marks():
    assert (
        negatives._likeness(
            negatives._word_set("The ＲＥＤ fox!"), [negatives._word_set("red, the: Fox")]
        )
        == 1
    )
    # Of five different words two are in both.
    own, other = negatives._word_set("a red fox"), negatives._word_set("a red hen runs")
    assert negatives._likeness(own, [frozenset({"z"}), other]) == 2 / 5
    assert negatives._likeness(own, []) == 0


def test_what_a_source_and_a_corpus_must_have(tmp_path):
    write_data(tmp_path)
    for settings, sentence in (
        ({"query_language": "fr"}, "query_language is 'fr', and its source asks in sw, en; write "
         "one of these"),
        ({"judge_language": "de"}, "judge_language is 'de', and its source asks in sw, en; write "
         "one of these"),
        ({"other_documents": True}, "other_documents tells documents by their titles, and its "
         "corpus has none; give a Retrieval or a CorpusJSONL with titles, or leave it out"),
    ):  # fmt: skip
        shop, work = shop_of(tmp_path, None, "bm25", **settings)
        with pytest.raises(DataError) as error:
            mine(work, shop.place("mined"))
        assert str(error.value) == f"work mined: {sentence}"


def test_an_artifact_is_one_reading_for_all():
    mixed = InLanguages(RANKINGS, ("sw", "en"))
    for work in (lambda: Mine("w", "bm25", mixed, RANKINGS), lambda: Score("w", "m", mixed)):
        with pytest.raises(
            ValueError, match=r"work w: its source is InLanguages.*\(Artifact\('w'\)"
        ):
            work()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"skip": -1}, "skip is -1; it must be at least 0"),
        ({"skip": 95}, "negatives is 8; it must be from 1 to depth - skip"),
        ({"margin": -0.5}, "margin is -0.5; it must be a finite number of at least 0, or None"),
        ({"max_relative": 1.5}, "max_relative is 1.5; it must be above 0 and at most 1, or None"),
        ({"duplicates": 0.0}, "duplicates is 0.0; it must be above 0 and at most 1, or None"),
        (
            {"judge_max_relative": 0.0},
            "judge_max_relative is 0.0; it must be above 0 and finite",
        ),
        (
            {"hard": 2},
            "negatives is 8, and hard + semi_hard is 2; set negatives to 2",
        ),
        (
            {"semi_hard": 8},
            "semi_hard is 8 and semi_hard_margin None; give both, or neither",
        ),
        (
            {"semi_hard_margin": 0.2},
            "semi_hard is 0 and semi_hard_margin 0.2; give both, or neither",
        ),
        (
            {"hard": 8, "max_relative": 0.9},
            "hard negatives score above the positive, which margin and max_relative leave out; set "
            "hard to 0, or both of these to None",
        ),
    ],
)
def test_options_that_do_not_fit(settings, sentence):
    with pytest.raises(ValueError) as error:
        Mine("mined", "bm25", RANKINGS, CORPUS, **settings)
    assert str(error.value) == f"work mined: {sentence}"
