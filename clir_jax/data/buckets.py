"""Batches of texts of like length, so that little of a step is padding.

A record is a point: how many tokens it takes in each request. A box is a width for each request,
and holds the records that are nowhere longer. Few boxes are chosen for the whole source, each a
shape that is compiled once; an epoch reads every record once, in batches of one box each. Which
records and which box a step has is a function of the seed and its number.
"""

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from clir_jax.data.assembly import AskLike, TokenizerLike
from clir_jax.data.records import Ranking, Record, Records, read
from clir_jax.models.requests import Tokens

LANES = 8
"""Widths are multiples of it where the full width allows: accelerators compute in such tiles."""

_BLOCK = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Lengths:
    """How many tokens each record of a source takes.

    Asks that one tokenizer reads alike share a column, and so always have the same width.

    Args:
      column: of each ask.
      needed: ``[n, C]`` tokens: no text of the record that a step may read takes more.
      limit: ``[C]`` the full widths, where longer texts are cut.
      texts: ``[C]`` texts a record, over the asks of the column; N for passages.
    """

    column: Mapping[str, int]
    needed: Int[np.ndarray, "n C"]
    limit: Int[np.ndarray, " C"]
    texts: Int[np.ndarray, " C"]


def count_lengths(
    records: Records,
    asks: Mapping[str, AskLike],
    tokenizers: Mapping[str, TokenizerLike],
    passages: int,
) -> Lengths:
    """Tokenise every text of a source once, and count.

    Two CPU cores count 100,000 sentences in 3 seconds.

    Args:
      records: the source; every ask reads it.
      asks: what the models are asked, by name.
      tokenizers: of each ask.
      passages: N; with 1, negatives are never read.

    Returns:
      The lengths. Where a step chooses a question's language, a positive or negatives, the longest
      counts.

    Raises:
      ValueError: if a tokenizer refuses a text.
    """
    alike: dict[Any, list[str]] = {}
    for name, ask in asks.items():
        what = (ask.kind, ask.texts, ask.content, ask.length, tokenizers[name])
        alike.setdefault(what, []).append(name)
    needed = np.zeros((len(records), len(alike)), np.int32)
    limit = np.zeros(len(alike), np.int32)
    for start in range(0, len(records), _BLOCK):
        block = [records[i] for i in range(start, min(start + _BLOCK, len(records)))]
        for c, names in enumerate(alike.values()):
            rows, limit[c] = _longest(block, asks[names[0]], tokenizers[names[0]], passages)
            needed[start : start + len(block), c] = rows
    column = {name: c for c, names in enumerate(alike.values()) for name in names}
    listed = [
        any(text.split(".")[1] == "passages" for text in asks[n[0]].texts) for n in alike.values()
    ]
    texts = [
        len(names) * (passages if many else 1)
        for names, many in zip(alike.values(), listed, strict=True)
    ]
    return Lengths(column, needed, limit, np.asarray(texts, np.int32))


def _longest(
    block: Sequence[Record], ask: AskLike, tokenizer: TokenizerLike, passages: int
) -> tuple[Int[np.ndarray, " n"], int]:
    """Tokens of each record's longest text, and the full width."""
    texts: list[Any] = []
    starts = []
    for record in block:
        columns = [_may_be_read(record, text.partition(".")[2], passages) for text in ask.texts]
        starts.append(len(texts))
        texts += columns[0] if len(columns) == 1 else itertools.product(*columns)
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    request = tokenizer.tokenize(ask.kind, list(distinct), content=ask.content, length=ask.length)
    parts = jax.tree.leaves(request, is_leaf=lambda node: isinstance(node, Tokens))
    counts = np.max([_used(tokens.mask | tokens.keep) for tokens in parts], axis=0)
    rows = counts[[distinct[text] for text in texts]]
    return np.maximum.reduceat(rows, starts), max(tokens.ids.shape[-1] for tokens in parts)


def _may_be_read(record: Record, field: str, passages: int) -> Sequence[str]:
    """The texts of a field that may be what a step reads of it."""
    if not isinstance(record, Ranking):
        return (str(read(record, field)),)
    name, _, language = field.partition(".")
    if name in ("passages", "positive"):
        listed = record.positives
        if name == "passages" and passages > 1:
            listed += record.negatives
        drawn = (language,) if language else record.told
        told = ([p.texts[x] for x in drawn] if drawn else p.readings for p in listed)
        return list(itertools.chain.from_iterable(told))
    if field == "language.query":
        return tuple(record.queries)
    return tuple(record.queries.values()) if field == "query" else (str(read(record, field)),)


