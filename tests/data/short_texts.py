"""Texts of random words, one token each, and a tokenizer for them: lengths are known by hand."""

import json

import numpy as np

from clir_jax.data.bitext import BitextTSV
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.models.retriever import LateInteraction
from clir_jax.models.tokenizer import ROLES, TextTokenizer, wordpiece

SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
WORDS = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
SPEC = LateInteraction(
    dimension=8, query_length=20, passage_length=30, query_marker="", passage_marker="",
    expansion=False, skip_punctuation=False,
)  # fmt: skip


def tokenizer(spec=SPEC):
    """CLS, the words, SEP."""
    pieces = {piece: i for i, piece in enumerate([*SPECIAL, *WORDS])}
    backend = TextTokenizer(wordpiece(pieces), dict(zip(ROLES, SPECIAL, strict=True)))
    return RequestTokenizer(backend, spec)


def text(rng, words):
    """A text of so many words."""
    return " ".join(rng.choice(WORDS, words))


def bitext(directory, n, seed=0, longest=30):
    """n opened pairs whose sides are of like length; and their texts."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(n):
        size = int(rng.integers(1, longest - 1))
        other = max(1, size + int(rng.integers(-3, 4)))
        # The number in words, so that no two pairs share a side.
        a, b = WORDS[i % len(WORDS)], WORDS[i // len(WORDS)]
        pairs.append((f"{a} {b} {text(rng, size)}", f"{b} {a} {text(rng, other)}"))
    lines = [f"{i}\t{english}\t{other}\n" for i, (english, other) in enumerate(pairs)]
    (directory / "b.tsv").write_text("".join(lines))
    return BitextTSV("b.tsv", "sw").open(str(directory)), pairs


def rankings(directory, n, seed=0, positives=2, translated=True):
    """n opened questions, in another language too, with 2 negatives; and their rows."""
    rng = np.random.default_rng(seed)

    def some(count, longest):
        return [text(rng, int(k)) for k in rng.integers(1, longest, count)]

    rows = []
    for i in range(n):
        row = {"query": f"{text(rng, int(rng.integers(1, 12)))} {WORDS[i]}"}
        if translated:
            row["queries"] = {"sw": text(rng, int(rng.integers(1, 25)))}
        rows.append(row | {"positives": some(positives, 20), "negatives": some(2, 40)})
    (directory / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RankingJSONL("r.jsonl").open(str(directory)), rows
