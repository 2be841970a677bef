"""From opened sources to the arrays of a training step, by its number.

Per source: a shuffle that differs from epoch to epoch, repeated without end, mixed by weight, and
one positive, some negatives and a language chosen for each ranking. All of it is addressed by the
row's number in the whole run, so what a step reads depends on its number only: not on the number of
processes, of threads, or on which steps came before. Processes split a batch last, in blocks.
``data.buckets`` puts texts of like length together; ``data.assembly`` makes the arrays.
"""

import dataclasses
import difflib
import functools
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import grain
import numpy as np

from clir_jax.data.assembly import AnswersLike, AskLike, Assemble, TokenizerLike
from clir_jax.data.buckets import Buckets, count_lengths
from clir_jax.data.opened import MixedRecords
from clir_jax.data.records import Passage, Ranking, Record, Records, check_field

_SMALL = 8192


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
    buckets: int = 1,
    answers: Mapping[str, AnswersLike] = {},
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
      buckets: shapes of batches, at most. With more than 1 the source is tokenised once, now, to
        count; batches then hold texts of like length and are as wide as their bucket, and an epoch
        is whole batches: where its records do not fill them, some are repeated with ``weight`` 0.
      answers: stored answers that take the request's place, by the name of the teacher's ask.

    Returns:
      A dataset whose element ``[step]`` has the members of ``objectives.base.Batch``: "student",
      "teacher", "weight" and "labels", as numpy arrays for this process (B = batch_size / world).
      Labels: ``s.id [B]`` of bitext and text; ``s.query_id [B]``, ``s.passage_ids [B, N]``,
      ``s.known [B, K]`` and, where there are some, ``s.scores [B, N]`` (0 at padding) of rankings.
      K is the most known passages of any question of the source, 128 at most.

    Raises:
      ValueError: if sizes do not fit, or an ask names a source, field, language or model that
        there is not, or buckets are wanted where an epoch does not read every record once.
    """
    _check_sizes(batch_size, rank, world, passages)
    asks = {f"student.{name}": ask for name, ask in student.items()}
    asks |= {f"teacher.{name}": ask for name, ask in teacher.items()}
    answering = {name: ask.model for name, ask in asks.items()}
    answering |= dict.fromkeys((f"student.{name}" for name in student), "student")
    for name, ask in asks.items():
        _check_ask(name, ask, sources)
    own = {
        name: _look_up(tokenizers, model, f'ask "{name}"', "tokenizer")
        for name, model in answering.items()
    }
    _check_labels(token_labels, asks)
    stored = {f"teacher.{name}": given for name, given in answers.items()}
    _check_answers(stored, asks)
    _check_buckets(buckets, sources)
    assemble = Assemble(asks, sources, own, stored, passages, token_labels)
    block = batch_size // world
    if buckets == 1:
        streams = [_stream(name, records, seed, passages) for name, records in sources.items()]
        batches = _blocks(streams, block)[rank::world]
        return batches.map(lambda rows: assemble(rows, np.ones(block, np.float32), {}))
    ((name, records),) = sources.items()
    lengths = count_lengths(records, asks, own, passages)
    choices, order = _seeds(seed, name, 2)
    plan = Buckets(lengths, batch_size=batch_size, most=buckets, seed=order)
    rows = grain.MapDataset.source(_Planned(records, plan))
    batches = _blocks([_choose_of_each(rows, records, choices, passages)], block)[rank::world]
    part = slice(rank * block, (rank + 1) * block)
    return batches.map_with_index(
        lambda step, rows: assemble(rows, plan.weight(step)[part], plan.widths(step))
    )


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
            check_field(records.kind, field, records.languages, _told(records))
        except ValueError as error:
            raise ValueError(f'ask "{name}" reads "{text}": {error}') from error


def _told(records: Records) -> tuple[str, ...]:
    """The languages that all passages are known in: those of the first of each source."""
    if records.kind is not Ranking:
        return ()
    parts = records.parts if isinstance(records, MixedRecords) else (records,)
    first, *others = (cast(Ranking, part[0]).positives[0].texts for part in parts)
    return tuple(x for x in first if all(x in own for own in others))


def _check_labels(token_labels: Collection[str], asks: Mapping[str, AskLike]) -> None:
    for label in token_labels:
        name, _, kind = label.rpartition(".")
        _look_up(asks, name, "token_labels", "ask")
        _look_up(dict.fromkeys(("content", "idf")), kind, f"token_labels {label!r}", "kind")


def _check_answers(stored: Collection[str], asks: Mapping[str, AskLike]) -> None:
    heard = {name: ask for name, ask in asks.items() if name.startswith("teacher.")}
    for name in stored:
        ask = _look_up(heard, name, "answers", "ask")
        if len(ask.texts) != 1:
            raise ValueError(
                f'answers are of one text each, and the ask "{name}" reads '
                f"{len(ask.texts)}; leave it out of answers"
            )


def _check_buckets(buckets: int, sources: Mapping[str, Records]) -> None:
    if buckets < 1:
        raise ValueError(f"buckets is {buckets}; write 1 for one shape, or more")
    if buckets == 1:
        return
    if len(sources) != 1:
        raise ValueError(
            f"buckets is {buckets} and the task reads {len(sources)} sources "
            f"({', '.join(sources)}), whose rows are paired without regard to length; write "
            "buckets=1, or give each source a task of its own"
        )
    for name, records in sources.items():
        if isinstance(records, MixedRecords) and records.weights:
            raise ValueError(
                f'buckets is {buckets} and the mixture "{name}" has weights {records.weights}, by '
                "which an epoch does not read every record once; write buckets=1, or weights=None"
            )


class _SideBySide:
    """Row i of every stream. Grain's own zip is still experimental."""

    def __init__(self, streams: Sequence[grain.MapDataset[Record]]):
        self._streams = streams

    def __len__(self) -> int:
        return min(len(stream) for stream in self._streams)

    def __getitem__(self, i: int) -> tuple[Record, ...]:
        return tuple(stream[i] for stream in self._streams)


