"""Trees of parameters by readable path."""

from typing import Any

import jax


def path_of(keys: tuple[Any, ...]) -> str:
    """A leaf's path, as ``encoder/layers/attention/query/kernel``.

    Args:
      keys: as ``jax.tree_util`` gives them. Flax wraps every parameter in a variable, whose
        ``value`` says nothing and is left out.
    """
    names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in keys)
    return "/".join(map(str, names)).removesuffix("/value")


def paths(tree: Any) -> dict[str, Any]:
    """Every leaf by its path, in tree order."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
