"""Configurations in and out: Python files, JSON, ``--set``, and one-sentence errors for each."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import json
import re
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clir_jax import objectives
from clir_jax.config import Run, Work
from clir_jax.config_types import fits, is_mapping, options, shown, spelled

_TYPE = "type"
_UNKNOWN_KEYWORD = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
_WORDS = {"true": True, "false": False, "null": None, "none": None}


class ConfigError(ValueError):
    """A configuration that cannot be used; its text is one sentence for a person."""


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Put a key of the configuration before what an error in the block says.

    Raises:
      ConfigError: in the place of ``ValueError`` and ``FileNotFoundError``.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{where}: {error}") from error


def load(text: str) -> Run:
    """Load ``FILE[:key=value,...]``: a Python file with ``get_config``, or a resolved ``.json``.

    Args:
      text: path, and the arguments of ``get_config`` after a colon.

    Returns:
      The run.

    Raises:
      ConfigError: one sentence about what is wrong with the path, the arguments or the values.
    """
    path, _, arguments = (text, "", "") if Path(text).is_file() else text.partition(":")
    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            f"--config {path}: there is no such file{_nearest_file(file)}; write FILE.py, "
            "FILE.py:key=value,key=value or a run's config.json"
        )
    if file.suffix != ".json":
        return _call_get_config(file, arguments)
    if arguments:
        raise ConfigError(f"--config {text}: a JSON file takes no arguments; use --set")
    try:
        return from_json(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: this is not UTF-8 text; write it as UTF-8") from None


def set_values(run: Run, assignments: Sequence[str]) -> Run:
    """Replace values by dotted path, all at once: ``stages.teacher.steps=200``.

    Members of a tuple are reached by number or by name (``stages.0.tasks.InfoNCE.weight``), those
    of a mapping by key. Values are written as in Python; what is no Python value, or does not fit
    as one, is text.

    Args:
      run: the run.
      assignments: ``path=value``; of two for one path the later holds.

    Returns:
      The changed run.

    Raises:
      ConfigError: if there is no such path (naming the nearest) or the value does not fit.
    """
    updates: list[_Update] = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment}: write it as path=value, as in --set seed=1")
        updates.append(_Update(path.split("."), value, assignment))
    changed: Run = _updated(run, updates, Run)
    return changed


def to_json(run: Run | Work) -> str:
    """A whole configuration, or a work of it, as JSON, in the order of its fields."""
    return json.dumps(_plain(run), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str, where: str = "configuration") -> Run:
    """Read what ``to_json`` wrote.

    Args:
      text: JSON.
      where: what it is, for messages.

    Returns:
      The run.

    Raises:
      ConfigError: naming the key that is unknown or of the wrong type.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}:{error.lineno}: this is not JSON: {error.msg}") from None
    try:
        run: Run = _built(tree, Run, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return run


def first_difference(there: Any, here: Any, path: str = "") -> str:
    """The dotted path of the first value in which two configurations, read from JSON, differ."""
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        there, here = dict(enumerate(there)), dict(enumerate(here))
    if isinstance(there, dict) and isinstance(here, dict) and there.keys() == here.keys():
        for key in there:
            if there[key] != here[key]:
                return first_difference(there[key], here[key], _join(path, key))
    return path or "configuration"


def _call_get_config(file: Path, arguments: str) -> Run:
    module = types.ModuleType(file.stem)
    module.__file__ = str(file)
    try:
        code = compile(file.read_bytes(), str(file), "exec")
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(f"{file}{line}: this is not Python: {reason}") from None
    try:
        exec(code, module.__dict__)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise ConfigError("it defines no get_config(); write one that returns a Run")
        run = get_config(**_arguments(get_config, arguments, str(file)))
    except Exception as error:  # whatever a person's own code may raise
        raise ConfigError(_complaint(file, error)) from error
    if not isinstance(run, Run):
        raise ConfigError(f"{file}: get_config() returned {shown(run)}; return a Run")
    return run


def _complaint(file: Path, error: Exception) -> str:
    """An error in a configuration file: the line of the file that led to it, and what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f":{frame.lineno}" for frame in frames if frame.filename == str(file)]
    place = f"{file}{lines[-1] if lines else ''}"
    if isinstance(error, ValueError) and str(error):
        return f"{place}: {error}"
    keyword = _UNKNOWN_KEYWORD.match(str(error))
    if keyword is not None and keyword[1] in _known_types():
        fields = [field.name for field in dataclasses.fields(_known_types()[keyword[1]])]
        return f"{place}: {keyword[1]} has no key {keyword[2]!r}{_nearest(keyword[2], fields)}"
    return f"{place}: {traceback.format_exception(error)[-1].strip()}"


def _arguments(get_config: Callable[..., Any], text: str, file: str) -> dict[str, Any]:
    parameters = inspect.signature(get_config).parameters
    hints = typing.get_type_hints(get_config)
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if key not in parameters:
            raise ConfigError(f"get_config takes no argument {key!r}{_nearest(key, parameters)}")
        if not equals:
            raise ConfigError(f"argument {key!r} has no value; write {key}=VALUE")
        given[key] = _value(value, hints.get(key, Any), f"argument {key}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given:
            raise ConfigError(f"argument {key!r} is missing; write {file}:{key}=VALUE")
    return given


@dataclasses.dataclass(frozen=True)
class _Update:
    """One ``--set``: the keys that are left of its path, the text after ``=``, and the whole."""

    path: list[str]
    text: str
    assignment: str

    @property
    def done(self) -> str:
        """The part of the path that is behind."""
        keys = self.assignment.partition("=")[0].split(".")
        return ".".join(keys[: len(keys) - len(self.path)])


def _updated(node: Any, updates: Sequence[_Update], hint: Any) -> Any:
    """``node`` with all updates below it; made anew once, so that together they need to fit."""
    for number, update in enumerate(updates):
        if not update.path:
            try:
                node = _value(update.text, hint, update.done)
            except ConfigError as error:
                raise ConfigError(f"--set {error}") from error
            return _updated(node, updates[number + 1 :], hint)
    if not updates:
        return node
    groups: dict[Any, list[_Update]] = {}
    for update in updates:
        key, rest = _step(node, update)
        groups.setdefault(key, []).append(dataclasses.replace(update, path=rest))
    members = _members(node, hint)
    changed = {
        key: _updated(members[key][0], group, members[key][1]) for key, group in groups.items()
    }
    if isinstance(node, Mapping):
        return {**node, **changed}
    if isinstance(node, tuple):
        return tuple(changed.get(place, member) for place, member in enumerate(node))
    try:
        return dataclasses.replace(node, **changed)
    except (ValueError, TypeError) as error:
        sets = " ".join(f"--set {update.assignment}" for update in updates)
        raise ConfigError(f"{sets}: {error}") from error


def _step(node: Any, update: _Update) -> tuple[Any, list[str]]:
    """The member of ``node`` that a path names, and the rest of the path."""
    members: dict[str, Any] = {}
    if isinstance(node, tuple):
        members = {str(place): place for place in range(len(node))}
        names = [_name(member) for member in node]
        members |= {name: i for i, name in enumerate(names) if name and names.count(name) == 1}
    elif isinstance(node, Mapping):
        members = {key: key for key in node}
    elif dataclasses.is_dataclass(node):
        members = {field.name: field.name for field in dataclasses.fields(node) if field.init}
    # Names may hold full stops, so the longest that fits is taken.
    for length in range(len(update.path), 0, -1):
        name = ".".join(update.path[:length])
        if name in members:
            return members[name], update.path[length:]
    place = update.done or type(node).__name__
    if not members:
        place = f"{place} is {shown(node)}, which"
    hint = _nearest(update.path[0], members) or "; shorten the path"
    raise ConfigError(f"--set {update.assignment}: {place} has no {update.path[0]!r}{hint}")


def _members(node: Any, hint: Any) -> dict[Any, tuple[Any, Any]]:
    """The members of a mapping, a tuple or a dataclass, each with its annotation."""
    inside = _inside(hint, dict if isinstance(node, Mapping) else tuple)
    if isinstance(node, Mapping):
        return {key: (member, inside) for key, member in node.items()}
    if isinstance(node, tuple):
        return {place: (member, inside) for place, member in enumerate(node)}
    hints = typing.get_type_hints(type(node))
    return {f.name: (getattr(node, f.name), hints[f.name]) for f in dataclasses.fields(node)}


def _inside(hint: Any, kind: type[Any]) -> Any:
    """What an annotation says of the members of a ``dict`` or a ``tuple``; None if it has none."""
    for option in options(hint):
        if kind is dict and is_mapping(option):
            return typing.get_args(option)[1]
        if kind is tuple and typing.get_origin(option) is tuple:
            return typing.get_args(option)[0]
    return None


def _value(text: str, hint: Any, where: str) -> Any:
    """Text as the Python value that it spells, where that fits; else as it is."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = _WORDS.get(text.lower(), text)
    if not isinstance(value, str) and not fits(value, hint) and fits(text, hint):
        return text
    return _built(value, hint, where)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_TYPE: type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, tuple) else value


