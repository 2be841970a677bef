"""``Mine``: rankings with hard negatives, which a retriever ranks high and nobody judged."""

import functools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clir_jax.config import FromStage, Mine
from clir_jax.data.reading import DataError
from clir_jax.data.records import Ranking, Records
from clir_jax.evaluation.reranking import of_cut
from clir_jax.evaluation.retrieval import TextEncoder
from clir_jax.files import replacing
from clir_jax.models.formats import LoadedRetriever
from clir_jax.training.artifacts import (
    Workplace,
    check_finite,
    check_language,
    ensure,
    searcher_print,
    source_print,
)
from clir_jax.training.blocks import (
    RECORDS,
    note_counts,
    summed_counts,
    write_rankings,
    written_lines,
)
from clir_jax.training.judges import Judge, PairJudge
from clir_jax.training.kinds import pair_scorer
from clir_jax.training.negatives import Corpus, Miner
from clir_jax.training.searchers import LexicalSearcher, Searcher, StoredSearcher

# Records whose questions are searched together: as many as memory allows, because the passages'
# vectors are read again for every block.
_BLOCK = 16_384
# BM25 reads nothing again, so that it searches for few questions at once where it looks deep: what
# is found for a block is held at once, 12 bytes a passage.
_FOUND = 2**23
# A judge that reads pairs takes longer than the search, and a kill loses what it has read of a
# block.
_READ_BLOCK = 1024
_COUNTS, _JUDGED, _UNFINISHED = "counts.json", "judged.json", "unfinished"


def mine(work: Mine, place: Workplace) -> str:
    """Write the source with negatives from what the model ranks first; ``Mine`` has the options.

    The passages are encoded once, and their vectors kept on disk, float16, until all is done; those
    of a judge that is a retriever too. Passages are known to be relevant to a question whose text
    any record of the source calls relevant to it. What is drawn by chance comes from (seed, record
    number), and is written best first. Negatives and scores that the source has are replaced. A
    record for which fewer are left is kept with these; in training, the rest is padding. What
    became of the passages that were looked at is told as a table.

    Args:
      work: what to do.
      place: where.

    Returns:
      The hash of the content.

    Raises:
      DataError: if the source gives no rankings or lacks a language, the corpus no passages or no
        titles that are asked for, the model numbers that are not finite, or no record at all gets a
        negative.
    """
    inputs = {
        "model": searcher_print(work.model, place),
        "judge": "none" if work.judge is None else searcher_print(work.judge, place),
        "source": source_print(work.source, place),
        "corpus": source_print(work.corpus, place),
        "seed": str(place.seed),
    }

    def make(directory: Path) -> Mapping[str, Any]:
        records = place.rankings(work, work.source)
        for name in ("query_language", "judge_language"):
            check_language(work, name, records)
        if not (directory / RECORDS).exists():
            _search(work, place, records, directory)
            _finish(work, directory)
        shutil.rmtree(directory / _UNFINISHED, ignore_errors=True)
        return _tell(work, place, directory, len(records)) | {"language": records.languages[0]}

    return ensure(work, place, inputs, make)


