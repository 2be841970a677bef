"""Change a model's vocabulary: grow it, carry embeddings to another one, trim it, train one.

The arrays here are on the host (NumPy): a vocabulary changes once, before training.
"""

import dataclasses
import functools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from clir_jax.models.tokenizer import ROLES, TextTokenizer, is_punctuation, wordpiece

_BATCH = 4096  # texts or pieces at a time: bounds memory, keeps the tokenizer's threads busy
_BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclasses.dataclass(frozen=True)
class TransplantReport:
    """How many rows of a transplanted embedding table came from where; they add up to its rows.

    Args:
      special: special tokens, copied by role.
      copied: pieces that the old vocabulary has, letter for letter.
      normalized: pieces that it has once its normaliser (lower case, accents) has been applied.
      composed: pieces it splits; the mean of the parts.
      fresh: pieces it has no part of; drawn at random.
    """

    special: int
    copied: int
    normalized: int
    composed: int
    fresh: int


def fresh_rows(embedding: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Draw embeddings for pieces about which nothing is known.

    Each dimension is normal with the mean and standard deviation it has over the table, so that new
    pieces lie where pieces lie and differ from each other.

    Args:
      embedding: ``[V, D]`` float.
      count: rows to draw.
      seed: of the draw.

    Returns:
      ``[count, D]`` in the dtype of ``embedding``.
    """
    wide = embedding.astype(np.promote_types(embedding.dtype, np.float32))
    noise = np.random.default_rng(seed).standard_normal((count, embedding.shape[1]))
    drawn = wide.mean(axis=0) + wide.std(axis=0) * noise.astype(wide.dtype)
    return np.asarray(drawn.astype(embedding.dtype))


def grow(
    embedding: Float[np.ndarray, "V D"], size: int, *, seed: int = 0
) -> Float[np.ndarray, "W D"]:
    """Add rows behind a table, for tokens that were added to its vocabulary.

    Args:
      embedding: ``[V, D]``.
      size: rows wanted, ``tokenizer.size``; a table that has as many is returned as it is.
      seed: of the new rows; see ``fresh_rows``.

    Returns:
      ``[max(V, size), D]``.
    """
    embedding = np.asarray(embedding)
    missing = size - embedding.shape[0]
    if missing <= 0:
        return embedding
    return np.concatenate([embedding, fresh_rows(embedding, missing, seed=seed)])


def transplant(
    old_embedding: Float[np.ndarray, "V D"],
    old_tokenizer: TextTokenizer,
    new_tokenizer: TextTokenizer,
    *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "W D"], TransplantReport]:
    """Make an embedding table for another vocabulary out of a model's own.

    Special tokens are carried over by role, pieces that both vocabularies have are copied, pieces
    that the old tokenizer splits become the mean of their parts, and the rest is drawn at random
    (``fresh_rows``). Pieces inside a word are looked up as such: WordPiece's ``##x`` is Unigram's
    ``x``, and ``x`` is Unigram's ``▁x``, except for punctuation and Chinese characters, which BERT
    always makes words of their own. Where the old tokenizer lower-cases, so does the look-up.

    Args:
      old_embedding: ``[V, D]``; rows beyond the old vocabulary are not read.
      old_tokenizer: WordPiece or Unigram.
      new_tokenizer: WordPiece or Unigram.
      seed: of the random rows.

    Returns:
      ``[new_tokenizer.size, D]`` in the old dtype, and the counts.

    Raises:
      ValueError: if a vocabulary is of another kind, or the table has too few rows for its own.
    """
    old_embedding = np.asarray(old_embedding)
    for tokenizer in (old_tokenizer, new_tokenizer):
        _require_kind(tokenizer, "transplant")
    if old_embedding.shape[0] < old_tokenizer.size:
        raise ValueError(
            f"transplant: the embedding table has {old_embedding.shape[0]} rows and its tokenizer "
            f"{old_tokenizer.size} tokens; give the tokenizer that belongs to the table"
        )
    sources, report = _sources(old_tokenizer, new_tokenizer)
    wide = np.promote_types(old_embedding.dtype, np.float32)
    new = fresh_rows(old_embedding[: old_tokenizer.size], new_tokenizer.size, seed=seed)
    rows = sorted(sources)
    for start in range(0, len(rows), _BATCH):
        block = rows[start : start + _BATCH]
        lengths = np.array([len(sources[row]) for row in block])
        parts = old_embedding[[i for row in block for i in sources[row]]].astype(wide)
        sums = np.add.reduceat(parts, np.cumsum(lengths) - lengths, axis=0)
        new[block] = (sums / lengths[:, None].astype(wide)).astype(old_embedding.dtype)
    return new, report


def _sources(
    old: TextTokenizer, new: TextTokenizer
) -> tuple[dict[int, Sequence[int]], TransplantReport]:
    """For each new id, the old ids of which its embedding is the mean; and the counts."""
    pieces = old.vocabulary()
    forms: dict[tuple[str, bool], int] = {}
    for piece, i in sorted(pieces.items(), key=lambda item: (_inside(item[0], old), item[1])):
        forms.setdefault(_form(piece, old), i)
    normalizer = old.backend.normalizer
    roles = {new.id(role): old.id(role) for role in ROLES}
    added = {i: t.content for i, t in new.backend.get_added_tokens_decoder().items()}
    counts: Counter[str] = Counter()
    sources: dict[int, Sequence[int]] = {}
    starts: dict[int, str] = {}
    for piece, i in new.vocabulary().items():
        if i in roles:
            sources[i], how = (roles[i],), "special"
        elif piece in pieces and (old.kind == new.kind or i in added):
            sources[i], how = (pieces[piece],), "copied"
        else:
            text, initial = _form(piece, new)
            plain = normalizer.normalize_str(text).strip(" ▁") if normalizer else text
            if (text, initial) in forms:
                sources[i], how = (forms[text, initial],), "copied"
            elif (plain, initial) in forms:
                sources[i], how = (forms[plain, initial],), "normalized"
            elif not initial and (inside := _split_inside(plain, old, pieces)):
                sources[i], how = inside, "composed"
            else:
                starts[i], how = text, "fresh"
        counts[how] += 1
    unknown, ids = {old.id("unk"), pieces.get("▁")}, list(starts)
    for start in range(0, len(ids), _BATCH):
        block = ids[start : start + _BATCH]
        for i, found in zip(block, old.encode([starts[i] for i in block]), strict=True):
            if known := [part for part in found if part not in unknown]:
                sources[i] = known
                counts["composed"] += 1
                counts["fresh"] -= 1
    counts["fresh"] += new.size - sum(counts.values())  # ids that the vocabulary leaves out
    return sources, TransplantReport(
        *(counts[f.name] for f in dataclasses.fields(TransplantReport))
    )


def _inside(piece: str, tokenizer: TextTokenizer) -> bool:
    """Whether the vocabulary writes the piece as one that goes on with a word."""
    if tokenizer.kind == "WordPiece":
        return piece.startswith("##") and len(piece) > 2
    return not piece.startswith("▁")


def _form(piece: str, tokenizer: TextTokenizer) -> tuple[str, bool]:
    """A piece as its text and whether it starts a word, the same for every kind of vocabulary."""
    inside = _inside(piece, tokenizer)
    if tokenizer.kind == "WordPiece":
        text = piece[2:] if inside else piece
    else:
        text = piece if inside or piece == "▁" else piece[1:]
    own_word = is_punctuation(text[0]) or _script(text[0]) == "CJK"
    return text, own_word or not inside


def _split_inside(text: str, tokenizer: TextTokenizer, pieces: Mapping[str, int]) -> list[int]:
    """Split a text that goes on with a word; empty where a part is unknown."""
    if not text:
        return []
    if tokenizer.kind == "WordPiece":
        found, rest = _greedy(text, pieces, "##")
        return [] if rest else [pieces[piece] for piece in found]
    ids = [token.id for token in tokenizer.backend.model.tokenize(text)]
    return [] if tokenizer.id("unk") in ids else ids


def _greedy(word: str, pieces: Mapping[str, int], first: str = "") -> tuple[list[str], str]:
    """WordPiece: the longest piece again and again. Returns the pieces, and what has none."""
    found: list[str] = []
    prefix = first
    while word:
        end = next((n for n in range(len(word), 0, -1) if prefix + word[:n] in pieces), 0)
        if end == 0:
            return found, word
        found.append(prefix + word[:end])
        word, prefix = word[end:], "##"
    return found, ""


def trim(
    tokenizer: TextTokenizer,
    texts: Iterable[str],
    *,
    keep_pieces: Iterable[str] = (),
    script_share: float = 1e-3,
) -> tuple[TextTokenizer, Int[np.ndarray, " W"]]:
    """Drop the pieces that a collection does not use.

    The given texts are tokenised as before, piece by piece. New text in their scripts has no more
    unknown tokens than before: all single characters of these scripts stay (both as words and
    inside words), as do digits, punctuation and symbols, and pieces with a character that has no
    piece of its own. Other words of new text may be split into more pieces.

    Args:
      tokenizer: WordPiece or Unigram; is not changed.
      texts: all text that the model will read: bitext, and the passages of the collection.
      keep_pieces: further pieces to keep, in the vocabulary's own spelling.
      script_share: share of the characters of ``texts`` above which a script is theirs, so that a
        stray Chinese name does not keep every Chinese character.

    Returns:
      The smaller tokenizer, and int32 ``[W]`` the old id of each new one, ascending:
      ``embedding[kept]`` is the new table.

    Raises:
      ValueError: if the vocabulary is of another kind, or does not have one of ``keep_pieces``.
    """
    _require_kind(tokenizer, "trim")
    vocabulary = tokenizer.vocabulary()
    unknown = tokenizer.id("unk")
    keep = set(tokenizer.backend.get_added_tokens_decoder()) | set(tokenizer.special_ids)
    for piece in keep_pieces:
        if piece not in vocabulary:
            raise ValueError(
                f"trim: {piece!r} is not a piece of this vocabulary; write it as the vocabulary "
                "does, with ## or ▁ where it has one"
            )
        keep.add(vocabulary[piece])
    characters: Counter[str] = Counter()
    for batch in _batches(texts):
        for text, ids in zip(batch, tokenizer.encode(batch), strict=True):
            characters.update(text)
            keep.update(ids)
            if unknown in ids and tokenizer.kind == "WordPiece":
                keep.update(_before_unknown(text, tokenizer, vocabulary))
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        scripts[_script(character)] += count
    least = script_share * sum(scripts.values())
    in_use = {"", *(script for script, count in scripts.items() if count > least)}
    keep.update(i for p, i in vocabulary.items() if _is_needed(p, in_use, vocabulary, tokenizer))
    if tokenizer.kind == "Unigram":
        # The price of an unknown character is counted from the lowest score in the vocabulary.
        scores = [score for _, score in json.loads(tokenizer.backend.to_str())["model"]["vocab"]]
        keep.add(int(np.argmin(scores)))
    kept = np.array(sorted(keep), np.int32)
    return _rebuild(tokenizer, {int(old): new for new, old in enumerate(kept)}), kept


def _before_unknown(
    text: str, tokenizer: TextTokenizer, vocabulary: Mapping[str, int]
) -> Iterator[int]:
    """The pieces WordPiece found before it gave a word up: without them it could succeed."""
    backend = tokenizer.backend
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    for word, _ in backend.pre_tokenizer.pre_tokenize_str(text):
        found, rest = _greedy(word, vocabulary)
        if rest:
            yield from (vocabulary[piece] for piece in found)


def _is_needed(
    piece: str, scripts: set[str], vocabulary: Mapping[str, int], tokenizer: TextTokenizer
) -> bool:
    """Whether a piece keeps text of these scripts from becoming unknown."""
    if tokenizer.kind == "WordPiece":
        inside = _inside(piece, tokenizer)
        text = piece[2:] if inside else piece
        own = ["##" + c if inside or n else c for n, c in enumerate(text)]
    else:
        text, own = piece, list(piece)
    if len(text) == 1:
        return _script(text) in scripts
    # [unused1] and the like hold no character without a piece; a <0x41> stands for any character.
    if piece.startswith("<0x") and tokenizer.kind == "Unigram":
        return True
    return any(
        o not in vocabulary and _script(c) in scripts for c, o in zip(text, own, strict=True)
    )


def _rebuild(tokenizer: TextTokenizer, new_ids: Mapping[int, int]) -> TextTokenizer:
    """The tokenizer with only the pieces in ``new_ids`` (old id -> new id)."""
    content = json.loads(tokenizer.backend.to_str())
    model = content["model"]
    if tokenizer.kind == "WordPiece":
        model["vocab"] = {p: new_ids[i] for p, i in model["vocab"].items() if i in new_ids}
    else:
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new_ids]
        model["unk_id"] = new_ids[model["unk_id"]]
    content["added_tokens"] = [t | {"id": new_ids[t["id"]]} for t in content["added_tokens"]]
    _renumber(content["post_processor"], new_ids)
    return dataclasses.replace(tokenizer, backend=Tokenizer.from_str(json.dumps(content)))


def _renumber(processor: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Replace the ids inside a post-processor, in place."""
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new_ids[i] for i in token["ids"]]
    for role in ("cls", "sep"):
        if role in processor:
            processor[role][1] = new_ids[processor[role][1]]
    for part in processor.get("processors", ()):
        _renumber(part, new_ids)


