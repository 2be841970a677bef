"""A generator's tokenizer: T5's frame has an end token and nothing else."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Encoding, Tokenizer
from tokenizers.processors import TemplateProcessing

from clir_jax.models.tokenizer import TextTokenizer
from clir_jax.models.tokenizer_files import (
    kept_settings,
    read_backend,
    special_tokens,
    write_tokenizer,
)

_CUSTOMARY = {"eos": "</s>", "pad": "<pad>", "unk": "<unk>"}


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratorTokenizer:
    """A tokenizer and the tokens that end, pad and stand for unknown text in it.

    Args:
      backend: the tokenizer proper; its own truncation and padding are switched off.
      special: the tokens that play ``eos``, ``pad`` and ``unk``, as text.
      kept: as ``TextTokenizer`` has it.

    Raises:
      ValueError: if one of them is not in the vocabulary.
    """

    backend: Tokenizer
    special: dict[str, str]
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in _CUSTOMARY:
            token = self.special.get(role)
            if token is None or self.backend.token_to_id(token) is None:
                raise ValueError(
                    f"tokenizer: {token!r} is named as the {role} token and is not in the "
                    f'vocabulary; write "{role}_token" in tokenizer_config.json as a token that is'
                )
        self.backend.no_truncation()
        self.backend.no_padding()

    @property
    def size(self) -> int:
        """Rows of the smallest embedding table that serves every id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def id(self, role: str) -> int:
        """Return the id of the token that plays ``role``: ``eos``, ``pad`` or ``unk``."""
        return int(self.backend.token_to_id(self.special[role]) or 0)  # __post_init__ saw it

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Return each text's own pieces with their places in it, without special tokens."""
        return self.backend.encode_batch(list(texts), add_special_tokens=False)

    def decode(self, ids: Int[np.ndarray, "R T"], mask: Bool[np.ndarray, "R T"]) -> list[str]:
        """Return texts, without special tokens.

        Args:
          ids: ``[R, T]`` piece numbers.
          mask: ``[R, T]``; False leaves a piece out.

        Returns:
          R texts without spaces around them; ``""`` for one that is nothing but special tokens.
        """
        rows = [row[on].tolist() for row, on in zip(ids, mask, strict=True)]
        return [text.strip() for text in self.backend.decode_batch(rows, skip_special_tokens=True)]

    def save(self, directory: str | Path) -> None:
        """Write the files that ``transformers.AutoTokenizer`` reads, into an existing directory."""
        write_tokenizer(directory, self.backend, self.special, self.kept)


def generator_tokenizer(tokenizer: TextTokenizer | GeneratorTokenizer) -> GeneratorTokenizer:
    """Read an encoder's tokenizer as a generator's: what ends a text there ends it here.

    Args:
      tokenizer: BERT's, whose ``[SEP]`` becomes the end token; a generator's stays what it is.

    Returns:
      The tokenizer; it does not frame texts with ``[CLS]`` and ``[SEP]``.
    """
    if isinstance(tokenizer, GeneratorTokenizer):
        return tokenizer
    special = {"eos": tokenizer.special["sep"]}
    special |= {role: tokenizer.special[role] for role in ("pad", "unk")}
    own = tokenizer.copy().backend
    own.post_processor = TemplateProcessing(
        single=f"$A {special['eos']}", special_tokens=[(special["eos"], tokenizer.id("sep"))]
    )
    return GeneratorTokenizer(own, special)


def load_generator_tokenizer(path: str | Path) -> GeneratorTokenizer:
    """Load a T5's or mT5's tokenizer from a directory; never from a network.

    Args:
      path: holds ``tokenizer.json``, or ``spiece.model``, which needs the package sentencepiece.

    Returns:
      The tokenizer, without truncation or padding of its own.

    Raises:
      ImportError: if there is only ``spiece.model`` and it cannot be converted.
      ValueError: if there is neither, or a special token is missing.
    """
    path = Path(path)
    if (path / "tokenizer.json").is_file():
        backend = read_backend(path / "tokenizer.json")
    elif (path / "spiece.model").is_file():
        backend = _converted(path)
    else:
        raise ValueError(
            f"tokenizer: {path} has neither tokenizer.json nor spiece.model; save the tokenizer "
            "there with save_pretrained of a fast tokenizer"
        )
    try:
        special = special_tokens(path, _CUSTOMARY, _CUSTOMARY)
        return GeneratorTokenizer(backend, special, kept_settings(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _converted(path: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # slow to import, and seldom needed

    try:
        backend: Tokenizer = AutoTokenizer.from_pretrained(path).backend_tokenizer
    except (ImportError, ValueError) as error:
        raise ImportError(
            f"{path}: spiece.model needs the package sentencepiece to be read, once; run "
            "`pip install sentencepiece`, or save the tokenizer there as tokenizer.json"
        ) from error
    return backend
