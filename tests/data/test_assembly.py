"""Stored answers in the place of requests."""

import dataclasses

import numpy as np
import pytest

from clir_jax.data.pipeline import task_dataset
from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery, Relevance
from clir_jax.objectives.base import Ask
from tests.data import short_texts

OTHER, ENGLISH = (Ask(EncodeQuery, (f"bitext.{side}",), length=24) for side in ("other", "english"))
QUERY, PASSAGES = Ask(EncodeQuery, ("ranking.query",)), Ask(EncodePassage, ("ranking.passages",))
E = 3


class Stored:
    """Answers with a vector a word, that of the word's number; or with one vector a text."""

    def __init__(self, dense=False):
        self.dense, self.widths = dense, []

    def __call__(self, texts, width):
        self.widths.append(width)
        vectors = np.zeros((len(texts), 1 if self.dense else width, E), np.float16)
        mask = np.zeros(vectors.shape[:2], bool)
        for row, text in enumerate(texts):
            own = of_words(text, vectors.shape[1])
            vectors[row, : len(own)], mask[row, : len(own)] = own, True
        return Embeddings(vectors, mask)


def of_words(text, most):
    numbers = [short_texts.WORDS.index(word) for word in text.split()[:most]]
    return np.add.outer(np.array(numbers, np.float16), np.arange(1, E + 1, dtype=np.float16))


class Counting:
    """A tokenizer that remembers what it was asked."""

    def __init__(self, inner):
        self.inner, self.tokenizer, self.read = inner, inner.tokenizer, []

    def tokenize(self, kind, texts, *, content=False, length=None):
        self.read += texts
        return self.inner.tokenize(kind, texts, content=content, length=length)


def dataset(sources, student, teacher, answers, teacher_tokenizer=None, **options):
    tokenizers = {
        "student": short_texts.tokenizer(),
        "teacher": teacher_tokenizer or short_texts.tokenizer(),
    }
    options = {"batch_size": 4, "seed": 0, **options}
    return task_dataset(student, teacher, sources, tokenizers, answers=answers, **options)


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("dense", [False, True])
def test_an_answer_takes_the_place_of_the_request(tmp_path, buckets, dense):
    opened, pairs = short_texts.bitext(tmp_path, 30)
    stored, teacher = Stored(dense), Counting(short_texts.tokenizer())
    batches = dataset(
        {"bitext": opened},
        {"other": OTHER, "english": ENGLISH},
        {"english": ENGLISH},
        {"english": stored},
        teacher,
        buckets=buckets,
    )
    teacher.read.clear()  # buckets count the texts first
    widths = set()
    for step in range(8):
        element = batches[step]
        answer = element["teacher"]["english"]
        assert isinstance(answer, Embeddings)
        assert isinstance(element["student"]["english"], EncodeQuery)
        width = element["student"]["english"].tokens.ids.shape[1]
        assert answer.vectors.shape == (4, 1 if dense else width, E)
        assert answer.vectors.dtype == np.float16
        assert stored.widths[-1] == width
        for row, i in enumerate(element["labels"]["bitext.id"]):
            own = of_words(pairs[i][0], answer.vectors.shape[1])
            np.testing.assert_array_equal(answer.vectors[row, : len(own)], own)
            assert answer.mask[row].sum() == len(own)
        widths.add(width)
    assert not any(teacher.read)
    assert len(widths) == 1 if buckets == 1 else 1 < len(widths) <= 3


def test_answers_to_passages_are_zero_where_there_is_none(tmp_path):
    opened, rows = short_texts.rankings(tmp_path, 12)
    texts = [p for row in rows for p in row["positives"] + row["negatives"]]
    batches = dataset(
        {"ranking": opened}, {"q": QUERY}, {"p": PASSAGES}, {"p": Stored()}, passages=5
    )
    element = batches[1]
    answer, ids = element["teacher"]["p"], element["labels"]["ranking.passage_ids"]
    assert answer.vectors.shape == (4, 5, 30, E)
    assert (ids[:, 3:] == -1).all()
    for place in np.ndindex(ids.shape):
        expected = of_words(texts[ids[place]], 30) if ids[place] >= 0 else np.zeros((0, E))
        np.testing.assert_array_equal(answer.vectors[place][: len(expected)], expected)
        assert not answer.vectors[place][len(expected) :].any()
        assert answer.mask[place].sum() == len(expected)


def test_token_labels_of_stored_answers_are_as_wide_as_they_are(tmp_path):
    opened, _ = short_texts.bitext(tmp_path, 30)
    kinds = ("content", "idf")
    arguments = {"bitext": opened}, {"other": OTHER}, {"english": ENGLISH}
    options = {
        "token_labels": tuple(f"teacher.english.{kind}" for kind in kinds),
        "buckets": 3,
    }
    stored = dataset(*arguments, {"english": Stored()}, **options)
    asked = dataset(*arguments, {}, **options)
    for step in range(8):
        labels, expected = stored[step]["labels"], asked[step]["labels"]
        width = stored[step]["teacher"]["english"].vectors.shape[1]
        for kind in kinds:
            found = labels[f"teacher.english.{kind}"]
            assert found.shape == (4, width)
            np.testing.assert_array_equal(found, expected[f"teacher.english.{kind}"])


def test_what_does_not_fit_is_refused(tmp_path):
    opened, _ = short_texts.rankings(tmp_path, 3)
    pair = dataclasses.replace(PASSAGES, kind=Relevance, texts=(*QUERY.texts, *PASSAGES.texts))
    cases = [
        ({"passage": Stored()},
         'answers names the ask "teacher.passage", which there is not; write "teacher.passages" '
         "(there are: teacher.passages, teacher.pair)"),
        ({"pair": Stored()},
         'answers are of one text each, and the ask "teacher.pair" reads 2; leave it out of '
         "answers"),
    ]  # fmt: skip
    for answers, sentence in cases:
        with pytest.raises(ValueError) as error:
            dataset({"ranking": opened}, {}, {"passages": PASSAGES, "pair": pair}, answers)
        assert str(error.value) == sentence
