"""The device mesh, the sharding rules and the one place where code runs per device.

Axes: ``data`` and ``fsdp`` split the rows of a batch; ``fsdp`` also splits parameters and optimizer
state; ``tensor`` splits the width of matrices. One device is the mesh 1 x 1 x 1, and every code
path below is then the plain function.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clir_jax.tree import path_of

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")
ROWS = P(ROW_AXES)

_Rows = TypeVar("_Rows")
_Out = TypeVar("_Out")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arrange the devices as ``data`` x ``fsdp`` x ``tensor``.

    Args:
      data: copies of the model that read different rows; -1 takes every device left over.
      fsdp: devices that share one copy of the parameters, and read different rows.
      tensor: devices that split every large matrix.
      devices: the devices to use; None takes all of this run, process by process.

    Returns:
      A mesh whose axes are all ``Auto``: the compiler places what ``rowwise`` does not.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    if devices is None:
        # So that the rows of a process are one range, as its data are.
        devices = sorted(jax.devices(), key=lambda device: device.process_index)
    fixed = fsdp * tensor
    if data == -1 and len(devices) % fixed == 0:
        data = len(devices) // fixed
    if data * fixed != len(devices) or min(data, fsdp, tensor) < 1:
        raise ValueError(
            f"mesh: data {data} x fsdp {fsdp} x tensor {tensor} does not make the {len(devices)} "
            "devices of this run; set data=-1, and fsdp and tensor so that fsdp x tensor divides "
            f"{len(devices)}"
        )
    grid = np.asarray(devices, dtype=object).reshape(data, fsdp, tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def row_shards(mesh: Any) -> int:
    """Number of parts into which the mesh splits the rows of a batch."""
    return int(np.prod([mesh.shape.get(axis, 1) for axis in ROW_AXES]))


def row_share(mesh: Mesh) -> tuple[int, int]:
    """Which share of a batch's rows this process reads, and of how many: (rank, world).

    Shares follow one another in the batch. Processes that ``tensor`` joins have the same.

    Raises:
      ValueError: if processes would share some of their rows and not all.
    """
    owners: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(row_shards(mesh), -1)):
        for device in devices:
            owners.setdefault(device.process_index, set()).add(row)
    shares = sorted({tuple(sorted(rows)) for rows in owners.values()})
    if sum(map(len, shares)) != row_shards(mesh):
        raise ValueError(
            f"mesh: tensor {mesh.shape['tensor']} splits the devices of a process between rows of "
            "the batch; set tensor so that it divides a process's devices, or is a multiple of "
            "their number"
        )
    return shares.index(tuple(sorted(owners[jax.process_index()]))), len(shares)


def on_one_cpu() -> bool:
    """Whether the program runs on a mesh of one CPU, and so for no accelerator."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size == 1 and jax.default_backend() == "cpu"


def rowwise(f: Callable[[Any, _Rows], _Out], shared: Any, rows: _Rows) -> _Out:
    """Run ``f(shared, rows)`` on each device's own rows.

    The result's row i depends on row i of ``rows`` only, so no device needs another's rows.
    ``shared`` (parameters, for instance) is gathered once on the way in, and its gradient is
    reduced once on the way out; left to the compiler, both would happen inside every loop of ``f``.

    Args:
      f: a function that treats the leading axis of every array in ``rows`` as independent rows.
      shared: a pytree that every device needs whole.
      rows: a pytree of arrays ``[R, ...]``; R divisible by data x fsdp.

    Returns:
      The pytree ``f`` returns; every array ``[R, ...]``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axis_types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    manual = any(axis_types.get(axis) == AxisType.Manual for axis in ROW_AXES)
    if manual or row_shards(mesh) == 1:
        return f(shared, rows)
    mapped: Callable[[Any, _Rows], _Out] = jax.shard_map(
        f, in_specs=(P(), ROWS), out_specs=ROWS, axis_names=set(ROW_AXES), check_vma=False
    )
    return mapped(shared, rows)


def replicated(tree: _Rows) -> _Rows:
    """Ask the compiler to give every device the whole of each array in ``tree``."""
    if row_shards(jax.sharding.get_abstract_mesh()) == 1:
        return tree
    whole: _Rows = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P()), tree)
    return whole


def look_up(table: Any, ids: Any) -> Any:
    """Take the rows ``ids`` of a table whose width the mesh splits.

    Where rows are this device's own (inside ``rowwise``) or there is one device, this is
    ``table[ids]``. Where the compiler places things, it is told to let each device look up its part
    of the width for the rows of its ``data`` group, and to exchange afterwards; left to itself it
    replicates the whole result.

    Args:
      table: ``[V, D]``.
      ids: ``[R, T]`` integers.

    Returns:
      ``[R, T, D]``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = any(kind == AxisType.Manual for kind in mesh.axis_types)
    if manual or row_shards(mesh) == 1:
        return table[ids]
    place: Callable[..., Any] = jax.lax.with_sharding_constraint
    rows = place(table[place(ids, P("data"))], P("data", None, ("fsdp", "tensor")))
    return place(rows, ROWS)