def _built(tree: Any, hint: Any, where: str) -> Any:
    """The value that plain lists and mappings describe, checked against its annotation."""
    if isinstance(tree, dict):
        member_hint = _inside(hint, dict)
        if member_hint is None:
            tree = _object(tree, hint, where)
        else:
            tree = {k: _built(member, member_hint, _join(where, k)) for k, member in tree.items()}
    elif isinstance(tree, list | tuple) and _inside(hint, tuple) is not None:
        tree = tuple(
            _built(member, _inside(hint, tuple), _join(where, _label(member, place)))
            for place, member in enumerate(tree)
        )
    if not fits(tree, hint):
        raise ConfigError(f"{_at(where)} is {shown(tree)}; it must be {spelled(hint)}")
    return tree


def _object(tree: dict[str, Any], hint: Any, where: str) -> Any:
    name, known = tree.get(_TYPE), _known_types()
    if not isinstance(name, str):
        raise ConfigError(
            f'{_at(where)} is {shown(tree)}, which has no "{_TYPE}"; it must be {spelled(hint)}'
        )
    if name not in known:
        raise ConfigError(f"{_at(where)}: there is no type {name!r}{_nearest(name, known)}")
    fields = {field.name: field for field in dataclasses.fields(known[name]) if field.init}
    hints = typing.get_type_hints(known[name])
    values = {}
    for key, member in tree.items():
        if key in fields:
            values[key] = _built(member, hints[key], _join(where, key))
        elif key != _TYPE:
            hint = _nearest(str(key), fields)
            raise ConfigError(f"{_at(where)}: {name} has no key {key!r}{hint}")
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_at(where)}: {name} needs the key {key!r}; add it")
    try:
        return known[name](**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{_at(where)}: {error}") from error


@functools.cache
def _known_types() -> dict[str, type[Any]]:
    """Every dataclass a run may hold, by name: all objectives, and what annotations lead to."""
    found: dict[str, type[Any]] = {}
    ahead: list[Any] = [Run, *objectives.discover().values()]
    while ahead:
        hint = ahead.pop()
        if not dataclasses.is_dataclass(hint):
            ahead += typing.get_args(hint)
        elif isinstance(hint, type) and hint.__name__ not in found:
            found[hint.__name__] = hint
            ahead += typing.get_type_hints(hint).values()
    return found


def _name(member: Any) -> str:
    """What a path may call a member of a tuple; empty where it has no name."""
    if not dataclasses.is_dataclass(member):
        return ""
    return str(getattr(member, "title", getattr(member, "name", "")))


def _label(member: Any, place: int) -> str:
    """The same for a member of a list in JSON, which is no object yet."""
    name = member.get("name") if isinstance(member, dict) else None
    return name if isinstance(name, str) and name else str(place)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _at(where: str) -> str:
    return where or "the configuration"


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose from {', '.join(names)}" if names else ""


def _nearest_file(file: Path) -> str:
    folder = file.parent
    names = [str(folder / n.name) for n in folder.glob("*.*")] if folder.is_dir() else []
    close = difflib.get_close_matches(str(file), names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
