"""``Score``: rankings with a model's score of every passage."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clir_jax.config import Score
from clir_jax.data.records import Ranking
from clir_jax.evaluation.reranking import PairScorer, of_cut
from clir_jax.evaluation.retrieval import TextEncoder
from clir_jax.mesh import row_shards
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.requests import Embeddings
from clir_jax.ops.maxsim import maxsim
from clir_jax.training.artifacts import (
    Workplace,
    check_finite,
    check_language,
    ensure,
    model_print,
    source_print,
)
from clir_jax.training.blocks import note_counts, summed_counts, write_rankings
from clir_jax.training.kinds import pair_scorer

# Records scored together: their questions against every passage of any of them, which costs a
# hundredth of encoding the passages.
_BLOCK = 64
# Passages come in blocks of any size; a few shapes of them are compiled.
_STEP = 32
_COUNTS = "counts.json"


def score(work: Score, place: Workplace) -> str:
    """Write the source with the model's scores of positives and negatives.

    Scores are float32: see ``config.Score``. Of a generator it is told if it was not trained for
    the language, and told and kept how many passages it has read and how many of them were cut.

    Args:
      work: what to do.
      place: where.

    Returns:
      The hash of the content.

    Raises:
      DataError: if the source gives no rankings, or none in the language that is asked for, or the
        model's answers are not finite.
    """
    inputs = {
        "model": model_print(place.model_directory(work.model)),
        "source": source_print(work.source, place),
    }

    def make(directory: Path) -> Mapping[str, Any]:
        records = place.rankings(work, work.source)
        check_language(work, "query_language", records)
        language = work.query_language or records.languages[0]
        model = place.load_model(work.model, None)
        if isinstance(model, LoadedRetriever):
            encoder = TextEncoder.of(model, place.mesh)
            scored = functools.partial(_scores, work, encoder)
        else:
            scorer = pair_scorer(model, place.mesh)
            if message := scorer.of_language(language):
                place.say(f"artifact {work.name}: {message}")
            scored = functools.partial(_pair_scores, work, scorer)

        def lists(block: Sequence[Ranking], rows: range) -> Iterator[tuple[list[str], Any]]:
            scores, counts = scored(block, language)
            if counts:
                note_counts(directory / _COUNTS, rows.start, counts)
            for record, own in zip(block, scores, strict=True):
                yield [passage.text for passage in record.negatives], own

        write_rankings(directory, records, _BLOCK, lists, place.progress)
        facts = {"records": len(records), "language": records.languages[0]}
        read = summed_counts(directory / _COUNTS)
        if message := of_cut(read):
            place.say(f"artifact {work.name}: {message}")
        return facts | ({"passages": read} if read else {})

    return ensure(work, place, inputs, make)


def _scores(
    work: Score, encoder: TextEncoder, records: Sequence[Ranking], language: str
) -> tuple[list[Float[np.ndarray, " N"]], Counter[str]]:
    """Of each record of a block, ``[N]`` float32 scores of positives, then negatives; no counts."""
    texts = [[p.text for p in record.positives + record.negatives] for record in records]
    passages = list(dict.fromkeys(text for own in texts for text in own))
    columns = {text: n for n, text in enumerate(passages)}
    asked = encoder.queries([record.queries[language] for record in records])
    queries = _widened(check_finite(work, work.model, asked), encoder.tokenizer.spec.query_length)
    table = np.empty((len(records), len(passages)), np.float32)
    for places, block in encoder.passages(passages):
        padded = _padded(check_finite(work, work.model, block), _STEP * row_shards(encoder.mesh))
        with jax.set_mesh(encoder.mesh):
            found = _all_pairs(queries, padded)
        table[:, places] = np.asarray(found)[: len(records), : len(places)]
    scores = [table[row, [columns[text] for text in own]] for row, own in enumerate(texts)]
    return scores, Counter()


def _pair_scores(
    work: Score, scorer: PairScorer, records: Sequence[Ranking], language: str
) -> tuple[list[Float[np.ndarray, " N"]], Counter[str]]:
    """The same of a model that reads the question and a passage together, and its counts."""
    listed = [record.positives + record.negatives for record in records]
    pairs = [
        (record.queries[language], passage.text)
        for record, own in zip(records, listed, strict=True)
        for passage in own
    ]
    found, counts = scorer.scores(pairs, language)
    ends = np.cumsum([len(own) for own in listed])
    return np.split(check_finite(work, work.model, found), ends[:-1]), counts


def _widened(queries: Embeddings, width: int) -> Embeddings:
    """Bring questions to one shape, whatever their number and lengths."""
    missing = 0 if queries.mask.shape[1] == 1 else width - queries.mask.shape[1]
    widened: Embeddings = jax.tree.map(
        lambda x: np.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2)), queries
    )
    return _padded(widened, _BLOCK)


def _padded(block: Embeddings, multiple: int) -> Embeddings:
    missing = -len(block.mask) % multiple
    padded: Embeddings = jax.tree.map(
        lambda x: np.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1)), block
    )
    return padded


@jax.jit
def _all_pairs(queries: Embeddings, passages: Embeddings) -> Array:
    # In full float32, also where the hardware's default is less.
    with jax.default_matmul_precision("highest"):
        scores = maxsim(
            jnp.asarray(queries.vectors), jnp.asarray(queries.mask),
            jnp.asarray(passages.vectors), jnp.asarray(passages.mask),
        )  # fmt: skip
    return scores.astype(jnp.float32)
