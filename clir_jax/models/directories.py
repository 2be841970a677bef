"""Model directories that are whole or what they were before."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def new_directory(path: Path, replaced: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """Give a directory beside ``path`` and put it in its place at the end; all hosts take part.

    Args:
      path: made if it does not exist, with the directories above it.
      replaced: whether a directory that is there, with files in it, may be replaced.
      what: what may be, for the error.

    Yields:
      Where to write.

    Raises:
      FileExistsError: if the directory holds something else.
    """
    path = path.absolute()
    if path.exists() and not replaced(path) and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(
            f"{path}: holds something else than {what} and is not overwritten; "
            "write the name of a new directory"
        )
    temporary, old = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    first = jax.process_index() == 0
    if first:
        for left_over in (temporary, old):
            shutil.rmtree(left_over, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        yield temporary
        if first:
            # Directories cannot be exchanged in one step everywhere. A kill between these two lines
            # leaves the old and the new directory whole, under their hidden names.
            if path.exists():
                path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
    if jax.process_count() > 1:  # no host goes on to read what is not yet in place
        multihost_utils.sync_global_devices("new_directory")