def _search(work: Mine, place: Workplace, records: Records, directory: Path) -> None:
    """Write all records, with and without negatives."""
    corpus = Corpus(work, place, records)
    searcher = _searcher(work, place, corpus, directory)
    judge = _judge(work, place, corpus, directory, records.languages[0])
    stored = [each for each in (searcher, judge) if isinstance(each, StoredSearcher)]
    before, total = 0, len(corpus.texts) * len(stored) + len(records)

    def progress(done: int, _: int = 0) -> None:
        place.progress(before + done, total)

    for each in stored:
        each.prepare(progress)
        before += len(corpus.texts)

    miner = Miner(work, place.seed, records, corpus, searcher, judge)

    def lists(block: Sequence[Ranking], rows: range) -> Iterator[tuple[list[str], None]]:
        counts, heard = Counter[str](), Counter[str]()
        chosen = miner.negatives(
            block, rows, counts, heard,
            lambda done, of: progress(rows.start + len(rows) * done // of),
        )  # fmt: skip
        note_counts(directory / _COUNTS, rows.start, counts)
        if heard:
            note_counts(directory / _JUDGED, rows.start, heard)
        for own in chosen:
            yield [corpus.texts[n] for n in own], None

    unfinished = directory / _UNFINISHED
    unfinished.mkdir(exist_ok=True)
    size = min(_BLOCK, _READ_BLOCK) if isinstance(judge, PairJudge) else _BLOCK
    if isinstance(searcher, LexicalSearcher):
        size = min(size, max(1, _FOUND // min(work.depth, corpus.searched)))
    write_rankings(unfinished, records, size, lists, progress)


def _searcher(work: Mine, place: Workplace, corpus: Corpus, directory: Path) -> Searcher:
    if work.model == "bm25":
        return LexicalSearcher(corpus.texts, corpus.searched)
    encoder = place.encoder(work.model)
    return _stored(work, work.model, encoder, corpus, directory / _UNFINISHED / "model")


def _judge(
    work: Mine, place: Workplace, corpus: Corpus, directory: Path, language: str
) -> Judge | None:
    """Who leaves out passages; ``language`` is that of questions where the work names none."""
    model = work.judge
    if model is None:
        return None
    if model == "bm25":
        return LexicalSearcher(corpus.texts, corpus.searched)
    loaded = place.load_model(model, None)
    if isinstance(loaded, LoadedRetriever):
        encoder = TextEncoder.of(loaded, place.mesh)
        return _stored(work, model, encoder, corpus, directory / _UNFINISHED / "judge")
    language = work.judge_language or work.query_language or language
    scorer, check = pair_scorer(loaded, place.mesh), functools.partial(check_finite, work, model)
    if message := scorer.of_language(language):
        place.say(f"artifact {work.name}: {message}")
    return PairJudge(scorer, corpus.texts, language, check)


def _stored(
    work: Mine, model: str | FromStage, encoder: TextEncoder, corpus: Corpus, directory: Path
) -> StoredSearcher:
    check = functools.partial(check_finite, work, model)
    return StoredSearcher(encoder, corpus.texts, corpus.searched, directory, check)


def _finish(work: Mine, directory: Path) -> None:
    """Move what was written into its place, without the records that are to be dropped."""
    unfinished = directory / _UNFINISHED
    if not any(line["negatives"] for line in written_lines(unfinished)):
        counts = summed_counts(directory / _COUNTS)
        reasons = ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)
        raise DataError(
            f"work {work.name}: no question is left a negative of the {counts.total():,} passages "
            f"that {work.model} finds ({reasons or 'none'}); search another corpus, deeper, with "
            "another model or with fewer filters"
        )
    with replacing(directory / RECORDS) as file, open(file, "w", encoding="utf-8") as lines:
        for line in written_lines(unfinished):
            if line["negatives"] or not work.drop_empty:
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _tell(work: Mine, place: Workplace, directory: Path, records: int) -> dict[str, Any]:
    """Say what became of the passages, and where negatives are fewer than wanted."""
    counts, read = summed_counts(directory / _COUNTS), summed_counts(directory / _JUDGED)
    found = f"{counts.total():,}"
    table = [f"{counts[what]:>{len(found) + 2},}  {what}" for what in counts]
    place.say("\n".join([f"artifact {work.name}: {found} passages found, of these", *table]))
    if message := of_cut(read):
        place.say(f"artifact {work.name}: {message}")
    numbers = np.asarray([len(line["negatives"]) for line in written_lines(directory)])
    short = int((numbers < work.negatives).sum()) + records - len(numbers)
    none = int((numbers == 0).sum()) + records - len(numbers)
    if short:
        place.say(
            f"artifact {work.name}: {short:,} of {records:,} records have fewer than "
            f"{work.negatives} negatives, {none:,} of them none"
            + (", which are left out" if none and work.drop_empty else "")
        )
    facts = {"records": len(numbers), "negatives": int(numbers.sum()), "passages": counts}
    return facts | ({"judged": read} if read else {})
