"""Measure a retriever on a judged collection: ``python -m clir_jax.evaluate --model DIR ...``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clir_jax.command import Parser, carry_out

_METRICS = ["nDCG@10", "RR@10", "R@100"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, search, and return the exit status."""
    parser = Parser(prog="python -m clir_jax.evaluate", description=__doc__)
    parser.add_argument(
        "--model", required=True, help="a run, a directory that clir_jax saved, or bm25"
    )
    parser.add_argument("--corpus", help="JSON lines with _id, title and text")
    parser.add_argument("--queries", help="id<TAB>text, or JSON lines")
    parser.add_argument("--qrels", help="TREC or BEIR judgements")
    parser.add_argument(
        "--ir-dataset", metavar="ID", help="an id of ir_datasets, in the place of three files"
    )
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
    from clir_jax.evaluation.report import summary_table
    from clir_jax.evaluation.retrieval import measure_bm25, measure_saved
    from clir_jax.evaluation.runs import write_run

    source = _collection(given)
    # Refused now rather than after the search.
    metrics = Evaluate(
        {"collection": source}, metrics=tuple(given.metrics), depth=given.depth
    ).metrics
    if given.run_file and not Path(given.run_file).absolute().parent.is_dir():
        raise ValueError(f"--run-file {given.run_file}: there is no such directory; make it first")
    if given.run_file and Path(given.run_file).is_dir():
        raise ValueError(f"--run-file {given.run_file}: that is a directory; write a file's name")
    collection = source.open(".")
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


def _collection(given: argparse.Namespace) -> Any:
    from clir_jax.data.collections import IRDatasetRetrieval, Retrieval

    files = {f"--{name}": getattr(given, name) for name in ("corpus", "queries", "qrels")}
    missing = [option for option, path in files.items() if path is None]
    if given.ir_dataset is None and missing:
        raise ValueError(f"{missing[0]} is missing; write three files, or --ir-dataset ID")
    if given.ir_dataset is not None:
        if len(missing) < len(files) or given.query_column != 1:
            raise ValueError(
                "--ir-dataset brings corpus, queries and judgements; leave out --corpus, "
                "--queries, --query-column and --qrels"
            )
        return IRDatasetRetrieval(given.ir_dataset, given.language, name=given.ir_dataset)
    name = Path(given.qrels).absolute().parent.name or "collection"
    return Retrieval(
        given.corpus, given.queries, given.qrels, given.language, given.query_column, name=name
    )


if __name__ == "__main__":
    raise SystemExit(main())
