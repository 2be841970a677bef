"""BM25 against its formula, written out as a loop over passages and words."""

import json
import logging
import math
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from clir_jax.evaluation.bm25 import bm25_run

WORDS = ["fox", "whale", "Straße", "ÉTÉ", "дом", "狐狸", "don't", "x_y", "42", "नमस्ते"]


def _words(text):
    """Letters, digits, underscores and combining marks are words; all else separates them."""
    words = [""]
    for c in text.lower():
        if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M":
            words[-1] += c
        else:
            words.append("")
    return [word for word in words if word]


def _by_hand(texts, query, k1, b):
    split = [_words(text) for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for token in _words(query):
            n, f = sum(token in other for other in split), words.count(token)
            idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            score += idf * f / (f + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


def _texts(rng, count):
    return [" ".join(rng.choice(WORDS, rng.integers(0, 12))) + "." for _ in range(count)]


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4)])
def test_scores_are_the_formula(k1, b):
    rng = np.random.default_rng(0)
    texts, queries = _texts(rng, 40), [*_texts(rng, 8), "fox fox whale", "unseen words", ""]
    ids, query_ids = [f"d{i}" for i in range(40)], [f"q{i}" for i in range(len(queries))]
    run = bm25_run(ids, iter(texts), query_ids, iter(queries), k=15, k1=k1, b=b)
    assert list(run) == query_ids
    ranked = 0
    for name, query in zip(query_ids, queries, strict=True):
        expected = _by_hand(texts, query, k1, b)
        scores = [score for _, score in run[name]]
        assert scores == pytest.approx(sorted((s for s in expected if s > 0), reverse=True)[:15])
        for passage, score in run[name]:
            assert score == pytest.approx(expected[ids.index(passage)], rel=1e-5)
        ranked += len(scores)
    assert ranked > 50
    assert run["q9"] == run["q10"] == []


def test_ties_keep_the_order_of_the_corpus():
    ids = [f"d{i}" for i in np.random.default_rng(1).permutation(30)]
    texts = ["a fox" if i % 3 else "a whale" for i in range(30)]
    run = bm25_run(ids, texts, ["q"], ["fox"], k=7)
    assert [passage for passage, _ in run["q"]] == [d for i, d in enumerate(ids) if i % 3][:7]


def test_a_word_is_not_cut_at_its_vowel_signs():
    run = bm25_run(["a", "b"], ["हिन्दी", "ह द"], ["q"], ["हिन्दी"])
    assert [passage for passage, _ in run["q"]] == ["a"]


def test_every_process_ranks_alike_and_prints_nothing(tmp_path):
    code = (
        "import logging; logging.basicConfig(level=0)\n"
        "from clir_jax.evaluation.bm25 import bm25_run\n"
        "import json, random; random.seed(0)\n"
        "texts = [' '.join(random.choices('abcdefgh', k=9)) for _ in range(60)]\n"
        "json.dump(bm25_run(range(60), texts, range(9), texts[:9], k=20), open('{}', 'w'))\n"
    )
    runs = []
    for seed in ("1", "2"):
        file = tmp_path / f"{seed}.json"
        env = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code.format(file)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert "bm25" not in (done.stdout + done.stderr).lower()
        assert "it/s" not in done.stderr
        runs.append(file.read_text())
    assert runs[0] == runs[1]
    assert all(len(list_) == 20 for list_ in json.loads(runs[0]).values())


def test_the_log_of_bm25s_is_quiet(caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        bm25_run(["d"], ["a fox"], ["q"], ["fox"])
    assert not [r for r in caplog.records if r.name.startswith("bm25s")]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["d", "d"], ["a", "b"], ["q"], ["a"]), "corpus id 'd' comes twice"),
        ((["d"], ["a"], ["q", "q"], ["a", "b"]), "query id 'q' comes twice"),
        ((["d", "e"], ["a"], ["q"], ["a"]), "2 corpus ids and 1 corpus texts"),
        ((["d"], ["a", "b"], ["q"], ["a"]), "1 corpus ids and 2 corpus texts"),
        ((["d"], ["a"], ["q", "r"], ["a"]), "2 query ids and 1 query texts"),
        ((["d"], ["…"], ["q"], ["a"]), "the corpus holds no word"),
        (([], [], ["q"], ["a"]), "the corpus holds no word"),
        ((["d"], ["a"], ["q"], ["a"], 0), "k is 0"),
    ],
)
def test_errors_say_what_to_do(arguments, words):
    with pytest.raises(ValueError, match=words):
        bm25_run(*arguments)
