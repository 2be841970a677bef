"""From texts to the arrays of a request: lengths, markers, query expansion, punctuation.

All that makes a query differ from a passage is decided here, once, in the token arrays; models see
ids and masks only.
"""

import functools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Int

from clir_jax.models.requests import Array, EncodePassage, EncodeQuery, Tokens
from clir_jax.models.retriever import Dense, LateInteraction, RetrieverSpec
from clir_jax.models.tokenizer import TextTokenizer, marker_id, markers_of, punctuation_ids


class RequestTokenizer:
    """Turns texts into requests for one retriever. Safe to share between threads.

    Two are equal if they turn every text into the same request.

    A query of late interaction becomes (``length`` 8, expansion on)::

      ids    CLS [Q] how many SEP MASK MASK MASK
      mask    1   1   1   1    1   0    0    0      1 throughout with attend_to_expansion
      keep    1   1   1   1    1   1    1    1

    and a passage (``skip_punctuation`` on)::

      ids    CLS [D] so  ,   many SEP PAD PAD
      mask    1   1   1  1    1    1   0   0
      keep    1   1   1  0    1    1   0   0

    Args:
      tokenizer: the model's tokenizer, with the markers in it (``add_markers``).
      spec: the retriever's specification.
      skiplist: ids whose vectors are left out of passages, as saved with the model; None takes
        ``punctuation_ids``. Not used unless the specification skips punctuation.
      empty: take texts that are blank or have no piece too, as their special tokens and the prompt;
        otherwise they are refused.

    Raises:
      ValueError: if a marker is not a token of its own.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        spec: RetrieverSpec,
        *,
        skiplist: Sequence[int] | None = None,
        empty: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.empty = empty
        self.spec = spec
        self.markers = tuple(marker_id(tokenizer, marker) for marker in markers_of(spec) if marker)
        if not (isinstance(spec, LateInteraction) and spec.skip_punctuation):
            skiplist = ()
        self.skiplist = punctuation_ids(tokenizer) if skiplist is None else tuple(skiplist)
        self._skipped = np.zeros(tokenizer.size, bool)
        self._skipped[list(self.skiplist)] = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestTokenizer) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @functools.cached_property
    def _identity(self) -> tuple[Any, ...]:
        special = tuple(sorted(self.tokenizer.special.items()))
        return self.spec, self.skiplist, self.empty, special, self.tokenizer.backend.to_str()

    def pieces(self, ids: Sequence[int] | Int[np.ndarray, " T"]) -> list[str]:
        """Return readable pieces, for tables and pictures; see ``TextTokenizer.pieces``."""
        return self.tokenizer.pieces(ids)

    def tokenize(
        self,
        kind: type[Any],
        texts: Sequence[str],
        *,
        content: bool = False,
        length: int | None = None,
    ) -> EncodeQuery | EncodePassage:
        """Tokenise a batch of texts.

        Args:
          kind: ``EncodeQuery`` or ``EncodePassage``.
          texts: R texts; prompts and markers are put before them here.
          content: keep only the vectors of the text's own pieces (punctuation among them): no CLS,
            SEP, marker or prompt, and no query expansion.
          length: tokens a text; None takes the specification's for this kind.

        Returns:
          The request: numpy arrays ``[R, length]``, ids int32, mask and keep bool. Texts that are
          too long are cut at the end, SEP stays.

        Raises:
          TypeError: if a retriever does not answer requests of this kind.
          ValueError: if a text is blank or has no piece, unless ``empty`` is set, or ``length`` has
            no room for one.
        """
        if kind not in (EncodeQuery, EncodePassage):
            raise TypeError(
                f"tokenizer: asked for {getattr(kind, '__name__', kind)}, and a retriever answers "
                "EncodeQuery and EncodePassage; give the objective a model of another kind"
            )
        query = kind is EncodeQuery
        spec, tokenizer = self.spec, self.tokenizer
        width = spec.query_length if query else spec.passage_length
        width = width if length is None else length
        marker = markers_of(spec)[0 if query else 1]
        head = [tokenizer.id("cls")] + ([marker_id(tokenizer, marker)] if marker else [])
        room = width - len(head) - 1
        if room < 1:
            raise ValueError(
                f"tokenizer: length is {width}, which has no room for a piece beside "
                f"{tokenizer.pieces(head)} and SEP; write at least {len(head) + 2}"
            )
        if isinstance(spec, LateInteraction):
            expand = query and spec.expansion and not (content or spec.content_only)
            attend, own_only = spec.attend_to_expansion, content or spec.content_only
        else:
            expand, attend, own_only = False, False, content
        pieces, prompts = self._encode(texts, query)
        ids = np.full(
            (len(texts), width), tokenizer.id("mask" if expand else "pad"), dtype=np.int32
        )
        mask = np.full(ids.shape, expand and attend)
        keep = np.full(ids.shape, expand)
        for row, (own, prompt) in enumerate(zip(pieces, prompts, strict=True)):
            own = own[:room]
            end = len(head) + len(own)
            ids[row, : end + 1] = [*head, *own, tokenizer.id("sep")]
            mask[row, : end + 1] = True
            if own_only:
                keep[row, len(head) + prompt : end] = True
            else:
                keep[row, : end + 1] = True
        if not query and not content:
            keep &= ~self._skipped[ids]
        tokens = Tokens(*cast(tuple[Array, Array, Array], (ids, mask, keep)))
        return EncodeQuery(tokens) if query else EncodePassage(tokens)

    def _encode(self, texts: Sequence[str], query: bool) -> tuple[list[list[int]], list[int]]:
        """Return each text's pieces, the prompt's first, and how many are the prompt's."""
        side = "query" if query else "passage"
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not (self.empty or text.strip()):
                raise ValueError(
                    f"tokenizer: {side} {i} of this batch is {text!r}; leave the record out, "
                    "because nothing is ever encoded as an empty text"
                )
        prompt = ""
        if isinstance(self.spec, Dense):
            prompt = self.spec.query_prompt if query else self.spec.passage_prompt
        if not prompt:
            pieces, prompts = self.tokenizer.encode(texts), [0] * len(texts)
        else:
            # Counted by offsets: the prompt's last piece may depend on what follows it.
            encoded = self.tokenizer.backend.encode_batch(
                [prompt + text for text in texts], add_special_tokens=False
            )
            pieces = [e.ids for e in encoded]
            prompts = [sum(end <= len(prompt) for _, end in e.offsets) for e in encoded]
        for i, (own, before) in enumerate(zip(pieces, prompts, strict=True)):
            if len(own) == before and not self.empty:
                raise ValueError(
                    f"tokenizer: {side} {i} of this batch, {texts[i]!r}, has no piece in this "
                    "vocabulary; leave the record out"
                )
        return pieces, prompts
