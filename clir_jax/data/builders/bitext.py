"""A TFDS builder for bitext, and its writing shard by shard, so that a kill costs one shard."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import GeneratorBasedBuilder
from tensorflow_datasets.proto import tf_example_pb2

from clir_jax.data.opened import BitextRecords
from clir_jax.data.reading import DataError
from clir_jax.files import part_of, replacing, write_json

_VERSION = "1.0.0"
_SPLIT = "train"
_SHARD_PAIRS = 100_000
# What was prepared from what, and the shards that are whole.
_STATE = "prepared.json"
_TEXT = "text_sha256"
_TELL_EVERY = 1_000


class BitextBuilder(GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
    """Pairs, in their order, as a TFDS data set: features english, other, language and id.

    ``prepare`` writes the same with resume; TFDS's own ``download_and_prepare`` starts anew.

    Args:
      records: the pairs.
      name: of the data set.
      data_dir: where data sets are prepared.
    """

    VERSION = tfds.core.Version(_VERSION)
    url_infos = None  # nothing is downloaded; TFDS would look for checksums beside this file

    def __init__(self, records: BitextRecords, name: str, data_dir: str):
        self.name = name
        self.records = records
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> Any:
        text = tfds.features.Text()
        numbers = tfds.features.Scalar(np.int32)  # equal for pairs that share a side
        features = {"english": text, "other": text, "language": text, "id": numbers}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Sentence pairs in English and {self.records.languages[0]}.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Any]]:
        for i in range(len(self.records)):
            yield i, vars(self.records[i])


def prepare(
    records: BitextRecords,
    name: str,
    out: Path,
    shards: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write pairs as a TFDS data set; after a kill, the same call goes on where it was.

    Shards are written to ``out/name/1.0.0.part`` and the directory is renamed when all are there,
    so that nothing takes a part for the whole. The result does not depend on interruptions.

    Args:
      records: the pairs.
      name: of the data set: letters, digits and underscores.
      out: the directory of data sets, TFDS's ``data_dir``.
      shards: files to write; None writes one for every 100,000 pairs.
      progress: told now and then how many pairs are written, and of how many.

    Returns:
      The data set's directory, ``out/name/1.0.0``.

    Raises:
      DataError: if the directory holds something else, or what it holds is damaged.
      ValueError: if the name is none, or there are more shards than pairs.
    """
    pairs = len(records)
    shards = -(-pairs // _SHARD_PAIRS) if shards is None else shards
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"name is {name!r}; write small letters, digits and underscores, a letter first"
        )
    if not 1 <= shards <= pairs:
        raise ValueError(f"shards is {shards} for {pairs} pairs; write 1 to {pairs}")
    facts = {
        "language": records.languages[0],
        "pairs": pairs,
        "shards": shards,
        _TEXT: _digest(records),
    }
    whole = out / name / _VERSION
    directory = whole if whole.exists() else part_of(whole)
    done = _whole_shards(directory, facts)
    if directory == whole:
        for file in (whole / name for name in ("dataset_info.json", "features.json")):
            if not file.is_file():
                raise _damaged(file, whole)
        return whole
    builder = BitextBuilder(records, name, str(out))
    files = [f"{name}-{_SPLIT}.array_record-{k:05d}-of-{shards:05d}" for k in range(shards)]
    ends = [pairs * k // shards for k in range(shards + 1)]
    progress(ends[len(done)], pairs)
    for k in range(len(done), shards):
        rows = range(ends[k], ends[k + 1])
        done[files[k]] = _write_shard(builder, directory / files[k], rows, progress)
        write_json(directory / _STATE, {**facts, "files": done})
    _write_info(builder, directory, np.diff(ends).tolist(), sum(x["bytes"] for x in done.values()))
    directory.rename(whole)
    return whole


def _digest(records: BitextRecords) -> str:
    digest = hashlib.sha256()
    for i in range(len(records)):
        pair = records[i]
        for text in (pair.english, pair.other):
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _whole_shards(directory: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The shards that an earlier call finished; begins the directory if there was none."""
    state = directory / _STATE
    if not state.exists():
        strange = [file for file in directory.glob("*") if file != part_of(state)]
        if strange:
            raise DataError(
                f"{directory}: this was not written by clir_jax.prepare; choose another --name or "
                "--out, or remove it"
            )
        write_json(state, {**facts, "files": {}})
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
        done = {name: dict(about) for name, about in found["files"].items()}
        digests = {directory / name: about["sha256"] for name, about in done.items()}
        changed = [name for name in facts if found[name] != facts[name]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(state, directory) from error
    if changed:
        before, now = found[changed[0]], facts[changed[0]]
        how = "from other text" if changed == [_TEXT] else f"with {changed[0]} {before}, not {now}"
        raise DataError(
            f"{directory}: it was prepared {how}; choose another --name or --out, or remove it"
        )
    for file, digest in digests.items():
        if not file.is_file() or _file_digest(file) != digest:
            raise _damaged(file, directory)
    return done


def _damaged(file: Path, directory: Path) -> DataError:
    return DataError(f"{file}: the file is missing or damaged; remove {directory}")


def _file_digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write_shard(
    builder: BitextBuilder, file: Path, rows: range, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    size = 0
    with replacing(file) as unfinished:
        # Groups of one record, so that one is read without its neighbours.
        writer = ArrayRecordWriter(str(unfinished), "group_size:1")
        for row in rows:
            example = builder.info.features.serialize_example(vars(builder.records[row]))
            # TFDS leaves the order of features to the process, and two attempts would differ.
            example = tf_example_pb2.Example.FromString(example).SerializeToString(
                deterministic=True
            )
            writer.write(example)
            size += len(example)
            if (row + 1) % _TELL_EVERY == 0 or row + 1 == rows.stop:
                progress(row + 1, len(builder.records))
        writer.close()
        digest = _file_digest(unfinished)
    return {"bytes": size, "sha256": digest}


def _write_info(builder: BitextBuilder, directory: Path, lengths: list[int], size: int) -> None:
    """What TFDS reads first: ``dataset_info.json`` and ``features.json``."""
    split = tfds.core.SplitInfo(name=_SPLIT, shard_lengths=lengths, num_bytes=size)
    builder.info.set_splits(tfds.core.SplitDict([split]))
    builder.info.write_to_directory(str(directory))
