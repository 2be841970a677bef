"""Directories that are whole or what they were before."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def new_directory(
    path: Path, replaced: Callable[[Path], bool] | None = None, what: str = ""
) -> Iterator[Path]:
    """Give a directory to write, put in the place of ``path`` at the end; all hosts take part.

    Args:
      path: made if it does not exist, with the directories above it. Where a link leads is written,
        and the link stays.
      replaced: whether a directory that is there, with files in it, may be replaced; None says no.
      what: what may be, for the error.

    Yields:
      Where to write.

    Raises:
      FileExistsError: if the directory holds something else.
      OSError: if nothing can be written there; before anything is done, as the other.
    """
    first = jax.process_index() == 0
    place = Path(os.path.realpath(path))
    old = _beside(place, "old")
    if first and os.path.isdir(old) and not os.path.exists(place):
        old.rename(place)  # what a kill between the two steps of an exchange has left
    check_directory(path, replaced, what)
    temporary = _beside(place, "tmp")
    if _to_fill(place):
        temporary = place / temporary.name
    if first:
        for left_over in (temporary, old):
            shutil.rmtree(left_over, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise OSError(
                f"{path}: no directory can be made there ({error.strerror}); write another name"
            ) from None
    try:
        yield temporary
        if first:
            check_directory(path, replaced, what)  # somebody else may have written there
            try:
                _exchange(temporary, place, old)
            except OSError as error:
                raise OSError(
                    f"{path}: the new directory cannot be put there ({error.strerror}); write "
                    "another name"
                ) from error
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
    if jax.process_count() > 1:  # no host goes on to read what is not yet in place
        multihost_utils.sync_global_devices("new_directory")


def check_directory(
    path: Path, replaced: Callable[[Path], bool] | None = None, what: str = ""
) -> None:
    """Refuse what ``new_directory`` cannot write, before there is anything to write.

    Args:
      path, replaced, what: as for ``new_directory``.

    Raises:
      FileExistsError: if the directory holds something else.
      OSError: if nothing can be written there, or what is there cannot be put away.
    """
    place = Path(os.path.realpath(path))
    there = next(p for p in (place, *place.parents) if os.path.exists(p))
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: {there} may not be written to; write another name")
    if there != place:
        if not there.is_dir():
            raise NotADirectoryError(f"{path}: {there} is a file; write the name of a directory")
        return
    if _is_empty(place):
        return
    if replaced is None or not replaced(place):
        held = f"holds something else than {what}" if what else "is there already"
        raise FileExistsError(
            f"{path}: {held} and is not overwritten; write the name of a new directory"
        )
    if _stays(place):
        raise OSError(
            f"{path}: is mounted, or the directory you are in, and cannot be exchanged for a new "
            "one; empty it, or write the name of a new directory"
        )


def _beside(place: Path, end: str) -> Path:
    return place.with_name(f".{place.name}.{end}")


def _is_empty(place: Path) -> bool:
    # Of several hosts, the first may have begun.
    return place.is_dir() and {p.name for p in place.iterdir()} <= {_beside(place, "tmp").name}


def _stays(place: Path) -> bool:
    """Whether a directory must not be exchanged: a mounted one, or one that somebody is in."""
    return os.path.ismount(place) or Path.cwd().is_relative_to(place)


def _to_fill(place: Path) -> bool:
    """Whether an empty directory is filled in the end, and not exchanged in one step."""
    writable = os.access(place.parent, os.W_OK | os.X_OK)
    return place.is_dir() and _is_empty(place) and (_stays(place) or not writable)


def _exchange(temporary: Path, place: Path, old: Path) -> None:
    if temporary.parent == place:
        _fill(temporary, place)
    elif place.exists() and not _is_empty(place):
        # Directories cannot be exchanged in one step everywhere. A kill between these two lines
        # leaves the old and the new directory whole, under their hidden names.
        place.rename(old)
        temporary.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    else:
        try:
            temporary.rename(place)  # an empty directory makes way
        except OSError:
            # It is mounted from the same disk, which looks like any other directory.
            place.mkdir(exist_ok=True)
            _fill(temporary, place)


def _fill(temporary: Path, place: Path) -> None:
    """Move all into an empty directory; after an error it is empty again."""
    moved = []
    try:
        for entry in sorted(temporary.iterdir()):
            moved.append(place / entry.name)
            shutil.move(entry, moved[-1])
    except BaseException:
        for entry in moved:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        raise
