"""Word alignment: scores by hand and by loops, words against texts that are encoded one by one."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from clir_jax.data.gold_alignment import GoldAlignment, GoldPair, OpenedGold
from clir_jax.data.reading import Report
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.data.words import Words
from clir_jax.evaluation import alignment
from clir_jax.evaluation.alignment import (
    Method,
    WordAligner,
    alignment_scores,
    measure_gold,
    score_alignments,
)
from clir_jax.mesh import make_mesh
from clir_jax.models.formats import on_mesh
from clir_jax.models.requests import EncodeQuery
from clir_jax.models.retriever import Dense
from clir_jax.ops.alignment import Attention, Greedy
from tests.training.workshop import LATE, WORDS, by_hand, retriever


def gold(sure, possible=()):
    words = Words.joined(["a"] * 9)
    return GoldPair("gold:1", words, words, frozenset(sure), frozenset(sure) | frozenset(possible))


def test_scores_by_hand():
    # Och and Ney's figures by their definitions: A 4 links, S 3, P 5; A and S share 2, A and P 3.
    pair = gold({(0, 0), (1, 1), (2, 2)}, {(3, 3), (3, 4)})
    scores = alignment_scores([{(0, 0), (1, 1), (3, 3), (4, 4)}], [pair])
    assert scores == {
        "F1": pytest.approx(2 * (3 / 4) * (2 / 3) / (3 / 4 + 2 / 3)),
        "precision": 3 / 4,
        "recall": pytest.approx(2 / 3),
        "AER": pytest.approx(1 - (2 + 3) / (4 + 3)),
    }
    perfect = alignment_scores([{(0, 0), (1, 1), (2, 2), (3, 4)}], [pair])
    assert list(perfect.values()) == [1.0, 1.0, 1.0, 0.0]
    assert list(alignment_scores([set()], [pair]).values()) == [0.0, 0.0, 0.0, 1.0]
    # Over the corpus, not the mean of its sentences: 3 of 5 links, 2 of 4 sure ones.
    both = alignment_scores([{(0, 0), (1, 1), (3, 3), (4, 4)}, {(5, 6)}], [pair, gold({(5, 5)})])
    assert (both["precision"], both["recall"]) == (3 / 5, 2 / 4)


def test_scores_by_loops():
    rng = np.random.default_rng(0)
    found, pairs, counts = [], [], np.zeros(4, int)
    for _ in range(50):
        a, s, p = (rng.random((6, 5)) < share for share in (0.3, 0.2, 0.2))
        found.append({(i, j) for i in range(6) for j in range(5) if a[i, j]})
        pairs.append(gold(*({(i, j) for i, j in np.argwhere(m).tolist()} for m in (s, p))))
        for i in range(6):
            for j in range(5):
                counts += [a[i, j], s[i, j], a[i, j] & s[i, j], a[i, j] & (s[i, j] | p[i, j])]
    links, sure, in_sure, in_possible = counts.tolist()
    scores = alignment_scores(found, pairs)
    assert scores["AER"] == pytest.approx(1 - (in_sure + in_possible) / (links + sure))
    assert scores["precision"] == pytest.approx(in_possible / links)
    assert scores["recall"] == pytest.approx(in_sure / sure)


def word(rng, parts):
    """A word of so many of the vocabulary's words, so of that many pieces or more."""
    return "".join(rng.choice(WORDS, parts))


@pytest.fixture(scope="module")
def pairs():
    """Sentences of 1 to 9 words of 1 to 3 parts, and long ones; no two of like shape."""
    rng = np.random.default_rng(1)
    sizes = [(1, 4), (5, 3), (7, 7), (2, 9)]
    sentences = [[[word(rng, rng.integers(1, 4)) for _ in range(n)] for n in s] for s in sizes]
    sentences.append([[word(rng, 1) for _ in range(n)] for n in (33, 34)])
    return [(Words.joined(x), Words.joined(y)) for x, y in sentences]


@pytest.fixture(scope="module")
def student():
    return retriever(LATE, make_mesh())


def greedy_loop(cost):
    """The cheapest pair of what is left, again and again."""
    left, matches = cost.copy(), np.zeros(cost.shape)
    for _ in range(min(cost.shape)):
        i, j = np.unravel_index(left.argmin(), left.shape)
        matches[i, j] = 1 / min(cost.shape)
        left[i], left[:, j] = np.inf, np.inf
    return matches


def attention_loop(cost):
    shares = np.exp(-cost / 0.05)
    return shares / shares.sum(axis=1, keepdims=True) / len(cost)


def words_by_hand(plan, x, y, x_words, y_words):
    """Mass by loops over pieces; a pair is linked if no other of its row or column has more."""
    mass = np.zeros((len(x_words), len(y_words)))
    for i, of_x in enumerate(x):
        for j, of_y in enumerate(y):
            mass[of_x, of_y] += plan[i, j]
    best = [(i, j) for i, j in np.ndindex(mass.shape) if mass[i, j] == mass[i].max() > 0]
    return mass, {(i, j) for i, j in best if mass[i, j] == mass[:, j].max()}


def piece_owners(model, words):
    """Which word each piece of a sentence is of: words are tokenised one by one."""
    return [n for n, w in enumerate(words.words) for _ in model.tokenizer.encode([w])[0]]


