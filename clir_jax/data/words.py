"""The words of a text, and the pieces of a vocabulary that each of them is made of."""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from clir_jax.models.tokenizer import TextTokenizer

# The first word of a character's Unicode name, for scripts that put no space between words.
_UNSPACED = frozenset(
    {"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR"}
)
_ZERO_WIDTH_SPACE = "\u200b"


@dataclasses.dataclass(frozen=True)
class Words:
    """A text, and where its words are.

    Args:
      text: what a model reads.
      spans: first character of each word and the one after its last; in order, apart.

    Example:
      >>> Words.joined(["good", "day", "!"])
      Words(text='good day !', spans=((0, 4), (5, 8), (9, 10)))
    """

    text: str
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def joined(cls, words: Sequence[str]) -> "Words":
        """Given words, with a space between them."""
        ends = np.cumsum([len(word) + 1 for word in words]).tolist()
        spans = ((end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True))
        return cls(" ".join(words), tuple(spans))

    @property
    def words(self) -> list[str]:
        """The words themselves."""
        return [self.text[start:end] for start, end in self.spans]


def split_words(text: str, tokenizer: TextTokenizer) -> Words:
    """Find the words of a text in any language.

    Letters, digits and the marks on them are words between spaces and punctuation, and every
    punctuation mark or symbol is a word. Scripts without spaces between words have no such
    boundaries: there a Chinese character is a word, and in the others a piece of the vocabulary.

    Args:
      text: any text.
      tokenizer: whose pieces divide what has no spaces.

    Returns:
      Its words; none if it is blank.
    """
    encoded = tokenizer.backend.encode(text, add_special_tokens=False)
    starts = {start for start, _ in encoded.offsets}
    spans: list[list[int]] = []
    before = ""  # the kind of the word that may go on
    for place, character in enumerate(text):
        kind = _kind(character)
        goes_on = kind == before and (kind == "letter" or place not in starts)
        if kind == "mark":  # belongs to what it follows
            goes_on = bool(before)
            invisible = unicodedata.category(character) == "Cf"
            kind = before or ("" if invisible else "letter")
        elif kind in ("han", "symbol"):
            goes_on = False
        if kind and not goes_on:
            spans.append([place, place])
        if kind:
            spans[-1][1] = place + 1
        before = kind
    return Words(text, tuple((start, end) for start, end in spans))


def pieces_of_words(
    texts: Sequence[Words], tokenizer: TextTokenizer, prompt: str = ""
) -> list[Bool[np.ndarray, "P W"]]:
    """Tell which pieces each word is made of.

    Args:
      texts: R texts.
      tokenizer: WordPiece, Unigram or BPE.
      prompt: is read before every text; its pieces are not among the P.

    Returns:
      R arrays ``[P, W]``; True where a piece and a word share a character, so a piece over several
      words belongs to all of them. A word without any piece is of characters that the tokenizer
      drops.
    """
    encoded = tokenizer.backend.encode_batch(
        [prompt + words.text for words in texts], add_special_tokens=False
    )
    found = []
    for words, one in zip(texts, encoded, strict=True):
        offsets = [offset for offset in one.offsets if offset[1] > len(prompt) or not prompt]
        pieces = np.array(offsets, np.int64).reshape(-1, 1, 2) - len(prompt)
        spans = np.array(words.spans, np.int64).reshape(1, -1, 2)
        found.append((pieces[..., 0] < spans[..., 1]) & (pieces[..., 1] > spans[..., 0]))
    return found


def _kind(character: str) -> str:
    """``letter``, ``unspaced``, ``han``, ``symbol``, ``mark``, or empty between words."""
    category = unicodedata.category(character)
    if character == _ZERO_WIDTH_SPACE or category[0] == "Z" or category == "Cc":
        return ""
    if category[0] == "M" or category == "Cf":
        return "mark"
    if category[0] in "PS":
        return "symbol"
    script = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
    if script in ("CJK", "IDEOGRAPHIC"):
        return "han"
    return "unspaced" if script in _UNSPACED else "letter"
