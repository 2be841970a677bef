"""Stored answers, against the arrays they were made of."""

import itertools
import re

import numpy as np
import pytest

from clir_jax.data import answers as module
from clir_jax.data.answers import Answers, AnswerWriter
from clir_jax.data.reading import DataError
from clir_jax.models.requests import Embeddings

N, T, E = 40, 7, 4
TEXTS = [f"text {n}" for n in range(N)]


def answered(width=T):
    """Vectors that are not 0 where nothing is kept, so that the mask matters."""
    rng = np.random.default_rng(0)
    mask = rng.random((N, width)) < 0.6
    mask[3] = False
    if width == 1:
        mask[:] = True
    return Embeddings(rng.normal(size=(N, width, E)).astype(np.float32), mask)


def write(directory, answers, ends=(15, 16, N)):
    writer = AnswerWriter(directory)
    starts = [writer.rows, *(end for end in ends if end > writer.rows)]
    for start, end in itertools.pairwise(starts):
        block = Embeddings(answers.vectors[start:end], answers.mask[start:end])
        writer.append(TEXTS[start:end], block)
    writer.finish()
    return Answers.open(directory)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("width", [T, 1])
def test_answers_come_back_by_their_text(tmp_path, width):
    given = answered(width)
    stored = write(tmp_path, given)
    assert len(stored) == N
    rows = np.random.default_rng(1).integers(0, N, 60)
    wide = 1 if width == 1 else T + 2
    found = stored([TEXTS[row] for row in rows], T + 2)
    assert found.vectors.shape == (60, wide, E)
    assert found.vectors.dtype == np.float16
    for row, vectors, mask in zip(rows, found.vectors, found.mask, strict=True):
        for t in range(wide):
            kept = t < width and bool(given.mask[row, t])
            assert mask[t] == kept
            expected = given.vectors[row, t].astype(np.float16) if kept else np.zeros(E)
            np.testing.assert_array_equal(vectors[t], expected)


def test_a_narrow_batch_needs_no_more_than_what_is_kept(tmp_path):
    given = answered()
    stored = write(tmp_path, given)
    row = int(np.argmin(given.mask[:, -1]))
    last = int(np.flatnonzero(given.mask[row]).max())
    assert stored([TEXTS[row]], last + 1).mask[0].tolist() == given.mask[row, : last + 1].tolist()
    with pytest.raises(DataError) as error:
        stored([TEXTS[3], TEXTS[row]], last)
    assert str(error.value) == (
        f"{tmp_path}: the answer to 'text {row}' keeps position {last}, and {last} positions were "
        "asked for; ask for the length that was stored"
    )


def test_opening_reads_no_vector(tmp_path, monkeypatch):
    write(tmp_path, answered())
    read = []
    fromfile = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda p, *a: read.append(p.name) or fromfile(p, *a))
    stored = Answers.open(tmp_path)
    assert read == ["order.bin"]
    base = stored._vectors
    while not isinstance(base, np.memmap):
        base = base.base
    assert base.filename == tmp_path / "vectors.bin"


@pytest.mark.parametrize("call", range(1, 13))
def test_a_kill_changes_nothing(tmp_path, monkeypatch, call):
    given = answered()
    write(tmp_path / "whole", given)
    real, calls = AnswerWriter._write, []

    def half(self, name, values):
        calls.append(name)
        if len(calls) == call:
            real(self, name, values[: len(values) // 2])
            raise KeyboardInterrupt
        real(self, name, values)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerWriter, "_write", half)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "killed", given)
    with pytest.raises(DataError):
        Answers.open(tmp_path / "killed")
    write(tmp_path / "killed", given)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_what_lost_a_file_begins_anew(tmp_path):
    given = answered()
    write(tmp_path / "whole", given)
    write(tmp_path / "damaged", given)
    (tmp_path / "damaged" / "positions.bin").unlink()
    assert AnswerWriter(tmp_path / "damaged").rows == 0
    write(tmp_path / "damaged", given)
    assert files(tmp_path / "damaged") == files(tmp_path / "whole")


def test_a_text_that_was_never_stored(tmp_path):
    stored = write(tmp_path, answered())
    for text, shown in (("text 40", "text 40"), ("x" * 99, "x" * 77 + "...")):
        with pytest.raises(DataError) as error:
            stored(["text 1", text], T)
        assert str(error.value) == (
            f"{tmp_path}: no answer is stored for {shown!r}; let EncodeTeacher read the same data "
            "as the stage"
        )


def test_digests_may_end_in_any_byte(tmp_path, monkeypatch):
    # NumPy's byte strings know no last byte of 0, and their order is that of unsigned bytes.
    made = {text: bytes([200 - n] * 15 + [n % 2]) for n, text in enumerate(TEXTS)}
    monkeypatch.setattr(module, "digest", made.__getitem__)
    given = answered()
    stored = write(tmp_path, given)
    np.testing.assert_array_equal(stored(TEXTS, T).mask, given.mask)


def test_answers_that_are_not_there(tmp_path):
    def refused():
        with pytest.raises(DataError) as error:
            Answers.open(tmp_path)
        return str(error.value)

    missing = (
        f"{tmp_path}: there are no stored answers here, or not all of them yet; run the work that "
        "writes them to its end"
    )
    assert refused() == missing
    AnswerWriter(tmp_path).append(TEXTS, answered())
    assert refused() == missing
    AnswerWriter(tmp_path).finish()
    with open(tmp_path / "positions.bin", "ab") as file:
        file.write(b"0")
    size = 2 * int(answered().mask.sum())
    assert refused() == (
        f"{tmp_path / 'positions.bin'}: the file has {size + 1} bytes, and answers.json beside it "
        f"says {size}; delete the directory, and run the work that writes it"
    )


def test_a_vector_that_float16_cannot_hold(tmp_path):
    given = answered()
    given.vectors[5, np.argmax(given.mask[5]), 2] = 70000
    sentence = (
        f"{tmp_path}: the answer to 'text 5' has a number that is not finite in float16; take a "
        "teacher whose vectors have length 1"
    )
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}$"):
        AnswerWriter(tmp_path).append(TEXTS, given)
