"""Data sets of the Hugging Face hub, and files in its forms, through the package ``datasets``."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from clir_jax.data.columns import check_columns, no_split, open_rows
from clir_jax.data.opened import OpenedSource
from clir_jax.data.reading import DataError

_SAVED = ("state.json", "dataset_dict.json")


@dataclasses.dataclass(frozen=True)
class HubDataset:
    """A data set of the Hugging Face hub; needs the extra ``hub``.

    Args:
      name: on the hub, or a directory or file that ``datasets`` can load (Parquet, JSON lines, CSV,
        what ``save_to_disk`` wrote), relative to ``data_root``, if it is there.
      kind: of the records: "bitext", "ranking" or "text".
      columns: the column of each field, as ``TFDS`` takes it:
        ``{"english": "translation.en", "other": "translation.de"}``, or
        ``{"positives": "positive", "negatives": "negative_*"}``.
      language: of the other side, the question or the text; None reads it from the column
        ``language``, which must say the same in every record.
      subset: of a data set that has several: ``"en-de"``.
      split: ``"train"``, ``"train[:50%]"``.
      revision: branch, tag or commit on the hub; None takes the newest.
      on_bad_record: "error" stops at the first bad record; "skip" leaves it out and counts it.

    Raises:
      ValueError: if there is no such kind or field.
    """

    name: str
    kind: str = "bitext"
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    language: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        check_columns("HubDataset", self.kind, self.columns)

    def open(self, data_root: str) -> OpenedSource:
        """Download it if need be, and check every record; texts are read when they are asked for.

        Raises:
          DataError: if there is no such data set, or it holds a bad record.
          ImportError: if the package ``datasets`` is not installed.
        """
        rows = _ArrowRows(self._load(data_root), f"{self._title} {self.split}")
        return open_rows(rows, self.kind, self.columns, self.language, self.on_bad_record)

    @property
    def _title(self) -> str:
        return self.name if self.subset is None else f"{self.name}/{self.subset}"

    def _load(self, data_root: str) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                f"{self.name}: data sets of the hub need the package datasets; run "
                'pip install "clir_jax[hub]"'
            ) from error
        place = epath.Path(data_root) / self.name
        try:
            if any((place / name).is_file() for name in _SAVED):
                return self._saved(datasets.load_from_disk(str(place)))
            builder = self._builder(datasets, place)
            builder.download_and_prepare()
            if self.split.partition("[")[0] not in builder.info.splits and "+" not in self.split:
                raise no_split(self._title, self.split, sorted(builder.info.splits))
            return builder.as_dataset(split=self.split)
        except DataError:
            raise
        except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
            # Of an error while it was built, the cause says what it was.
            lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
            raise DataError(
                f"{self._title}: it cannot be loaded from data_root {data_root!r} or the hub "
                f"({lines[0]}); correct name, subset, split or revision"
            ) from error

    def _builder(self, datasets: Any, place: epath.Path) -> Any:
        if place.is_file():
            # Absolute: datasets takes its own name for the data from that of the folder.
            folder = str(place.resolve().parent)
            return datasets.load_dataset_builder(folder, data_files=place.name)
        if place.is_dir():
            return datasets.load_dataset_builder(str(place), self.subset)
        return datasets.load_dataset_builder(self.name, self.subset, revision=self.revision)

    def _saved(self, found: Any) -> Any:
        """The split of what ``save_to_disk`` wrote: one split, or several by name."""
        if not isinstance(found, dict):
            known = [str(found.split or "train")]
            if self.split not in known:
                raise no_split(self._title, self.split, known)
            return found
        if self.split not in found:
            raise no_split(self._title, self.split, sorted(found))
        return found[self.split]


class _ArrowRows:
    """The rows of one split; ``columns.Rows``."""

    def __init__(self, data: Any, name: str):
        self.name = name
        self._data = data.flatten()
        self.columns: Sequence[str] = tuple(self._data.column_names)

    def __len__(self) -> int:
        return len(self._data)

    def reader(self, columns: Sequence[str]) -> Callable[[Sequence[int]], list[list[Any]]]:
        """How to read the cells of these columns, row after row."""
        return functools.partial(_read, self._data.select_columns(columns).with_format("arrow"))


def _read(data: Any, rows: Sequence[int]) -> list[list[Any]]:
    # A view into Arrow's buffers; text stays bytes, so that one that is not UTF-8 can be named.
    columns = [_as_bytes(column).to_pylist() for column in data[rows].columns]
    return [list(row) for row in zip(*columns, strict=True)]


def _as_bytes(column: Any) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]

    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.large_binary())
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return column.cast(pa.list_(pa.binary()))
    return column
