"""Align the words of two sentences: ``python -m clir_jax.align --model DIR --source … --target …``.

With ``--gold FILE``, hold a model's word alignments against those that people made.
"""

import argparse
import ast
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clir_jax.command import SAVED, Parser, carry_out

if typing.TYPE_CHECKING:
    from clir_jax.evaluation.alignment import Method, WordAligner

_OUTPUT = "alignment.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, align, and return the exit status."""
    parser = Parser(prog="python -m clir_jax.align", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help=f"a retriever: {SAVED}")
    add("--source", help="a sentence; with links in Pharaoh's form, a file of words")
    add("--target", help="its translation; with links in Pharaoh's form, a file of words")
    add("--gold", metavar="FILE", help="JSON lines with src, tgt, sure and possible; or 0-0 1p2")
    add(
        "--aligner",
        nargs="+",
        metavar="NAME[:key=value,...]",
        help="greedy, assignment, sinkhorn, ipot or attention, with options as in "
        "sinkhorn:epsilon=0.02 (default: sinkhorn; with --gold, all of them)",
    )
    add("--null", type=float, help="cost above which tokens rather stay without a counterpart")
    add("--agreement", action="store_true", help="keep pairs that are each other's best only")
    add("--layer", type=int, help="compare the token vectors of this layer, 1 being the lowest")
    add("--teacher", metavar="MODEL", help="another retriever, which reads one of the sentences")
    add("--teacher-reads", choices=["source", "target"], help="which one (default: target)")
    add("--output", help=f"picture of the alignment, .html or .png (default: {_OUTPUT})")
    add("--on-bad-record", choices=["error", "skip"], help="leave bad lines of --gold out")
    given = parser.parse_args(arguments)
    return carry_out(lambda: _score(given) if given.gold else _show(given))


def _show(given: argparse.Namespace) -> int:
    """Align one pair of sentences."""
    for name in ("source", "target"):
        if not (getattr(given, name) or "").strip():
            raise ValueError(f"--{name} is missing; write a sentence, or --gold FILE")
    if given.on_bad_record:
        raise ValueError("--on-bad-record is for the lines of --gold; leave it out")
    output = Path(given.output or _OUTPUT)
    if output.suffix not in (".html", ".png"):
        raise ValueError(f"--output {output}: write a name that ends in .html or .png")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output}: there is no such directory; make it first")
    names = given.aligner or ["sinkhorn"]
    if len(names) > 1:
        raise ValueError(f"--aligner names {len(names)}; write one, or --gold FILE for a table")
    (method,) = _methods(given, names)

    from rich.console import Console

    from clir_jax.data.words import split_words
    from clir_jax.evaluation.alignment_picture import links_table, save_picture

    aligner = _load(given)
    source = split_words(given.source, aligner.source.tokenizer)
    target = split_words(given.target, aligner.target.tokenizer)
    alignment = aligner.align([(source, target)], [method])[0][0]
    save_picture(output, alignment, source, target)
    console = Console()
    console.print(links_table(alignment, source, target))
    console.print(f"picture: {output}", markup=False)
    return 0


def _score(given: argparse.Namespace) -> int:
    """Score every aligner on gold alignments."""
    if given.output:
        raise ValueError("--output is a picture of one pair of sentences; leave out --gold or it")
    from clir_jax.ops.alignment import Aligner

    every = [kind.__name__.lower() for kind in typing.get_args(Aligner)]
    names = given.aligner or every
    methods = _methods(given, names)

    from rich.console import Console

    from clir_jax.data.gold_alignment import GoldAlignment
    from clir_jax.evaluation.alignment import score_alignments
    from clir_jax.evaluation.alignment_picture import scores_table

    files = given.source or "", given.target or ""
    bad = given.on_bad_record or "error"
    gold = GoldAlignment(given.gold, "", *files, on_bad_record=bad).open(".")
    scores = score_alignments(_load(given), gold.pairs, methods)
    console = Console(soft_wrap=True)
    console.print(scores_table(dict(zip(names, scores, strict=True))))
    left_out = [f"; {n:,} x {reason}" for reason, n in gold.report.skipped.items()]
    told = "".join([f"{len(gold.pairs):,} sentence pairs", *left_out])
    console.print("\n".join([told, *gold.report.places]), markup=False, highlight=False)
    return 0


def _load(given: argparse.Namespace) -> "WordAligner":
    from clir_jax.evaluation.alignment import WordAligner
    from clir_jax.evaluation.retrieval import saved_at
    from clir_jax.mesh import make_mesh
    from clir_jax.models.formats import load_retriever, on_mesh

    if given.teacher_reads and not given.teacher:
        raise ValueError("--teacher-reads needs --teacher; name the model, or leave it out")
    mesh = make_mesh()
    student = on_mesh(load_retriever(saved_at(given.model)), mesh)
    if not given.teacher:
        return WordAligner.of(student, given.layer, mesh)
    teacher = on_mesh(load_retriever(saved_at(given.teacher)), mesh)
    first = given.teacher_reads == "source"
    models = (teacher, student) if first else (student, teacher)
    return WordAligner(*models, mesh, given.layer)


def _methods(given: argparse.Namespace, names: Sequence[str]) -> "list[Method]":
    from clir_jax.evaluation.alignment import Method

    if given.null is not None and given.null <= 0:
        raise ValueError(f"--null is {given.null}; write a cost above 0, 0.5 say")
    return [Method(_aligner(name), given.null, given.agreement) for name in names]


def _aligner(text: str) -> Any:
    """The aligner that ``NAME[:key=value,...]`` describes."""
    from clir_jax.config_types import fits, spelled
    from clir_jax.ops.alignment import Aligner

    name, _, options = text.partition(":")
    known = {kind.__name__.lower(): kind for kind in typing.get_args(Aligner)}
    if name.lower() not in known:
        raise ValueError(f"--aligner {text}: there is no {name!r}; write one of {', '.join(known)}")
    kind = known[name.lower()]
    hints = {field.name: field.type for field in dataclasses.fields(kind)}
    values = {}
    for part in filter(None, options.split(",")):
        key, equals, value = part.partition("=")
        if key not in hints:
            choices = ", ".join(hints) or "nothing"
            raise ValueError(f"--aligner {text}: {name} has no option {key!r}; it has {choices}")
        if not equals:
            raise ValueError(f"--aligner {text}: {key} has no value; write {key}=VALUE")
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[key] = value
        if not fits(values[key], hints[key]):
            wanted = spelled(hints[key])
            raise ValueError(f"--aligner {text}: {key} is {value}; it must be {wanted}")
        if hints[key] is float:
            values[key] = float(values[key])
    return kind(**values)


if __name__ == "__main__":
    raise SystemExit(main())
