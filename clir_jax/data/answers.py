"""A teacher's answers on disk: computed once, and read back by the text that was asked.

A directory holds the answers to R distinct texts, K vectors in all::

  vectors.bin     [K, E] float16, text after text: the vectors that are kept
  positions.bin   [K] uint16, the position of each in its text
  offsets.bin     [R + 1] int64, where the vectors of each text begin
  digests.bin     [R] 16 bytes, the blake2b digest of each text
  order.bin       [R] int64, the rows by rising digest; written last
  answers.json    R, K, E, and whether a text has one vector (a dense retriever)
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int, Shaped

from clir_jax.data.reading import DataError
from clir_jax.files import read_json, replacing, write_json
from clir_jax.models.requests import Array, Embeddings

_ABOUT, _ORDER = "answers.json", "order.bin"
_NOTHING = {"rows": 0, "vectors": 0, "embedding_size": 0}
_DIGEST = np.dtype("S16")  # 16 bytes each: what numpy strips of the end, equal lengths give back


class Answers:
    """The stored answers of one teacher to one ask; any thread may read them.

    ``Answers.open(directory)`` makes one, and reads no vector. Called with texts, it gives what the
    teacher would answer, rounded to float16.

    Args:
      directory: where they are, for messages.
      about: what ``answers.json`` holds.
      vectors: ``[K, E]`` kept vectors.
      positions: ``[K]`` their positions.
      offsets: ``[R + 1]`` where each text's vectors begin.
      digests: ``[R]`` of the texts.
      order: ``[R]`` rows by rising digest.
    """

    def __init__(
        self,
        directory: Path,
        about: dict[str, Any],
        vectors: Float[np.ndarray, "K E"],
        positions: Shaped[np.ndarray, " K"],
        offsets: Int[np.ndarray, " bounds"],
        digests: Shaped[np.ndarray, " R"],
        order: Int[np.ndarray, " R"],
    ) -> None:
        self._directory, self._one_vector = directory, bool(about["one_vector"])
        self._vectors, self._positions, self._offsets = vectors, positions, offsets
        self._digests, self._order = digests, order

    @classmethod
    def open(cls, directory: Path) -> "Answers":
        """Map the files of a directory that ``AnswerWriter`` has finished.

        Raises:
          DataError: if there are no answers, they are not finished, or a file is damaged.
        """
        about = _read_about(directory)
        if about is None or not (directory / _ORDER).exists():
            raise DataError(
                f"{directory}: there are no stored answers here, or not all of them yet; run the "
                "work that writes them to its end"
            )
        for name, wanted in _sizes(about).items():
            size = _bytes(directory / name)
            if size != wanted:
                raise DataError(
                    f"{directory / name}: the file has {size} bytes, and {_ABOUT} beside it says "
                    f"{wanted}; delete the directory, and run the work that writes it"
                )
        maps = [_map(directory / name, *form) for name, form in _shapes(about).items()]
        vectors, positions, offsets, digests = maps
        order = np.fromfile(directory / _ORDER, np.int64)
        return cls(directory, about, vectors, positions, offsets, digests, order)

    def __len__(self) -> int:
        return len(self._order)

    def __call__(self, texts: Sequence[str], width: int) -> Embeddings:
        """Read the answers to texts.

        Args:
          texts: R texts, each of them stored.
          width: T, positions a text; a dense retriever's answer has T = 1, whatever it is.

        Returns:
          Numpy arrays: vectors ``[R, T, E]`` float16, 0 outside the mask ``[R, T]``.

        Raises:
          DataError: if a text was never stored, or keeps a position beyond ``width``.
        """
        rows = self.rows(texts)
        width = 1 if self._one_vector else width
        used = self.widths(rows)
        if (used > width).any():
            n = int(np.argmax(used > width))
            raise DataError(
                f"{self._directory}: the answer to {_shown(texts[n])} keeps position "
                f"{used[n] - 1}, and {width} positions were asked for; ask for the length that "
                "was stored"
            )
        return self.read(rows, width)

    def read(self, rows: Int[np.ndarray, " n"], width: int) -> Embeddings:
        """Read the answers in some rows, in which they were stored.

        Args:
          rows: n numbers from 0.
          width: T, at least ``widths(rows)``.

        Returns:
          As of a call.
        """
        starts = self._offsets[rows]
        counts = self._offsets[rows + 1] - starts
        row = np.repeat(np.arange(len(rows)), counts)
        first = np.cumsum(counts) - counts
        places = np.arange(len(row)) + np.repeat(starts - first, counts)
        positions = self._positions[places]
        vectors = np.zeros((len(rows), width, self._vectors.shape[1]), np.float16)
        mask = np.zeros((len(rows), width), bool)
        vectors[row, positions] = self._vectors[places]
        mask[row, positions] = True
        return Embeddings(*cast(tuple[Array, Array], (vectors, mask)))

    def widths(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Positions up to the last that is kept, at least 1."""
        ends = self._offsets[rows + 1]
        if not len(self._positions):
            return np.ones(len(rows), np.int64)
        last = self._positions[np.maximum(ends, 1) - 1].astype(np.int64)
        return np.where(ends > self._offsets[rows], last, 0) + 1

    def rows(self, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
        """The rows of texts.

        Raises:
          DataError: if a text was never stored.
        """
        wanted = _digests(texts)
        place = np.searchsorted(self._digests, wanted, sorter=self._order)
        rows = np.asarray(self._order[np.minimum(place, len(self) - 1)])
        missing = self._digests[rows] != wanted
        if missing.any():
            text = texts[int(np.argmax(missing))]
            raise DataError(
                f"{self._directory}: no answer is stored for {_shown(text)}; "
                "let EncodeTeacher read the same data as the stage"
            )
        return rows


class AnswerWriter:
    """Writes a directory of answers, block by block.

    After a kill, a new writer goes on behind the last block that ``append`` had finished.

    Args:
      directory: made if it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._about = _read_about(directory) or _NOTHING
        if any(_bytes(directory / n) < size for n, size in _sizes(self._about).items()):
            self._about = _NOTHING  # a file was lost: all begins anew
        for name, size in _sizes(self._about).items():
            with open(directory / name, "ab") as file:
                # What a kill left behind the last block goes; an empty offsets.bin becomes one 0.
                file.truncate(size)

    @property
    def rows(self) -> int:
        """Texts that are stored."""
        return int(self._about["rows"])

    def append(self, texts: Sequence[str], answers: Embeddings) -> None:
        """Store a block: all of it, or after a kill nothing.

        Args:
          texts: R texts that are not stored yet.
          answers: numpy arrays ``[R, T, E]`` and ``[R, T]``; T = 1 is a dense retriever's.

        Raises:
          DataError: if float16 cannot hold a vector.
        """
        mask = np.asarray(answers.mask)
        with np.errstate(over="ignore"):
            kept = np.asarray(answers.vectors)[mask].astype(np.float16)
        counts = mask.sum(axis=1, dtype=np.int64)
        bad = ~np.isfinite(kept).all(axis=1)
        if bad.any():
            row = np.repeat(np.arange(len(texts)), counts)[np.argmax(bad)]
            raise DataError(
                f"{self._directory}: the answer to {_shown(texts[row])} has a number that is not "
                "finite in float16; take a teacher whose vectors have length 1"
            )
        self._write("vectors.bin", kept)
        self._write("positions.bin", np.nonzero(mask)[1].astype(np.uint16))
        before = int(self._about["vectors"])
        self._write("offsets.bin", before + np.cumsum(counts))
        self._write("digests.bin", _digests(texts))
        self._about = {
            "rows": self.rows + len(texts),
            "vectors": before + len(kept),
            "embedding_size": kept.shape[1],
            "one_vector": mask.shape[1] == 1,
        }
        write_json(self._directory / _ABOUT, self._about)

    def finish(self) -> None:
        """Make what is stored ready to be read."""
        digests = np.fromfile(self._directory / "digests.bin", _DIGEST)
        with replacing(self._directory / _ORDER) as unfinished:
            np.argsort(digests, kind="stable").astype(np.int64).tofile(unfinished)

    def _write(self, name: str, values: Shaped[np.ndarray, "..."]) -> None:
        with open(self._directory / name, "ab") as file:
            values.tofile(file)


def digest(text: str) -> bytes:
    """What stands for a text: 16 bytes, in which no two texts that anyone writes are equal."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST.itemsize).digest()


def _digests(texts: Iterable[str]) -> Shaped[np.ndarray, " R"]:
    return np.frombuffer(b"".join(map(digest, texts)), _DIGEST)


def _read_about(directory: Path) -> dict[str, Any] | None:
    path = directory / _ABOUT
    if not path.exists():
        return None
    anew = f"delete {directory}, and run the work that writes it"
    about: dict[str, Any] = read_json(path, dict, anew)
    if not _NOTHING.keys() <= about.keys():
        raise DataError(f"{path}: it tells {', '.join(about) or 'nothing'}; {anew}")
    return about


def _shapes(about: dict[str, Any]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Dtype and shape of each file that ``append`` writes to."""
    rows, vectors = about["rows"], about["vectors"]
    return {
        "vectors.bin": (np.dtype(np.float16), (vectors, about["embedding_size"])),
        "positions.bin": (np.dtype(np.uint16), (vectors,)),
        "offsets.bin": (np.dtype(np.int64), (rows + 1,)),
        "digests.bin": (_DIGEST, (rows,)),
    }


def _sizes(about: dict[str, Any]) -> dict[str, int]:
    return {
        name: int(np.prod(shape)) * dtype.itemsize
        for name, (dtype, shape) in _shapes(about).items()
    }


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    # An array and not np.memmap, whose every slice would be one more object of that class.
    return np.asarray(np.memmap(path, dtype, "r", shape=shape))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
