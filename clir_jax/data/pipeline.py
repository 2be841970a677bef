"""From opened sources to the arrays of a training step, by its number.

Per source: a shuffle that differs from epoch to epoch, repeated without end, mixed by weight, and
one positive, some negatives and a language chosen for each ranking. All of it is addressed by the
row's number in the whole run, so what a step reads depends on its number only: not on the number of
processes, of threads, or on which steps came before. Processes split a batch last, in blocks.
"""

import dataclasses
import difflib
import functools
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np

from clir_jax.data.frequencies import InverseDocumentFrequency
from clir_jax.data.opened import MixedRecords, RankingRecords
from clir_jax.data.records import PADDING_ID, Ranking, Record, Records, check_field, read
from clir_jax.models.requests import Tokens

MOST_KNOWN = 128
"""Known relevant passages of a question that reach a step; its chosen positive is always first."""

_SMALL = 8192


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
    """Turns texts into one model's requests; ``data.tokenization.RequestTokenizer`` is one."""

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


def task_dataset(
    student: Mapping[str, AskLike],
    teacher: Mapping[str, AskLike],
    sources: Mapping[str, Records],
    tokenizers: Mapping[str, TokenizerLike],
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    passages: int = 1,
    token_labels: Collection[str] = (),
) -> grain.MapDataset[dict[str, Any]]:
    """What one task reads, by step.

    The batches of all ranks, one after another, are the same batch for every ``world``. A task with
    several sources reads a record of each for every row. A question with several languages is asked
    in one of them, chosen by chance, unless an ask names the language.

    Args:
      student: what the model in training is asked, by name.
      teacher: what the teachers are asked, by name.
      sources: opened sources, by the names that asks use.
      tokenizers: of the model in training under ``"student"``, and of each teacher by its name.
      batch_size: rows of a step, over all processes.
      seed: of the order and of every choice.
      rank: this process.
      world: number of processes.
      passages: N, passages a question: a positive and N - 1 negatives. Where a record has fewer,
        the rest is padding: id -1, ``mask`` and ``keep`` False.
      token_labels: labels ``[B, T]`` wanted besides: ``"student.query.content"`` (bool: the vectors
        that are kept of the text's own pieces) or ``"student.query.idf"`` (float32: how rare each
        token is in that side of the source), for any ask.

    Returns:
      A dataset whose element ``[step]`` has the members of ``objectives.base.Batch``: "student",
      "teacher", "weight" and "labels", as numpy arrays for this process (B = batch_size / world).
      Labels: ``s.id [B]`` of bitext and text; ``s.query_id [B]``, ``s.passage_ids [B, N]``,
      ``s.known [B, K]`` and, where there are some, ``s.scores [B, N]`` (0 at padding) of rankings.
      K is the most known passages of any question of the source, 128 at most.

    Raises:
      ValueError: if sizes do not fit, or an ask names a source, field, language or model that
        there is not.
    """
    _check_sizes(batch_size, rank, world, passages)
    asks = {f"student.{name}": ask for name, ask in student.items()}
    asks |= {f"teacher.{name}": ask for name, ask in teacher.items()}
    answering = {name: ask.model for name, ask in asks.items()}
    answering |= dict.fromkeys((f"student.{name}" for name in student), "student")
    for name, ask in asks.items():
        _check_ask(name, ask, sources)
        _look_up(tokenizers, answering[name], f'ask "{name}"', "tokenizer")
    for label in token_labels:
        name, _, kind = label.rpartition(".")
        _look_up(asks, name, "token_labels", "ask")
        _look_up(dict.fromkeys(("content", "idf")), kind, f"token_labels {label!r}", "kind")
    assemble = _Assemble(asks, answering, sources, tokenizers, passages, token_labels)
    streams = [_stream(name, records, seed, passages) for name, records in sources.items()]
    rows = grain.MapDataset.source(_SideBySide(streams)).batch(
        batch_size // world, drop_remainder=True, batch_fn=list
    )
    dataset: grain.MapDataset[dict[str, Any]] = rows[rank::world].map(assemble)
    return dataset