def _blocks(
    streams: Sequence[grain.MapDataset[Record]], size: int
) -> grain.MapDataset[list[tuple[Record, ...]]]:
    rows = grain.MapDataset.source(_SideBySide(streams))
    blocks: grain.MapDataset[list[tuple[Record, ...]]] = rows.batch(
        size, drop_remainder=True, batch_fn=list
    )
    return blocks


def _stream(name: str, records: Records, seed: int, passages: int) -> grain.MapDataset[Record]:
    """The source's rows without end; row i is a function of ``seed``, ``name`` and i."""
    weights = records.weights if isinstance(records, MixedRecords) else None
    parts = records.parts if isinstance(records, MixedRecords) and weights else (records,)
    seeds = _seeds(seed, name, len(parts) + 1)
    orders = [_endless(part, own) for part, own in zip(parts, seeds[1:], strict=True)]
    rows = grain.MapDataset.mix(orders, weights) if weights else orders[0]
    return _choose_of_each(rows, records, seeds[0], passages)


def _seeds(seed: int, name: str, count: int) -> list[int]:
    """Seeds that are far apart: the shuffle adds the epoch to its seed, so with neighbouring seeds
    one source's order would be another's, an epoch later."""
    entropy = (seed, zlib.crc32(name.encode()))
    return [int(n) for n in np.random.SeedSequence(entropy).generate_state(count)]


def _choose_of_each(
    rows: grain.MapDataset[Record], records: Records, seed: int, passages: int
) -> grain.MapDataset[Record]:
    if records.kind is Ranking:
        rows = rows.random_map(functools.partial(choose, passages=passages), seed=seed)
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


class _Planned:
    """The records in the order of their buckets, epoch after epoch."""

    def __init__(self, records: Records, plan: Buckets):
        self._records, self._plan = records, plan

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, i: int) -> Record:
        return self._records[self._plan.record(i)]


def choose(record: Ranking, rng: np.random.Generator, *, passages: int) -> Ranking:
    """Choose languages, one positive and up to ``passages - 1`` negatives of a ranking.

    Args:
      record: a ranking.
      rng: makes the choices.
      passages: N.

    Returns:
      The ranking with these only: the question's language is its first, and the positive is the
      first of ``known``.
    """
    languages = list(record.asked or record.queries)
    own = languages[rng.integers(len(languages))]
    positive = int(rng.integers(len(record.positives)))
    count = min(passages - 1, len(record.negatives))
    drawn = [int(n) for n in rng.permutation(len(record.negatives))[:count]]
    scores = record.scores
    if scores is not None:
        scores = (scores[positive], *(scores[len(record.positives) + n] for n in drawn))
    relevant = record.positives[positive]
    listed = _in_languages([relevant, *(record.negatives[n] for n in drawn)], record, rng)
    return dataclasses.replace(
        record,
        queries={own: record.queries[own], **record.queries},
        positives=listed[:1],
        negatives=listed[1:],
        scores=scores,
        known=(relevant.id, *(n for n in record.known if n != relevant.id)),
    )


def _in_languages(
    listed: Sequence[Passage], record: Ranking, rng: np.random.Generator
) -> tuple[Passage, ...]:
    """The passages, each with the text of one of its languages."""
    if not listed[0].texts:
        return tuple(listed)
    languages = list(record.told or listed[0].texts)
    drawn = rng.integers(len(languages), size=1 if record.one_language else len(listed))
    return tuple(
        dataclasses.replace(passage, text=passage.texts[languages[n]])
        for passage, n in zip(listed, np.resize(drawn, len(listed)), strict=True)
    )
