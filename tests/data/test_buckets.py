"""Buckets: every record once an epoch, no text cut, few shapes and little padding."""

import collections
import concurrent.futures
import dataclasses
import itertools

import numpy as np
import pytest

from clir_jax.data.buckets import Buckets, Lengths, choose_boxes, count_lengths
from clir_jax.data.pipeline import task_dataset
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.records import Passage, Ranking
from clir_jax.data.sources import Mixture, TextLines
from clir_jax.models.requests import EncodePassage, EncodeQuery, Relevance, Tokens
from clir_jax.objectives.base import Ask
from tests.data import short_texts

PAIR = {
    "student": {
        "other": Ask(EncodeQuery, ("bitext.other",), length=28),
        "english": Ask(EncodeQuery, ("bitext.english",), length=24),
    },
    "teacher": {"english": Ask(EncodeQuery, ("bitext.english",), length=24)},
}
LISTS = {
    "student": {
        "query": Ask(EncodeQuery, ("ranking.query",)),
        "passages": Ask(EncodePassage, ("ranking.passages",)),
    },
    "teacher": {"query": Ask(EncodeQuery, ("ranking.query.en",))},
}
B = 8


def dataset(sources, asks=PAIR, **options):
    tokenizers = {name: short_texts.tokenizer() for name in ("student", "teacher")}
    options = {"batch_size": B, "seed": 0, "buckets": 5, **options}
    return task_dataset(**asks, sources=sources, tokenizers=tokenizers, **options)


def requests(element):
    """The tokens of every request of an element, by side and name."""
    return {
        (side, name): request.tokens
        for side in ("student", "teacher")
        for name, request in element[side].items()
    }


