"""A projection in files, under torch's names: ``linear.weight [E, D]`` and ``linear.bias [E]``."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from clir_jax.models.hub import State
from clir_jax.models.weights import open_weights

_TENSORS = {"kernel": "linear.weight", "bias": "linear.bias"}  # ours, torch's (transposed)


def projection_tensors(params: State) -> dict[str, np.ndarray]:
    """Give a retriever's projection under torch's names.

    Args:
      params: the retriever's state, on any number of devices and hosts; every host must call.

    Returns:
      Float32 values by name; empty where there is no projection.
    """
    parts: dict[str, Any] = dict(params["projection"]) if "projection" in params else {}
    return {_TENSORS[name]: _on_host(part.get_value()).T for name, part in parts.items()}


def load_projection(
    directory: Path, target: Any, places: Any, *, alone: bool = True
) -> list[jax.Array]:
    """Read a projection.

    Args:
      directory: holds the weights.
      target: the abstract state of a ``Projection``.
      places: one ``Sharding``, a tree of them like ``target``, or None: JAX's default device.
      alone: whether the file holds the projection and nothing else.

    Returns:
      The arrays, in the order of the leaves of ``target``.

    Raises:
      ValueError: if the tensors are not those of the specification.
    """
    leaves = {name: target[name].get_value() for name in sorted(target)}
    wanted = {_TENSORS[name]: leaf.shape[::-1] for name, leaf in leaves.items()}
    one_place = places is None or isinstance(places, Sharding)
    each = [places] * len(leaves) if one_place else jax.tree.leaves(places)
    arrays = []
    with open_weights(directory) as weights:
        found = weights.shapes
        if not alone:
            found = {k: v for k, v in found.items() if k in _TENSORS.values()}
        if found != wanted:
            raise ValueError(
                f"{directory}: the tensors are {found} and the specification of the retriever "
                f"needs {wanted}; restore the files from one place"
            )
        for (name, leaf), place in zip(leaves.items(), each, strict=True):
            value = np.asarray(weights.read(_TENSORS[name]).T, leaf.dtype)
            arrays.append(jnp.asarray(value) if place is None else jax.device_put(value, place))
    return arrays


def _on_host(value: jax.Array) -> np.ndarray:
    if not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(jax.device_get(value), np.float32)