Rules = Sequence[tuple[str, P]]

# The first pattern found in a parameter's path places it. Stacked layers have a leading axis L.
# Word embeddings are split by width: vocabularies (250,002 or 119,547 pieces) divide by nothing.
PARAMETER_RULES: Rules = (
    (r"(embeddings/word|head)/embedding$", P(None, ("fsdp", "tensor"))),
    (r"(embeddings/(position|token_type)|position_bias)/embedding$", P()),
    (r"layers/(\w*attention/(query|key|value)|mlp/(gate|up))/kernel$", P(None, "fsdp", "tensor")),
    (r"layers/(attention/(query|key|value)|mlp/up)/bias$", P(None, "tensor")),
    (r"layers/(\w*attention/output|mlp/down)/kernel$", P(None, "tensor", "fsdp")),
    (r"(projection|head/(dense|score))/kernel$", P("fsdp", None)),
    (r"(scale|bias)$", P()),
)


def shardings(tree: Any, mesh: Mesh, rules: Rules = PARAMETER_RULES) -> Any:
    """Place every parameter, and whatever mirrors parameters (gradients, Adam's moments).

    Args:
      tree: arrays or abstract arrays.
      mesh: the mesh.
      rules: ordered (pattern, spec) pairs; the first pattern found in a leaf's path holds. Scalars
        are replicated.

    Returns:
      A tree of ``NamedSharding``. An axis that its mesh axes do not divide stays whole.

    Raises:
      ValueError: if no pattern matches a leaf.
    """

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if not leaf.shape:
            return NamedSharding(mesh, P())
        path = path_of(keys)
        for pattern, spec in rules:
            if re.search(pattern, path):
                return NamedSharding(mesh, _divisible(spec, leaf.shape, mesh))
        raise ValueError(
            f"mesh: no sharding rule matches the parameter {path} {list(leaf.shape)}; add a "
            "pattern to clir_jax.mesh.PARAMETER_RULES"
        )

    return jax.tree_util.tree_map_with_path(place, tree)


def put_rows(tree: _Rows, mesh: Mesh) -> _Rows:
    """Put this process's rows of a batch on the devices: the global batch joins those of all.

    Args:
      tree: numpy arrays ``[rows of this process, ...]``.
      mesh: the mesh; its row shards divide the rows of the global batch.

    Returns:
      Arrays ``[rows of all processes, ...]``, split by rows.
    """
    sharding = NamedSharding(mesh, ROWS)
    placed: _Rows = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), tree
    )
    return placed


def put_whole(tree: _Rows, mesh: Mesh) -> _Rows:
    """Put rows on the devices that every process has, all of them.

    Args:
      tree: numpy arrays ``[R, ...]``, the same in all processes.
      mesh: the mesh; its row shards divide R.

    Returns:
      Arrays ``[R, ...]``, split by rows.
    """
    sharding = NamedSharding(mesh, ROWS)
    placed: _Rows = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape), tree
    )
    return placed


def on_host(tree: _Rows) -> _Rows:
    """Numpy arrays of arrays, also where other processes hold a part of these; all of them call."""

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    fetched: _Rows = jax.tree.map(fetch, tree)
    return fetched


def _divisible(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    """``spec`` without the mesh axes that do not divide the array's."""
    kept: list[Any] = []
    for size, axes in zip(shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else (axes or ())
        parts = int(np.prod([mesh.shape[name] for name in names]))
        kept.append(axes if names and size % parts == 0 else None)
    return P(*kept)
