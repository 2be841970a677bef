"""Write hard negatives of a retriever or BM25: ``python -m clir_jax.mine --model DIR ...``."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from clir_jax.command import SAVED, Parser, carry_out, new_file, require_language, work_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, search, write, and return the exit status."""
    parser = Parser(prog="python -m clir_jax.mine", description=__doc__)
    _add_data(parser)
    _add_choice(parser)
    given = parser.parse_args(arguments)
    return carry_out(
        lambda: _mine(given), "stopped; the same command goes on from the last whole block"
    )


def _add_data(parser: Parser) -> None:
    add = parser.add_argument
    add("--model", required=True, help=f"a retriever: {SAVED}; or bm25")
    add("--corpus", required=True, help="JSON lines with _id, title and text")
    add("--queries", help="id<TAB>text, or JSON lines")
    add("--qrels", help="TREC or BEIR judgements; relevant is above 0")
    add(
        "--rankings",
        metavar="FILE",
        help="JSON lines, as clir_jax.generate writes them, in the place of these two",
    )
    add("--output", required=True, metavar="FILE", help="JSON lines; RankingJSONL reads them")
    add("--language", help="of the queries (en); a generator that judges is told it")
    add("--query-column", type=int, default=1, help="which column after the id is the text")
    add(
        "--translation",
        action="append",
        default=[],
        metavar="LANGUAGE=FILE",
        help="the queries in another language: a file of the same ids, or the number of a column",
    )
    add("--on-bad-record", choices=["error", "skip"], default="error")
    add("--seed", type=int, default=0, help="of what is drawn by chance")


def _add_choice(parser: Parser) -> None:
    """The options of ``Mine``, by its names; its defaults hold for what is not given."""
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--negatives", type=int, help="kept a question (8)")
    add("--depth", type=int, help="passages looked at (100)")
    add("--skip", type=int, help="first ranks passed over (0)")
    add("--sampling", choices=["random", "top"], help="draw from what is left, or take the first")
    add("--query-language", help="the questions are searched in (--language)")
    add("--margin", type=float, help="below the positive's score")
    add("--max-relative", type=float, help="share of the positive's score, 0.95 for instance")
    add("--hard", type=int, help="how many that score above the positive; with --semi-hard")
    add("--semi-hard", type=int, help="how many that score below it by less than a margin")
    add("--semi-hard-margin", type=float, help="that margin")
    add("--duplicates", type=float, help="leave out what shares this share of a positive's words")
    add("--other-documents", action="store_true", help="leave out passages of a positive's title")
    add(
        "--judge",
        help="a retriever, bm25, a cross-encoder or a generator, that leaves out what it finds "
        "relevant",
    )
    add(
        "--judge-max-relative",
        type=float,
        help="share of its score of the positive (0.95); of exp(score) with a cross-encoder or a "
        "generator, whose scores are logarithms",
    )
    add("--judge-language", help="the judge reads questions in (--query-language)")
    add("--drop-empty", action="store_true", help="leave out questions without a negative")


def _mine(given: argparse.Namespace) -> int:
    from clir_jax.config import Mine

    output = new_file(given.output)
    data = _rankings(given) if given.rankings else _judged(given)
    options = {f: getattr(given, f) for f in Mine.__dataclass_fields__ if hasattr(given, f)}
    options = {name: value for name, value in options.items() if name not in ("model", "corpus")}
    kinds = options.get("hard", 0) + options.get("semi_hard", 0)
    if kinds:
        options.setdefault("negatives", kinds)
    work = work_of(Mine, "negatives", given.model, *data, **options)
    # Imported late: --help and mistakes in the options need none of it.
    from clir_jax.evaluation.retrieval import saved_at
    from clir_jax.models import hub
    from clir_jax.training.alone import write_records
    from clir_jax.training.kinds import kind_at

    if work.judge not in (None, "bm25"):
        require_language(kind_at(hub.locate(saved_at(work.judge))), given.language)
    write_records("mine", work, output, given.seed)
    return 0


def _judged(given: argparse.Namespace) -> tuple[Any, Any]:
    """Questions of a judged collection, and its passages."""
    from clir_jax.data.collections import Retrieval
    from clir_jax.data.rankings import Beir

    for name in ("queries", "qrels"):
        if getattr(given, name) is None:
            raise ValueError(f"--{name} is missing; write --queries and --qrels, or --rankings")
    language = given.language or "en"
    files = (given.corpus, given.queries, given.qrels, language, given.query_column)
    translations: dict[str, str | int] = {}
    for text in given.translation:
        other, place = _translation(text)
        if other in translations:
            raise ValueError(f"--translation {text}: {other} was given before; write one of them")
        translations[other] = place
    bad = given.on_bad_record
    return (
        Beir(*files, translations=translations, on_bad_record=bad),
        Retrieval(*files, on_bad_record=bad),
    )


def _rankings(given: argparse.Namespace) -> tuple[Any, Any]:
    """Rankings in one file, and the passages to search."""
    from clir_jax.data.rankings import RankingJSONL
    from clir_jax.data.sources import CorpusJSONL

    for name, value in (("queries", given.queries), ("qrels", given.qrels)):
        if value is not None:
            raise ValueError(f"--rankings brings what --{name} says too; leave one of them out")
    if given.translation:
        raise ValueError(
            "--translation: the lines of --rankings bring their translations; leave it out"
        )
    bad = given.on_bad_record
    return (
        RankingJSONL(given.rankings, given.language or "en", on_bad_record=bad),
        CorpusJSONL(given.corpus, on_bad_record=bad),
    )


def _translation(text: str) -> tuple[str, str | int]:
    language, equals, where = text.partition("=")
    if not (language and equals and where):
        raise ValueError(
            f"--translation {text}: write LANGUAGE=FILE or LANGUAGE=COLUMN, as in en=2"
        )
    return language, int(where) if where.isdecimal() else where


if __name__ == "__main__":
    raise SystemExit(main())
