"""Retrievers as mteb (version 2) evaluates them, with any of its tasks on text.

Example::

    import mteb
    from clir_jax.evaluation.mteb import for_mteb

    model = for_mteb("runs/mine")
    mteb.evaluate(model, mteb.get_tasks(tasks=["NFCorpus"]))

Needs ``pip install "clir_jax[mteb]"``. Retrieval and reranking are searched exactly, as
``clir_jax.evaluate`` does; a dense retriever also encodes for tasks of other kinds.

Tasks have texts that are blank, or have no piece in the vocabulary. Search leaves such a passage
out of every ranking, as it does with one of which no token is kept, and finds nothing for such a
query: mteb counts both as not found. Where a text must have a vector, it is that of the special
tokens and the prompt, as in sentence-transformers.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from clir_jax.data.judgements import passage_text
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.evaluation.retrieval import TextEncoder, load_encoder, nearest, saved_at
from clir_jax.models.hub import locate
from clir_jax.models.retriever import Dense

Rows = Iterable[Mapping[str, Any]]

# Texts that are looked at together.
_LOOK = 10_000


class Searcher:
    """mteb's ``SearchProtocol``: exact search with a retriever of either kind.

    Args:
      encoder: the retriever.
      meta: its ``mteb.models.ModelMeta``.
    """

    def __init__(self, encoder: TextEncoder, meta: Any) -> None:
        self.encoder = encoder
        self.mteb_model_meta = meta
        self._ids: list[str] = []
        self._passages: list[str] = []

    def index(self, corpus: Rows, **told: Any) -> None:
        """Take the passages of a task.

        Args:
          corpus: rows of ``id``, ``text`` and perhaps ``title``.
          **told: what else mteb tells, of the task and of batches; not used.

        Raises:
          ValueError: if a row has no text.
        """
        rows = list(corpus)
        self._ids = [row["id"] for row in rows]
        texts = [_text(row, "passage") for row in rows]
        titles = [row.get("title") or "" for row in rows]
        self._passages = [passage_text(*both) for both in zip(titles, texts, strict=True)]

    def search(
        self,
        queries: Rows,
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **told: Any,
    ) -> dict[str, dict[str, float]]:
        """Rank the passages for every query.

        Args:
          queries: rows of ``id``, ``text`` and perhaps ``instruction``, which is put behind.
          top_k: passages wanted a query.
          top_ranked: passage ids by query id, of a task that reranks; None searches all passages.
          **told: as for ``index``.

        Returns:
          Scores by passage id by query id, best first; of every query, if only an empty ranking.

        Raises:
          ValueError: if a row has no text, or a passage to be reranked is not in the corpus.
        """
        rows = list(queries)
        asked = [_text(row, "query") for row in rows]
        asked = [
            f"{text} {row['instruction']}" if row.get("instruction") else text
            for text, row in zip(asked, rows, strict=True)
        ]
        ids, passages = self._ids, self._passages
        if top_ranked is not None:
            ids, passages = self._named({i for row in rows for i in top_ranked.get(row["id"], ())})
        depth = top_k if top_ranked is None else len(ids)
        ranked: dict[str, dict[str, float]] = {row["id"]: {} for row in rows}
        with_text = _with_pieces((self.encoder.passage or self.encoder).tokenizer, passages)
        ids, passages = [ids[i] for i in with_text], [passages[i] for i in with_text]
        with_text = _with_pieces(self.encoder.tokenizer, asked)
        rows, asked = [rows[i] for i in with_text], [asked[i] for i in with_text]
        if not (rows and ids):
            return ranked
        encoded = self.encoder.queries(asked)
        scores, found = nearest(encoded, self.encoder.passages(passages), depth, self.encoder.mesh)
        for row, own, places in zip(rows, scores.tolist(), found.tolist(), strict=True):
            wanted = None if top_ranked is None else set(top_ranked.get(row["id"], ()))
            pairs = ((ids[i], s) for i, s in zip(places, own, strict=True) if np.isfinite(s))
            pairs = (pair for pair in pairs if wanted is None or pair[0] in wanted)
            ranked[row["id"]] = dict(list(pairs)[:top_k])
        return ranked

    def _named(self, names: set[str]) -> tuple[list[str], list[str]]:
        """The ids of these passages, sorted, and their texts."""
        place = {name: i for i, name in enumerate(self._ids)}
        ids = sorted(names)
        missing = [name for name in ids if name not in place]
        if missing:
            raise ValueError(
                f"mteb: passage {missing[0]!r} is to be reranked and is not in the task's "
                "corpus; load the task's data again"
            )
        return ids, [self._passages[place[name]] for name in ids]


class DenseSearcher(Searcher):
    """mteb's ``EncoderProtocol`` as well: for bitext mining, similarity, classification."""

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **told: Any
    ) -> Float[np.ndarray, "R E"]:
        """Encode texts.

        Args:
          inputs: batches with a list ``text``.
          prompt_type: ``"document"`` for passages, ``"query"`` for queries; None, of a task without
            these, takes the texts for queries.
          **told: as for ``index``.

        Returns:
          ``[R, E]`` vectors.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        encoder = _taking_empty(self.encoder)
        if prompt_type != "document":
            return np.asarray(encoder.queries(texts).vectors[:, 0])
        places, blocks = zip(*encoder.passages(texts), strict=True)
        vectors = np.concatenate([block.vectors[:, 0] for block in blocks])
        return np.asarray(vectors[np.argsort(np.concatenate(places))])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, "R S"]:
        """Score all pairs of two lists of vectors ``[R, E]`` and ``[S, E]``, as search does."""
        first, second = (np.atleast_2d(np.asarray(x)) for x in (embeddings1, embeddings2))
        return np.asarray(first @ second.T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, " R"]:
        """Score the pairs of two lists of vectors ``[R, E]``."""
        first, second = (np.atleast_2d(np.asarray(x)) for x in (embeddings1, embeddings2))
        return np.asarray(np.sum(first * second, axis=-1))


def for_mteb(model: str) -> Searcher:
    """Load a retriever on all devices, as ``mteb.evaluate`` takes it.

    Args:
      model: a run's directory, a retriever's directory or a name as for ``hub.locate``.

    Returns:
      The retriever. mteb keeps results by its name and a print of its files, so that those of
      another training of the same name are never taken for its own.

    Raises:
      ImportError: if mteb is not installed.
      FileNotFoundError, ValueError: as ``load_retriever``.
    """
    try:
        from mteb.models import ModelMeta
    except ImportError as error:
        raise ImportError(
            'mteb is not installed; run `pip install "clir_jax[mteb]"`', name="mteb"
        ) from error
    encoder = load_encoder(model)
    spec = encoder.tokenizer.spec
    similarity = "MaxSim"
    if isinstance(spec, Dense):
        similarity = "cosine" if spec.normalize else "dot"
    meta = ModelMeta(
        **ModelMeta.create_empty().model_dump()
        | {
            "name": f"clir_jax/{Path(model).absolute().name}",
            "revision": _print(locate(saved_at(model))),
            "framework": ["JAX"],
            "model_type": ["late-interaction" if spec.late_interaction else "dense"],
            "similarity_fn_name": similarity,
            "n_parameters": sum(x.size for x in jax.tree.leaves(encoder.params)),
            "max_tokens": max(spec.query_length, spec.passage_length),
        }
    )
    return (Searcher if spec.late_interaction else DenseSearcher)(encoder, meta)


def _with_pieces(tokenizer: RequestTokenizer, texts: Sequence[str]) -> list[int]:
    """The places of the texts that have something to encode."""
    return [
        start + i
        for start in range(0, len(texts), _LOOK)
        for i, pieces in enumerate(tokenizer.tokenizer.encode(texts[start : start + _LOOK]))
        if pieces and texts[start + i].strip()
    ]


def _taking_empty(encoder: TextEncoder) -> TextEncoder:
    """The same encoder, which also takes texts without a piece."""
    own = encoder.tokenizer
    return dataclasses.replace(
        encoder,
        tokenizer=RequestTokenizer(own.tokenizer, own.spec, skiplist=own.skiplist, empty=True),
        passage=None if encoder.passage is None else _taking_empty(encoder.passage),
    )


def _print(directory: Path) -> str:
    """A hash of all files of a model."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        found.update(f"{path.relative_to(directory)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return found.hexdigest()


def _text(row: Mapping[str, Any], what: str) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise ValueError(
            f"mteb: {what} {row['id']!r} has no text but {text!r}; choose a task of single texts, "
            "without pictures, sounds or conversations"
        )
    return text
