"""From passages and questions to what a generator reads and writes."""

import functools
from collections.abc import Sequence
from typing import cast

import numpy as np
from babel.core import Locale
from jaxtyping import Int

from clir_jax.models.generator import Generator
from clir_jax.models.generator_tokenizer import GeneratorTokenizer
from clir_jax.models.requests import Array, Tokens


def language_name(code: str) -> str:
    """Name a language in English, as CLDR does.

    Args:
      code: ISO 639, such as ``sw``; ``pt-BR`` is a language too.

    Returns:
      The name.

    Raises:
      ValueError: if CLDR has no English name for it.

    Example:
      >>> language_name("sw"), language_name("zh-Hant")
      ('Swahili', 'Traditional Chinese')
    """
    names = Locale("en").languages
    name = names.get(code.replace("-", "_")) or names.get(code.split("-")[0])
    if name is None:
        raise ValueError(
            f"prompt: the language {code!r} has no English name; write an ISO 639 code such as 'sw'"
        )
    return str(name)


class PromptTokenizer:
    """Turns passages into prompts and questions into targets, for one generator.

    A prompt becomes (``prompt`` ``"Ask in {language}: {passage} ?"``, ``source_length`` 10)::

      ids    ▁Ask ▁in ▁Hausa : ▁the ▁first ▁words ▁? </s> <pad>
      mask     1   1    1    1   1     1      1    1   1    0

    A passage that is too long loses pieces at its end; what stands before and after it stays.

    Args:
      tokenizer: the model's tokenizer.
      spec: the generator's specification.
    """

    def __init__(self, tokenizer: GeneratorTokenizer, spec: Generator) -> None:
        self.tokenizer = tokenizer
        self.spec = spec

    def of_languages(self, languages: Sequence[str]) -> str:
        """What to say of languages that the generator was not trained for; empty without any.

        Args:
          languages: codes.

        Raises:
          ValueError: if a language has no name.
        """
        known = self.spec.languages
        new = [f"{x} ({language_name(x)})" for x in dict.fromkeys(languages) if x not in known]
        if not known or not new:
            return ""
        return (
            f"the generator was trained for {', '.join(known)}, not for {', '.join(new)}; do not "
            "rely on what it writes or scores there"
        )

    def sources(
        self, passages: Sequence[str], languages: Sequence[str], *, length: int | None = None
    ) -> tuple[Tokens, Int[np.ndarray, " R"]]:
        """Tokenise prompts that ask for questions.

        Args:
          passages: R texts.
          languages: the code of each question's language.
          length: tokens a prompt; None takes the specification's.

        Returns:
          Arrays ``[R, length]``, padded on the right, and how many pieces of each passage were cut.

        Raises:
          ValueError: if a passage is empty or has no piece, a language has no name, or the prompt
            leaves no room for a passage.
        """
        width = self.spec.source_length if length is None else length
        spans, texts = [], []
        for row, (passage, language) in enumerate(zip(passages, languages, strict=True)):
            _require(passage, "passage", row)
            before, after = _framed(self.spec, language)
            spans.append((len(before), len(before) + len(passage.rstrip())))
            texts.append(before + passage + after)
        pieces, cut = [], []
        for row, (encoded, span) in enumerate(
            zip(self.tokenizer.encode(texts), spans, strict=True)
        ):
            own = [i for i, (_, end) in enumerate(encoded.offsets) if span[0] < end <= span[1]]
            if not own:
                raise ValueError(
                    f"prompt: passage {row} of this batch, {passages[row]!r}, has no piece in this "
                    "vocabulary; leave the record out"
                )
            excess = max(0, len(encoded.ids) + 1 - width)
            if excess >= len(own):
                raise ValueError(
                    f"prompt: {width} tokens have no room for a passage beside "
                    f"{self.spec.prompt!r}, which takes {len(encoded.ids) + 1 - len(own)}; raise "
                    "source_length, or shorten the prompt"
                )
            dropped = set(own[len(own) - excess :])
            pieces.append([piece for i, piece in enumerate(encoded.ids) if i not in dropped])
            cut.append(excess)
        return self._tokens(pieces, width), np.array(cut, np.int32)

    def targets(self, questions: Sequence[str], *, length: int | None = None) -> Tokens:
        """Tokenise questions for a generator to learn or to score.

        Args:
          questions: R texts; one that is too long is cut at its end.
          length: tokens a question, the end token included; None takes the specification's.

        Returns:
          Arrays ``[R, length]``, padded on the right; the end token is kept and scored.

        Raises:
          ValueError: if a question is empty or has no piece.
        """
        width = self.spec.target_length if length is None else length
        for row, question in enumerate(questions):
            _require(question, "question", row)
        pieces = [encoded.ids[: width - 1] for encoded in self.tokenizer.encode(questions)]
        for row, own in enumerate(pieces):
            if not own:
                raise ValueError(
                    f"prompt: question {row} of this batch, {questions[row]!r}, has no piece in "
                    "this vocabulary; leave the record out"
                )
        return self._tokens(pieces, width)

    def _tokens(self, pieces: Sequence[Sequence[int]], width: int) -> Tokens:
        ids = np.full((len(pieces), width), self.tokenizer.id("pad"), np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, own in enumerate(pieces):
            ids[row, : len(own) + 1] = [*own, self.tokenizer.id("eos")]
            mask[row, : len(own) + 1] = True
        return Tokens(*cast(tuple[Array, Array, Array], (ids, mask, mask)))


@functools.cache
def _framed(spec: Generator, language: str) -> tuple[str, str]:
    """What stands before and after the passage."""
    before, after = spec.prompt.split("{passage}")
    name = language_name(language) if "{language}" in spec.prompt else ""
    return before.replace("{language}", name), after.replace("{language}", name)


def _require(text: str, what: str, row: int) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"prompt: {what} {row} of this batch is {text!r}; leave the record out, because "
            "nothing is ever read or written for an empty text"
        )
