"""``Mine``: rankings with hard negatives, which a retriever ranks high and nobody judged."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clir_jax.config import Mine
from clir_jax.data.collections import Collection
from clir_jax.data.reading import DataError
from clir_jax.data.records import Ranking, Records, Text, read
from clir_jax.data.tables import text_key
from clir_jax.evaluation.bm25 import bm25_run
from clir_jax.evaluation.retrieval import Progress, TextEncoder
from clir_jax.evaluation.search import top_k
from clir_jax.models.requests import Embeddings
from clir_jax.training.artifacts import (
    Workplace,
    check_finite,
    ensure,
    model_print,
    source_print,
    write_rankings,
    written_lines,
)

# Records whose questions are searched together: as many as memory allows, because the passages are
# encoded again for every block.
_BLOCK = 16_384

Search = Callable[[Sequence[str], Progress], list[list[int]]]


def mine(work: Mine, place: Workplace) -> str:
    """Write the source with negatives from what the model ranks first.

    A question is searched in the source's own language. Of the first ``depth`` passages, those are
    left out whose text any record of the source calls relevant to the question; ``negatives`` of
    the rest are drawn by chance from (seed, record number), and written best first. Negatives and
    scores that the source has are replaced. A record for which fewer are left is kept with these,
    or with none: in training, the rest is padding. How many there are of such is told.

    Args:
      work: what to do.
      place: where.

    Returns:
      The hash of the content.

    Raises:
      DataError: if the source gives no rankings, the corpus no passages, the model numbers that are
        not finite, or no record at all gets a negative.
    """
    lexical = work.model == "bm25"
    inputs = {
        "model": "bm25" if lexical else model_print(place.model_directory(work.model)),
        "source": source_print(work.source, place),
        "corpus": source_print(work.corpus, place),
        "seed": str(place.seed),
    }

    def make(directory: Path) -> Mapping[str, Any]:
        records = place.rankings(work, work.source)
        passages = list(dict.fromkeys(_passages(work, place)))
        if lexical:
            search = _bm25(passages, work.depth)
        else:
            search = _encoded(work, place.encoder(work.model), passages)
        lists = _lists(work, place, records, passages, search)
        write_rankings(directory, records, _BLOCK, lists, place.progress)
        return {**_count(work, place, directory), "language": records.languages[0]}

    return ensure(work, place, inputs, make)


def _lists(
    work: Mine, place: Workplace, records: Records, passages: Sequence[str], search: Search
) -> Any:
    """What ``write_rankings`` wants: the negatives of a block of records."""
    language, total = records.languages[0], len(records)
    relevant = _relevant(records)
    keys = [text_key(text) for text in passages]

    def lists(block: Sequence[Ranking], rows: range) -> Iterator[tuple[list[str], None]]:
        def progress(done: int, of: int) -> None:
            place.progress(rows.start + len(rows) * done // of, total)

        questions = list(dict.fromkeys(record.queries[language] for record in block))
        found = dict(zip(questions, search(questions, progress), strict=True))
        for row, record in zip(rows, block, strict=True):
            known = relevant[record.query_id]
            left = [n for n in found[record.queries[language]] if keys[n] not in known]
            order = np.random.default_rng((place.seed, row)).permutation(len(left))
            drawn = np.sort(order[: work.negatives])
            yield [passages[left[n]] for n in drawn], None

    return lists


def _relevant(records: Records) -> dict[int, set[int]]:
    """By question, the keys of the texts that any record calls relevant to it."""
    known: dict[int, set[int]] = {}
    for row in range(len(records)):
        record: Any = records[row]
        keys = (text_key(passage.text) for passage in record.positives)
        known.setdefault(record.query_id, set()).update(keys)
    return known


def _passages(work: Mine, place: Workplace) -> Iterable[str]:
    opened = place.open_source(work.corpus)
    if isinstance(opened, Collection):
        return opened.passages
    if opened.kind is Text:
        return (opened[row].text for row in range(len(opened)))
    if opened.kind is Ranking:
        return (text for row in range(len(opened)) for text in read(opened[row], "passages"))
    raise DataError(
        f"work {work.name}: its corpus gives {opened.kind.__name__.lower()} records; give text, "
        "rankings or an evaluation set"
    )


def _bm25(passages: Sequence[str], depth: int) -> Search:
    numbers = [str(n) for n in range(len(passages))]

    def search(questions: Sequence[str], progress: Progress) -> list[list[int]]:
        ids = [str(n) for n in range(len(questions))]
        run = bm25_run(numbers, passages, ids, questions, depth)
        return [[int(passage) for passage, _ in run[question]] for question in ids]

    return search


def _encoded(work: Mine, encoder: TextEncoder, passages: Sequence[str]) -> Search:
    def search(questions: Sequence[str], progress: Progress) -> list[list[int]]:
        queries = check_finite(work, encoder.queries(questions))
        places: list[np.ndarray] = []

        def blocks() -> Iterator[Embeddings]:
            done = 0
            for rows, block in encoder.passages(passages):
                places.append(rows)
                done += len(rows)
                progress(done, len(passages))
                yield check_finite(work, block)

        with jax.set_mesh(encoder.mesh):
            _, arrivals = top_k(queries, blocks(), work.depth)
        found: list[list[int]] = np.concatenate(places)[arrivals].tolist()
        return found

    return search


def _count(work: Mine, place: Workplace, directory: Path) -> dict[str, int]:
    """How many negatives were found; says where they are fewer than wanted."""
    counts = np.asarray([len(line["negatives"]) for line in written_lines(directory)])
    if not counts.any():
        raise DataError(
            f"work {work.name}: {work.model} finds no passage for any question but those known to "
            "be relevant; search another corpus, deeper, or with another model"
        )
    short, none = int((counts < work.negatives).sum()), int((counts == 0).sum())
    if short:
        place.say(
            f"artifact {work.name}: {short:,} of {len(counts):,} records have fewer than "
            f"{work.negatives} negatives, {none:,} of them none"
        )
    return {"records": len(counts), "negatives": int(counts.sum())}
