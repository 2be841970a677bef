"""Rows of records become the arrays of a step: requests, stored answers and labels."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from clir_jax.data.frequencies import InverseDocumentFrequency
from clir_jax.data.opened import MixedRecords, RankingRecords
from clir_jax.data.records import PADDING_ID, Ranking, Record, Records, read
from clir_jax.models.requests import Embeddings, Tokens

MOST_KNOWN = 128
"""Known relevant passages of a question that reach a step; its chosen positive is always first."""


@runtime_checkable
class AskLike(Protocol):
    """What an objective asks of a model; ``clir_jax.objectives.base.Ask`` is one."""

    @property
    def kind(self) -> type[Any]:
        """The request."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What is read: ``"source.field"`` or ``"source.field.language"``, two for pairs."""

    @property
    def model(self) -> str:
        """The teacher that is asked."""

    @property
    def content(self) -> bool:
        """Whether only the text's own pieces are kept."""

    @property
    def length(self) -> int | None:
        """Tokens a text; None takes the model's own."""


@runtime_checkable
class TokenizerLike(Protocol):
    """Turns texts into one model's requests; ``data.tokenization.RequestTokenizer`` is one.

    Two that are equal and hashable read every text alike, and a text is read once for both.
    """

    @property
    def tokenizer(self) -> Any:
        """The vocabulary, of which only ``id("pad")`` is needed here."""

    def tokenize(
        self,
        kind: type[Any],
        texts: Sequence[Any],
        *,
        content: bool = False,
        length: int | None = None,
    ) -> Any:
        """A request of numpy arrays ``[R, T]`` for R texts, or R pairs of texts."""


@runtime_checkable
class AnswersLike(Protocol):
    """A teacher's stored answers; ``data.answers.Answers`` is one."""

    def __call__(self, texts: Sequence[str], width: int) -> Embeddings:
        """``[R, width, E]`` vectors and their mask of R texts; width 1 for dense retrievers."""