def train_wordpiece(texts: Iterable[str], size: int, *, lowercase: bool = False) -> TextTokenizer:
    """Train a WordPiece vocabulary with BERT's special tokens.

    The same texts give the same vocabulary, ids included, on any number of threads. (The library
    alone numbers pieces by the order of a hash table, which differs from process to process, and
    breaks ties between merges by these numbers.)

    Args:
      texts: read once.
      size: pieces wanted, special tokens and characters included; less where the texts have less.
      lowercase: lower-case the text and remove its accents.

    Returns:
      The tokenizer.

    Raises:
      ValueError: if ``size`` has no room for every character of the texts, or there is no text.
    """
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = list(texts)
    first: set[str] = set()
    later: set[str] = set()
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal):
            first.update(word)
            later.update(word[1:])
    # Named before training starts, characters have fixed ids: nothing is left to the hash table.
    alphabet = [*_BERT_SPECIALS, *sorted(first), *("##" + c for c in sorted(later))]
    if not first or len(alphabet) > size:
        raise ValueError(
            f"train_wordpiece: size is {size} and the texts have {len(alphabet)} special tokens "
            "and characters; write a larger size, or leave out texts in scripts that do not matter"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), _BERT_SPECIALS, strict=True))
    return TextTokenizer(wordpiece(backend.get_vocab(), lowercase=lowercase), special)


def _require_kind(tokenizer: TextTokenizer, what: str) -> None:
    if tokenizer.kind not in ("WordPiece", "Unigram"):
        raise ValueError(
            f"{what}: the vocabulary is {tokenizer.kind}; give a WordPiece (BERT) or Unigram "
            "(XLM-R) tokenizer"
        )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


@functools.cache
def _script(character: str) -> str:
    """The script of a letter or its signs, by the first word of its Unicode name; "" for others."""
    name = unicodedata.name(character, "")
    if unicodedata.category(character)[0] not in "LM" or name.startswith(("COMBINING", "MODIFIER")):
        return ""
    return name.split(" ")[0]
