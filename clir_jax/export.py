"""Write a model for another library: ``python -m clir_jax.export --model M --to L --output D``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clir_jax.command import ANY_SAVED, Parser, carry_out

LAYOUTS = ("transformers", "sentence-transformers", "pylate", "colbert", "onnx")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, export, and return the exit status."""
    parser = Parser(prog="python -m clir_jax.export", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help=ANY_SAVED)
    add("--to", required=True, choices=LAYOUTS, help="the library that is to load it")
    add("--output", required=True, help="a new directory")
    add("--name", help="what the model card calls it (the name of the run or the model)")
    given = parser.parse_args(arguments)
    return carry_out(lambda: _export(given))


def _export(given: argparse.Namespace) -> int:
    # Imported late: --help and mistakes in the options need none of it.
    from clir_jax.evaluation.retrieval import saved_at
    from clir_jax.models.directories import check_directory
    from clir_jax.models.exports import export
    from clir_jax.models.hub import locate
    from clir_jax.training.kinds import RETRIEVER, kind_at
    from clir_jax.training.model_card import training_of

    # Before a model is downloaded and loaded for nothing.
    check_directory(Path(given.output))
    directory = locate(saved_at(given.model))
    model = (kind_at(directory) or RETRIEVER).load(directory)
    training = training_of(given.model)
    name = given.name or (training.title if training else Path(given.model).absolute().name)
    remarks = export(model, given.to, given.output, name, training)
    for remark in remarks:
        print(f"note: {remark}")
    print(f"{given.output}: README.md says how to load it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
