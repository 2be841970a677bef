"""Directories that are whole or what they were before."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from clir_jax.files import read_json, write_json

# What is to be moved out of a temporary directory, once it is whole.
_MOVED = ".moved.json"
# Moved last: by these, libraries take a directory for a model, and know of what kind.
_LAST = ("modules.json", "config.json", "clir_jax.json")


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
    if first and _is_empty(place):
        _undo(place)
    temporary = _beside(place, "tmp")
    if _to_fill(place):
        temporary = _inside(place)
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


def is_interrupted(place: Path) -> bool:
    """Whether a kill has left a directory with a part of what was to be moved into it."""
    return place.is_dir() and bool(_moved(Path(os.path.realpath(place))))


def _beside(place: Path, end: str) -> Path:
    return place.with_name(f".{place.name}.{end}")


def _inside(place: Path) -> Path:
    """Where what an empty directory is filled with is written."""
    return place / _beside(place, "tmp").name


def _is_empty(place: Path) -> bool:
    """Whether there is nothing in a directory but what a kill has left, or this writing begun."""
    if not place.is_dir():
        return False
    moved = _moved(place)  # before the names: of several hosts, the first may be putting it away
    return {p.name for p in place.iterdir()} <= {_inside(place).name, *moved}


def _moved(place: Path) -> set[str]:
    """What an interrupted ``_fill`` has moved; nothing where it came to the end."""
    listing = _inside(place) / _MOVED
    if not listing.is_file():
        return set()
    names = set(read_json(listing, list))
    left = {name for name in names if (_inside(place) / name).exists()}
    return names - left if left else set()


def _undo(place: Path) -> None:
    """Empty a directory that ``_fill`` has filled half."""
    for name in _moved(place):
        entry = place / name
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    shutil.rmtree(_inside(place), ignore_errors=True)  # last, as it has the list of them


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
            # It is mounted from the same disk, which looks like any other directory. From there to
            # here files are copied, inside it they are moved.
            place.mkdir(exist_ok=True)
            try:
                shutil.move(temporary, _inside(place))
                _fill(_inside(place), place)
            finally:
                shutil.rmtree(_inside(place), ignore_errors=True)


def _fill(temporary: Path, place: Path) -> None:
    """Move all up, into an otherwise empty directory; after an error it is empty again."""
    names = sorted(entry.name for entry in temporary.iterdir())
    names.sort(key=lambda name: _LAST.index(name) if name in _LAST else -1)
    write_json(temporary / _MOVED, names)
    try:
        for name in names:
            shutil.move(temporary / name, place / name)
    except BaseException:
        _undo(place)
        raise
