"""Measure a retriever, a reranker or BM25: ``python -m clir_jax.evaluate --model M ...``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clir_jax.command import ANY_SAVED, Parser, carry_out, require_language

_METRICS, _DEPTH = ("nDCG@10", "RR@10", "R@100"), 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, search, and return the exit status."""
    parser = Parser(prog="python -m clir_jax.evaluate", description=__doc__)
    parser.add_argument(
        "--model",
        required=True,
        help=f"{ANY_SAVED}; or bm25",
    )
    parser.add_argument("--corpus", help="JSON lines with _id, title and text")
    parser.add_argument("--queries", help="id<TAB>text, or JSON lines")
    parser.add_argument("--qrels", help="TREC or BEIR judgements")
    parser.add_argument(
        "--ir-dataset", metavar="ID", help="an id of ir_datasets, in the place of three files"
    )
    parser.add_argument(
        "--bitext",
        nargs="+",
        metavar="FILE",
        help="id<TAB>English<TAB>other, or two files aligned line by line, the English one first: "
        "accuracy both ways and margin-based F1, in the place of a collection",
    )
    parser.add_argument(
        "--language",
        help="of the queries, for the table (en); a generator's prompt names it, so that it must "
        "be written with one; of bitext's other side",
    )
    parser.add_argument(
        "--query-column", type=int, default=1, help="which column after the id is the text"
    )
    parser.add_argument(
        "--metrics", nargs="+", help=f"in ir-measures' spelling ({' '.join(_METRICS)})"
    )
    parser.add_argument("--depth", type=int, help=f"passages kept a query ({_DEPTH})")
    parser.add_argument(
        "--candidates",
        metavar="FILE",
        help="a TREC run whose passages a cross-encoder or a generator reranks (BM25's)",
    )
    parser.add_argument("--run-file", help="write the ranking here, in TREC's form")
    given = parser.parse_args(arguments)
    return carry_out(lambda: _evaluate(given))


def _evaluate(given: argparse.Namespace) -> int:
    from rich.console import Console

    from clir_jax.evaluation.report import summary_tables

    where, values = _of_pairs(given) if given.bitext else _of_retrieval(given)
    rows = [
        {"stage": "", "system": given.model, **where, "metric": metric, "value": value}
        for metric, value in values.items()
    ]
    Console().print(summary_tables(rows))
    return 0


def _of_retrieval(given: argparse.Namespace) -> tuple[dict[str, str], dict[str, float]]:
    """Dataset and language, and values by metric."""
    from clir_jax.config import Evaluate
    from clir_jax.evaluation.retrieval import measure_bm25
    from clir_jax.evaluation.runs import write_run

    source = _collection(given)
    # Refused now rather than after the search.
    evaluate = Evaluate(
        {"collection": source},
        metrics=tuple(given.metrics or _METRICS),
        depth=_DEPTH if given.depth is None else given.depth,
    )
    if given.run_file and not Path(given.run_file).absolute().parent.is_dir():
        raise ValueError(f"--run-file {given.run_file}: there is no such directory; make it first")
    if given.run_file and Path(given.run_file).is_dir():
        raise ValueError(f"--run-file {given.run_file}: that is a directory; write a file's name")
    if given.model == "bm25":
        _refuse_candidates(given, "bm25")
        collection = source.open(".")
        measured = measure_bm25(collection, evaluate.metrics, evaluate.depth)
    else:
        searches = _searches(given)
        collection = source.open(".")
        measure = _searched if searches else _reranked
        measured = measure(given, collection, evaluate.metrics, evaluate.depth)
    if given.run_file:
        write_run(given.run_file, measured.run, Path(given.model).absolute().name)
    return {"dataset": collection.name, "language": collection.language}, measured.values


def _searches(given: argparse.Namespace) -> bool:
    """Whether the model searches, as others rerank; refuses options that its kind cannot have."""
    from clir_jax.evaluation.retrieval import saved_at
    from clir_jax.models import hub
    from clir_jax.training.kinds import RETRIEVER, kind_at

    kind = kind_at(hub.locate(saved_at(given.model)))
    if kind in (None, RETRIEVER):
        _refuse_candidates(given, "a retriever")
        return True
    require_language(kind, given.language)
    return False


def _searched(
    given: argparse.Namespace, collection: Any, metrics: Sequence[str], depth: int
) -> Any:
    """Search with a retriever."""
    from clir_jax.evaluation.retrieval import measure_saved

    return measure_saved(given.model, collection, metrics, depth)


def _reranked(
    given: argparse.Namespace, collection: Any, metrics: Sequence[str], depth: int
) -> Any:
    """Rerank with a model that reads query and passage together."""
    import rich.progress

    from clir_jax.evaluation.reranking import bm25_candidates, measure_reranked, read_candidates
    from clir_jax.evaluation.retrieval import saved_at
    from clir_jax.mesh import make_mesh
    from clir_jax.training.initial import load_model
    from clir_jax.training.kinds import on_mesh, pair_scorer

    if given.candidates:
        found = read_candidates(given.candidates, ".", collection, depth)
    else:
        found = bm25_candidates(collection, depth)
    mesh = make_mesh()
    scorer = pair_scorer(on_mesh(load_model(saved_at(given.model)), mesh), mesh)
    with rich.progress.Progress(transient=True) as bar:
        task = bar.add_task("pairs", total=None)
        measured, messages = measure_reranked(
            scorer, collection, found, metrics,
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    for message in messages:
        print(message, file=sys.stderr)
    return measured


def _refuse_candidates(given: argparse.Namespace, what: str) -> None:
    if given.candidates:
        raise ValueError(f"--candidates are reranked, and {what} searches; leave them out")


def _of_pairs(given: argparse.Namespace) -> tuple[dict[str, str], dict[str, float]]:
    """Dataset and language, and values by metric."""
    from clir_jax.data.collections import BitextPairs
    from clir_jax.evaluation.bitext import measure_pairs
    from clir_jax.evaluation.retrieval import load_encoder

    others = (
        "corpus",
        "queries",
        "qrels",
        "ir_dataset",
        "metrics",
        "depth",
        "run_file",
        "candidates",
    )
    unread = [f"--{o.replace('_', '-')}" for o in others if getattr(given, o) is not None]
    if unread:
        raise ValueError(f"--bitext is measured without {unread[0]}; leave it out")
    if given.model == "bm25":
        raise ValueError(
            "--bitext needs a model that encodes sentences, and bm25 does not; name one"
        )
    if given.language in (None, "en"):
        raise ValueError("--language is missing; write the one that --bitext has beside English")
    if len(given.bitext) > 2:
        raise ValueError(
            f"--bitext names {len(given.bitext)} files; write one of pairs or two of lines, and "
            "put a pattern that names several in quotes"
        )
    name = Path(given.bitext[-1]).name
    english = given.bitext[0] if len(given.bitext) == 2 else None
    pairs = BitextPairs(given.bitext[-1], given.language, english=english, name=name).open(".")
    where = {"dataset": pairs.name, "language": pairs.language}
    return where, measure_pairs(load_encoder(given.model), pairs)


def _collection(given: argparse.Namespace) -> Any:
    from clir_jax.data.collections import IRDatasetRetrieval, Retrieval

    language = given.language or "en"
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
        return IRDatasetRetrieval(given.ir_dataset, language, name=given.ir_dataset)
    name = Path(given.qrels).absolute().parent.name or "collection"
    return Retrieval(
        given.corpus, given.queries, given.qrels, language, given.query_column, name=name
    )


if __name__ == "__main__":
    raise SystemExit(main())
