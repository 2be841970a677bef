"""Measure a retriever on a judged collection: ``python -m clir_jax.evaluate --model DIR ...``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clir_jax.command import Parser, carry_out

_METRICS = ["nDCG@10", "RR@10", "R@100"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, search, and return the exit status."""
    parser = Parser(prog="python -m clir_jax.evaluate", description=__doc__)
    parser.add_argument(
        "--model", required=True, help="a run, a directory that clir_jax saved, or bm25"
    )
    parser.add_argument("--corpus", required=True, help="JSON lines with _id, title and text")
    parser.add_argument("--queries", required=True, help="id<TAB>text, or JSON lines")
    parser.add_argument("--qrels", required=True, help="TREC or BEIR judgements")
    parser.add_argument("--language", default="en", help="of the queries, for the table")
    parser.add_argument(
        "--query-column", type=int, default=1, help="which column after the id is the text"
    )
    parser.add_argument("--metrics", nargs="+", default=_METRICS, help="in ir-measures' spelling")
    parser.add_argument("--depth", type=int, default=100, help="passages kept a query")
    parser.add_argument("--run-file", help="write the ranking here, in TREC's form")
    given = parser.parse_args(arguments)
    return carry_out(lambda: _evaluate(given))


def _evaluate(given: argparse.Namespace) -> int:
    from rich.console import Console

    from clir_jax.config import Evaluate
    from clir_jax.data.collections import Retrieval
    from clir_jax.evaluation.report import summary_table
    from clir_jax.evaluation.retrieval import measure_bm25, measure_saved
    from clir_jax.evaluation.runs import write_run

    files = Retrieval(
        given.corpus,
        given.queries,
        given.qrels,
        given.language,
        given.query_column,
        name=Path(given.qrels).absolute().parent.name or "collection",
    )
    # Refused now rather than after the search.
    metrics = Evaluate(
        {"collection": files}, metrics=tuple(given.metrics), depth=given.depth
    ).metrics
    if given.run_file and not Path(given.run_file).absolute().parent.is_dir():
        raise ValueError(f"--run-file {given.run_file}: there is no such directory; make it first")
    if given.run_file and Path(given.run_file).is_dir():
        raise ValueError(f"--run-file {given.run_file}: that is a directory; write a file's name")
    collection = files.open(".")
    if given.model == "bm25":
        measured = measure_bm25(collection, metrics, given.depth)
    else:
        measured = measure_saved(given.model, collection, metrics, given.depth)
    if given.run_file:
        write_run(given.run_file, measured.run, Path(given.model).absolute().name)
    where = {"dataset": collection.name, "language": collection.language}
    rows = [
        {"stage": "", "system": given.model, **where, "metric": metric, "value": value}
        for metric, value in measured.values.items()
    ]
    Console().print(summary_table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
