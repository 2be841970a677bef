"""From queries and passages, read together, to the arrays of a request."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Int

from clir_jax.data.prompts import PromptTokenizer
from clir_jax.models.cross_encoder import CrossEncoder
from clir_jax.models.generator import Generator
from clir_jax.models.generator_tokenizer import GeneratorTokenizer
from clir_jax.models.requests import Array, Likelihood, Relevance, Tokens
from clir_jax.models.tokenizer import TextTokenizer


class PairTokenizer:
    """Turns pairs of texts into requests for one cross-encoder. Safe to share between threads.

    Two are equal if they turn every pair into the same request.

    A pair becomes, with BERT's tokenizer (``length`` 9; ``keep`` is sentence B)::

      ids    CLS how many SEP so many SEP PAD PAD
      mask    1   1   1    1   1   1   1   0   0
      keep    0   0   0    0   1   1   1   0   0

    XLM-R's puts two SEP between the texts, and numbers neither: ``keep`` is False. What a tokenizer
    does is read from the frame that it puts around two empty texts.

    Args:
      tokenizer: the model's tokenizer.
      spec: the cross-encoder's specification.

    Raises:
      ValueError: if the tokenizer frames a pair in another way.
    """

    def __init__(self, tokenizer: TextTokenizer, spec: CrossEncoder) -> None:
        self.tokenizer = tokenizer
        self.spec = spec
        frame = tokenizer.backend.encode("", "")
        cls, sep = tokenizer.special["cls"], tokenizer.special["sep"]
        self._between = len(frame.ids) - 2
        self._numbers = frame.type_ids[-1] == 1
        if self._between not in (1, 2) or frame.tokens != [cls] + [sep] * (self._between + 1):
            raise ValueError(
                f"tokenizer: it frames a pair with {frame.tokens}, not with {cls!r} and {sep!r} "
                "once or twice between the texts; choose a BERT-like or XLM-R-like tokenizer"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PairTokenizer) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @functools.cached_property
    def _identity(self) -> tuple[Any, ...]:
        special = tuple(sorted(self.tokenizer.special.items()))
        return self.spec, special, self.tokenizer.backend.to_str()

    def tokenize(
        self,
        kind: type[Any],
        texts: Sequence[tuple[str, str]],
        *,
        content: bool = False,
        length: int | None = None,
    ) -> Relevance:
        """Tokenise a batch of pairs.

        Args:
          kind: ``Relevance``.
          texts: R pairs of a query and a passage; prompts are put before them here.
          content: must be False: of a pair, no token is embedded by itself.
          length: tokens a pair; None takes the specification's.

        Returns:
          The request: numpy arrays ``[R, length]``. Queries are cut to ``query_length`` pieces, and
          passages to what is left, at the end.

        Raises:
          TypeError: if a cross-encoder does not answer requests of this kind.
          ValueError: if a text is empty or has no piece, or ``length`` has no room for a passage.
        """
        if kind is not Relevance:
            raise TypeError(
                f"tokenizer: asked for {getattr(kind, '__name__', kind)}, and a cross-encoder "
                "answers Relevance; give the objective a model of another kind"
            )
        if content:
            raise ValueError(
                "tokenizer: a cross-encoder embeds no token by itself, so that content has no "
                "meaning; leave it out"
            )
        width = self.spec.length if length is None else length
        frame = self._between + 2
        if width < self.spec.query_length + frame + 1:
            raise ValueError(
                f"tokenizer: length is {width}, which has no room for a passage beside "
                f"{self.spec.query_length} pieces of a query and {frame} special tokens; write at "
                f"least {self.spec.query_length + frame + 1}"
            )
        queries = self._encode([query for query, _ in texts], "query", self.spec.query_prompt)
        passages = self._encode([text for _, text in texts], "passage", self.spec.passage_prompt)
        cls, sep = self.tokenizer.id("cls"), self.tokenizer.id("sep")
        ids = np.full((len(texts), width), self.tokenizer.id("pad"), np.int32)
        mask, keep = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        for row, (query, passage) in enumerate(zip(queries, passages, strict=True)):
            first = [cls, *query[: self.spec.query_length], *[sep] * self._between]
            own = [*first, *passage[: width - len(first) - 1], sep]
            ids[row, : len(own)] = own
            mask[row, : len(own)] = True
            keep[row, len(first) : len(own)] = self._numbers
        return Relevance(Tokens(*cast(tuple[Array, Array, Array], (ids, mask, keep))))

    def _encode(self, texts: Sequence[str], side: str, prompt: str) -> list[list[int]]:
        """Each text's pieces, the prompt's first; of texts that come again, counted once."""
        distinct = list(dict.fromkeys(texts))
        for text in distinct:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"tokenizer: a {side} of this batch is {text!r}; leave the record out, because "
                    "nothing is ever read as an empty text"
                )
        pieces = self.tokenizer.encode([prompt + text for text in distinct])
        (alone,) = self.tokenizer.encode([prompt])
        for text, own in zip(distinct, pieces, strict=True):
            if len(own) <= len(alone):
                raise ValueError(
                    f"tokenizer: the {side} {text!r} has no piece in this vocabulary beside its "
                    "prompt; leave the record out"
                )
        found = dict(zip(distinct, pieces, strict=True))
        return [found[text] for text in texts]


class QuestionTokenizer:
    """Turns questions and passages into requests for one generator.

    Args:
      tokenizer: the model's tokenizer.
      spec: the generator's specification.
    """

    def __init__(self, tokenizer: GeneratorTokenizer, spec: Generator) -> None:
        self.tokenizer = tokenizer
        self.prompts = PromptTokenizer(tokenizer, spec)

    def tokenize(
        self,
        kind: type[Any],
        texts: Sequence[tuple[str, str, str]],
        *,
        content: bool = False,
        length: int | None = None,
    ) -> Likelihood:
        """Tokenise a batch; warns once of passages that are cut, and of languages.

        Args:
          kind: ``Likelihood``.
          texts: R times a question, a passage and the code of the question's language.
          content: must be False: every token of a question is scored.
          length: tokens a prompt; None takes the specification's.

        Returns:
          The request: the source is the prompt with the passage, the target the question.

        Raises:
          TypeError: if a generator does not answer requests of this kind.
          ValueError: as ``PromptTokenizer`` refuses a text, or with ``content``.
        """
        if kind is not Likelihood:
            raise TypeError(
                f"tokenizer: asked for {getattr(kind, '__name__', kind)}, and a generator answers "
                "Likelihood; give the objective a model of another kind"
            )
        if content:
            raise ValueError("tokenizer: a generator scores every token; leave content out")
        request, cut = self.read(texts, length=length)
        # Each sentence once: training reads a text many times.
        for language in dict.fromkeys(text[2] for text in texts):
            if told := self.prompts.of_languages([language]):
                _warn(told)
        if cut.any():
            _warn(
                "a passage does not fit the generator's prompt of "
                f"{self.prompts.spec.source_length} tokens; it is cut at its end, as all are that "
                "are too long: raise source_length to have them read whole"
            )
        return request

    def read(
        self, texts: Sequence[tuple[str, str, str]], *, length: int | None = None
    ) -> tuple[Likelihood, Int[np.ndarray, " R"]]:
        """Tokenise a batch, and count the pieces cut of each passage.

        Args:
          texts: R times a question, a passage and the code of the question's language.
          length: tokens a prompt; None takes the specification's.

        Returns:
          The request, and ``[R]`` pieces.

        Raises:
          ValueError: as ``PromptTokenizer`` refuses a text.
        """
        passages, languages = [text[1] for text in texts], [text[2] for text in texts]
        source, cut = self.prompts.sources(passages, languages, length=length)
        return Likelihood(source, self.prompts.targets([text[0] for text in texts])), cut


@functools.cache
def _warn(text: str) -> None:
    """Warn once of what does not change from batch to batch."""
    warnings.warn(text, stacklevel=4)
