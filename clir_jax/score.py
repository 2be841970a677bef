"""Write a teacher's scores of questions' passages: ``python -m clir_jax.score --model DIR ...``.

The teacher is a cross-encoder, a query generator or a retriever; the scores are what distillation
reads. The whole way from a collection to a student that has learned from the teacher:

  python -m clir_jax.mine --model bm25 --corpus corpus.jsonl --queries queries.tsv --qrels qrels
      --language sw --translation en=2 --query-language en --output mined.jsonl
  python -m clir_jax.score --model runs/teacher --input mined.jsonl --language sw
      --query-language en --output scored.jsonl
  python -m clir_jax.train --config student.py --run-dir runs/student

where a task of student.py distils the scores:

  Task(RelevanceDistillation(student_query="query.sw", teacher_kind="stored"),
       {"ranking": RankingJSONL("scored.jsonl", "sw")}, passages=8)
"""

import argparse
from collections.abc import Sequence

from clir_jax.command import ANY_SAVED, Parser, carry_out, new_file, require_language


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, score, write, and return the exit status."""
    parser = Parser(
        prog="python -m clir_jax.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help=ANY_SAVED)
    add("--input", required=True, metavar="FILE", help="JSON lines, as clir_jax.mine writes them")
    add("--output", required=True, metavar="FILE", help="the same lines with scores")
    add("--language", help='of "query" in the lines (en); a generator is told it')
    add(
        "--query-language",
        default="",
        help='the model reads questions in, and a generator is told: one of "queries" (--language)',
    )
    add("--on-bad-record", choices=["error", "skip"], default="error")
    given = parser.parse_args(arguments)
    return carry_out(
        lambda: _score(given), "stopped; the same command goes on from the last whole block"
    )


def _score(given: argparse.Namespace) -> int:
    from clir_jax.config import Score
    from clir_jax.data.rankings import RankingJSONL

    output = new_file(given.output)
    source = RankingJSONL(given.input, given.language or "en", on_bad_record=given.on_bad_record)
    work = Score("scores", given.model, source, given.query_language)
    # Imported late: --help and mistakes in the options need none of it.
    from clir_jax.evaluation.retrieval import saved_at
    from clir_jax.models import hub
    from clir_jax.training.alone import write_records
    from clir_jax.training.kinds import kind_at

    require_language(kind_at(hub.locate(saved_at(given.model))), given.language)
    write_records("score", work, output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
