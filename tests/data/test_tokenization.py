"""Requests against a hand-written ColBERT tokenisation, in plain Python, on tiny vocabularies."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.models.requests import EncodePassage, EncodeQuery, Likelihood, Relevance
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.models.tokenizer import ROLES, TextTokenizer, add_markers, load_tokenizer, wordpiece

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "many", "cat", "##s", "dog", "?"]
PIECES += [",", "so", "query", ":", "؟", "。", "##og", "d", "##o"]
BERT = dict(zip(ROLES, ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), strict=True))
XLMR = dict(zip(ROLES, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), strict=True))
SCORES = {
    "<s>": 0.0, "<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -2.5, "▁how": -1.0, "▁many": -1.1,
    "▁cat": -1.2, "s": -2.0, "▁dog": -1.3, "?": -1.0, ",": -1.05, "▁so": -1.4, "d": -3.0, "o": -3.1,
    "g": -3.2, "▁query": -2.2, ":": -2.1, "؟": -2.3, "。": -2.4, "ogs": -2.6,
}  # fmt: skip


def bert():
    return TextTokenizer(wordpiece({p: i for i, p in enumerate(PIECES)}, lowercase=True), BERT)


def xlmr():
    backend = Tokenizer(models.Unigram(list(SCORES.items()), unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in XLMR.values()])
    return TextTokenizer(backend, XLMR)


def pieces_by_hand(text, kind):
    """WordPiece by greedy longest match; Unigram by the best of all segmentations."""
    if kind == "bert":
        for mark in "?,:؟。":
            text = text.replace(mark, f" {mark} ")
        found = []
        for word in text.lower().split():
            start, parts = 0, []
            while start < len(word):
                prefix = "##" if start else ""
                ends = [e for e in range(len(word), start, -1) if prefix + word[start:e] in PIECES]
                if not ends:
                    parts = ["[UNK]"]
                    break
                parts.append(prefix + word[start : ends[0]])
                start = ends[0]
            found += parts
        return found

    def segmentations(word):
        if not word:
            yield []
        for end in range(1, len(word) + 1):
            if word[:end] in SCORES:
                for rest in segmentations(word[end:]):
                    yield [word[:end], *rest]

    found = []
    for word in text.split():
        choices = list(segmentations("▁" + word))
        found += max(choices, key=lambda parts: sum(SCORES[p] for p in parts))
    return found


def colbert_by_hand(text, kind, query, spec):
    """Pieces, attention and scored positions; as PyLate does it."""
    names = BERT if kind == "bert" else XLMR
    length = spec.query_length if query else spec.passage_length
    marker = "[Q]" if query else "[D]"
    tokens = [names["cls"], *pieces_by_hand(text, kind)[: length - 3], names["sep"]]
    tokens.insert(1, marker)
    attended, scored = [True] * len(tokens), [True] * len(tokens)
    if not query and spec.skip_punctuation:
        scored = [t.removeprefix("##") not in [*"?,:؟。"] for t in tokens]
    missing = length - len(tokens)
    expand = query and spec.expansion
    tokens += [names["mask" if expand else "pad"]] * missing
    attended += [expand and spec.attend_to_expansion] * missing
    scored += [expand] * missing
    return tokens, attended, scored


TEXTS = ["how many cats?", "so, dog: many 。 cat, dogs", "dog ؟", "Cats"]
SPECS = [
    LateInteraction(query_length=10, passage_length=9),
    LateInteraction(query_length=6, passage_length=20, attend_to_expansion=True),
    LateInteraction(query_length=8, passage_length=9, expansion=False, skip_punctuation=False),
]


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("query", [True, False])
def test_late_interaction_equals_colbert_by_hand(kind, spec, query):
    tokenizer, _ = add_markers(bert() if kind == "bert" else xlmr(), spec)
    requests = RequestTokenizer(tokenizer, spec)
    texts = [text if kind == "bert" else text.lower() for text in TEXTS]
    request = requests.tokenize(EncodeQuery if query else EncodePassage, texts)
    assert type(request) is (EncodeQuery if query else EncodePassage)
    tokens = request.tokens
    assert (tokens.ids.dtype, tokens.mask.dtype, tokens.keep.dtype) == (np.int32, bool, bool)
    for row, text in enumerate(texts):
        pieces, attended, scored = colbert_by_hand(text, kind, query, spec)
        assert requests.pieces(tokens.ids[row]) == pieces
        assert tokens.mask[row].tolist() == attended
        assert tokens.keep[row].tolist() == scored
    assert tokens.ids.shape == (4, spec.query_length if query else spec.passage_length)


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize("query", [True, False])
def test_content_keeps_the_texts_own_pieces_punctuation_among_them(kind, query):
    spec = SPECS[0]
    tokenizer, _ = add_markers(bert() if kind == "bert" else xlmr(), spec)
    requests = RequestTokenizer(tokenizer, spec)
    side = EncodeQuery if query else EncodePassage
    tokens = requests.tokenize(side, ["how many, dog?"], content=True, length=12).tokens
    own = pieces_by_hand("how many, dog?", kind)
    ids = tokens.ids[0]
    assert requests.pieces(ids[tokens.keep[0]]) == own
    assert requests.pieces(ids[1:2]) == ["[Q]" if query else "[D]"]  # read, though not kept
    assert tokens.mask[0].tolist() == [True] * (len(own) + 3) + [False] * (9 - len(own))
    assert (ids[len(own) + 3 :] == tokenizer.id("pad")).all()  # no expansion


def test_content_only_models_keep_the_same_at_search_but_for_punctuation():
    spec = LateInteraction(query_length=10, passage_length=10, content_only=True)
    tokenizer, _ = add_markers(bert(), spec)
    requests = RequestTokenizer(tokenizer, spec)
    query = requests.tokenize(EncodeQuery, ["how many, dog?"]).tokens
    assert requests.pieces(query.ids[query.keep]) == ["how", "many", ",", "dog", "?"]
    assert tokenizer.id("mask") not in query.ids
    passage = requests.tokenize(EncodePassage, ["how many, dog?"]).tokens
    assert requests.pieces(passage.ids[passage.keep]) == ["how", "many", "dog"]
    training = requests.tokenize(EncodePassage, ["how many, dog?"], content=True).tokens
    assert requests.pieces(training.ids[training.keep]) == ["how", "many", ",", "dog", "?"]


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_dense_requests_have_prompts_and_no_expansion(kind):
    spec = Dense(query_length=8, passage_length=6, query_prompt="query: ")
    tokenizer = bert() if kind == "bert" else xlmr()
    requests = RequestTokenizer(tokenizer, spec)
    names = BERT if kind == "bert" else XLMR
    prompt = pieces_by_hand("query:", kind)
    own = pieces_by_hand("cats", kind)
    full = [names["cls"], *prompt, *own, names["sep"]]
    tokens = requests.tokenize(EncodeQuery, ["cats"]).tokens
    assert requests.pieces(tokens.ids[0]) == full + [names["pad"]] * (8 - len(full))
    assert tokens.mask[0].tolist() == [n < len(full) for n in range(8)]
    np.testing.assert_array_equal(tokens.keep, tokens.mask)
    content = requests.tokenize(EncodeQuery, ["cats"], content=True).tokens
    assert requests.pieces(content.ids[content.keep]) == own
    passage = requests.tokenize(EncodePassage, ["cats, so many dogs, so many"]).tokens
    assert passage.mask.all()
    assert passage.keep.all()
    expected = pieces_by_hand("cats, so many dogs, so many", kind)[:4]
    assert requests.pieces(passage.ids[0]) == [names["cls"], *expected, names["sep"]]


def test_no_marker_where_the_specification_has_none():
    spec = LateInteraction(query_length=6, passage_length=6, query_marker="", passage_marker="")
    requests = RequestTokenizer(bert(), spec)
    tokens = requests.tokenize(EncodeQuery, ["cats"]).tokens
    assert requests.pieces(tokens.ids[0]) == ["[CLS]", "cat", "##s", "[SEP]", "[MASK]", "[MASK]"]
    assert requests.markers == ()


def test_a_saved_skiplist_is_used_as_it_is():
    spec = LateInteraction(passage_length=8)
    tokenizer, _ = add_markers(bert(), spec)
    comma = PIECES.index(",")
    requests = RequestTokenizer(tokenizer, spec, skiplist=[comma])
    tokens = requests.tokenize(EncodePassage, ["so, cat?"]).tokens
    assert requests.pieces(tokens.ids[tokens.keep]) == ["[CLS]", "[D]", "so", "cat", "?", "[SEP]"]
    assert RequestTokenizer(tokenizer, SPECS[2], skiplist=[comma]).skiplist == ()


def test_tokenizers_are_equal_if_they_read_alike():
    def make(backend=bert, spec=SPECS[0], skiplist=None):
        return RequestTokenizer(add_markers(backend(), spec)[0], spec, skiplist=skiplist)

    one = make()
    assert one == make()
    assert hash(one) == hash(make())
    assert one.tokenizer is not make().tokenizer
    empty = RequestTokenizer(one.tokenizer, SPECS[0], empty=True)
    others = [make(xlmr), make(spec=SPECS[1]), make(skiplist=[PIECES.index(",")]), empty]
    assert all(one != other for other in [*others, one.tokenizer])


def test_an_unknown_word_is_kept_and_a_batch_may_be_empty():
    tokenizer, _ = add_markers(bert(), SPECS[0])
    requests = RequestTokenizer(tokenizer, SPECS[0])
    tokens = requests.tokenize(EncodePassage, ["zebra so"]).tokens
    assert requests.pieces(tokens.ids[tokens.keep]) == ["[CLS]", "[D]", "[UNK]", "so", "[SEP]"]
    assert requests.tokenize(EncodeQuery, []).tokens.ids.shape == (0, 10)


@pytest.mark.parametrize("text", ["", " \n", "\u200b"])
def test_a_text_without_a_piece_where_it_is_taken(text):
    requests = RequestTokenizer(bert(), Dense(query_prompt="so "), empty=True)
    for kind, own in ((EncodeQuery, ["so"]), (EncodePassage, [])):
        tokens = requests.tokenize(kind, ["cat", text]).tokens
        (places,) = np.nonzero(tokens.mask[1])
        assert requests.pieces(tokens.ids[1, places]) == ["[CLS]", *own, "[SEP]"]
        np.testing.assert_array_equal(tokens.keep[1], tokens.mask[1])


def test_threads_share_one_tokenizer():
    tokenizer, _ = add_markers(bert(), SPECS[0])
    requests = RequestTokenizer(tokenizer, SPECS[0])
    batches = [[TEXTS[(i + j) % 4] for j in range(16)] for i in range(8)]
    alone = [requests.tokenize(EncodePassage, batch).tokens.ids for batch in batches]
    together = [None] * 8

    def work(i):
        for _ in range(10):
            together[i] = requests.tokenize(EncodePassage, batches[i]).tokens.ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors_say_what_to_write():
    tokenizer, _ = add_markers(bert(), SPECS[0])
    requests = RequestTokenizer(tokenizer, SPECS[0])
    for empty in ("", "  \n\u3000"):
        with pytest.raises(ValueError, match=r"query 1 of this batch is .*leave the record out"):
            requests.tokenize(EncodeQuery, ["so", empty])
    with pytest.raises(ValueError, match=r"passage 0 of this batch, .* has no piece"):
        requests.tokenize(EncodePassage, ["\u200b"])
    dense = RequestTokenizer(tokenizer, Dense(query_prompt="query: "))
    with pytest.raises(ValueError, match=r"query 0 of this batch, .* has no piece"):
        dense.tokenize(EncodeQuery, ["\u200b"])
    with pytest.raises(ValueError, match=r"length is 3.*write at least 4"):
        requests.tokenize(EncodeQuery, ["so"], length=3)
    for kind in (Relevance, Likelihood):
        with pytest.raises(TypeError, match=f"asked for {kind.__name__}"):
            requests.tokenize(kind, ["so"])
    with pytest.raises(ValueError, match=r"'\[Q\] ' is not a token.*add_markers"):
        RequestTokenizer(bert(), SPECS[0])


MBERT = Path(__file__).parents[3] / "shared/data/vocab/mbert_wordpiece.txt"
XQUAD = Path(__file__).parents[3] / "shared/data/retrieval/xquad/corpus.hi.jsonl"


@pytest.mark.skipif(not (MBERT.exists() and XQUAD.exists()), reason="needs ../shared/data")
def test_real_text_loses_its_danda_and_nothing_but_punctuation():
    spec = LateInteraction()
    tokenizer, _ = add_markers(load_tokenizer(MBERT), spec)
    requests = RequestTokenizer(tokenizer, spec)
    texts = [json.loads(line)["text"] for line in XQUAD.read_text(encoding="utf-8").splitlines()]
    tokens = requests.tokenize(EncodePassage, texts).tokens
    skipped = set(requests.pieces(tokens.ids[tokens.mask & ~tokens.keep]))
    assert {"।", ",", "."} <= skipped
    assert not any(c.isalnum() for piece in skipped for c in piece)
