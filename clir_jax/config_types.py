"""Whether the values of a configuration fit their annotations, and how to say so to a person."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Union


class Checked:
    """Base of the dataclasses in ``clir_jax.config``: values fit their annotations, at any depth.

    Objectives, sources and model specifications are dataclasses too; they are checked as parts of
    what holds them.

    Raises:
      ValueError: naming the first field that holds another type, when the object is made.
    """

    def __post_init__(self) -> None:
        _check_fields(self, type(self).__name__)


def require(holds: bool, what: str, value: Any, wanted: str) -> None:
    """Refuse a value in one sentence unless ``holds``.

    Raises:
      ValueError: ``{what} is {value}; it must be {wanted}``.
    """
    if not holds:
        raise ValueError(f"{what} is {shown(value)}; it must be {wanted}")


def require_name(name: str, what: str) -> None:
    """Refuse a name that cannot be that of a file.

    Raises:
      ValueError: if it is empty, starts with a full stop or holds anything but letters, digits and
        ``-_.``
    """
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise ValueError(
            f"{what}: its name is {name!r}, and it becomes the name of a file; write letters, "
            "digits, '-', '_' and '.' only"
        )


def named(names: Iterable[str]) -> str:
    """Names as a list for a sentence."""
    return ", ".join(sorted(names)) or "(none)"


def walk(node: Any) -> Iterator[Any]:
    """Every dataclass in a configuration, outer ones first."""
    if dataclasses.is_dataclass(node):
        yield node
        node = tuple(getattr(node, field.name) for field in dataclasses.fields(node))
    members = node.values() if isinstance(node, Mapping) else node
    if isinstance(node, Mapping | tuple):
        for member in members:
            yield from walk(member)


def mapped(node: Any, change: Callable[[Any], Any]) -> Any:
    """A configuration with every dataclass in it that ``change`` replaces; outer ones first.

    Args:
      node: a dataclass, a mapping, a tuple or a plain value.
      change: gives another value, in which nothing is looked for, or the same.

    Returns:
      The same object where nothing in it has changed.
    """
    if isinstance(node, Mapping):
        members = {key: mapped(member, change) for key, member in node.items()}
        return members if any(members[key] is not node[key] for key in node) else node
    if isinstance(node, tuple):
        listed = tuple(mapped(member, change) for member in node)
        return listed if any(a is not b for a, b in zip(listed, node, strict=True)) else node
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    changed = change(node)
    if changed is not node:
        return changed
    fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if f.init}
    values = {name: mapped(value, change) for name, value in fields.items()}
    different = {name: value for name, value in values.items() if value is not fields[name]}
    return dataclasses.replace(node, **different) if different else node


def options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation is the only one of its kind."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(typing.get_args(hint))
    return (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the annotated type; whole numbers serve as numbers, booleans do not.

    Example:
      >>> fits(1, float), fits(True, int), fits(("a", 1), tuple[str, ...])
      (True, False, False)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if is_mapping(hint):
        return isinstance(value, Mapping) and all(
            fits(key, arguments[0]) and fits(member, arguments[1]) for key, member in value.items()
        )
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(member, arguments[0]) for member in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    if hint is None:
        return value is None
    return isinstance(value, origin or hint)


def spelled(hint: Any) -> str:
    """An annotation in words.

    Example:
      >>> spelled(tuple[int, ...] | None)
      'a tuple (in JSON a list) of whole numbers or None'
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(map(spelled, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return f"a tuple (in JSON a list) of {_plural(spelled(arguments[0]))}"
    if is_mapping(hint):
        return f"a mapping from {spelled(arguments[0])} to {spelled(arguments[1])}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it would fill the screen."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_mapping(hint: Any) -> bool:
    """Whether an annotation is ``Mapping[...]`` or ``dict[...]``."""
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _plural(words: str) -> str:
    return words[2:] + "s" if words.startswith("a ") and words.endswith("number") else words


def _check_fields(value: Any, where: str) -> None:
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        member = getattr(value, field.name)
        label = f"{where}.{field.name}"
        require(fits(member, hints[field.name]), label, member, spelled(hints[field.name]))
        _check_inside(member, label)


def _check_inside(value: Any, where: str) -> None:
    if isinstance(value, Mapping | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, member in pairs:
            _check_inside(member, f"{where}.{key}")
    # What is Checked has checked itself.
    elif dataclasses.is_dataclass(value) and not isinstance(value, Checked):
        _check_fields(value, where)
