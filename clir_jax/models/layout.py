"""A model's parameters under the names of Hugging Face's files: read into place, and given back."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from clir_jax.models.weights import Weights

PathLike = str | os.PathLike[str]
State = nnx.State[Any, Any]

_LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the parameters of one kind of model are called in its files.

    Below a module ``layers``, parameters of all layers are stacked on a leading axis; the file has
    a tensor for each. Kernels ``[in, out]`` are transposed there.

    Args:
      modules: our path of a module -> its name in the file; {} is the number of the layer.
      ignored: starts of names that are not of this model: heads, constant buffers, copies.
      loader: the function that takes ``ignore``, for the sentence of an error.
    """

    modules: Mapping[str, str]
    ignored: tuple[str, ...]
    loader: str

    def read(
        self,
        directory: Path,
        weights: Weights,
        target: State,
        prefix: str = "",
        shardings: Any = None,
        ignore: Sequence[str] = (),
    ) -> State:
        """Read every parameter, each straight to where it belongs.

        Args:
          directory: whose weights they are, for the sentence of an error.
          weights: its tensors.
          target: a state whose leaves are ``jax.ShapeDtypeStruct``.
          prefix: what comes before every name in the files.
          shardings: one ``Sharding`` for all, a tree of them with the structure of ``target``, or
            None, JAX's default device. Each host reads only the blocks of its own devices.
          ignore: starts of further names to leave out.

        Returns:
          The state with arrays.

        Raises:
          ValueError: if a parameter is missing, a tensor is not used, or a shape differs; the
            message lists every difference.
        """
        leaves, treedef = jax.tree_util.tree_flatten_with_path(target)
        self._check(directory, weights, leaves, prefix, ignore)
        places = [shardings] * len(leaves)
        if shardings is not None and not isinstance(shardings, Sharding):
            places = jax.tree.leaves(shardings)
        arrays = [
            self._place(weights, prefix, path, leaf, place)
            for (path, leaf), place in zip(leaves, places, strict=True)
        ]
        state: State = jax.tree.unflatten(treedef, arrays)
        return state

    def tensors(self, params: State, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        """Give parameters under the files' names, one layer's tensor after another.

        Args:
          params: the model's own state, on any number of devices and hosts; every host must call.
          prefix: put before every name, ``"bert."`` for instance.

        Yields:
          Name and float32 value (a view where possible).
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name, stacked, transposed = self._source(path, prefix)
            if leaf.is_fully_addressable:
                leaf = jax.device_get(leaf)
            else:
                leaf = multihost_utils.process_allgather(leaf, tiled=True)
            value = np.asarray(leaf, np.float32)
            for layer, part in enumerate(value if stacked else value[None]):
                yield name.format(layer), part.T if transposed else part

    def _source(self, path: Any, prefix: str) -> tuple[str, bool, bool]:
        """Name in the file of a leaf, whether {} in it is the layer, and if it is transposed."""
        *module, leaf = (key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        name = f"{prefix}{self.modules['/'.join(module)]}.{_LEAVES[leaf]}"
        return name, "layers" in module, leaf == "kernel"

    def _check(
        self,
        directory: Path,
        weights: Weights,
        leaves: Sequence[tuple[Any, Any]],
        prefix: str,
        ignore: Sequence[str],
    ) -> None:
        wanted: dict[str, tuple[int, ...]] = {}
        for path, leaf in leaves:
            name, stacked, transposed = self._source(path, prefix)
            shape = leaf.shape[1:] if stacked else leaf.shape
            for layer in range(leaf.shape[0] if stacked else 1):
                wanted[name.format(layer)] = shape[::-1] if transposed else shape
        left_out = (*self.ignored, *ignore)
        found = {
            name: shape
            for name, shape in weights.shapes.items()
            if not name.startswith(left_out) and not name.removeprefix(prefix).startswith(left_out)
        }
        problems = []
        if missing := [name for name in wanted if name not in found]:
            problems.append("missing " + _some(missing))
        if unexpected := [name for name in found if name not in wanted]:
            problems.append("unexpected " + _some(unexpected))
        if wrong := [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ]:
            problems.append("of another shape " + _some(wrong))
        if problems:
            raise ValueError(
                f"{directory}: the weights do not fit config.json: {'; '.join(problems)}; "
                f"take both files from one model, or leave tensors out with "
                f"{self.loader}(ignore=...)"
            )

    def _place(self, weights: Weights, prefix: str, path: Any, leaf: Any, place: Any) -> jax.Array:
        """Read one parameter, block by block of its sharding, and put it on the devices."""
        name, stacked, transposed = self._source(path, prefix)
        blocks: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

        def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
            return weights.read(name, index[::-1]).T if transposed else weights.read(name, index)

        def block(index: tuple[slice, ...] | None) -> np.ndarray:
            index = (slice(None),) * len(leaf.shape) if index is None else index
            spans = tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True))
            if spans not in blocks:  # replicas ask for the same block once each
                slices = tuple(slice(*span) for span in spans)
                values = np.empty([stop - start for start, stop in spans], leaf.dtype)
                if stacked:
                    for row, layer in enumerate(range(*spans[0])):
                        values[row] = read(name.format(layer), slices[1:])
                else:
                    values[...] = read(name, slices)
                blocks[spans] = values
            return blocks[spans]

        if place is None:
            return jnp.asarray(block(None))
        return jax.make_array_from_callback(leaf.shape, place, block)


def _some(names: Sequence[str], limit: int = 12) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