class Assemble:
    """Turns a list of rows, each a record of every source, into the arrays of a step.

    Args:
      asks: what the models are asked, by ``"student.<name>"`` and ``"teacher.<name>"``.
      sources: opened sources.
      tokenizers: of each ask.
      answers: of the asks whose answers are stored.
      passages: N.
      token_labels: as ``task_dataset`` takes them.
    """

    def __init__(
        self,
        asks: Mapping[str, AskLike],
        sources: Mapping[str, Records],
        tokenizers: Mapping[str, TokenizerLike],
        answers: Mapping[str, AnswersLike],
        passages: int,
        token_labels: Collection[str],
    ):
        self._asks, self._sources, self._passages = asks, sources, passages
        self._tokenizers, self._answers = tokenizers, answers
        self._full = {name: _full_width(asks[name], tokenizers[name]) for name in answers}
        self._token_labels = [label.rsplit(".", 1) for label in token_labels]
        self._rarity = {
            name: self._count(name) for name, kind in self._token_labels if kind == "idf"
        }
        self._known = {
            name: min(records.most_known, MOST_KNOWN)
            for name, records in sources.items()
            if isinstance(records, (RankingRecords, MixedRecords)) and records.kind is Ranking
        }

    def __call__(
        self,
        rows: Sequence[Sequence[Record]],
        weight: Float[np.ndarray, " B"],
        widths: Mapping[str, int],
    ) -> dict[str, Any]:
        """The members of ``objectives.base.Batch``.

        Args:
          rows: B rows.
          weight: ``[B]`` float32.
          widths: tokens a text, by ask; an ask that is not named takes its full length.
        """
        records = dict(zip(self._sources, zip(*rows, strict=True), strict=True))
        batch: dict[str, Any] = {"student": {}, "teacher": {}, "weight": weight}
        labels = batch["labels"] = {}
        for source, column in records.items():
            labels |= self._labels(source, column)
        done: dict[Any, Any] = {}  # student and teacher often read the same text with one tokenizer

        def request(name: str, content: bool) -> Any:
            ask, tokenizer = self._asks[name], self._tokenizers[name]
            width = widths.get(name, ask.length)
            what = (ask.kind, ask.texts, content, width, tokenizer)
            if what not in done:
                tokenize = functools.partial(
                    tokenizer.tokenize, ask.kind, content=content, length=width
                )
                done[what] = self._of_texts(name, tokenize, records)
            return done[what]

        for name, ask in self._asks.items():
            side, _, own = name.partition(".")
            if name in self._answers:
                width = widths.get(name, self._full[name])
                stored = functools.partial(self._answers[name], width=width)
                batch[side][own] = self._of_texts(name, stored, records)
            else:
                batch[side][own] = request(name, ask.content)
        for name, kind in self._token_labels:
            if kind == "content":
                labels[f"{name}.content"] = _tokens(request(name, True)).keep
            else:
                asked = request(name, self._asks[name].content)
                labels[f"{name}.idf"] = self._rarity[name](_tokens(asked))
        return batch

    def _labels(self, source: str, column: Sequence[Record]) -> dict[str, Any]:
        rankings = [record for record in column if isinstance(record, Ranking)]
        if not rankings:
            ids = [record.id for record in column if not isinstance(record, Ranking)]
            return {f"{source}.id": np.asarray(ids, np.int32)}
        passages = [[p.id for p in r.positives + r.negatives] for r in rankings]
        known = [record.known for record in rankings]
        labels = {
            f"{source}.query_id": np.asarray([record.query_id for record in rankings], np.int32),
            f"{source}.passage_ids": _padded(passages, self._passages, PADDING_ID, np.int32),
            f"{source}.known": _padded(known, self._known[source], PADDING_ID, np.int32),
        }
        scores = [record.scores for record in rankings if record.scores is not None]
        if scores:
            labels[f"{source}.scores"] = _padded(scores, self._passages, 0, np.float32)
        return labels

    def _of_texts(
        self,
        name: str,
        read_texts: Callable[[list[Any]], Any],
        records: Mapping[str, Sequence[Record]],
    ) -> Any:
        """Arrays ``[B, ...]`` of an ask's texts, or ``[B, N, ...]`` where it reads passages."""
        columns = [_column(text, records) for text in self._asks[name].texts]
        if all(isinstance(value, str) for column in columns for value in column):
            texts = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
            return read_texts(texts)
        listed = [_side_by_side(values) for values in zip(*columns, strict=True)]
        spread = functools.partial(
            _spread,
            places=np.concatenate(
                [row * self._passages + np.arange(len(own)) for row, own in enumerate(listed)]
            ),
            shape=(len(listed), self._passages),
            pad=self._tokenizers[name].tokenizer.id("pad"),
        )
        return jax.tree.map(spread, read_texts([one for own in listed for one in own]))

    def _count(self, name: str) -> InverseDocumentFrequency:
        ask, tokenizer = self._asks[name], self._tokenizers[name]
        if len(ask.texts) != 1:
            raise ValueError(f'idf names the ask "{name}", which reads pairs; name one of one text')
        source, _, field = ask.texts[0].partition(".")

        def texts_of(record: Record) -> Sequence[str]:
            value = read(record, field)
            return (value,) if isinstance(value, str) else value

        def tokenize(texts: Sequence[str]) -> Tokens:
            return _tokens(
                tokenizer.tokenize(ask.kind, texts, content=ask.content, length=ask.length)
            )

        return InverseDocumentFrequency(self._sources[source], texts_of, tokenize)


def _full_width(ask: AskLike, tokenizer: TokenizerLike) -> int:
    """Tokens a text of an ask may take: its own length, or the model's."""
    return int(_tokens(tokenizer.tokenize(ask.kind, [], length=ask.length)).ids.shape[-1])


def _column(text: str, records: Mapping[str, Sequence[Record]]) -> list[str | tuple[str, ...]]:
    source, _, field = text.partition(".")
    return [read(record, field) for record in records[source]]


def _side_by_side(values: Sequence[str | tuple[str, ...]]) -> list[Any]:
    """One entry a passage: its text, or the pair of it and the question."""
    n = max(len(value) for value in values if isinstance(value, tuple))
    wide = [(value,) * n if isinstance(value, str) else value for value in values]
    return list(wide[0] if len(wide) == 1 else zip(*wide, strict=True))


def _spread(rows: Any, *, places: Any, shape: tuple[int, int], pad: int) -> Any:
    """Put rows ``[R, ...]`` at ``places`` of ``[B, N, ...]``, and padding at the others."""
    # Of all that is spread, ids are the only integers.
    fill = pad if rows.dtype == np.int32 else 0
    out = np.full((shape[0] * shape[1], *rows.shape[1:]), fill, rows.dtype)
    out[places] = rows
    return out.reshape(*shape, *rows.shape[1:])


def _tokens(request: Any) -> Tokens:
    tokens: Tokens = request.tokens
    return tokens


def _padded(rows: Sequence[Sequence[int | float]], width: int, fill: int, dtype: Any) -> Any:
    out = np.full((len(rows), width), fill, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row[:width]
    return out
