"""The pipeline: what a step reads depends on its number, and on nothing else."""

import collections
import concurrent.futures
import dataclasses
import json
import math

import numpy as np
import pytest

from clir_jax.data import pipeline
from clir_jax.data.assembly import MOST_KNOWN
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.pipeline import choose, task_dataset
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.records import Passage, Ranking
from clir_jax.data.sources import Mixture, TextLines
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.models.requests import EncodePassage, EncodeQuery, Relevance, Tokens
from clir_jax.models.retriever import LateInteraction
from clir_jax.models.tokenizer import TextTokenizer, wordpiece
from clir_jax.objectives.base import Ask, Batch

PAD, CLS, WIDTH = 1, 2, 6


class Words:
    """Numbers words by their first occurrence; the first position is a marker that is not kept."""

    def __init__(self):
        self.words: dict[str, int] = {}
        self.calls: list[list] = []

    @property
    def tokenizer(self):
        return self

    def id(self, role):
        return {"pad": PAD}[role]

    def tokenize(self, kind, texts, *, content=False, length=None):
        self.calls.append(list(texts))
        width = length or WIDTH
        ids = np.full((len(texts), width), PAD, np.int32)
        keep = np.zeros(ids.shape, bool)
        for row, text in enumerate(texts):
            words = (" | ".join(text) if isinstance(text, tuple) else text).split()
            assert words
            for n, word in enumerate(words[: width - 1]):
                ids[row, n + 1] = self.words.setdefault(word, len(self.words) + 3)
                keep[row, n + 1] = True
            ids[row, 0] = CLS
        mask = ids != PAD
        return kind(Tokens(ids, mask, keep & mask))

    def read(self, ids):
        names = {n: word for word, n in self.words.items()}
        return " ".join(names[n] for n in ids.tolist() if n in names)