def _check_sizes(batch_size: int, rank: int, world: int, passages: int) -> None:
    if world < 1 or not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not one of {world} processes; ranks count from 0")
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch_size {batch_size} does not divide over {world} processes; "
            f"set it to {max(1, round(batch_size / world)) * world}"
        )
    if passages < 1:
        raise ValueError(f"passages is {passages}; set it to 1 for the positive alone, or more")


def _look_up(table: Mapping[str, Any], name: str, where: str, what: str) -> Any:
    if name in table:
        return table[name]
    if not table:
        raise ValueError(f'{where} names the {what} "{name}", but there is none at all; add it')
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.0)[0]
    raise ValueError(
        f'{where} names the {what} "{name}", which there is not; write "{near}" '
        f"(there are: {', '.join(table)})"
    )


def _check_ask(name: str, ask: AskLike, sources: Mapping[str, Records]) -> None:
    if not ask.texts:
        raise ValueError(f'ask "{name}" reads no text; write texts=("source.field",)')
    for text in ask.texts:
        source, _, field = text.partition(".")
        records = _look_up(sources, source, f'ask "{name}" reads "{text}" and', "source")
        try:
            check_field(records.kind, field, records.languages)
        except ValueError as error:
            raise ValueError(f'ask "{name}" reads "{text}": {error}') from error


class _SideBySide:
    """Row i of every stream. Grain's own zip is still experimental."""

    def __init__(self, streams: Sequence[grain.MapDataset[Record]]):
        self._streams = streams

    def __len__(self) -> int:
        return min(len(stream) for stream in self._streams)

    def __getitem__(self, i: int) -> tuple[Record, ...]:
        return tuple(stream[i] for stream in self._streams)


def _stream(name: str, records: Records, seed: int, passages: int) -> grain.MapDataset[Record]:
    """The source's rows without end; row i is a function of ``seed``, ``name`` and i."""
    weights = records.weights if isinstance(records, MixedRecords) else None
    parts = records.parts if isinstance(records, MixedRecords) and weights else (records,)
    # Seeds that are far apart: the shuffle adds the epoch to its seed, so with neighbouring seeds
    # one source's order would be another's, an epoch later.
    entropy = (seed, zlib.crc32(name.encode()))
    seeds = [int(n) for n in np.random.SeedSequence(entropy).generate_state(len(parts) + 1)]
    orders = [_endless(part, own) for part, own in zip(parts, seeds[1:], strict=True)]
    rows = grain.MapDataset.mix(orders, weights) if weights else orders[0]
    if records.kind is Ranking:
        rows = rows.random_map(functools.partial(choose, passages=passages), seed=seeds[0])
    return rows


def _endless(records: Records, seed: int) -> grain.MapDataset[Record]:
    """The records epoch after epoch, each in another order."""
    if len(records) < _SMALL:
        return grain.MapDataset.source(_Shuffled(records, seed))
    return grain.MapDataset.source(records).shuffle(seed=seed).repeat(None)


class _Shuffled:
    """Few records in a drawn order. Grain's shuffle takes 5 ms an index for ten records, and 10 us
    for ten thousand; a permutation of many would take their size in memory."""

    def __init__(self, records: Records, seed: int):
        self._records, self._seed = records, seed
        self._order = functools.lru_cache(maxsize=16)(self._draw)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, i: int) -> Record:
        epoch, row = divmod(i, len(self._records))
        return self._records[int(self._order(epoch)[row])]

    def _draw(self, epoch: int) -> Any:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._records))


def choose(record: Ranking, rng: np.random.Generator, *, passages: int) -> Ranking:
    """Choose a language, one positive and up to ``passages - 1`` negatives of a ranking.

    Args:
      record: a ranking.
      rng: makes the choices.
      passages: N.

    Returns:
      The ranking with these only: the chosen language is its first, and the positive is the
      first of ``known``.
    """
    languages = list(record.queries)
    own = languages[rng.integers(len(languages))]
    positive = int(rng.integers(len(record.positives)))
    count = min(passages - 1, len(record.negatives))
    drawn = [int(n) for n in rng.permutation(len(record.negatives))[:count]]
    scores = record.scores
    if scores is not None:
        scores = (scores[positive], *(scores[len(record.positives) + n] for n in drawn))
    relevant = record.positives[positive]
    return dataclasses.replace(
        record,
        queries={own: record.queries[own], **record.queries},
        positives=(relevant,),
        negatives=tuple(record.negatives[n] for n in drawn),
        scores=scores,
        known=(relevant.id, *(n for n in record.known if n != relevant.id)),
    )


