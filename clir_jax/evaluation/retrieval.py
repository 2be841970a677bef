"""Retrieval with a model: encode queries and passages, search exactly, measure."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.progress
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int

from clir_jax.data.collections import Collection
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.evaluation.bm25 import bm25_run
from clir_jax.evaluation.metrics import evaluate_queries
from clir_jax.evaluation.search import top_k
from clir_jax.mesh import make_mesh, on_host, put_whole, row_shards, rowwise
from clir_jax.models.formats import LoadedRetriever, load_retriever, on_mesh
from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery, Tokens

# Rows encoded at once. Passages are read some blocks ahead and sorted by length in between, so that
# a block is about as wide as its texts.
_BLOCK_ROWS = 128
_BLOCKS_AHEAD = 32
_WIDTH_STEP = 32

Progress = Callable[[int, int], None]
Block = tuple[np.ndarray, Embeddings]


class Kept:
    """Encoded passages, kept in memory for the next search of the same texts.

    Args:
      most: bytes that are kept; of a larger corpus, the rest is encoded again every time.
    """

    def __init__(self, most: int) -> None:
        self._room = most
        self._blocks: dict[int, list[Block]] = {}

    def blocks(
        self, texts: Sequence[str], encode: Callable[[], Iterator[Block]]
    ) -> Iterator[Block]:
        """The blocks of ``texts`` as ``encode`` gives them, from memory where they are kept."""
        key = hash(tuple(texts))
        if key in self._blocks:
            yield from self._blocks[key]
            return
        blocks: list[Block] = []
        room = self._room
        for rows, block in encode():
            room -= block.vectors.nbytes + block.mask.nbytes
            if room >= 0:
                blocks.append((rows, block))
            yield rows, block
        if room >= 0:
            self._blocks[key], self._room = blocks, room


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """A retriever that takes text.

    Args:
      graphdef: the structure of a ``Retriever``.
      params: its parameters, on the devices of ``mesh``.
      tokenizer: its tokenizer.
      mesh: the mesh; rows are split over it.
      passage: who encodes passages, where it is another.
      kept: where encoded passages are kept; None keeps none.
    """

    graphdef: Any
    params: Any
    tokenizer: RequestTokenizer
    mesh: Mesh
    passage: "TextEncoder | None" = None
    kept: Kept | None = None

    @classmethod
    def of(
        cls, model: LoadedRetriever, mesh: Mesh, passage: "TextEncoder | None" = None
    ) -> "TextEncoder":
        """The encoder of a retriever whose parameters are on ``mesh``.

        Args:
          model: the retriever.
          mesh: the mesh.
          passage: who encodes passages; None asks the model, or its tower for them.
        """
        if passage is None and model.passage is not None:
            passage = cls.of(model.passage, mesh)
        tokenizer = RequestTokenizer(model.tokenizer, model.spec, skiplist=model.skiplist)
        return cls(model.graphdef, model.params, tokenizer, mesh, passage)

    def queries(self, texts: Sequence[str]) -> Embeddings:
        """Encode queries.

        Args:
          texts: Q queries.

        Returns:
          Numpy arrays ``[Q, T, E]`` and ``[Q, T]``, in the order of ``texts``.
        """
        tokens = self.tokenizer.tokenize(EncodeQuery, texts).tokens
        # Scoring costs as many tokens as there are columns: none that no query uses.
        width = _used(tokens)
        blocks = [
            self._encode(EncodeQuery, jax.tree.map(lambda x, part=part: x[part, :width], tokens))
            for part in _parts(np.arange(len(texts)), _BLOCK_ROWS)
        ]
        joined: Embeddings = jax.tree.map(
            lambda *parts: np.concatenate([_widened(part, width) for part in parts]), *blocks
        )
        return joined

    def passages(self, texts: Sequence[str], done: int = 0) -> Iterator[Block]:
        """Encode passages, block by block; memory holds a few blocks, whatever their number.

        Args:
          texts: P passages.
          done: passages that came in whole blocks of an earlier call, which do not come again.

        Yields:
          ``[R]`` the places in ``texts`` of a block's passages, and their embeddings ``[R, T, E]``;
          T is as wide as the block needs. Passages are sorted by length, so places jump.
        """
        if self.passage is not None:
            yield from self.passage.passages(texts, done)
            return
        start = 0
        for ahead in _parts(texts, _BLOCK_ROWS * _BLOCKS_AHEAD):
            begun = min(max(0, done - start), len(ahead))
            encode = functools.partial(self._window, ahead)
            if begun:
                blocks = self._window(ahead, begun)
            else:
                blocks = encode() if self.kept is None else self.kept.blocks(ahead, encode)
            for rows, block in blocks:
                yield start + rows, block
            start += len(ahead)

    def _window(self, texts: Sequence[str], begun: int = 0) -> Iterator[Block]:
        """Encode passages that are sorted together, without the first ``begun`` of them."""
        if begun == len(texts):
            return
        tokens = self.tokenizer.tokenize(EncodePassage, texts).tokens
        order = np.argsort(tokens.mask.sum(axis=1), kind="stable")
        for rows in _parts(order[begun:], _BLOCK_ROWS):
            part = jax.tree.map(lambda x, rows=rows: x[rows], tokens)
            yield rows, self._encode(EncodePassage, part)

    def _encode(self, kind: type[Any], tokens: Tokens) -> Embeddings:
        """Encode at most ``_BLOCK_ROWS`` rows, as narrow as they allow, in one of few shapes."""
        request = put_whole(kind(block_of(tokens, _BLOCK_ROWS, _WIDTH_STEP, self.mesh)), self.mesh)
        with jax.set_mesh(self.mesh):
            out = _encode_step(self.graphdef, self.params, request)
        host: Embeddings = jax.tree.map(lambda x: x[: len(tokens.ids)], on_host(out))
        return host


def block_of(tokens: Tokens, rows: int, step: int, mesh: Mesh) -> Tokens:
    """Cut tokens as narrow as they allow and fill rows up, so that few shapes are compiled.

    Args:
      tokens: ``[R, T]``, R up to ``rows``.
      rows: of a block; rounded up to what the mesh's row shards divide.
      step: widths are multiples of it, or T.
      mesh: the mesh.

    Returns:
      ``[rows, width]``, 0 and False where rows are missing.
    """
    count, full = tokens.ids.shape
    width = min(full, -(-_used(tokens) // step) * step)
    shards = row_shards(mesh)
    missing = -(-rows // shards) * shards - count
    block: Tokens = jax.tree.map(lambda x: np.pad(x[:, :width], ((0, missing), (0, 0))), tokens)
    return block


@dataclasses.dataclass(frozen=True)
class Measured:
    """What came of searching one collection.

    Args:
      values: by metric.
      run: passage ids and scores by query id, best first.
    """

    values: dict[str, float]
    run: dict[str, list[tuple[str, float]]]


def measure(
    encoder: TextEncoder,
    collections: Mapping[str, Collection],
    metrics: Sequence[str],
    depth: int,
    progress: Progress = lambda done, total: None,
) -> dict[str, Measured]:
    """Search collections exactly and measure the rankings.

    Collections over the same passages (one English corpus, queries in several languages) share one
    pass over them.

    Args:
      encoder: the retriever.
      collections: by name.
      metrics: in ir-measures' spelling.
      depth: passages kept a query.
      progress: called with the number of passages encoded and to encode.

    Returns:
      Values and runs by collection name.
    """
    groups: dict[int, list[str]] = {}
    for name, collection in collections.items():
        groups.setdefault(_same_passages(collection), []).append(name)
    total = sum(len(collections[names[0]].passages) for names in groups.values())
    measured: dict[str, Measured] = {}
    done = 0
    for names in groups.values():
        passages = collections[names[0]].passages
        step = functools.partial(_report, progress, done, total)
        runs = search(encoder, [collections[name] for name in names], depth, step)
        for name, run in zip(names, runs, strict=True):
            values = evaluate_queries(collections[name].qrels, run, metrics).values
            measured[name] = Measured(dict(values), run)
        done += len(passages)
    return {name: measured[name] for name in collections}


def measure_bm25(collection: Collection, metrics: Sequence[str], depth: int) -> Measured:
    """Rank a collection by BM25 and measure it: the row that every table of systems begins with."""
    c = collection
    run = bm25_run(c.passage_ids, c.passages, c.query_ids, c.queries, depth)
    return Measured(dict(evaluate_queries(c.qrels, run, metrics).values), run)


def load_encoder(model: str) -> TextEncoder:
    """Load a retriever on all devices.

    Args:
      model: a run's directory, a retriever's directory or a name as for ``hub.resolve``.
    """
    mesh = make_mesh()
    return TextEncoder.of(on_mesh(load_retriever(saved_at(model)), mesh), mesh)


def saved_at(model: str) -> str:
    """Where the model of a run is; any other name as it is."""
    of_run = Path(model) / "model"
    return str(of_run) if of_run.is_dir() else model


def measure_saved(
    model: str, collection: Collection, metrics: Sequence[str], depth: int
) -> Measured:
    """Load a retriever on all devices and measure it, with a progress bar on a terminal.

    Args:
      model: a run's directory, a retriever's directory or a name as for ``hub.resolve``.
      collection: what to search.
      metrics: in ir-measures' spelling.
      depth: passages kept a query.

    Returns:
      Values and run.
    """
    encoder = load_encoder(model)
    with rich.progress.Progress(transient=True) as bar:
        task = bar.add_task("passages", total=len(collection.passages))
        told = measure(
            encoder, {"": collection}, metrics, depth, lambda n, _: bar.update(task, completed=n)
        )
    return told[""]


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def nearest(
    queries: Embeddings,
    blocks: Iterable[Block],
    depth: int,
    mesh: Mesh,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Search passages that come in blocks, with their places, as ``TextEncoder`` gives them.

    Args:
      queries: ``[Q, T, E]``.
      blocks: of the passages.
      depth: passages wanted a query.
      mesh: where scores are computed.
      progress: called with the number of passages that have come.

    Returns:
      Falling scores, and the places of their passages; equal scores in order of arrival.
    """
    places: list[np.ndarray] = []

    def arriving() -> Iterator[Embeddings]:
        done = 0
        for rows, block in blocks:
            places.append(rows)
            done += len(rows)
            progress(done)
            yield block

    with jax.set_mesh(mesh):
        scores, arrivals = top_k(queries, arriving(), depth)
    return scores, np.concatenate(places)[arrivals]