@pytest.fixture
def bitext(tmp_path):
    def make(n, name="b", language="sw"):
        lines = [f"{i}\t{name}en{i}\t{name}{language}{i}\n" for i in range(n)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
        return BitextTSV(f"{name}.tsv", language)

    return make


@pytest.fixture
def rankings(tmp_path):
    def make(rows, name="r.jsonl", **options):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return RankingJSONL(name, **options).open(str(tmp_path))

    return make


PAIR = {
    "student": {"other": Ask(EncodeQuery, ("bitext.other",))},
    "teacher": {"english": Ask(EncodeQuery, ("bitext.english",))},
}


def dataset(sources, tokenizers=None, student=None, teacher=None, **options):
    words = Words()
    return task_dataset(
        PAIR["student"] if student is None else student,
        PAIR["teacher"] if teacher is None else teacher,
        sources,
        tokenizers or {"student": words, "teacher": words},
        **{"batch_size": 4, "seed": 0, **options},
    )


def listing(n, negatives=4, scores=True):
    rows = []
    for i in range(n):
        row = {"query": f"q{i}", "positives": [f"p{i}a", f"p{i}b"]}
        row["negatives"] = [f"n{i}x{k}" for k in range(negatives)]
        if scores:
            row["scores"] = [10 * i + k for k in range(2 + negatives)]
        rows.append(row)
    return rows


def test_a_batch_has_the_members_and_types_of_batch(bitext, tmp_path):
    element = dataset({"bitext": bitext(10).open(str(tmp_path))})[0]
    batch = Batch(**element)
    assert isinstance(batch.student["other"], EncodeQuery)
    tokens = batch.student["other"].tokens
    assert tokens.ids.shape == (4, WIDTH)
    assert tokens.ids.dtype == np.int32
    assert tokens.mask.dtype == tokens.keep.dtype == bool
    np.testing.assert_array_equal(batch.weight, np.ones(4, np.float32))
    assert batch.weight.dtype == np.float32
    assert set(batch.labels) == {"bitext.id"}
    assert batch.labels["bitext.id"].dtype == np.int32


def test_both_sides_of_a_row_are_the_same_record(bitext, tmp_path):
    words = Words()
    batches = dataset(
        {"bitext": bitext(10).open(str(tmp_path))}, {"student": words, "teacher": words}
    )
    element = batches[3]
    for row in range(4):
        other = words.read(element["student"]["other"].tokens.ids[row])
        english = words.read(element["teacher"]["english"].tokens.ids[row])
        i = int(element["labels"]["bitext.id"][row])
        assert (english, other) == (f"ben{i}", f"bsw{i}")


@pytest.fixture(params=["few records", "many records"])
def shuffle(request, monkeypatch):
    """Both ways of shuffling, whatever the number of records."""
    if request.param == "many records":
        monkeypatch.setattr(pipeline, "_SMALL", 0)


@pytest.mark.usefixtures("shuffle")
@pytest.mark.parametrize(("n", "batch"), [(10, 4), (101, 8), (7, 8), (1, 4)])
def test_every_epoch_reads_every_record_once_in_another_order(bitext, tmp_path, n, batch):
    batches = dataset({"bitext": bitext(n).open(str(tmp_path))}, batch_size=batch)
    steps = -(-3 * n // batch)
    ids = np.concatenate([batches[step]["labels"]["bitext.id"] for step in range(steps)])
    epochs = [ids[e * n : (e + 1) * n] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    if n > 9:
        assert list(epochs[0]) != list(epochs[1]) != list(epochs[2])
        assert list(epochs[0]) != sorted(epochs[0])


def _flat(element):
    """All arrays of an element by name."""
    arrays = dict(element["labels"], weight=element["weight"])
    for side in ("student", "teacher"):
        for name, request in element[side].items():
            arrays |= {
                f"{side}.{name}.{part}": getattr(request.tokens, part)
                for part in ("ids", "mask", "keep")
            }
    return arrays


@pytest.mark.usefixtures("shuffle")
@pytest.mark.parametrize("weights", [None, (0.7, 0.3)])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_read_the_batch_of_one_process(rankings, tmp_path, world, weights):
    """13 + 9 records do not divide by 8, nor by the world, and 12 steps are several epochs."""
    rows = listing(13)
    rankings(rows, "a.jsonl")
    rankings(listing(9), "b.jsonl")
    mixture = Mixture((RankingJSONL("a.jsonl"), RankingJSONL("b.jsonl")), weights)

    def make(rank, of):
        words = Words()
        for row in rows:  # one numbering of words for every process
            words.tokenize(EncodeQuery, [row["query"], *row["positives"], *row["negatives"]])
        return dataset(
            {"ranking": mixture.open(str(tmp_path))},
            {"student": words},
            {
                "query": Ask(EncodeQuery, ("ranking.query",)),
                "passages": Ask(EncodePassage, ("ranking.passages",)),
            },
            {},
            batch_size=8,
            rank=rank,
            world=of,
            passages=3,
        )

    one = make(0, 1)
    several = [make(rank, world) for rank in range(world)]
    for step in range(12):
        expected = _flat(one[step])
        parts = [_flat(part[step]) for part in several]
        assert len(expected) == 11
        for name, array in expected.items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), array, name)


def test_a_step_is_the_same_in_any_order_and_any_thread(rankings):
    opened = rankings(listing(11))
    asks = {"passages": Ask(EncodePassage, ("ranking.passages",))}

    def make():
        return dataset({"ranking": opened}, {"student": Words()}, asks, {}, passages=3)

    forward = [make()[step] for step in range(20)]
    shared = make()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        backward = list(pool.map(shared.__getitem__, reversed(range(20))))[::-1]
    for one, other in zip(forward, backward, strict=True):
        for name in one["labels"]:
            np.testing.assert_array_equal(one["labels"][name], other["labels"][name])


@pytest.mark.usefixtures("shuffle")
def test_seeds_sources_and_epochs_have_unrelated_orders(bitext, tmp_path):
    records = bitext(50).open(str(tmp_path))

    def order(seed, name="bitext"):
        asks = {"other": Ask(EncodeQuery, (f"{name}.other",))}
        batches = dataset({name: records}, {"student": Words()}, asks, {}, seed=seed, batch_size=50)
        return [tuple(batches[step]["labels"][f"{name}.id"]) for step in range(3)]

    orders = order(0) + order(1) + order(2) + order(0, "other")
    assert len(set(orders)) == 12
    assert order(0) == order(0)


def test_mixing_follows_the_weights_and_repeats_the_small_source(bitext, tmp_path):
    sources = (bitext(40, "a"), bitext(7, "b"), bitext(300, "c"))
    opened = Mixture(sources, (0.5, 0.3, 0.2)).open(str(tmp_path))
    batches = dataset({"bitext": opened}, batch_size=100)
    ids = np.concatenate([batches[step]["labels"]["bitext.id"] for step in range(100)])
    shares = np.histogram(ids, [0, 40, 47, 347])[0] / len(ids)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.01 * 0.2)
    seen = collections.Counter(ids[(ids >= 40) & (ids < 47)].tolist())
    assert len(seen) == 7
    assert max(seen.values()) - min(seen.values()) <= 1