def _used(used: Bool[np.ndarray, "R T"]) -> Int[np.ndarray, " R"]:
    """Positions of each row up to the last that is True."""
    count: Int[np.ndarray, " R"] = used.shape[1] - np.argmax(used[:, ::-1], axis=1)
    return count


def choose_boxes(
    points: Int[np.ndarray, "m C"],
    counts: Int[np.ndarray, " m"],
    texts: Int[np.ndarray, " C"],
    most: int,
    batch_size: int,
) -> Int[np.ndarray, "K C"]:
    """Choose shapes so that an epoch holds little padding.

    From one box that holds all, the box, request and threshold whose split saves the most tokens is
    split, again and again; after each split, single widths change as long as that saves tokens.
    What is counted is the epoch as it will be, with the rows that do not fill a batch of their box
    in a wider one, so a source of few batches gets few boxes.

    Args:
      points: ``[m, C]`` the distinct boxes that records would have alone.
      counts: ``[m]`` records of each.
      texts: ``[C]`` texts a record.
      most: boxes, at most.
      batch_size: B.

    Returns:
      ``[K, C]``, K up to ``most``, from the fewest tokens to the most; the last holds every record.

    Example:
      >>> points, counts = np.array([[8], [16], [64]]), np.array([6, 3, 1])
      >>> choose_boxes(points, counts, texts=np.array([1]), most=2, batch_size=1)
      array([[16],
             [64]])
    """
    boxes: Int[np.ndarray, "K C"] = points.max(axis=0, keepdims=True)
    tokens = functools.partial(_epoch_tokens, points, counts, texts, batch_size)
    cost = tokens(boxes)
    while True:
        splits = _splits(points, boxes) if len(boxes) < most else []
        for candidates in (_moves(points, boxes), splits):
            ordered = [own[np.argsort(own @ texts, kind="stable")] for own in candidates]
            costs = [tokens(own) for own in ordered]
            if costs and min(costs) < cost:
                cost, boxes = min(costs), ordered[int(np.argmin(costs))]
                break
        else:
            return boxes


def _moves(
    points: Int[np.ndarray, "m C"], boxes: Int[np.ndarray, "K C"]
) -> Iterator[Int[np.ndarray, "K C"]]:
    """Every set of boxes with another width of one of ``boxes``, but not of the last."""
    for c in range(points.shape[1]):
        for width in np.unique(points[:, c]):
            for k in np.flatnonzero(boxes[:-1, c] != width):
                moved = boxes.copy()
                moved[k, c] = width
                yield moved


def _splits(
    points: Int[np.ndarray, "m C"], boxes: Int[np.ndarray, "K C"]
) -> Iterator[Int[np.ndarray, "k C"]]:
    """Every set of boxes with one of ``boxes`` cut in two, each part as narrow as its points."""
    held = _cheapest(points, boxes)
    for k in range(len(boxes)):
        own = points[held == k]
        for axis in range(points.shape[1]):
            for threshold in np.unique(own[:, axis])[:-1]:
                low = own[:, axis] <= threshold
                # The last box stays: it takes what is left over of all the others.
                high = boxes[k] if k == len(boxes) - 1 else own[~low].max(axis=0)
                yield np.vstack([np.delete(boxes, k, axis=0), own[low].max(axis=0), high])


def _cheapest(
    points: Int[np.ndarray, "m C"], boxes: Int[np.ndarray, "K C"]
) -> Int[np.ndarray, " m"]:
    """The first box that holds each point."""
    first: Int[np.ndarray, " m"] = np.argmax(_holds(boxes, points), axis=1)
    return first


def _holds(
    boxes: Int[np.ndarray, "K C"], points: Int[np.ndarray, "m C"]
) -> Bool[np.ndarray, "m K"]:
    """Whether each point, or smaller box, is within each box."""
    within = np.ones((len(points), len(boxes)), bool)
    # One axis after the other: np.all over an axis of two or three takes forty times as long.
    for own, widths in zip(points.T, boxes.T, strict=True):
        within &= own[:, None] <= widths
    return within


def _upwards(boxes: Int[np.ndarray, "K C"]) -> list[int]:
    """For each box but the last, the next one that holds it."""
    holds = _holds(boxes, boxes)
    return [k + 1 + int(np.argmax(holds[k, k + 1 :])) for k in range(len(boxes) - 1)]


