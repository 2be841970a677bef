"""Write questions for passages with a generator: ``python -m clir_jax.generate --model DIR ...``.

The questions come with their passage, as rankings that clir_jax.mine, clir_jax.score and training
read. The whole way from passages and a trained generator to a student that has learned from it,
without a question that anybody has asked:

  python -m clir_jax.generate --model runs/generator --corpus corpus.jsonl --languages sw en
      --round-trip bm25 --round-trip-languages en --output generated.jsonl
  python -m clir_jax.mine --model bm25 --corpus corpus.jsonl --rankings generated.jsonl
      --language sw --query-language en --output mined.jsonl
  python -m clir_jax.score --model runs/generator --input mined.jsonl --language sw
      --output scored.jsonl
  python -m clir_jax.train --config student.py --run-dir runs/student

where a task of student.py distils the scores, and another lets the questions of a passage rank
alike in both languages:

  Task(RelevanceDistillation(student_query="query.sw", teacher_kind="stored"),
       {"ranking": RankingJSONL("scored.jsonl", "sw")}, passages=8)
  Task(QueryAlignment(query="query.sw"), {"ranking": RankingJSONL("scored.jsonl", "sw")},
       {"teacher": "runs/generator/model"}, passages=8)
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from clir_jax.command import Parser, carry_out, new_file, work_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, write, and return the exit status."""
    parser = Parser(
        prog="python -m clir_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="a generator: a run, or a directory that clir_jax saved")
    add("--corpus", required=True, help="JSON lines with _id, title and text")
    add("--output", required=True, metavar="FILE", help="JSON lines; RankingJSONL reads them")
    add(
        "--languages",
        required=True,
        nargs="+",
        help="of the questions, the rankings' own first; a record has a question in each, so that "
        "a command for each language keeps more of them",
    )
    add("--on-bad-record", choices=["error", "skip"], default="error")
    add("--seed", type=int, default=0, help="of what is drawn by chance")
    add("--beams", type=int, help="search on so many beams, in the place of drawing")
    add("--temperature", type=float, help="below 1 draws what is likelier (1)")
    add("--top-k", type=int, help="draw from the k likeliest tokens (10)")
    add("--top-p", type=float, help="draw from the likeliest tokens of this probability")
    _add_options(parser)
    given = parser.parse_args(arguments)
    return carry_out(
        lambda: _generate(given), "stopped; the same command goes on from the last whole block"
    )


def _add_options(parser: Parser) -> None:
    """The options of ``Generate``, by its names; its defaults hold for what is not given."""
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--each", type=int, help="questions a passage and language (1); not with --beams")
    add("--sample", type=int, help="write for so many passages, drawn by chance (all)")
    add("--round-trip", help="a retriever, or bm25, that must find a question's passage again")
    add("--round-trip-depth", type=int, help="among its first so many (10)")
    add(
        "--round-trip-languages",
        nargs="*",
        help="whose questions must find it (all); without a language, it is only measured. While "
        "the output is unfinished, --round-trip and what begins so may be changed: no question is "
        "written again, and the same retriever encodes no passage again",
    )


def _generate(given: argparse.Namespace) -> int:
    from clir_jax.config import Generate
    from clir_jax.data.sources import CorpusJSONL
    from clir_jax.models.generator import Beam, Sample

    output = new_file(given.output)
    drawn = _drawn(given)
    options = {f: getattr(given, f) for f in Generate.__dataclass_fields__ if hasattr(given, f)}
    for name in ("languages", "round_trip_languages"):
        if name in options:
            options[name] = tuple(options[name])
    if given.beams is not None:
        options["decoding"] = Beam(given.beams)
    elif drawn:
        options["decoding"] = Sample(**{"top_k": 10, **drawn})
    options |= {"corpus": CorpusJSONL(given.corpus, on_bad_record=given.on_bad_record)}
    work = work_of(Generate, "questions", **options)
    # Imported late: --help and mistakes in the options need none of it.
    from clir_jax.evaluation.retrieval import saved_at
    from clir_jax.models import hub
    from clir_jax.models.generator_files import refuse_plain_t5
    from clir_jax.training.alone import write_records
    from clir_jax.training.kinds import kind_at

    directory = hub.locate(saved_at(given.model))
    if kind_at(directory) is None:
        refuse_plain_t5(directory)
        raise ValueError(
            f"--model {given.model}: this is no generator that clir_jax has saved; give a run that "
            "trained one, or its model/"
        )
    write_records("generate", work, output, given.seed)
    return 0


def _drawn(given: argparse.Namespace) -> dict[str, Any]:
    """The options of ``Sample`` that are given.

    Raises:
      ValueError: if they, or several questions, go with ``--beams``.
    """
    drawn = {name: getattr(given, name) for name in ("temperature", "top_k", "top_p")}
    drawn = {name: value for name, value in drawn.items() if value is not None}
    if given.beams is None:
        return drawn
    for name, value in drawn.items():
        raise ValueError(
            f"--beams {given.beams} searches, and --{name.replace('_', '-')} {value} draws; write "
            "one of them"
        )
    each = getattr(given, "each", 1)
    if each > 1:
        raise ValueError(
            f"--beams {given.beams} finds one question, and --each {each} wants {each}; leave "
            "--beams out to draw them, or write --each 1"
        )
    return drawn


if __name__ == "__main__":
    raise SystemExit(main())