def test_without_weights_a_mixture_reads_everything_once_an_epoch(bitext, tmp_path):
    opened = Mixture((bitext(30, "a"), bitext(10, "b"))).open(str(tmp_path))
    batches = dataset({"bitext": opened}, batch_size=20)
    ids = np.concatenate([batches[step]["labels"]["bitext.id"] for step in range(2)])
    assert sorted(ids) == list(range(40))
    assert set(ids[:20]) & set(range(30, 40)), "the sources come one after the other"


def test_several_sources_are_zipped(bitext, tmp_path):
    (tmp_path / "t.txt").write_text("".join(f"text{i}\n" for i in range(9)))
    words = Words()
    element = dataset(
        {
            "bitext": bitext(20).open(str(tmp_path)),
            "text": TextLines("t.txt", "en").open(str(tmp_path)),
        },
        {"student": words},
        {
            "a": Ask(EncodeQuery, ("bitext.other",)),
            "b": Ask(EncodePassage, ("text.text",), length=3),
        },
        {},
    )[1]
    labels = element["labels"]
    assert set(labels) == {"bitext.id", "text.id"}
    tokens = element["student"]["b"].tokens
    assert tokens.ids.shape == (4, 3)
    assert isinstance(element["student"]["b"], EncodePassage)
    texts = [words.read(row) for row in tokens.ids]
    assert texts == [f"text{i}" for i in labels["text.id"]]


def test_a_ranking_gives_one_positive_then_distinct_negatives_with_their_scores(rankings):
    words = Words()
    batches = dataset(
        {"ranking": rankings(listing(12))},
        {"student": words},
        {"q": Ask(EncodeQuery, ("ranking.query",)), "p": Ask(EncodePassage, ("ranking.passages",))},
        {},
        passages=4,
    )
    positives = set()
    for step in range(30):
        element = batches[step]
        labels, tokens = element["labels"], element["student"]["p"].tokens
        assert tokens.ids.shape == (4, 4, WIDTH)
        assert labels["ranking.scores"].dtype == np.float32
        for row in range(4):
            query = words.read(element["student"]["q"].tokens.ids[row])
            i = int(query[1:])
            texts = [words.read(ids) for ids in tokens.ids[row]]
            assert texts[0] in (f"p{i}a", f"p{i}b")
            assert all(text.startswith(f"n{i}x") for text in texts[1:])
            assert len(set(texts)) == 4
            order = [f"p{i}a", f"p{i}b", *(f"n{i}x{k}" for k in range(4))]
            scores = [10 * i + order.index(text) for text in texts]
            assert labels["ranking.scores"][row].tolist() == scores
            passage_ids = [6 * i + order.index(text) for text in texts]
            assert labels["ranking.passage_ids"][row].tolist() == passage_ids
            known = labels["ranking.known"][row]
            assert known[0] == passage_ids[0]
            assert set(known) == {6 * i, 6 * i + 1}
            assert labels["ranking.query_id"][row] == i
            positives.add(texts[0])
    assert len(positives) == 24


def test_a_short_list_is_padded_and_nothing_empty_is_tokenised(rankings):
    words = Words()
    rows = [
        {"query": "q0", "positives": ["p0"], "scores": [5]},
        {"query": "q1", "positives": ["p1"], "negatives": ["n1"], "scores": [7, 8]},
    ]
    element = dataset(
        {"ranking": rankings(rows)},
        {"student": words},
        {"p": Ask(EncodePassage, ("ranking.passages",))},
        {},
        batch_size=2,
        passages=3,
    )[0]
    labels, tokens = element["labels"], element["student"]["p"].tokens
    first = int(np.flatnonzero(labels["ranking.query_id"] == 0)[0])
    assert labels["ranking.passage_ids"][first].tolist() == [0, -1, -1]
    assert labels["ranking.passage_ids"][1 - first].tolist() == [1, 2, -1]
    assert labels["ranking.scores"][first].tolist() == [5, 0, 0]
    real = labels["ranking.passage_ids"] >= 0
    np.testing.assert_array_equal(tokens.mask.any(-1), real)
    np.testing.assert_array_equal(tokens.keep.any(-1), real)
    assert (tokens.ids[~real] == PAD).all()
    assert [len(texts) for texts in words.calls] == [3]
    assert words.read(tokens.ids[1 - first, 1]) == "n1"


def test_pairs_are_read_side_by_side(rankings):
    words = Words()
    element = dataset(
        {"ranking": rankings(listing(5))},
        {"student": words},
        {"pair": Ask(Relevance, ("ranking.query", "ranking.passages"))},
        {},
        passages=2,
    )[0]
    ids = element["student"]["pair"].tokens.ids
    assert ids.shape == (4, 2, WIDTH)
    for row, query in enumerate(element["labels"]["ranking.query_id"]):
        assert words.read(ids[row, 0]).startswith(f"q{query} | p{query}")
        assert words.read(ids[row, 1]).startswith(f"q{query} | n{query}x")


