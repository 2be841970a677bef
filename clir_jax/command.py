"""What all commands share: a mistake is one sentence and exit status 2, never a traceback."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

SAVED = (
    "a run, a directory that clir_jax, sentence-transformers, PyLate or ColBERT saved, or a name "
    "on the hub"
)
"""Where a retriever may be, for the help of ``--model``."""
ANY_SAVED = (
    f"a retriever, a cross-encoder or a generator: {SAVED}; a cross-encoder may be one that "
    "transformers saved"
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


def _tell(error: Exception) -> None:
    # Other libraries write several lines, or none.
    text = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    print(f"error: {text}", file=sys.stderr)
