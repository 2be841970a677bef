"""Weight files: read one slice of one tensor at a time, write a file whole or not at all."""

import contextlib
import importlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from clir_jax.files import read_json, replacing

_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"


class Weights:
    """The tensors of a model directory, none of which is in memory until it is read.

    Args:
      shapes: shape of every tensor, by its name in the files.
      tensors: a handle for each name that takes a tuple of slices and returns that part.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], tensors: dict[str, Any]) -> None:
        self.shapes = shapes
        self._tensors = tensors

    def rename(self, names: Mapping[str, str]) -> None:
        """Call tensors by other names from now on.

        Args:
          names: new names by old ones; every old one a key of ``shapes``.
        """
        for old, new in names.items():
            self.shapes[new], self._tensors[new] = self.shapes.pop(old), self._tensors.pop(old)

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """Read a tensor, or a block of it.

        Args:
          name: a key of ``shapes``.
          index: a slice for each axis; None reads all of the tensor.

        Returns:
          The values as float32, or float64 where the file holds float64.
        """
        if index is None:
            index = (slice(None),) * len(self.shapes[name])
        block = self._tensors[name][index]
        if not isinstance(block, np.ndarray):  # torch knows bfloat16, NumPy on its own does not
            block = (block if "float64" in str(block.dtype) else block.float()).numpy()
        return np.asarray(block, np.promote_types(block.dtype, np.float32))


@contextlib.contextmanager
def open_weights(directory: str | os.PathLike[str]) -> Iterator[Weights]:
    """Open the weights of a model directory in Hugging Face's layout.

    Args:
      directory: holds ``model.safetensors``, ``pytorch_model.bin`` or a set of such files with
        their ``.index.json``; looked for in this order, safetensors first.

    Yields:
      The tensors; valid inside the ``with`` block.

    Raises:
      FileNotFoundError: if no weights are there, or a file that the index names is missing.
      ImportError: if there is only a ``.bin`` and torch is not installed.
    """
    directory = Path(directory)
    for name in (_SAFETENSORS, _BIN):
        files = _files(directory, name)
        if files:
            break
    else:
        raise FileNotFoundError(
            f"{directory}: no {_SAFETENSORS} and no {_BIN} here; give a directory that holds one"
        )
    with contextlib.ExitStack() as stack:
        shapes: dict[str, tuple[int, ...]] = {}
        tensors: dict[str, Any] = {}
        for file in files:
            found = _open_bin(file) if name == _BIN else _open_safetensors(file, stack)
            for key, tensor in found.items():
                shape = tensor.shape if name == _BIN else tensor.get_shape()
                shapes[key], tensors[key] = tuple(shape), tensor
        yield Weights(shapes, tensors)


def _files(directory: Path, name: str) -> list[Path]:
    if (directory / name).is_file():
        return [directory / name]
    index = directory / f"{name}.index.json"
    if not index.is_file():
        return []
    names = read_json(index, dict).get("weight_map")
    if not isinstance(names, dict):
        raise ValueError(f'{index}: no "weight_map" of tensors and files; restore the file')
    parts = sorted(set(names.values()))
    missing = [part for part in parts if not (directory / part).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index}: names {', '.join(missing)}, which are not in the directory; "
            "copy or download all parts"
        )
    return [directory / part for part in parts]


def _open_safetensors(file: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    try:
        handle = stack.enter_context(safe_open(file, framework="numpy"))
    except SafetensorError as error:
        raise _damaged(file, error) from error
    return {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)


def _open_bin(file: Path) -> dict[str, Any]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"{file}: reading a .bin file needs torch, which is not installed; "
            "run `pip install torch`, or give a model that has model.safetensors"
        ) from error
    mapped = zipfile.is_zipfile(file)
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=mapped))
    except Exception as error:  # pickle, zip files and torch each raise their own
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ValueError:
    why = type(error).__name__
    return ValueError(f"{file}: the weights cannot be read ({why}); copy or download them again")


def write_weights(directory: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> Path:
    """Write ``model.safetensors``, so that torch libraries load it.

    Args:
      directory: made if it does not exist.
      tensors: the values by name.

    Returns:
      The path of the file. It is whole, or what was there before.
    """
    path = Path(directory) / _SAFETENSORS
    # safetensors writes the memory as it lies: a transposed view would be saved untransposed.
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with replacing(path) as unfinished:
        save_file(whole, unfinished, metadata={"format": "pt"})
    return path