def test_languages_are_chosen_by_chance_unless_named(rankings):
    rows = [
        {"query": f"en{i}", "positives": [f"p{i}"], "queries": {"sw": f"sw{i}"}} for i in range(50)
    ]
    words = Words()
    element = dataset(
        {"ranking": rankings(rows)},
        {"student": words, "teacher": words},
        {
            "any": Ask(EncodeQuery, ("ranking.query",)),
            "sw": Ask(EncodeQuery, ("ranking.query.sw",)),
        },
        {"en": Ask(EncodeQuery, ("ranking.query.en",))},
        batch_size=400,
    )[0]

    def texts(request):
        return [words.read(ids) for ids in request.tokens.ids]

    anyone = texts(element["student"]["any"])
    ids = element["labels"]["ranking.query_id"]
    assert texts(element["student"]["sw"]) == [f"sw{i}" for i in ids]
    assert texts(element["teacher"]["en"]) == [f"en{i}" for i in ids]
    assert [text[2:] for text in anyone] == [str(i) for i in ids]
    assert 150 < sum(text.startswith("sw") for text in anyone) < 250


def test_the_chosen_positive_is_the_first_known():
    many = tuple(Passage(i, f"p{i}") for i in range(MOST_KNOWN + 40))
    record = Ranking(0, {"en": "q"}, many, (), None, tuple(p.id for p in many))
    for i in range(30):
        chosen = choose(record, np.random.default_rng(i), passages=3)
        assert chosen.positives == (many[chosen.known[0]],)
        assert sorted(chosen.known) == list(record.known)


def test_labels_have_no_more_than_the_most_known(rankings):
    rows = [{"query": "q", "positives": [f"p{i}" for i in range(MOST_KNOWN + 40)]}]
    ask = Ask(EncodeQuery, ("ranking.query",))
    labels = dataset({"ranking": rankings(rows)}, {"student": Words()}, {"q": ask}, {})[0]["labels"]
    assert labels["ranking.known"].shape == (4, MOST_KNOWN)
    np.testing.assert_array_equal(labels["ranking.known"][:, :1], labels["ranking.passage_ids"])


def test_labels_have_the_known_passages_of_all_records_of_a_question(rankings):
    rows = [
        {"query": "same", "positives": ["one"], "negatives": ["x"]},
        {"query": "same", "positives": ["two"], "negatives": ["x"]},
        {"query": "other", "positives": ["three"]},
    ]
    element = dataset(
        {"ranking": rankings(rows)},
        {"student": Words()},
        {"q": Ask(EncodeQuery, ("ranking.query",))},
        {},
        batch_size=3,
    )[0]
    found = {
        (int(q), int(p)): known.tolist()
        for q, (p,), known in zip(
            element["labels"]["ranking.query_id"],
            element["labels"]["ranking.passage_ids"],
            element["labels"]["ranking.known"],
            strict=True,
        )
    }
    assert found == {(0, 0): [0, 2], (0, 2): [2, 0], (2, 4): [4, -1]}


def test_equal_requests_are_tokenised_once(bitext, tmp_path):
    words = Words()
    ask = Ask(EncodeQuery, ("bitext.english",))
    element = dataset(
        {"bitext": bitext(9).open(str(tmp_path))},
        {"student": words, "teacher": words},
        {"english": ask},
        {"english": ask, "short": dataclasses.replace(ask, length=3)},
    )[0]
    assert len(words.calls) == 2
    np.testing.assert_array_equal(
        element["student"]["english"].tokens.ids, element["teacher"]["english"].tokens.ids
    )


def test_idf_is_the_formula_over_the_texts_of_the_source(tmp_path):
    pairs = [("a a b", "x"), ("a c", "y"), ("a d", "z"), ("b e", "w")]
    lines = [f"{i}\t{english}\t{other}\n" for i, (english, other) in enumerate(pairs)]
    (tmp_path / "b.tsv").write_text("".join(lines))
    words = Words()
    batches = dataset(
        {"bitext": BitextTSV("b.tsv", "sw").open(str(tmp_path))},
        {"student": words, "teacher": words},
        token_labels=("teacher.english.idf",),
    )
    assert not words.calls, "construction reads no text"
    element = batches[0]
    weights, tokens = element["labels"]["teacher.english.idf"], element["teacher"]["english"].tokens
    assert weights.dtype == np.float32
    assert weights.shape == tokens.ids.shape
    frequency = {"a": 3, "b": 2, "c": 1, "d": 1, "e": 1}
    expected = np.zeros(weights.shape)
    for place in zip(*np.nonzero(tokens.keep), strict=True):
        word = words.read(tokens.ids[place][None])
        expected[place] = math.log(5 / (frequency[word] + 1)) + 1e-3
    assert (weights[:, 0] == 0).all()
    assert tokens.mask[:, 0].all()
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


