"""Inverse document frequencies against a count by hand."""

import math
import threading

import numpy as np

from clir_jax.data import frequencies
from clir_jax.data.frequencies import InverseDocumentFrequency
from clir_jax.data.reading import Report
from clir_jax.models.requests import Tokens

TEXTS = [[3, 3, 7], [3, 5], [9], [5, 9, 3], [2]]


class Numbers:
    """Records that are lists of token ids."""

    kind, languages, report = list, (), Report()

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        return self.texts[i]


def make(texts, calls=None):
    def tokenize(texts):
        if calls is not None:
            calls.append(len(texts))
        ids = np.zeros((len(texts), 4), np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
        return Tokens(ids, ids > 0, (ids > 0) & (ids != 9))

    return InverseDocumentFrequency(Numbers(texts), lambda text: (text,), tokenize)


def test_the_formula_and_the_kept_positions():
    ids = np.asarray([[3, 5, 7, 2], [9, 3, 100, 4]], np.int32)
    weights = make(TEXTS)(Tokens(ids, ids > 0, ids != 9))
    n = len(TEXTS)

    def idf(df):
        return math.log((n + 1) / (df + 1)) + 1e-3

    expected = [[idf(3), idf(2), idf(1), idf(1)], [0, idf(3), idf(0), idf(0)]]
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_a_token_of_every_text_weighs_a_little():
    ids = np.asarray([[[3, 0, 0]]], np.int32)
    weights = make([[3], [3, 4]])(Tokens(ids, ids > 0, ids > 0))
    np.testing.assert_allclose(weights, [[[1e-3, 0, 0]]], rtol=1e-6)


def test_many_texts_are_sampled_the_same_way_each_time(monkeypatch):
    monkeypatch.setattr(frequencies, "MOST_TEXTS", 100)
    monkeypatch.setattr(frequencies, "_BLOCK", 30)
    texts = [[1 + i % 7, 20 + i % 50] for i in range(1000)]
    ids = np.arange(80, dtype=np.int32)[None]
    calls = []
    first = make(texts, calls)(Tokens(ids, ids > 0, ids > 0))
    assert calls == [30, 30, 30, 10]
    np.testing.assert_array_equal(make(texts)(Tokens(ids, ids > 0, ids > 0)), first)
    seen = np.exp(-(first[0, 20:70] - 1e-3)) * 101 - 1
    assert round(seen.sum()) == 100
    assert (seen.round() > 0).sum() > 30


def test_texts_are_counted_once_whichever_thread_asks():
    calls = []
    weigh = make(TEXTS, calls)
    assert calls == []
    ids = np.asarray([[3, 5]], np.int32)
    threads = [
        threading.Thread(target=weigh, args=(Tokens(ids, ids > 0, ids > 0),)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [len(TEXTS)]
