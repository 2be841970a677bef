"""Models that read a query and a passage together: scores of pairs, and the ranking they give."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from clir_jax.data.assembly import TokenizerLike
from clir_jax.data.collections import Collection
from clir_jax.data.pairs import QuestionTokenizer
from clir_jax.data.reading import DataError, find_files
from clir_jax.evaluation.bm25 import bm25_run
from clir_jax.evaluation.metrics import evaluate_queries
from clir_jax.evaluation.retrieval import Measured, Progress, block_of
from clir_jax.evaluation.runs import read_run
from clir_jax.mesh import on_host, put_whole, rowwise
from clir_jax.models.requests import Scores, Tokens

# Pairs scored at once; widths are multiples of a number: each is compiled once.
_BLOCK_ROWS = 64
_WIDTH_STEP = 32
# Pairs that are sorted by length together.
_WINDOW = 4096

Candidates = dict[str, list[tuple[str, float]]]


@dataclasses.dataclass(frozen=True, eq=False)
class PairScorer:
    """A cross-encoder or a generator that takes text.

    A cross-encoder's score of a pair is its own; a generator's is the mean log-likelihood of the
    query's tokens, its end token included, given the passage.

    Args:
      graphdef: the structure of the model.
      params: its parameters, on the devices of ``mesh``.
      reader: makes requests of texts.
      kind: the request that the model answers, ``Relevance`` or ``Likelihood``.
      mesh: the mesh; rows are split over it.
    """

    graphdef: Any
    params: Any
    reader: TokenizerLike
    kind: type[Any]
    mesh: Mesh

    def of_language(self, language: str) -> str:
        """What to say of a language that a generator was not trained for; empty of any other."""
        reader = self.reader
        return (
            reader.prompts.of_languages([language]) if isinstance(reader, QuestionTokenizer) else ""
        )

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        language: str,
        progress: Progress = lambda done, total: None,
    ) -> tuple[Float[np.ndarray, " n"], Counter[str]]:
        """Score pairs.

        Args:
          pairs: n times a query and a passage.
          language: of the queries; a cross-encoder does not ask.
          progress: told the pairs that are done.

        Returns:
          ``[n]`` float32, in the order of ``pairs``; and of the passages of a generator, how many
          were ``"read"`` and ``"cut"``.
        """
        found, counts = np.empty(len(pairs), np.float32), Counter[str]()
        for start in range(0, len(pairs), _WINDOW):
            request, own = self._request(pairs[start : start + _WINDOW], language)
            counts.update(own)
            used = sum(tokens.mask.sum(axis=1) for tokens in _texts(request))
            order = np.argsort(used, kind="stable")
            for begin in range(0, len(order), _BLOCK_ROWS):
                progress(start + begin, len(pairs))
                rows = order[begin : begin + _BLOCK_ROWS]
                part = jax.tree.map(lambda x, rows=rows: x[rows], request)
                found[start + rows] = self._score(part)[: len(rows)]
        progress(len(pairs), len(pairs))
        return found, counts

    def _request(
        self, pairs: Sequence[tuple[str, str]], language: str
    ) -> tuple[Any, dict[str, int]]:
        if not isinstance(self.reader, QuestionTokenizer):
            return self.reader.tokenize(self.kind, pairs), {}
        request, cut = self.reader.read([(*pair, language) for pair in pairs])
        return request, {"read": len(cut), "cut": int((cut > 0).sum())}

    def _score(self, request: Any) -> Float[np.ndarray, " R"]:
        """Score at most ``_BLOCK_ROWS`` rows, as narrow as they allow, in one of few shapes."""
        block = jax.tree.map(
            lambda tokens: block_of(tokens, _BLOCK_ROWS, _WIDTH_STEP, self.mesh),
            request,
            is_leaf=lambda node: isinstance(node, Tokens),
        )
        with jax.set_mesh(self.mesh):
            out = _score_step(self.graphdef, self.params, put_whole(block, self.mesh))
        return np.asarray(on_host(out), np.float32)


def of_cut(counts: Mapping[str, int]) -> str:
    """What to say of passages that were cut; empty if none was.

    Args:
      counts: as ``PairScorer.scores`` gives them.

    Example:
      >>> of_cut({"read": 1200, "cut": 3})
      '3 of 1,200 passages read are cut to fit the prompt'
    """
    cut, read = counts.get("cut", 0), counts.get("read", 0)
    return f"{cut:,} of {read:,} passages read are cut to fit the prompt" if cut else ""


def read_candidates(path: str, data_root: str, collection: Collection, depth: int) -> Candidates:
    """Read the run whose passages are reranked.

    Args:
      path: of a TREC run.
      data_root: directory that ``path`` is relative to.
      collection: what the run ranks.
      depth: passages kept a query.

    Returns:
      Passage ids and scores by query id.

    Raises:
      DataError: if there is no such file, or it ranks what is not in the collection.
    """
    (_, file), *others = find_files(data_root, path)
    if others:
        raise DataError(f"{path}: {len(others) + 1} files match; name the run of one collection")
    known = set(collection.passage_ids)
    found = read_run(file)
    for query, own in found.items():
        for passage, _ in own:
            if passage not in known:
                raise DataError(
                    f"{path}: passage {passage!r} of query {query!r} is not in the collection; "
                    "give a run over its own corpus"
                )
    if not set(found) & set(collection.query_ids):
        raise DataError(f"{path}: it ranks nothing for any query of the collection; check its ids")
    return {query: own[:depth] for query, own in found.items()}


def bm25_candidates(collection: Collection, depth: int) -> Candidates:
    """What BM25 finds: the passages that are reranked where no run is named."""
    c = collection
    return bm25_run(c.passage_ids, c.passages, c.query_ids, c.queries, depth)


def rerank_texts(
    scorer: PairScorer, collection: Collection, candidates: Candidates, progress: Progress
) -> tuple[Candidates, list[str]]:
    """Order the candidates of every query by a model's scores of them.

    Args:
      scorer: the model.
      collection: has the texts.
      candidates: passage ids of the collection by query id; a query without any stays without.
      progress: told the pairs that are done.

    Returns:
      Passage ids and falling scores by query id, equal scores in the order of the candidates; and
      what people are to be told of the language, and of passages that were cut.
    """
    passages = dict(zip(collection.passage_ids, collection.passages, strict=True))
    listed = {
        query: [passage for passage, _ in candidates.get(query, [])]
        for query in collection.query_ids
    }
    texts = dict(zip(collection.query_ids, collection.queries, strict=True))
    pairs = [(texts[query], passages[passage]) for query, own in listed.items() for passage in own]
    values, counts = scorer.scores(pairs, collection.language, progress)
    scores = iter(values.tolist())
    found = {query: [(passage, next(scores)) for passage in own] for query, own in listed.items()}
    ordered = {query: sorted(own, key=lambda entry: -entry[1]) for query, own in found.items()}
    messages = (scorer.of_language(collection.language), of_cut(counts))
    return ordered, [message for message in messages if message]


def measure_reranked(
    scorer: PairScorer,
    collection: Collection,
    candidates: Candidates,
    metrics: Sequence[str],
    progress: Progress,
) -> tuple[Measured, list[str]]:
    """Rerank candidates and measure the ranking; what is not among them counts as not found.

    Returns:
      What is measured, and what people are to be told; see ``rerank_texts``.
    """
    run, messages = rerank_texts(scorer, collection, candidates, progress)
    measured = Measured(dict(evaluate_queries(collection.qrels, run, metrics).values), run)
    return measured, messages


def _texts(request: Any) -> list[Tokens]:
    texts: list[Tokens] = jax.tree.leaves(request, is_leaf=lambda node: isinstance(node, Tokens))
    return texts


@functools.partial(jax.jit, static_argnums=0)
def _score_step(graphdef: Any, params: Any, request: Any) -> Array:
    def score(params: Any, request: Any) -> Array:
        out = nnx.merge(graphdef, params)(request)
        if isinstance(out, Scores):
            return jnp.asarray(out.values)
        count = jnp.maximum(out.mask.sum(axis=1), 1)  # rows that fill a block have no token
        return jnp.asarray(out.log_probs.sum(axis=1) / count.astype(out.log_probs.dtype))

    return rowwise(score, params, request)
