"""Line indexing against Python's own reading of the same bytes."""

import concurrent.futures
import gzip
import random
import sys

import numpy as np
import pytest
from etils import epath

from clir_jax.data import reading
from clir_jax.data.reading import DataError, Intake, Lines, find_files, is_blank, positions


def lines(tmp_path, content: bytes, on_bad_record="error"):
    (tmp_path / "x.txt").write_bytes(content)
    intake = Intake(on_bad_record)
    found = Lines(epath.Path(tmp_path / "x.txt"), "x.txt", intake)
    return [found.text(i) for i in range(len(found))], found, intake.report


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\nb\r", ["a", "b"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),
        (b"\xef\xbb\xbfa", ["a"]),
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"\n", [""]),
        (b'"a\nb"\n', ['"a', 'b"']),
        ("a\x0b\x0c\x85\u2028b\rc\n".encode(), ["a\x0b\x0c\x85\u2028b\rc"]),
        ("ሰላም\n你好\n".encode(), ["ሰላም", "你好"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfa\n", ["\ufeffa"]),
    ],
)
def test_only_a_newline_ends_a_line(tmp_path, content, expected):
    assert lines(tmp_path, content)[0] == expected


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 24])
def test_random_files_read_as_python_splits_them(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(reading, "_CHUNK", chunk)
    rng = random.Random(chunk)
    words = ["a", "ñ", "你", "😀", "\t", " ", "\r", '"', ""]
    texts = ["".join(rng.choices(words, k=rng.randrange(9))) + "." for _ in range(200)]
    found, opened, _ = lines(tmp_path, "\n".join(texts).encode())
    assert found == texts
    view = np.frombuffer("\n".join(texts).encode(), np.uint8)
    np.testing.assert_array_equal(positions(view, 9), np.flatnonzero(view == 9))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(opened.text, range(200))) == texts


BAD = [
    (b"good\nb\xffd\nlast", 2, "byte 2 of the line (0xff) is not UTF-8; convert the file to UTF-8"),
    (b"good\n\xe4\xbd\nlast", 2,
     "byte 1 of the line (0xe4) is not UTF-8; convert the file to UTF-8"),
    (b"good\nlast\n\xc3", 3, "byte 1 of the line (0xc3) is not UTF-8; convert the file to UTF-8"),
    (b"good\nb\0d\nlast", 2,
     "the line holds a NUL byte; write the file as UTF-8, not UTF-16 or binary"),
]  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 1 << 24])
@pytest.mark.parametrize(("content", "line", "sentence"), BAD)
def test_undecodable_lines(tmp_path, monkeypatch, content, line, sentence, chunk):
    monkeypatch.setattr(reading, "_CHUNK", chunk)
    with pytest.raises(DataError) as error:
        lines(tmp_path, content)
    assert str(error.value) == f"x.txt:{line}: {sentence}"
    texts, opened, report = lines(tmp_path, content, "skip")
    assert texts == ["good", "last"]
    assert sum(report.skipped.values()) == 1
    assert report.places == [f"x.txt:{line}: {sentence}"]
    assert opened.place(1) == ("x.txt:2" if line == 3 else "x.txt:3")


def test_every_bad_line_is_counted_once_and_the_first_places_told(tmp_path):
    texts, _, report = lines(tmp_path, b"\xff\xff\n\0\xff\n" * 20 + b"good", "skip")
    assert texts == ["good"]
    assert report.skipped == {"NUL byte": 20, "not UTF-8": 20}
    assert len(report.places) == 5


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    with pytest.raises(DataError) as error:
        lines(tmp_path, content, "skip")
    assert str(error.value) == "x.txt: the file is empty; write at least one record"


def compressed(tmp_path, content):
    (tmp_path / "x.txt.gz").write_bytes(content)
    return Lines(epath.Path(tmp_path / "x.txt.gz"), "x.txt.gz", Intake())


def test_a_compressed_file_reads_as_the_file(tmp_path):
    text = "".join(f"line {n} ñ\n" for n in range(5000))
    found = compressed(tmp_path, gzip.compress(text.encode()))
    assert [found.text(i) for i in range(len(found))] == text.splitlines()
    two = compressed(tmp_path, gzip.compress(b"a\n") + gzip.compress(b"b\n"))
    assert [two.text(i) for i in range(2)] == ["a", "b"], "as cat joins two compressed files"