def test_words_are_aligned_as_one_by_one(pairs, student):
    """On eight devices, in two widths; the reference reads each sentence alone, unpadded."""
    solvers = {Greedy(): greedy_loop, Attention(): attention_loop}
    compiled = alignment._encode._cache_size()
    aligner = WordAligner.of(student, None, make_mesh())
    found = aligner.align(pairs, [Method(kind) for kind in solvers])
    # Two widths, 32 tokens and all 40, for five pairs.
    assert alignment._encode._cache_size() - compiled == 2
    one = retriever()  # the same on one device
    texts = [words.text for pair in pairs for words in pair]
    encoded = by_hand(one, EncodeQuery, texts, content=True, length=40)
    for n, pair in enumerate(pairs):
        x, y = (vectors[mask] for vectors, mask in itertools.islice(encoded, 2))
        cost = 1 - x @ y.T
        owners = [piece_owners(one, words) for words in pair]
        for (kind, solve), alignments in zip(solvers.items(), found, strict=True):
            plan = solve(cost.astype(np.float64))
            mass, links = words_by_hand(plan, *owners, *(words.words for words in pair))
            np.testing.assert_allclose(alignments[n].mass, mass, atol=2e-5, err_msg=str(kind))
            if kind == Attention():  # of equal masses, which matches have, the first counts
                assert alignments[n].links == links
            assert alignments[n].links <= links
            assert alignments[n].links


def test_a_teacher_of_another_vocabulary_and_a_layer(pairs, student):
    """A dense teacher with a prompt reads targets; of a layer, its kind does not matter."""
    mesh = make_mesh()
    dense = Dense(query_length=12, passage_length=40, query_prompt="ri ke: ")
    teacher = retriever(dense, mesh)
    aligner = WordAligner(student, teacher, mesh, layer=1)
    found = aligner.align(pairs[:2], [Method(Attention())])[0]
    sides = [
        vectors_of_layer(model, [pair[side].text for pair in pairs[:2]])
        for side, model in enumerate((retriever(), retriever(dense)))
    ]
    for (source, target), got, x, y in zip(pairs[:2], found, *sides, strict=True):
        plan = attention_loop((1 - x @ y.T).astype(np.float64))
        owners = [piece_owners(student, words) for words in (source, target)]
        mass, links = words_by_hand(plan, *owners, source.words, target.words)
        np.testing.assert_allclose(got.mass, mass, atol=2e-5)
        assert got.links == links


def vectors_of_layer(model, texts):
    tokens = RequestTokenizer(model.tokenizer, model.spec, skiplist=model.skiplist)
    asked = jax.jit(lambda params, r: nnx.merge(model.graphdef, params)(r, layer=1))
    for text in texts:
        out = asked(model.params, tokens.tokenize(EncodeQuery, [text], content=True, length=40))
        yield np.asarray(out.vectors)[0][np.asarray(out.mask)[0]]


def test_null_and_agreement_leave_pairs_out(pairs, student):
    aligner = WordAligner.of(student, None, make_mesh())
    methods = [Method(Greedy()), Method(Greedy(), null=1e-6), Method(Attention(), agreement=True)]
    every, none, agreed = aligner.align(pairs[1:2], methods)
    assert every[0].links
    assert not none[0].links
    assert not none[0].mass.any()
    # Pieces that are each other's best: of no piece more than one pair.
    assert (agreed[0].mass > 0).sum() < agreed[0].mass.size
    assert agreed[0].mass.sum() == pytest.approx(1, abs=1e-5)


def test_gold_is_scored_as_its_links_are(pairs, student):
    mesh = make_mesh()
    found = WordAligner.of(student, None, mesh).align(pairs, [Method(Greedy())])[0]
    links = [frozenset(one.links) for one in found]
    told = [GoldPair("g:1", *p, own, own) for p, own in zip(pairs, links, strict=True)]
    aligner = WordAligner.of(student, None, mesh)
    scores = score_alignments(aligner, told, [Method(Greedy()), Method(Attention())])
    assert scores[0] == {"F1": 1.0, "precision": 1.0, "recall": 1.0, "AER": 0.0}
    opened = OpenedGold(GoldAlignment("g", "sw", aligner=Attention()), told, Report())
    assert measure_gold(student, opened, mesh) == scores[1]
    assert scores[1]["AER"] > 0


def test_models_that_cannot_align(student):
    mesh = make_mesh(devices=jax.devices()[:1])
    dense = retriever(Dense(query_length=12, passage_length=40))
    with pytest.raises(ValueError, match="dense retriever with one vector a text, and tokens are "):
        WordAligner.of(dense, None, mesh)
    with pytest.raises(ValueError, match="layer is 2; write one from 1 to 1, or none"):
        WordAligner.of(dense, 2, mesh)
    wide = dataclasses.replace(student, spec=dataclasses.replace(LATE, dimension=4))
    with pytest.raises(ValueError, match="the two models have 8 and 4 numbers"):
        WordAligner(student, wide, mesh)
    long = Words.joined(["lake"] * 50)
    one = WordAligner.of(on_mesh(student, mesh), None, mesh)
    with pytest.raises(ValueError, match=r"'lake lake .*'… has \d+ pieces, and the encoder has ro"):
        one.align([(long, long)], [Method(Greedy())])
