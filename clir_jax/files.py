"""Files that are whole or not there: what a kill interrupts is never taken for the real thing."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def part_of(path: Path) -> Path:
    """Where ``path`` is written until it is whole."""
    return path.with_name(path.name + ".part")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a place beside ``path`` to write a file to, and move it to ``path`` at the end.

    After an error nothing has changed; after a kill the next attempt writes over the remains.

    Args:
      path: the file; its directory is made if it does not exist.

    Yields:
      Where to write.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = part_of(path)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file with ``\\n`` line ends, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file that people can read, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str], kind: type[Any], mend: str = "restore the file") -> Any:
    """Read a JSON file that a program wrote.

    Args:
      path: the file.
      kind: ``dict`` or ``list``: what it holds.
      mend: what to do about a damaged file, for the error.

    Returns:
      What it holds.

    Raises:
      ValueError: one sentence with the file and the line, if it holds something else, or is not
        there.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file; {mend}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: this is not UTF-8 text; {mend}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: this is not JSON ({error.msg}); {mend}") from None
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise ValueError(f"{path}: this is JSON and not {wanted}; {mend}")
    return value


def copy_directory(source: Path, target: Path) -> None:
    """Copy a directory over another, whole or not at all."""
    unfinished = part_of(target)
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