class _Assemble:
    """Turns a list of rows, each a record of every source, into the arrays of a step."""

    def __init__(
        self,
        asks: Mapping[str, AskLike],
        answering: Mapping[str, str],
        sources: Mapping[str, Records],
        tokenizers: Mapping[str, TokenizerLike],
        passages: int,
        token_labels: Collection[str],
    ):
        self._asks, self._sources, self._passages = asks, sources, passages
        self._tokenizers = {name: tokenizers[model] for name, model in answering.items()}
        self._token_labels = [label.rsplit(".", 1) for label in token_labels]
        self._rarity = {
            name: self._count(name) for name, kind in self._token_labels if kind == "idf"
        }
        self._known = {
            name: min(records.most_known, MOST_KNOWN)
            for name, records in sources.items()
            if isinstance(records, (RankingRecords, MixedRecords)) and records.kind is Ranking
        }

    def __call__(self, rows: Sequence[Sequence[Record]]) -> dict[str, Any]:
        records = dict(zip(self._sources, zip(*rows, strict=True), strict=True))
        batch: dict[str, Any] = {"student": {}, "teacher": {}}
        batch["weight"] = np.ones(len(rows), np.float32)
        labels = batch["labels"] = {}
        for source, column in records.items():
            labels |= self._labels(source, column)
        done: dict[Any, Any] = {}  # student and teacher often read the same text with one tokenizer

        def request(name: str, content: bool) -> Any:
            ask = self._asks[name]
            what = (ask.kind, ask.texts, content, ask.length, id(self._tokenizers[name]))
            if what not in done:
                done[what] = self._request(name, content, records)
            return done[what]

        for name, ask in self._asks.items():
            side, _, own = name.partition(".")
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

    def _request(self, name: str, content: bool, records: Mapping[str, Sequence[Record]]) -> Any:
        ask = self._asks[name]
        columns = [_column(text, records) for text in ask.texts]
        tokenizer = self._tokenizers[name]
        tokenize = functools.partial(
            tokenizer.tokenize, ask.kind, content=content, length=ask.length
        )
        if all(isinstance(value, str) for column in columns for value in column):
            return tokenize(columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)))
        listed = [_side_by_side(values) for values in zip(*columns, strict=True)]
        real = np.concatenate(
            [row * self._passages + np.arange(len(own)) for row, own in enumerate(listed)]
        )
        request = tokenize([one for own in listed for one in own])
        spread = functools.partial(
            _spread,
            places=real,
            shape=(len(listed), self._passages),
            pad=tokenizer.tokenizer.id("pad"),
        )
        return jax.tree.map(spread, request, is_leaf=lambda x: isinstance(x, Tokens))

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


def _column(text: str, records: Mapping[str, Sequence[Record]]) -> list[str | tuple[str, ...]]:
    source, _, field = text.partition(".")
    return [read(record, field) for record in records[source]]


def _side_by_side(values: Sequence[str | tuple[str, ...]]) -> list[Any]:
    """One entry a passage: its text, or the pair of it and the question."""
    n = max(len(value) for value in values if isinstance(value, tuple))
    wide = [(value,) * n if isinstance(value, str) else value for value in values]
    return list(wide[0] if len(wide) == 1 else zip(*wide, strict=True))


def _spread(tokens: Tokens, *, places: Any, shape: tuple[int, int], pad: int) -> Tokens:
    """Put rows ``[R, T]`` at ``places`` of ``[B, N, T]``, and padding at the others."""

    def put(rows: Any, fill: int | bool) -> Any:
        out = np.full((shape[0] * shape[1], rows.shape[-1]), fill, rows.dtype)
        out[places] = rows
        return out.reshape(*shape, -1)

    return Tokens(put(tokens.ids, pad), put(tokens.mask, False), put(tokens.keep, False))


def _tokens(request: Any) -> Tokens:
    tokens: Tokens = request.tokens
    return tokens


def _padded(rows: Sequence[Sequence[int | float]], width: int, fill: int, dtype: Any) -> Any:
    out = np.full((len(rows), width), fill, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row[:width]
    return out
