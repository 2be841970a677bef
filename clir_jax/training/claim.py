"""The run directory: whose it is, and what of its configuration may still change."""

import json
from pathlib import Path
from typing import Any

from clir_jax import config_files
from clir_jax.config import Stage
from clir_jax.config_files import ConfigError, naming
from clir_jax.files import part_of, read_json, write_text
from clir_jax.processes import anywhere, by_first
from clir_jax.training.positions import Itinerary

_FILE = "config.json"
_MEND = "restore the file, or choose another --run-dir"


def claim(itinerary: Itinerary) -> str | None:
    """Make the run directory, or take over one that an earlier attempt left.

    What has been trained stays what it was. The settings of a work, and of a stage that has not
    begun, may change between attempts.

    Args:
      itinerary: the run and its directory.

    Returns:
      The key that changed since the last attempt, if one did.

    Raises:
      ConfigError: if the directory is no run's, or something that has begun is configured
        otherwise, or the processes of the run do not all see it, with one configuration.
    """
    changed = by_first(lambda: _take(itinerary))
    file = itinerary.run_dir / _FILE
    text = config_files.to_json(itinerary.run)
    if anywhere(not file.exists() or file.read_text(encoding="utf-8") != text):
        raise ConfigError(
            f"--run-dir {itinerary.run_dir}: not every process finds there the configuration that "
            "process 0 has written; start all of them with the same command, and a directory that "
            "their hosts share"
        )
    return changed


def _take(itinerary: Itinerary) -> str | None:
    directory = itinerary.run_dir
    file, text = directory / _FILE, config_files.to_json(itinerary.run)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--run-dir {directory}: that is a file; choose a directory")
    if not file.exists():
        # The configuration may have been cut short by a kill, or be another process's.
        ours = {file, part_of(file)}
        if directory.is_dir() and not ours.issuperset(directory.iterdir()):
            raise ConfigError(
                f"--run-dir {directory}: it holds files but no {_FILE}, so it is no run; choose "
                "another directory"
            )
        _write(file, text)
        return None
    with naming(f"--run-dir {directory}"):
        before, now = read_json(file, dict, _MEND), json.loads(text)
    if before == now:
        return None
    if before.get("type") != now["type"]:
        raise ConfigError(
            f"--run-dir {directory}: its {_FILE} is not that of a run; choose another directory"
        )
    key = config_files.first_difference(before, now)
    fixed = _fixed(before, now, itinerary)
    if fixed is not None:
        raise ConfigError(
            f"--run-dir {directory}: it holds a run with another {fixed}; choose another "
            "directory, or give the configuration that it was started with"
        )
    _write(file, text)
    return key


def _fixed(before: Any, now: Any, itinerary: Itinerary) -> str | None:
    """The first difference that may not be; None where all may."""
    first = config_files.first_difference
    try:
        items, wanted = _items(before), _items(now)
        frame, other = _frame(before), _frame(now)
    except (KeyError, TypeError, AttributeError):  # of another version, or edited
        return first(before, now)
    if frame != other:
        return first(frame, other)
    for name, item in wanted.items():
        if item != items[name] and name in _begun(itinerary):
            return first(items[name], item, f"stages.{name}")
    return None


def _items(config: Any) -> dict[str, Any]:
    """Stages and works by name."""
    groups = [step["stages"] if step["type"] == "Rounds" else [step] for step in config["stages"]]
    return {item["name"]: item for group in groups for item in group}


def _frame(config: Any) -> Any:
    """The configuration but for its stages and works; of these the names, in order."""
    return {
        **config,
        "stages": [
            {**step, "stages": [item["name"] for item in step["stages"]]}
            if step["type"] == "Rounds"
            else step["name"]
            for step in config["stages"]
        ],
    }


def _begun(itinerary: Itinerary) -> set[str]:
    """Names of the stages of which a round has been begun."""
    return {
        position.item.name
        for position in itinerary.positions
        if isinstance(position.item, Stage) and itinerary.directory(position).exists()
    }


def _write(file: Path, text: str) -> None:
    try:
        write_text(file, text)
    except OSError as error:
        raise ConfigError(
            f"--run-dir {file.parent}: it cannot be written to ({error.strerror}); choose another "
            "directory"
        ) from error
