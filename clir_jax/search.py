"""Search a corpus: ``python -m clir_jax.search --model M --corpus FILE --query "..."``."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clir_jax.command import SAVED, Parser, carry_out, new_file, require_language

if TYPE_CHECKING:
    from clir_jax.data.collections import Collection

_DEPTH = 100
# Columns of text that are shown, however narrow the terminal.
_LEAST = 40

Found = Mapping[str, Sequence[tuple[str, float]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, search, show or write, and return the exit status."""
    parser = Parser(prog="python -m clir_jax.search", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help=f"a retriever: {SAVED}; or bm25")
    add("--corpus", required=True, help="JSON lines with _id, title and text")
    add("--query", action="append", metavar="TEXT", help="a question; may be repeated")
    add("--queries", metavar="FILE", help="id<TAB>text, or JSON lines, in the place of --query")
    add("--query-column", type=int, help="which column of --queries after the id is the text (1)")
    add("--language", help="of the questions (en); a generator of --rerank is told it")
    add("--k", type=int, default=10, help="passages a question (10)")
    add("--rerank", metavar="MODEL", help="a cross-encoder or a generator, to order what is found")
    add("--depth", type=int, help=f"passages that --rerank reads a question ({_DEPTH})")
    add("--output", metavar="FILE", help="write a TREC run, and show nothing")
    given = parser.parse_args(arguments)
    return carry_out(lambda: _search(given))


def _search(given: argparse.Namespace) -> int:
    from rich.console import Console

    from clir_jax.evaluation.runs import check_word, write_run

    _check(given)
    output = new_file(given.output) if given.output else None
    collection = _collection(given)
    # Mistakes are found before the search, not after it.
    if output is not None:
        for what, ids in (("query", collection.query_ids), ("document", collection.passage_ids)):
            for name in ids:
                check_word(output, f"{what} id", name)
    scorer = _scorer(given) if given.rerank else None
    depth = max(given.k, given.depth or _DEPTH) if scorer else given.k
    run = _found(given.model, collection, depth)
    if scorer:
        run = _reranked(scorer, collection, run)
    run = {query: own[: given.k] for query, own in run.items()}
    console = Console(highlight=False, soft_wrap=True)
    if output is None:
        _show(console, collection, run)
        return 0
    tag = "-".join(Path(given.rerank or given.model).absolute().name.split())
    write_run(output, run, tag)
    console.print(f"{output}: {len(run):,} questions, up to {given.k} passages each", markup=False)
    return 0


def _check(given: argparse.Namespace) -> None:
    if bool(given.query) == bool(given.queries):
        raise ValueError('write either --query "a question", once or more often, or --queries FILE')
    if given.query and given.query_column is not None:
        raise ValueError("--query-column is of the file --queries; leave it out")
    for text in given.query or ():
        if not text.strip():
            raise ValueError("--query is blank; write a question")
    for option, number in (("--k", given.k), ("--depth", given.depth)):
        if number is not None and number < 1:
            raise ValueError(f"{option} is {number}; write a number of passages, 1 or more")
    if given.depth is not None and not given.rerank:
        raise ValueError("--depth is what --rerank reads; name a model there, or write --k")
    if given.depth is not None and given.depth < given.k:
        raise ValueError(f"--depth {given.depth} is less than --k {given.k}; write as many or more")


def _collection(given: argparse.Namespace) -> "Collection":
    """The questions and the passages, of which none is judged."""
    from clir_jax.data.collections import Collection
    from clir_jax.data.judgements import Corpus, Queries
    from clir_jax.data.reading import Intake

    intake = Intake()
    if given.query:
        asked = {str(n): text for n, text in enumerate(given.query, start=1)}
    else:
        column = 1 if given.query_column is None else given.query_column
        queries = Queries(".", given.queries, (column,), intake)
        asked = {query: queries.text(row, column) for query, row in queries.rows.items()}
    corpus = Corpus(".", given.corpus, intake)
    return Collection(
        name=given.corpus,
        language=given.language or "en",
        passage_ids=list(corpus.rows),
        passages=[corpus.text(row) for row in corpus.rows.values()],
        query_ids=list(asked),
        queries=list(asked.values()),
        qrels={},
        report=intake.finish(len(asked), given.queries or "--query"),
    )


def _found(model: str, collection: "Collection", depth: int) -> Found:
    """Passages and falling scores of every question."""
    from clir_jax.evaluation.reranking import bm25_candidates
    from clir_jax.evaluation.retrieval import load_encoder, search

    if model == "bm25":
        return bm25_candidates(collection, depth)
    encoder, total = load_encoder(model), len(collection.passages)
    with _log("search") as log:
        return search(encoder, [collection], depth, lambda done: log.progress(done, total))[0]


def _scorer(given: argparse.Namespace) -> Any:
    from clir_jax.evaluation.retrieval import saved_at
    from clir_jax.mesh import make_mesh
    from clir_jax.models import hub
    from clir_jax.models.generator_files import refuse_plain_t5
    from clir_jax.training.initial import load_model
    from clir_jax.training.kinds import RETRIEVER, kind_at, on_mesh, pair_scorer

    saved = saved_at(given.rerank)
    kind = kind_at(hub.locate(saved))
    if kind is None:
        refuse_plain_t5(hub.locate(saved))
    if kind in (None, RETRIEVER):
        raise ValueError(
            f"--rerank {given.rerank}: this does not read a question and a passage together; name "
            "a cross-encoder or a generator, and a retriever as --model"
        )
    require_language(kind, given.language)
    mesh = make_mesh()
    return pair_scorer(on_mesh(load_model(saved), mesh), mesh)


def _reranked(scorer: Any, collection: "Collection", found: Found) -> Found:
    from clir_jax.evaluation.reranking import rerank_texts

    with _log("rerank") as log:
        run, messages = rerank_texts(
            scorer, collection, {q: list(own) for q, own in found.items()}, log.progress
        )
        for message in messages:
            log.say(message)
    return run


def _log(title: str) -> Any:
    """Progress, where it does not stand between what is found."""
    from rich.console import Console

    from clir_jax.training.logging import WorkLog

    return WorkLog(title, Console(stderr=True, soft_wrap=True))


def _show(console: Any, collection: "Collection", run: Found) -> None:
    """Print every question, and a line for each passage: rank, score, id, how its text begins."""
    from rich.text import Text

    passages = dict(zip(collection.passage_ids, collection.passages, strict=True))
    for query, text in zip(collection.query_ids, collection.queries, strict=True):
        own = run.get(query, ())
        console.print(Text(f"{query}  {text}", style="bold"))
        longest = max((len(passage) for passage, _ in own), default=0)
        for rank, (passage, score) in enumerate(own, start=1):
            head = f"{rank:>4}  {score:>9.4f}  {passage:<{longest}}  "
            begins = Text(" ".join(passages[passage].split()))
            begins.truncate(max(_LEAST, console.width - len(head)), overflow="ellipsis")
            console.print(Text(head) + begins)
        if not own:
            console.print("      nothing is found")
        console.print()


if __name__ == "__main__":
    raise SystemExit(main())
