"""What all commands share: a mistake is one sentence and exit status 2, never a traceback."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

SAVED = (
    "a run, a directory that clir_jax, sentence-transformers, PyLate or ColBERT saved, or a name "
    "on the hub"
)
"""Where a retriever may be, for the help of ``--model``."""
ANY_SAVED = (
    f"a retriever, a cross-encoder or a generator: {SAVED}; a cross-encoder may be one that "
    "transformers saved too"
)
"""Where a model of any kind may be."""


class Parser(argparse.ArgumentParser):
    """A command line, in which a mistake is one sentence too."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and stop."""
        self.exit(2, f"error: {message}; --help shows what there is to write\n")


def carry_out(work: Callable[[], int], when_stopped: str = "stopped") -> int:
    """Do a command's work.

    Args:
      work: returns the exit status. ``ValueError`` and ``OSError`` from it, other libraries'
        too, are taken for mistakes in what was given, ``ImportError`` for an optional package that
        is not installed, ``RuntimeError`` of our own for a run that cannot go on; anything else is
        a fault of this program and keeps its traceback.
      when_stopped: what to say when the user interrupts it.

    Returns:
      The exit status; 2 for a mistake, 1 for a run that cannot go on, 130 when interrupted.
    """
    try:
        return work()
    except (ValueError, OSError, ImportError) as error:
        if type(error).__module__.startswith("jax"):
            raise
        _tell(error)
        return 2
    except RuntimeError as error:
        if not type(error).__module__.startswith("clir_jax"):
            raise
        _tell(error)
        return 1
    except KeyboardInterrupt:
        print(when_stopped, file=sys.stderr)
        return 130


def new_file(path: str) -> Path:
    """Refuse an ``--output`` that is there already, or has nowhere to go.

    Raises:
      ValueError: one sentence for a person.
    """
    output = Path(path)
    if output.exists():
        what = "a directory" if output.is_dir() else "a file"
        raise ValueError(f"--output {path}: there is such {what} already; write another name")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"--output {path}: there is no such directory; make it first")
    return output


def work_of(kind: Any, *values: Any, **options: Any) -> Any:
    """Make a work of options that have the names of its fields.

    Raises:
      ValueError: as the work says it, with options in the place of the fields.
    """
    try:
        return kind(*values, **options)
    except ValueError as error:
        # The field that is wrong comes first; others differ from words by their underscores.
        others = "|".join(name for name in kind.__dataclass_fields__ if "_" in name)
        raise ValueError(
            re.sub(
                rf"^work [\w.-]+: (\w+)(?= is | has )|\b({others})\b",
                lambda found: "--" + (found[1] or found[2]).replace("_", "-"),
                str(error),
            )
        ) from None


def require_language(kind: Any, language: str | None) -> None:
    """Refuse a generator whose prompt would name a language that nobody has given.

    Args:
      kind: of the model, as ``training.kinds`` has it.
      language: that is given, if one is.

    Raises:
      ValueError: one sentence for a person.
    """
    # Imported late: --help and mistakes in the options need none of it.
    from clir_jax.training.kinds import GENERATOR

    if kind is GENERATOR and language is None:
        raise ValueError(
            "--language is missing, and a generator's prompt names the language of the queries; "
            "write it, as in --language sw"
        )


def _tell(error: Exception) -> None:
    # Other libraries write several lines, or none.
    text = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    print(f"error: {text}", file=sys.stderr)