def steps_of(n, batch_size=B):
    return -(-n // batch_size)


def tokens_by_hand(boxes, rows, texts, batch_size):
    """Tokens of an epoch, one record after another."""
    boxes = sorted((tuple(int(w) for w in box) for box in boxes), key=lambda b: np.dot(b, texts))

    def holds(box, row):
        return all(width >= needed for width, needed in zip(box, row, strict=True))

    waiting = collections.Counter(
        next(k for k, box in enumerate(boxes) if holds(box, row)) for row in rows
    )
    while waiting.total() % batch_size:
        waiting[min(waiting)] += 1
    total = 0
    for k, box in enumerate(boxes):
        full, rest = divmod(waiting[k], batch_size)
        if rest:
            waiting[next(j for j in range(k + 1, len(boxes)) if holds(boxes[j], box))] += rest
        total += full * batch_size * int(np.dot(box, texts))
    return total


def chosen(rows, texts, most, batch_size):
    points, counts = np.unique(rows, axis=0, return_counts=True)
    boxes = choose_boxes(points, counts, texts, most, batch_size)
    assert len(boxes) <= most
    np.testing.assert_array_equal(boxes[-1], np.max(rows, axis=0))
    return boxes


def best_by_hand(rows, texts, most, batch_size):
    """The fewest tokens of any set of boxes."""
    top = tuple(rows.max(axis=0))
    grid = set(itertools.product(*(np.unique(column) for column in rows.T))) - {top}
    sets = itertools.combinations(grid, most - 1)
    return min(tokens_by_hand([*own, top], rows, texts, batch_size) for own in sets)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_with_one_request_the_split_is_the_best_of_all(seed, batch_size):
    rng = np.random.default_rng(seed)
    rows, texts = 8 * rng.integers(1, 9, (60, 1)), np.array([3])
    boxes = chosen(rows, texts, 2, batch_size)
    best = best_by_hand(rows, texts, 2, batch_size)
    assert tokens_by_hand(boxes, rows, texts, batch_size) == best
    assert best < tokens_by_hand(rows.max(axis=0, keepdims=True), rows, texts, batch_size)


@pytest.mark.parametrize("most", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_with_two_requests_it_is_within_two_percent_of_the_best(seed, most):
    rng = np.random.default_rng(seed)
    first = rng.integers(1, 6, 80)
    rows = 8 * np.stack([first, np.clip(first + rng.integers(-1, 2, 80), 1, 5)], axis=1)
    texts = np.array([1, 2])
    boxes = chosen(rows, texts, most, 4)
    best = best_by_hand(rows, texts, most, 4)
    assert best <= tokens_by_hand(boxes, rows, texts, 4) <= 1.02 * best


def test_more_boxes_never_cost_more_and_a_small_source_gets_few():
    rng = np.random.default_rng(3)
    rows = 8 * rng.integers(1, 9, (200, 2))
    texts = np.array([1, 1])
    costs = [tokens_by_hand(chosen(rows, texts, most, 4), rows, texts, 4) for most in (1, 2, 4, 8)]
    assert costs == sorted(costs, reverse=True)
    assert costs[3] < 0.7 * costs[0]
    assert len(chosen(rows, texts, 64, 200)) == 1


def test_lengths_are_those_of_the_longest_text_that_may_be_read(tmp_path):
    opened, rows = short_texts.rankings(tmp_path, 40)
    asks = {
        "any": LISTS["student"]["query"],
        "sw": Ask(EncodeQuery, ("ranking.query.sw",), length=9),
        "passages": LISTS["student"]["passages"],
        "again": LISTS["student"]["passages"],
    }
    tokenizers = {name: short_texts.tokenizer() for name in asks}

    def words(texts, most):
        return min(most, 2 + max(len(text.split()) for text in texts))

    for passages in (1, 3):
        lengths = count_lengths(opened, asks, tokenizers, passages)
        assert lengths.column == {"any": 0, "sw": 1, "passages": 2, "again": 2}
        assert lengths.limit.tolist() == [20, 9, 30]
        assert lengths.texts.tolist() == [1, 1, 2 * passages]
        expected = [
            (
                words([row["query"], row["queries"]["sw"]], 20),
                words([row["queries"]["sw"]], 9),
                words(row["positives"] + (row["negatives"] if passages > 1 else []), 30),
            )
            for row in rows
        ]
        np.testing.assert_array_equal(lengths.needed, expected)


def test_expanded_queries_have_their_full_length_unless_content_is_asked(tmp_path):
    opened, pairs = short_texts.bitext(tmp_path, 10)
    spec = dataclasses.replace(short_texts.SPEC, expansion=True)
    ask = Ask(EncodeQuery, ("bitext.other",))
    asks = {"whole": ask, "content": dataclasses.replace(ask, content=True)}
    tokenizers = dict.fromkeys(asks, short_texts.tokenizer(spec))
    needed = count_lengths(opened, asks, tokenizers, 1).needed
    assert needed[:, 0].tolist() == [20] * 10
    assert needed[:, 1].tolist() == [min(20, 2 + len(other.split())) for _, other in pairs]


def test_pairs_count_their_longest_combination(tmp_path):
    opened, rows = short_texts.rankings(tmp_path, 5)

    class Pairs:
        """One token a word of both texts."""

        def tokenize(self, kind, texts, *, content=False, length=None):
            used = np.array([len(a.split()) + len(b.split()) for a, b in texts])
            mask = np.arange(99) < used[:, None]
            return kind(Tokens(mask.astype(np.int32), mask, mask))

        @property
        def tokenizer(self):
            return None

    ask = Ask(Relevance, ("ranking.query.en", "ranking.passages"))
    lengths = count_lengths(opened, {"pair": ask}, {"pair": Pairs()}, 2)
    expected = [
        max(len(row["query"].split()) + len(p.split()) for p in row["positives"] + row["negatives"])
        for row in rows
    ]
    assert lengths.needed[:, 0].tolist() == expected


@pytest.mark.parametrize("n", [1, 7, 8, 61])
def test_an_epoch_reads_every_record_once_and_repeats_a_few_with_weight_0(tmp_path, n):
    opened, _ = short_texts.bitext(tmp_path, n)
    batches = dataset({"bitext": opened})
    orders = []
    for epoch in range(3):
        elements = [batches[epoch * steps_of(n) + k] for k in range(steps_of(n))]
        order = []
        for element in elements:
            ids, weight = element["labels"]["bitext.id"], element["weight"]
            assert weight.dtype == np.float32
            assert set(weight) <= {0.0, 1.0}
            order += ids[weight == 1].tolist()
            assert set(ids[weight == 0]) <= set(range(n))
        assert sorted(order) == list(range(n))
        assert sum((element["weight"] == 0).any() for element in elements) == (n % B > 0)
        orders.append(order)
    if n == 61:
        assert orders[0] != orders[1] != orders[2]


def check_uncut(tokens, full):
    """Rows ``[R, T]`` are the first T positions of the full ones, and nothing is behind them."""
    width = tokens.ids.shape[-1]
    for part in ("ids", "mask", "keep"):
        np.testing.assert_array_equal(getattr(tokens, part), getattr(full, part)[..., :width])
    assert not (full.mask | full.keep)[..., width:].any()


def test_no_text_is_cut_and_student_and_teacher_share_a_width(tmp_path):
    n = 61
    opened, pairs = short_texts.bitext(tmp_path, n)
    reader = short_texts.tokenizer()
    batches = dataset({"bitext": opened})
    shapes, seen = set(), 0
    for step in range(2 * steps_of(n)):
        element = batches[step]
        ids = element["labels"]["bitext.id"]
        found = requests(element)
        for (side, name), tokens in found.items():
            texts = [pairs[i][name == "other"] for i in ids]
            length = PAIR[side][name].length
            check_uncut(tokens, reader.tokenize(EncodeQuery, texts, length=length).tokens)
            assert tokens.ids.shape[1] % 8 == 0 or tokens.ids.shape[1] == length
        widths = {key: tokens.ids.shape[1] for key, tokens in found.items()}
        assert widths["student", "english"] == widths["teacher", "english"]
        shapes.add(tuple(widths.values()))
        seen += found["student", "other"].mask[element["weight"] == 1].sum()
    assert 2 < len(shapes) <= 5
    assert seen == 2 * sum(min(28, 2 + len(other.split())) for _, other in pairs)


def test_drawn_passages_and_languages_are_never_cut(tmp_path):
    opened, rows = short_texts.rankings(tmp_path, 61)
    reader = short_texts.tokenizer()
    batches = dataset({"ranking": opened}, LISTS, passages=3)
    passage_texts = [p for row in rows for p in row["positives"] + row["negatives"]]
    shapes, drawn = set(), set()
    for step in range(4 * steps_of(61)):
        element = batches[step]
        found = requests(element)
        ids = element["labels"]["ranking.passage_ids"].reshape(-1)
        full = reader.tokenize(EncodePassage, [passage_texts[i] for i in ids]).tokens
        passages = found["student", "passages"]
        flat = (array.reshape(len(ids), -1) for array in dataclasses.astuple(passages))
        check_uncut(Tokens(*flat), full)
        row = [rows[i] for i in element["labels"]["ranking.query_id"]]
        for place, asked in enumerate(row):
            own = Tokens(*(a[place] for a in dataclasses.astuple(found["student", "query"])))
            both = [asked["query"], asked["queries"]["sw"]]
            both = reader.tokenize(EncodeQuery, both).tokens
            language = int((both.ids[0, : len(own.ids)] != own.ids).any())
            check_uncut(own, Tokens(*(a[language] for a in dataclasses.astuple(both))))
            drawn.add(language)
        shapes.add(tuple(tokens.ids.shape for tokens in found.values()))
    assert 2 < len(shapes) <= 5
    assert drawn == {0, 1}


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_read_the_batch_of_one_process(tmp_path, world):
    opened, _ = short_texts.rankings(tmp_path, 61)
    options = {"passages": 2, "token_labels": ("student.query.content",)}
    one = dataset({"ranking": opened}, LISTS, **options)
    ranks = [
        dataset({"ranking": opened}, LISTS, rank=rank, world=world, **options)
        for rank in range(world)
    ]
    for step in range(0, 3 * steps_of(61), 2):
        whole, parts = one[step], [part[step] for part in ranks]
        for name in (*whole["labels"], "weight"):
            arrays = [(e["labels"] | {"weight": e["weight"]})[name] for e in (whole, *parts)]
            np.testing.assert_array_equal(np.concatenate(arrays[1:]), arrays[0])
        for key, tokens in requests(whole).items():
            ids = [requests(part)[key].ids for part in parts]
            np.testing.assert_array_equal(np.concatenate(ids), tokens.ids)


def test_a_step_is_the_same_in_any_order_and_every_epoch_is_drawn_once(tmp_path, monkeypatch):
    opened, _ = short_texts.bitext(tmp_path, 61)
    expected = [dataset({"bitext": opened})[step]["labels"]["bitext.id"] for step in range(16)]
    drawn, draw = [], Buckets._draw

    def counted(self, epoch):
        drawn.append(epoch)
        return draw(self, epoch)

    monkeypatch.setattr(Buckets, "_draw", counted)
    shared = dataset({"bitext": opened})
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        backward = list(pool.map(shared.__getitem__, reversed(range(16))))[::-1]
    assert sorted(drawn) == [0, 1]
    for ids, element in zip(expected, backward, strict=True):
        np.testing.assert_array_equal(element["labels"]["bitext.id"], ids)
    other = dataset({"bitext": opened}, seed=1)[0]["labels"]["bitext.id"]
    assert other.tolist() != expected[0].tolist()


def test_batches_of_an_epoch_come_in_no_order_of_length(tmp_path):
    opened, _ = short_texts.bitext(tmp_path, 400)
    batches = dataset({"bitext": opened})
    for epoch in range(2):
        steps = range(50 * epoch, 50 * epoch + 50)
        widths = [batches[step]["student"]["other"].tokens.ids.shape[1] for step in steps]
        assert abs(np.corrcoef(np.arange(50), widths)[0, 1]) < 0.4


def test_an_epoch_has_the_tokens_that_the_boxes_were_chosen_for():
    rng = np.random.default_rng(0)
    needed = rng.integers(3, 31, (210, 2))
    lengths = Lengths({"a": 0, "b": 1}, needed, np.array([30, 30]), np.array([1, 3]))
    plan = Buckets(lengths, batch_size=B, most=4, seed=0)
    widths = np.minimum(-(-needed // 8) * 8, 30)
    total = sum(
        B * (plan.widths(step)["a"] + 3 * plan.widths(step)["b"]) for step in range(plan.steps)
    )
    assert total == tokens_by_hand(plan.boxes, widths, [1, 3], B)


BAD = [
    ({"buckets": 0}, "bitext", "buckets is 0; write 1 for one shape, or more"),
    ({}, "two sources",
     "buckets is 5 and the task reads 2 sources (bitext, text), whose rows are paired without "
     "regard to length; write buckets=1, or give each source a task of its own"),
    ({}, "weights",
     'buckets is 5 and the mixture "ranking" has weights (1.0, 2.0), by which an epoch does not '
     "read every record once; write buckets=1, or weights=None"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "what", "sentence"), BAD)
def test_what_does_not_fit_is_refused(tmp_path, options, what, sentence):
    sources = {"bitext": short_texts.bitext(tmp_path, 9)[0]}
    asks = PAIR
    if what == "two sources":
        (tmp_path / "t.txt").write_text("ba\nbe\n")
        sources["text"] = TextLines("t.txt", "en").open(str(tmp_path))
    elif what == "weights":
        short_texts.rankings(tmp_path, 9)
        both = Mixture((RankingJSONL("r.jsonl"), RankingJSONL("r.jsonl")), (1.0, 2.0))
        sources, asks = {"ranking": both.open(str(tmp_path))}, LISTS
    with pytest.raises(ValueError) as error:
        dataset(sources, asks, **options)
    assert str(error.value) == sentence


def test_a_mixture_without_weights_is_one_source(tmp_path):
    short_texts.rankings(tmp_path, 9)
    both = Mixture((RankingJSONL("r.jsonl"), RankingJSONL("r.jsonl"))).open(str(tmp_path))
    batches = dataset({"ranking": both}, LISTS)
    elements = [batches[step] for step in range(steps_of(18))]
    ids = np.concatenate([e["labels"]["ranking.query_id"][e["weight"] == 1] for e in elements])
    assert sorted(ids) == sorted([*range(9), *range(9)])


def test_passages_in_one_language_count_as_long_as_they_are_in_it(tmp_path):
    def passage(number, english, german):
        return Passage(number, english, {"en": english, "de": german})

    passages = (passage(0, "a", "a b c"),), (passage(1, "a b", "a"),)
    ranking = Ranking(0, {"en": "q"}, *passages, None, ())
    drawn = dataclasses.replace(ranking, told=("en",))
    fields = ("passages.de", "passages.en", "passages")
    asks = {name: Ask(EncodePassage, (f"ranking.{name}",), length=30) for name in fields}
    records = short_texts.rankings(tmp_path, 2)[0].changed(lambda i, _: (ranking, drawn)[i])
    lengths = count_lengths(records, asks, dict.fromkeys(asks, short_texts.tokenizer()), 2)
    assert lengths.needed.tolist() == [[5, 4, 5], [5, 4, 4]]
    assert lengths.texts.tolist() == [2, 2, 2]