def search(
    encoder: TextEncoder,
    collections: Sequence[Collection],
    depth: int,
    progress: Callable[[int], None],
) -> list[dict[str, list[tuple[str, float]]]]:
    """Search for the queries of collections that share their passages.

    Args:
      encoder: encodes both.
      collections: at least one.
      depth: passages wanted a query; a passage without a kept token is nobody's neighbour.
      progress: called with the number of passages that have come.

    Returns:
      The run of each collection: passage ids and falling scores by query id.
    """
    first = collections[0]
    queries = encoder.queries([text for c in collections for text in c.queries])
    blocks = encoder.passages(first.passages)
    scores, rows = nearest(queries, blocks, depth, encoder.mesh, progress)
    ids = iter(range(len(rows)))
    return [
        {
            query: [
                (first.passage_ids[row], float(score))
                for row, score in zip(rows[i], scores[i], strict=True)
                if np.isfinite(score)
            ]
            for query, i in zip(c.query_ids, ids, strict=False)
        }
        for c in collections
    ]


@functools.partial(jax.jit, static_argnums=0)
def _encode_step(graphdef: Any, params: Any, request: Any) -> Embeddings:
    def answer(params: Any, request: Any) -> Embeddings:
        out: Embeddings = nnx.merge(graphdef, params)(request)
        return out

    return rowwise(answer, params, request)


def _used(tokens: Tokens) -> int:
    """Columns up to the last that any row attends to or keeps."""
    return int(np.flatnonzero((tokens.mask | tokens.keep).any(axis=0)).max()) + 1


def _widened(x: np.ndarray, width: int) -> np.ndarray:
    """Pad the token axis of late interaction to ``width``; a dense retriever's stays 1."""
    missing = 0 if x.shape[1] == 1 else width - x.shape[1]
    return np.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))


def _same_passages(collection: Collection) -> int:
    return hash((tuple(collection.passage_ids), tuple(collection.passages)))


def _parts(rows: Any, size: int) -> Iterator[Any]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
