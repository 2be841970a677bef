"""Word alignment error of models: `python benchmarks/alignment.py --model M --data-root DATA`.

DATA holds ``alignment/<language>.jsonl``. One table a model: a line for each aligner, a column for
each language, and in a cell AER (precision / recall). ``--null``, ``--agreement`` and ``--layer``
hold for all of them; the sentences of a bad line are left out.
"""

import argparse
import time
import typing

from clir_jax.data.gold_alignment import GoldAlignment
from clir_jax.evaluation.alignment import Method, WordAligner, score_alignments
from clir_jax.evaluation.retrieval import saved_at
from clir_jax.mesh import make_mesh
from clir_jax.models.formats import load_retriever, on_mesh
from clir_jax.ops.alignment import Aligner

LANGUAGES = ("fr", "ro", "cs", "hi")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, nargs="+", help="runs, or saved retrievers")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--languages", nargs="+", default=LANGUAGES)
    parser.add_argument("--limit", type=int, help="sentence pairs a language")
    parser.add_argument("--null", type=float)
    parser.add_argument("--agreement", action="store_true")
    parser.add_argument("--layer", type=int)
    given = parser.parse_args()
    aligners = [kind() for kind in typing.get_args(Aligner)]
    methods = [Method(aligner, given.null, given.agreement) for aligner in aligners]
    opened = {
        language: GoldAlignment(f"alignment/{language}.jsonl", language, on_bad_record="skip").open(
            given.data_root
        )
        for language in given.languages
    }
    mesh = make_mesh()
    for model in given.model:
        loaded = on_mesh(load_retriever(saved_at(model)), mesh)
        aligner = WordAligner.of(loaded, given.layer, mesh)
        cells: list[list[str]] = []
        seconds = []
        for gold in opened.values():
            began = time.perf_counter()
            scores = score_alignments(aligner, gold.pairs[: given.limit], methods)
            seconds.append(time.perf_counter() - began)
            cells.append(
                [f"{s['AER']:.3f} ({s['precision']:.2f} / {s['recall']:.2f})" for s in scores]
            )
        options = f"null={given.null}, agreement={given.agreement}, layer={given.layer}"
        print(f"\n{model}, {options}\n")
        counts = [len(gold.pairs[: given.limit]) for gold in opened.values()]
        heads = [f"{name}, {n} pairs" for name, n in zip(opened, counts, strict=True)]
        print(f"| aligner | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}")
        for name, row in zip(aligners, zip(*cells, strict=True), strict=True):
            print(f"| {type(name).__name__} | {' | '.join(row)} |")
        print(f"| seconds | {' | '.join(f'{s:.0f}' for s in seconds)} |", flush=True)


if __name__ == "__main__":
    main()