WHOLE = gzip.compress(b"line\n" * 1000, mtime=0)  # named alike by every worker
AGAIN = "copy or compress it again, or take .gz off its name if it is not compressed"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (WHOLE[:-20], "cannot be decompressed (Compressed file ended before the end-of-stream "
         f"marker was reached); {AGAIN}"),
        (WHOLE[:-8] + bytes(8), None),
        (WHOLE[:12] + b"\xff\xff\xff" + WHOLE[15:], None),
        (b"line\n", f"cannot be decompressed (Not a gzipped file (b'li')); {AGAIN}"),
        (gzip.compress(b"", mtime=0), "the file is empty; write at least one record"),
        (b"", "the file is empty; write at least one record"),
    ],
)  # fmt: skip
def test_a_damaged_compressed_file(tmp_path, content, sentence):
    with pytest.raises(DataError) as error:
        compressed(tmp_path, content)
    if sentence is None:  # zlib words it
        assert str(error.value).startswith("x.txt.gz: cannot be decompressed (")
        assert str(error.value).endswith(f"); {AGAIN}")
    else:
        assert str(error.value) == f"x.txt.gz: {sentence}"


def test_blank_is_what_has_nothing_to_read():
    for text in ["", " ", "\t\r\n", "\u00a0\u3000", "\u200b\ufeff\u00ad", "\0", "\ufffd", "\ue000"]:
        assert is_blank(text), ascii(text)
    for text in ["a", " .", "ه", "\u0301", "你", "😀", "\u200ba"]:
        assert not is_blank(text), ascii(text)


def test_no_first_byte_of_a_blank_character_is_overlooked():
    codes = (c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    heads = {chr(c).encode()[0] for c in codes if is_blank(chr(c))}
    assert heads == set(np.flatnonzero(reading._MAYBE_BLANK).tolist())


def test_find_files(tmp_path):
    for name in ("a/2.tsv", "a/1.tsv", "b/1.tsv", "b/no.txt", "[x]*.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(path, root=tmp_path):
        found = find_files(str(root), path)
        assert all(p.is_file() for _, p in found)
        return [name for name, _ in found]

    assert names("a/2.tsv") == ["a/2.tsv"]
    assert names("a/*.tsv") == ["a/1.tsv", "a/2.tsv"]
    assert names("*/1.tsv") == ["a/1.tsv", "b/1.tsv"]
    assert names("?/[12].tsv") == ["a/1.tsv", "a/2.tsv", "b/1.tsv"]
    assert names("[x]*.tsv") == ["[x]*.tsv"], "a file of that very name comes before the pattern"
    (tmp_path / "[r]/a").mkdir(parents=True)
    (tmp_path / "[r]/a/1.tsv").write_text("x")
    assert names("a/*.tsv", tmp_path / "[r]") == ["a/1.tsv"], "only the path is a pattern"
    assert names(f"{tmp_path}/a/?.tsv", "/nowhere") == [f"{tmp_path}/a/{n}.tsv" for n in (1, 2)]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "no.tsv",
            "no.tsv: there is no such file under data_root {!r}; write a file that is there",
        ),
        (
            "a",
            "a: that is a directory, not a file under data_root {!r}; write a file that is there",
        ),
        ("a/*.csv", "a/*.csv: no file under data_root {!r} matches this pattern"),
        ("**/x.tsv", "**/x.tsv: ** is not a pattern here; write one * for each folder"),
        ("", "an empty path under {!r}; write the name of a file or a pattern"),
    ],
)
def test_files_that_are_not_there(tmp_path, path, sentence):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError) as error:
        find_files(str(tmp_path), path)
    assert str(error.value) == sentence.format(str(tmp_path))


def test_a_bucket_is_asked_for_what_is_not_local(monkeypatch):
    """gs:// goes to etils; the bytes are then held instead of mapped."""
    remote = type(epath.Path("gs://b"))
    monkeypatch.setattr(remote, "read_bytes", lambda path: f"{path}\nb\n".encode())
    found = Lines(epath.Path("gs://bucket/x.txt"), "x.txt", Intake())
    assert [found.text(i) for i in range(2)] == ["gs://bucket/x.txt", "b"]
    monkeypatch.setattr(remote, "read_bytes", lambda path: gzip.compress(f"{path}".encode()))
    found = Lines(epath.Path("gs://bucket/x.gz"), "x.gz", Intake())
    assert found.text(0) == "gs://bucket/x.gz"
    asked = []
    monkeypatch.setattr(
        epath.Path("gs://b").__class__, "is_file", lambda p: asked.append(p) or True
    )
    ((name, path),) = find_files("gs://bucket/data", "x.txt")
    assert (name, str(path)) == ("x.txt", "gs://bucket/data/x.txt")
    assert asked == [path]


def test_on_bad_record_has_two_values():
    with pytest.raises(ValueError, match='on_bad_record is \'warn\'; write "error" or "skip"'):
        Intake("warn")


def test_nothing_left_is_an_error():
    intake = Intake("skip")
    intake.refuse("x:1", "blank text", "…")
    with pytest.raises(DataError, match="x: no record is left to read; left out: 1 x blank text"):
        intake.finish(0, "x")
