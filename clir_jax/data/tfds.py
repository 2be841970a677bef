"""Data sets of TensorFlow Datasets that were prepared as ArrayRecord, read without TensorFlow."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from clir_jax.data.columns import check_columns, no_split, open_rows
from clir_jax.data.opened import OpenedSource
from clir_jax.data.reading import DataError


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A data set of TensorFlow Datasets, prepared as ArrayRecord.

    Records are read by number from local disks and from buckets, and no part of TensorFlow is
    needed. What ``python -m clir_jax.prepare`` writes is read by name and ``data_dir`` alone.

    Args:
      name: as TFDS spells it: ``"name"``, ``"name/config"`` or ``"name/config:1.0.0"``.
      kind: of the records: "bitext", "ranking" or "text".
      columns: the column of each field of a record, where it is not of the field's name:
        ``{"english": "en", "other": "de"}``. Bitext has the fields english and other; a ranking has
        query, positives and, if there are such columns, negatives and scores (of positives, then
        negatives), and ``query.en`` for the question in another language; text has text.
        Positives, negatives and scores may be lists, and a pattern may name several columns:
        ``"negative_*"``. A column inside another is written with a full stop.
      language: of the other side, the question or the text; None reads it from the column
        ``language``, which must say the same in every record.
      split: as TFDS spells it: ``"train"``, ``"train[:50%]"``.
      data_dir: where data sets were prepared, relative to ``data_root`` or a ``gs://`` address;
        None takes TFDS's own folder.
      on_bad_record: "error" stops at the first bad record; "skip" leaves it out and counts it.

    Raises:
      ValueError: if there is no such kind or field.
    """

    name: str
    kind: str = "bitext"
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    language: str | None = None
    split: str = "train"
    data_dir: str | None = None
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        check_columns("TFDS", self.kind, self.columns)

    def open(self, data_root: str) -> OpenedSource:
        """Read and check every record; texts are read again when they are asked for.

        Raises:
          DataError: if the data set is not prepared as ArrayRecord, or holds a bad record.
        """
        rows = _Examples(self._builder(data_root), self.name, self.split)
        return open_rows(rows, self.kind, self.columns, self.language, self.on_bad_record)

    def _builder(self, data_root: str) -> Any:
        # Imported late: a configuration is read without them.
        import tensorflow_datasets as tfds
        from google.protobuf import json_format  # type: ignore[import-untyped]

        folder = self.data_dir
        if folder is not None and "://" not in folder:
            folder = str(epath.Path(data_root) / folder)
        try:
            builder = tfds.core.read_only_builder.builder_from_files(self.name, data_dir=folder)
        except tfds.core.DatasetNotFoundError:
            place = "TFDS's own folder" if folder is None else f'"{folder}"'
            raise DataError(
                f"{self.name}: no data set of this name is prepared in {place}; run python -m "
                f"clir_jax.prepare for pairs of your own, or {_prepare(self.name, folder)}"
            ) from None
        except ImportError as error:
            raise ImportError(
                f"{self.name}: {folder} cannot be reached ({_first_line(error)}); "
                "install the package it names"
            ) from error
        except (json_format.Error, ValueError, OSError, KeyError) as error:
            raise DataError(
                f"{self.name}: what TFDS prepared cannot be read "
                f"({_first_line(error)}); correct the name, or prepare it again"
            ) from error
        file_format = builder.info.file_format
        if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise DataError(
                f"{self.name}: it was prepared as {getattr(file_format, 'value', 'no format')}, "
                "and only array_record is read here; with another data_dir run "
                f"{_prepare(self.name, 'DIR')}"
            )
        return builder


def _prepare(name: str, folder: str | None) -> str:
    where = "" if folder is None else f', data_dir="{folder}"'
    return f'tfds.builder("{name}"{where}, file_format="array_record").download_and_prepare()'


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class _Examples:
    """The rows of one split; ``columns.Rows``.

    Records are protocol buffers of ``tf.train.Example``, and their few text columns are taken from
    there directly: seven times as fast as having TFDS decode them through NumPy.
    """

    def __init__(self, builder: Any, name: str, split: str):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        self.name = f"{name} {split}"
        self._parse = tf_example_pb2.Example.FromString
        try:
            files = builder.info.splits[split].filepaths
        except (ValueError, KeyError):
            raise no_split(name, split, sorted(builder.info.splits)) from None
        for file in files:
            if not file.exists():
                raise DataError(f"{self.name}: its file {file} is missing; prepare it again")
        self._source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        self._places = dict(_flat(builder.info.features.get_tensor_info()))
        self.columns = tuple(self._places)

    def __len__(self) -> int:
        return len(self._source)

    def reader(self, columns: Sequence[str]) -> Callable[[Sequence[int]], list[list[Any]]]:
        """How to read the cells of these columns, row after row."""
        return functools.partial(self._read, [self._places[name] for name in columns])

    def _read(self, places: Sequence[tuple[str, bool]], rows: Sequence[int]) -> list[list[Any]]:
        source = self._source
        try:
            # Many at once are read by a pool of threads, which costs more than one record does.
            raws = source.__getitems__(rows) if len(rows) > 1 else [source[row] for row in rows]
            found = [self._parse(raw).features.feature for raw in raws]
        except (RuntimeError, IndexError, ValueError) as error:  # what array_record raises
            raise DataError(
                f"{self.name}: a file is damaged near record {rows[0]} ({_first_line(error)}); "
                "prepare it again"
            ) from error
        return [[_cell(features, *place) for place in places] for features in found]


def _flat(info: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Of every text, number or list of them: the column, its key in an example, whether a list."""
    if isinstance(info, Mapping):
        for name, inner in info.items():
            yield from _flat(inner, (*path, name))
    elif len(info.shape) <= 1:
        yield ".".join(path), ("/".join(path), len(info.shape) == 1)


def _cell(features: Any, key: str, listed: bool) -> Any:
    kind = features[key].WhichOneof("kind") if key in features else None
    values = [] if kind is None else list(getattr(features[key], kind).value)
    if listed:
        return values
    return values[0] if values else None