BAD = [
    ({"student": {"o": Ask(EncodeQuery, ("bitexts.other",))}},
     'ask "student.o" reads "bitexts.other" and names the source "bitexts", which there is not; '
     'write "bitext" (there are: bitext)'),
    ({"student": {"o": Ask(EncodeQuery, ("bitext.othr",))}},
     'ask "student.o" reads "bitext.othr": "othr" is not a field of a bitext record; write "other" '
     "(one of: english, other)"),
    ({"teacher": {"o": Ask(EncodeQuery, ("bitext.other",), model="techer")}},
     'ask "teacher.o" names the tokenizer "techer", which there is not; write "teacher" '
     "(there are: student, teacher)"),
    ({"student": {"o": Ask(EncodeQuery, ())}},
     'ask "student.o" reads no text; write texts=("source.field",)'),
    ({"token_labels": ("student.othe.idf",)},
     'token_labels names the ask "student.othe", which there is not; write "student.other" '
     "(there are: student.other, teacher.english)"),
    ({"token_labels": ("student.other.idff",)},
     "token_labels 'student.other.idff' names the kind \"idff\", which there is not; "
     'write "idf" (there are: content, idf)'),
    ({"batch_size": 6, "world": 4},
     "batch_size 6 does not divide over 4 processes; set it to 8"),
    ({"rank": 2, "world": 2}, "rank 2 is not one of 2 processes; ranks count from 0"),
    ({"passages": 0}, "passages is 0; set it to 1 for the positive alone, or more"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_what_does_not_fit_is_refused_at_construction(bitext, tmp_path, options, sentence):
    records = bitext(9).open(str(tmp_path))
    with pytest.raises(ValueError) as error:
        dataset({"bitext": records}, **options)
    assert str(error.value) == sentence


def test_a_missing_language_is_refused_at_construction(rankings):
    rows = [{"query": "a", "positives": ["p"], "queries": {"sw": "b"}}]
    sources = {"ranking": rankings(rows)}
    asks = {"q": Ask(EncodeQuery, ("ranking.query.so",))}
    with pytest.raises(
        ValueError, match=r'write "query.sw" \(one of: query, passages, positive, query.en, qu'
    ):
        dataset(sources, {"student": Words()}, asks, {})


def test_the_tokenizer_of_a_retriever_fits(rankings):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "q", "p", "n", "##0", "##1"]
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), vocabulary[:5], strict=True))
    backend = wordpiece({piece: i for i, piece in enumerate(vocabulary)})
    tokenizer = TextTokenizer(backend, special)
    spec = LateInteraction(
        query_length=8, passage_length=9, query_marker="", passage_marker="", expansion=False
    )
    rows = [
        {"query": "q0", "positives": ["p0"]},
        {"query": "q1", "positives": ["p1"], "negatives": ["n1"]},
    ]
    element = dataset(
        {"ranking": rankings(rows)},
        {"student": RequestTokenizer(tokenizer, spec)},
        {"q": Ask(EncodeQuery, ("ranking.query",)), "p": Ask(EncodePassage, ("ranking.passages",))},
        {},
        batch_size=2,
        passages=2,
        token_labels=("student.q.idf", "student.q.content", "student.p.content"),
    )[0]
    tokens = element["student"]["p"].tokens
    first = int(np.flatnonzero(element["labels"]["ranking.query_id"] == 0)[0])
    assert tokens.ids.shape == (2, 2, 9)
    assert tokens.ids[first, 0].tolist() == [2, 6, 8, 3, 0, 0, 0, 0, 0]
    assert tokens.ids[first, 1].tolist() == [0] * 9
    assert not tokens.mask[first, 1].any()
    weights = element["labels"]["student.q.idf"][first]
    both, one = math.log(1) + 1e-3, math.log(3 / 2) + 1e-3
    np.testing.assert_allclose(weights[:5], [both, both, one, both, 0], rtol=1e-5)
    content = element["labels"]["student.q.content"]
    assert content.dtype == bool
    assert content[first].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert element["student"]["q"].tokens.keep[first].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    padded = element["labels"]["student.p.content"]
    assert padded.shape == (2, 2, 9)
    assert padded[first].sum(-1).tolist() == [2, 0]