def _batches(
    counts: Int[np.ndarray, " K"], upwards: Sequence[int], batch_size: int
) -> Int[np.ndarray, " K"]:
    """Batches of each box; rows that do not fill one go upwards.

    Rows are repeated where they are cheapest until the last batch is full.
    """
    counts = counts.copy()
    counts[_first(counts)] += -counts.sum() % batch_size
    for k, upward in enumerate(upwards):
        counts[upward] += counts[k] % batch_size
    batches: Int[np.ndarray, " K"] = counts // batch_size
    return batches


def _first(counts: Int[np.ndarray, " K"]) -> int:
    """The first box with a row."""
    return int(np.argmax(counts > 0))


def _epoch_tokens(
    points: Int[np.ndarray, "m C"],
    counts: Int[np.ndarray, " m"],
    texts: Int[np.ndarray, " C"],
    batch_size: int,
    boxes: Int[np.ndarray, "K C"],
) -> int:
    """Tokens of an epoch, padding included."""
    rows = np.bincount(_cheapest(points, boxes), counts, len(boxes)).astype(np.int64)
    batches = _batches(rows, _upwards(boxes), batch_size)
    return int(batches @ (boxes @ texts)) * batch_size


class Buckets:
    """Which records each step reads, and how wide. Safe to share between threads.

    Every epoch reads every record once, in ``steps`` batches, in another order. Rows left over when
    a box's batches are full go to the next box that holds them. Where the records do not divide by
    B, rows of the narrowest box are repeated in one of the batches, with weight 0.

    Args:
      lengths: of the source's records.
      batch_size: B, over all processes.
      most: shapes, at most.
      seed: of the order.
    """

    def __init__(self, lengths: Lengths, *, batch_size: int, most: int, seed: int):
        widths = np.minimum(-(-lengths.needed // LANES) * LANES, lengths.limit)
        points, own, counts = np.unique(widths, axis=0, return_inverse=True, return_counts=True)
        self.boxes = choose_boxes(points, counts, lengths.texts, most, batch_size)
        self._widths: list[Mapping[str, int]] = [
            {name: int(box[c]) for name, c in lengths.column.items()} for box in self.boxes
        ]
        self._box = _cheapest(points, self.boxes)[own.reshape(-1)]
        self._upwards = _upwards(self.boxes)
        self._counts = np.bincount(self._box, minlength=len(self.boxes))
        self._batches = _batches(self._counts, self._upwards, batch_size)
        self.steps = int(self._batches.sum())
        self._batch_size, self._seed = batch_size, seed
        # Reading ahead crosses from one epoch to the next, hence two.
        self._epoch: Callable[[int], _Order] = functools.lru_cache(maxsize=2)(self._draw)
        self._lock = threading.Lock()

    def record(self, row: int) -> int:
        """Which record is row ``row`` of the run; rows b B to (b + 1) B are those of step b."""
        step, place = divmod(row, self._batch_size)
        order, batch = self._at(step)
        number = int(order.rows[batch, place])
        return number if number >= 0 else ~number

    def weight(self, step: int) -> Float[np.ndarray, " B"]:
        """``[B]`` float32: 0 for rows that are repeated to fill a batch."""
        order, batch = self._at(step)
        weight: Float[np.ndarray, " B"] = (order.rows[batch] >= 0).astype(np.float32)
        return weight

    def widths(self, step: int) -> Mapping[str, int]:
        """Tokens a text, by ask."""
        order, batch = self._at(step)
        return self._widths[int(order.boxes[batch])]

    def _at(self, step: int) -> tuple["_Order", int]:
        epoch, batch = divmod(step, self.steps)
        with self._lock:  # or several threads draw a new epoch at once
            return self._epoch(epoch), batch

    def _draw(self, epoch: int) -> "_Order":
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(np.arange(len(self._box), dtype=np.int32))
        pools = [order[self._box[order] == k] for k in range(len(self.boxes))]
        size, first = self._batch_size, _first(self._counts)
        repeated = ~np.resize(pools[first], -len(order) % size)
        pools[first] = np.concatenate([repeated, pools[first]])
        for k, upward in enumerate(self._upwards):
            full = int(self._batches[k]) * size
            pools[upward] = np.concatenate([pools[k][full:], pools[upward]])
            pools[k] = pools[k][:full]
        boxes = np.repeat(np.arange(len(self.boxes)), self._batches)
        shuffle = rng.permutation(self.steps)
        return _Order(np.concatenate(pools).reshape(-1, size)[shuffle], boxes[shuffle])


@dataclasses.dataclass(frozen=True, eq=False)
class _Order:
    """The records and the box of every step of an epoch; ``~r`` repeats record r."""

    rows: Int[np.ndarray, "S B"]
    boxes: Int[np.ndarray, " S"]
