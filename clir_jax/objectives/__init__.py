"""Objectives: frozen dataclasses that declare what they ask and compute a loss from the answers."""

import dataclasses
import importlib
import pkgutil
from typing import Any


def discover() -> dict[str, type[Any]]:
    """Every objective in this package, by class name.

    A file dropped into this directory is found: configurations may name its classes, and the
    contract test runs them.
    """
    found: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, member in vars(module).items():
            if not isinstance(member, type) or member.__module__ != module.__name__:
                continue
            if dataclasses.is_dataclass(member) and hasattr(member, "loss"):
                found[name] = member
    return found
