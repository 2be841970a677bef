"""Words of texts in several scripts, and their pieces in vocabularies of two kinds."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clir_jax.data.words import Words, pieces_of_words, split_words
from clir_jax.models.tokenizer import ROLES, TextTokenizer, wordpiece

SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
PIECES = (
    "gov",
    "##ern",
    "##ment",
    "l",
    "eau",
    "'",
    "2002",
    "学",
    "校",
    "は",
    "##ど",
    "##こで",
    "。",
)
PIECES += ("ไทย", "##มี", "##ภ", "##า", "e", "##́", "का", "।", ",")


def word_pieces():
    pieces = {piece: i for i, piece in enumerate([*SPECIAL, *PIECES])}
    return TextTokenizer(wordpiece(pieces, lowercase=False), dict(zip(ROLES, SPECIAL, strict=True)))


def unigram():
    special = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    scores = {"▁gov": -1.0, "ern": -1.0, "ment": -1.0, "▁": -3.0, "▁eau": -2.0, "de": -1.0}
    backend = Tokenizer(models.Unigram([(s, 0.0) for s in special] + list(scores.items()), 3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    frame = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=frame)
    return TextTokenizer(backend, dict(zip(ROLES, special, strict=True)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  L'eau,\tc\u2019est! ", ["L", "'", "eau", ",", "c", "’", "est", "!"]),
        ("2,5 €", ["2", ",", "5", "€"]),
        ("सरकार का प्रस्ताव है।", ["सरकार", "का", "प्रस्ताव", "है", "।"]),
        ("مدرسةٌ كبيرة، نعم", ["مدرسةٌ", "كبيرة", "،", "نعم"]),
        # A joiner is inside a word, a space of no width is not; neither is a word by itself.
        ("می\u200cخواهم\u200bنه \u200f ", ["می\u200cخواهم", "نه"]),
        # Marks stay with their letters, decomposed or not.
        ("e\u0301te été", ["e\u0301te", "été"]),
        # A Chinese character is a word; of kana and Thai, a piece is, which takes marks along.
        ("学校はどこで。", ["学", "校", "は", "ど", "こで", "。"]),
        ("ไทยมีภา ok", ["ไทย", "มี", "ภ", "า", "ok"]),
        (" \n", []),
    ],
)
def test_words_of_a_text(text, words):
    found = split_words(text, word_pieces())
    assert found.words == words
    assert found.text == text


@pytest.mark.parametrize("tokenizer", [word_pieces(), unigram()], ids=["WordPiece", "Unigram"])
@pytest.mark.parametrize("prompt", ["", "government: "])
def test_the_pieces_of_a_word_are_those_it_has_alone(tokenizer, prompt):
    texts = [Words.joined(["government", "eau", "gov"]), Words.joined(["eau"])]
    for text, pieces in zip(texts, pieces_of_words(texts, tokenizer, prompt), strict=True):
        (ids,) = tokenizer.encode([text.text])
        assert pieces.shape == (len(ids), len(text.spans))
        for word, own in zip(text.words, pieces.T, strict=True):
            assert [ids[i] for i in np.flatnonzero(own)] == tokenizer.encode([word])[0]


def test_a_piece_over_two_words_belongs_to_both_and_a_dropped_word_has_none():
    text = Words("government, \u200b,", ((0, 3), (3, 10), (10, 11), (12, 13), (13, 14)))
    (pieces,) = pieces_of_words([text], word_pieces())
    assert pieces.tolist() == [
        [True, False, False, False, False],
        [False, True, False, False, False],
        [False, True, False, False, False],
        [False, False, True, False, False],
        [False, False, False, False, True],
    ]
    (whole,) = pieces_of_words([Words("学 xyz", ((0, 1), (2, 4), (4, 5)))], word_pieces())
    assert whole.tolist() == [[True, False, False], [False, True, True]]  # [UNK] is one piece
