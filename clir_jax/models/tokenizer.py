"""A model's tokenizer: loaded from files, its special tokens known by role, saved again.

Everything here works on the ``tokenizers`` library directly: its objects are safe to share between
threads, and their files are read by every version of ``transformers``.
"""

import dataclasses
import string
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clir_jax.models.retriever import LateInteraction, RetrieverSpec
from clir_jax.models.tokenizer_files import (
    LENGTH,
    kept_settings,
    read_backend,
    read_settings,
    special_tokens,
    write_tokenizer,
)

ROLES = ("cls", "sep", "pad", "unk", "mask")
# What BERT's and XLM-R's own files leave unsaid: their tokenizer_config.json names no token.
_CUSTOMARY = {
    "WordPiece": dict(zip(ROLES, ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), strict=True)),
    "Unigram": dict(zip(ROLES, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), strict=True)),
    "BPE": dict(zip(ROLES, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), strict=True)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer and the tokens that play a role in it.

    Args:
      backend: the tokenizer proper; its own truncation and padding are switched off.
      special: the token that plays each of ``ROLES``, as text: ``{"cls": "[CLS]", ...}``.
      kept: what its files say and nothing here reads, as ``kept_settings`` finds it; it is saved
        again, for other libraries.

    Raises:
      ValueError: if a role is missing, or its token is not in the vocabulary.
    """

    backend: Tokenizer
    special: Mapping[str, str]
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ROLES:
            token = self.special.get(role)
            if token is None or self.backend.token_to_id(token) is None:
                raise ValueError(
                    f"tokenizer: {token!r} is named as the {role} token and is not in the "
                    f'vocabulary; write "{role}_token" in tokenizer_config.json as a token that is'
                )
        self.backend.no_truncation()
        self.backend.no_padding()
        tokens = self.backend.encode("").tokens
        if tokens != [self.special["cls"], self.special["sep"]]:
            raise ValueError(
                f"tokenizer: it frames a text with {tokens}, not with {self.special['cls']!r} and "
                f"{self.special['sep']!r}; choose a BERT-like or XLM-R-like tokenizer"
            )

    @property
    def kind(self) -> str:
        """``WordPiece``, ``Unigram`` or ``BPE``."""
        return type(self.backend.model).__name__

    @property
    def size(self) -> int:
        """Rows of the smallest embedding table that serves every id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of the five special tokens, in the order of ``ROLES``."""
        return tuple(self.id(role) for role in ROLES)

    def id(self, role: str) -> int:
        """Return the id of the token that plays ``role``, one of ``ROLES``."""
        return int(self.backend.token_to_id(self.special[role]) or 0)  # __post_init__ saw it

    def vocabulary(self) -> dict[str, int]:
        """Every piece and added token with its id, in order of id."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return dict(sorted(vocabulary.items(), key=lambda item: item[1]))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text's own pieces, without special tokens."""
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [e.ids for e in encoded]

    def pieces(self, ids: Sequence[int] | Int[np.ndarray, " T"]) -> list[str]:
        """Return readable pieces, for tables and pictures.

        Args:
          ids: piece numbers; padding included, if there is any.

        Returns:
          The vocabulary's own spelling, so ``##`` (WordPiece) marks a piece inside a word and ``▁``
          (Unigram) one that starts a word; the space that ends a marker is dropped.

        Raises:
          ValueError: if an id is not in the vocabulary.
        """
        found = []
        for i in ids:
            token = self.backend.id_to_token(int(i)) if int(i) >= 0 else None
            if token is None:
                raise ValueError(
                    f"tokenizer: id {int(i)} is not in this vocabulary of {self.size}; "
                    "show ids with the tokenizer that made them"
                )
            found.append(token.strip() or token)
        return found

    def copy(self) -> "TextTokenizer":
        """Return an equal tokenizer that can be changed without changing this one."""
        backend = Tokenizer.from_str(self.backend.to_str())
        return dataclasses.replace(self, backend=backend, special=dict(self.special))

    def save(
        self,
        directory: str | Path,
        *,
        positions: int | None = None,
        reads: int = 0,
        token_types: bool = False,
    ) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``special_tokens_map.json``.

        Args:
          directory: an existing directory; ``transformers.AutoTokenizer`` reads it.
          positions: tokens of the longest text that the model can read: what others cut a text to
            who name no length, unless the tokenizer came with a smaller one. None leaves it at what
            the tokenizer came with.
          reads: tokens of the longest text that the model is made to read; a smaller length that
            the tokenizer came with does not hold any more.
          token_types: whether the model reads which text of a pair a token is of.
        """
        kept = dict(self.kept)
        if self.kind != "WordPiece":  # XLM-R's frame is where a text begins and ends, too
            frame = {"bos_token": self.special["cls"], "eos_token": self.special["sep"]}
            kept = frame | kept
        if positions is not None:
            kept[LENGTH] = min(positions, max(reads, kept.get(LENGTH, positions)))
        write_tokenizer(directory, self.backend, self.special, kept, token_types=token_types)


def load_tokenizer(path: str | Path, *, lowercase: bool | None = None) -> TextTokenizer:
    """Load a tokenizer from files; never from a network.

    Args:
      path: a directory with ``tokenizer.json``, or with a BERT ``vocab.txt``; or such a file:
        ``*.json``, or any other name with one WordPiece piece a line, the line number its id.
        Special tokens are those named in ``special_tokens_map.json`` or
        ``tokenizer_config.json``, else BERT's (WordPiece) or XLM-R's (Unigram).
      lowercase: whether a vocabulary without ``tokenizer.json`` is of lower-cased text. None takes
        ``do_lower_case`` of ``tokenizer_config.json``, or else looks for capitals in the pieces.

    Returns:
      The tokenizer, without truncation or padding of its own.

    Raises:
      FileNotFoundError: if there is no such file or directory.
      ValueError: if the directory has no vocabulary, or a special token is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"tokenizer: there is no {path}; write a directory or a vocabulary")
    file = path
    if path.is_dir():
        file = (
            path / "tokenizer.json" if (path / "tokenizer.json").is_file() else path / "vocab.txt"
        )
    if not file.is_file():
        raise ValueError(
            f"tokenizer: {path} has neither tokenizer.json nor vocab.txt; save the tokenizer there "
            "with save_pretrained of a fast tokenizer"
        )
    if file.suffix == ".json":
        backend = read_backend(file)
    else:
        backend = _from_vocabulary(file, read_settings(path), lowercase)
    customary = _CUSTOMARY.get(type(backend.model).__name__, {})
    try:
        special = special_tokens(path, ROLES, customary)
        return TextTokenizer(backend, special, kept_settings(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _from_vocabulary(file: Path, config: Mapping[str, Any], lowercase: bool | None) -> Tokenizer:
    # Not splitlines: pieces such as U+2028 and U+0085 would count as line ends.
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError(
            f"{file}: this is not UTF-8 text; convert the vocabulary to UTF-8"
        ) from None
    vocabulary = {piece: i for i, line in enumerate(lines) if (piece := line.rstrip("\r"))}
    return wordpiece(
        vocabulary,
        lowercase=config.get("do_lower_case") if lowercase is None else lowercase,
        strip_accents=config.get("strip_accents"),
        split_chinese=config.get("tokenize_chinese_chars", True),
        where=str(file),
    )


def wordpiece(
    vocabulary: Mapping[str, int],
    *,
    lowercase: bool | None = None,
    strip_accents: bool | None = None,
    split_chinese: bool = True,
    where: str = "vocabulary",
) -> Tokenizer:
    """Build BERT's tokenizer around a vocabulary.

    Args:
      vocabulary: pieces and their ids, BERT's special tokens among them.
      lowercase: lower-case the text first; None does so if no piece has a capital.
      strip_accents: remove combining accents; None does so if ``lowercase``.
      split_chinese: make every CJK character a word.
      where: what to call the vocabulary in an error.

    Returns:
      The tokenizer.

    Raises:
      ValueError: if a special token is missing.
    """
    special = _CUSTOMARY["WordPiece"]
    for role, token in special.items():
        if token not in vocabulary:
            raise ValueError(
                f"{where}: the {role} token {token} is not among its {len(vocabulary)} pieces; "
                "add it, or give a vocabulary in BERT's form, one piece a line"
            )
    if lowercase is None:
        lowercase = not any(p != p.lower() for p in vocabulary if not p.startswith("["))
    model = models.WordPiece(
        vocab=dict(vocabulary), unk_token=special["unk"], max_input_chars_per_word=100
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=split_chinese,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    cls, sep = special["cls"], special["sep"]
    backend.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in special.values()]
    )
    return backend


def add_markers(
    tokenizer: TextTokenizer, spec: RetrieverSpec
) -> tuple[TextTokenizer, tuple[int, ...]]:
    """Make sure that the vocabulary has the specification's markers, each as one token of its own.

    A marker that the vocabulary lacks is added behind its last id; the embedding table then needs
    ``tokenizer.size`` rows (``vocabulary.grow``).

    Args:
      tokenizer: is not changed.
      spec: a dense specification has no markers.

    Returns:
      The tokenizer to use, and the ids of the query and the passage marker; ``()`` for dense
      retrievers, and without an entry for a marker that is ``""``.

    Raises:
      ValueError: if a marker is, or becomes, the unknown token.
    """
    markers = [marker for marker in markers_of(spec) if marker]
    if not markers:
        return tokenizer, ()
    tokenizer = tokenizer.copy()
    for marker in markers:
        if tokenizer.backend.token_to_id(marker) is None:
            # Not normalised: a lower-casing tokenizer would not find "[Q] " again. Not special:
            # libraries that drop special tokens would drop it.
            tokenizer.backend.add_tokens([AddedToken(marker, normalized=False, special=False)])
    return tokenizer, tuple(marker_id(tokenizer, marker) for marker in markers)


def punctuation_ids(tokenizer: TextTokenizer) -> tuple[int, ...]:
    """List the pieces of a vocabulary that are punctuation and nothing else.

    A piece counts if every character of it (without WordPiece's ``##`` or Unigram's ``▁``) is ASCII
    punctuation, its full-width form, or in Unicode's categories P: the comma of Arabic, the danda
    of Devanagari, the full stop of Ethiopic, the brackets of Chinese and Japanese.

    Args:
      tokenizer: whose vocabulary is read.

    Returns:
      Ids in ascending order: of pieces that exist, so never the unknown token, and no other special
      or added token either.
    """
    vocabulary = tokenizer.vocabulary()
    added = set(tokenizer.backend.get_added_tokens_decoder()) | set(tokenizer.special_ids)
    found = []
    for piece, i in vocabulary.items():
        if tokenizer.kind == "WordPiece":
            text = piece[2:] if piece.startswith("##") and len(piece) > 2 else piece
        else:
            text = piece.lstrip("▁Ġ")
        if text and i not in added and all(is_punctuation(c) for c in text):
            found.append(i)
    return tuple(found)


def is_punctuation(character: str) -> bool:
    """Whether a character is ASCII punctuation, its full-width form, or in Unicode's classes P."""
    ascii_form = chr(ord(character) - 0xFEE0) if "\uff01" <= character <= "\uff5e" else character
    return ascii_form in string.punctuation or unicodedata.category(character).startswith("P")


def markers_of(spec: RetrieverSpec) -> tuple[str, str]:
    """The query marker and the passage marker of a specification; ``""`` where it has none."""
    if isinstance(spec, LateInteraction):
        return spec.query_marker, spec.passage_marker
    return "", ""


def marker_id(tokenizer: TextTokenizer, marker: str) -> int:
    """Return the id of a marker.

    Raises:
      ValueError: if the vocabulary lacks it, or it is the unknown token.
    """
    found = tokenizer.backend.token_to_id(marker)
    if found is None or found == tokenizer.id("unk"):
        raise ValueError(
            f"tokenizer: the marker {marker!r} is not a token of this vocabulary; "
            "call add_markers(tokenizer, spec) and grow the embedding table"
        )
    return int(found)
