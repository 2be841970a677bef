"""Bitext as TFDS has it: against TFDS's own writer and reader, killed at every step on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from clir_jax.data.bitext import BitextTSV
from clir_jax.data.builders.bitext import BitextBuilder, prepare
from clir_jax.data.reading import DataError
from clir_jax.data.tfds import TFDS

LINES = [f"{n}\tsentence {n % 4}\tsentensi {n}\n" for n in range(10)]


@pytest.fixture
def pairs(tmp_path):
    """Ten pairs, some with the same English side."""
    (tmp_path / "pairs.tsv").write_text("".join(LINES))
    return BitextTSV("pairs.tsv", "sw").open(str(tmp_path))


def files(directory):
    """All files below a directory with what they hold."""
    found = (file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): file.read_bytes() for file in found}


def test_it_writes_what_tfds_writes(pairs, tmp_path):
    ours = prepare(pairs, "words", tmp_path / "ours")
    builder = BitextBuilder(pairs, "words", str(tmp_path / "theirs"))
    builder.download_and_prepare()
    shard = "words-train.array_record-00000-of-00001"
    written, expected = files(ours), files(tmp_path / "theirs" / "words" / "1.0.0")
    assert set(json.loads(written.pop("prepared.json"))["files"]) == {shard}
    # Within a record, TFDS leaves the order of features to chance.
    assert len(written.pop(shard)) == len(expected.pop(shard))
    assert written == expected
    found, theirs = (
        [
            tf_example_pb2.Example.FromString(raw)
            for raw in ArrayRecordDataSource(str(folder / shard))
        ]
        for folder in (ours, tmp_path / "theirs" / "words" / "1.0.0")
    )
    assert found == theirs
    assert len(found) == 10


def test_tfds_reads_it_and_so_do_we(pairs, tmp_path):
    prepare(pairs, "words", tmp_path / "out", shards=3)
    theirs = tfds.data_source("words", split="train", data_dir=str(tmp_path / "out"))
    sides = [line.rstrip("\n").split("\t") for line in LINES]
    assert list(theirs) == [
        {"english": e.encode(), "other": o.encode(), "language": b"sw", "id": n % 4}
        for n, (_, e, o) in enumerate(sides)
    ]
    records = TFDS("words", data_dir="out").open(str(tmp_path))
    assert [records[i] for i in range(10)] == [pairs[i] for i in range(10)]
    lengths = tfds.builder("words", data_dir=str(tmp_path / "out")).info.splits["train"]
    assert lengths.shard_lengths == [3, 3, 4]


def test_interrupted_anywhere_it_ends_the_same(pairs, tmp_path, monkeypatch):
    whole = files(prepare(pairs, "words", tmp_path / "whole", shards=3).parent)
    # The state, then each shard and the state; the last interruption is before the renaming.
    moves = 1 + 3 * 2
    for stop in range(moves + 1):
        out, moved = tmp_path / f"stop-{stop}", 0

        def move(source, target, real=os.replace, stop=stop):
            nonlocal moved
            if moved == stop:
                raise KeyboardInterrupt
            moved += 1
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", move)
            patch.setattr(type(out), "rename", move)
            with pytest.raises(KeyboardInterrupt):
                prepare(pairs, "words", out, shards=3)
        assert not (out / "words" / "1.0.0").exists()
        told = []
        prepare(pairs, "words", out, 3, lambda done, total, told=told: told.append((done, total)))
        # What was whole is not written again.
        assert told[0] == ([0, 3, 6, 10][max(0, moved - 1) // 2], 10)
        assert told[-1] == (10, 10)
        assert files(out / "words") == whole


def test_killed_in_a_shard(pairs, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from clir_jax.data.bitext import BitextTSV\n"
        "from clir_jax.data.builders.bitext import prepare\n"
        "def progress(done, total):\n"
        "    if done == 6:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "pairs = BitextTSV('pairs.tsv', 'sw').open('.')\n"
        "prepare(pairs, 'words', Path('killed'), 3, progress)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    part = tmp_path / "killed" / "words" / "1.0.0.part"
    first = part / "words-train.array_record-00000-of-00003"
    assert (part / "words-train.array_record-00001-of-00003.part").exists()
    written = first.stat()
    resumed = prepare(pairs, "words", tmp_path / "killed", shards=3)
    assert (resumed / first.name).stat().st_mtime_ns == written.st_mtime_ns
    assert files(resumed) == files(prepare(pairs, "words", tmp_path / "whole", shards=3))


def test_started_again_at_the_end_it_changes_nothing(pairs, tmp_path):
    directory = prepare(pairs, "words", tmp_path)
    before = {file: file.stat().st_mtime_ns for file in directory.iterdir()}
    assert prepare(pairs, "words", tmp_path) == directory
    assert {file: file.stat().st_mtime_ns for file in directory.iterdir()} == before


def damage(directory):
    (shard,) = directory.glob("*array_record*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    return f"{shard}: the file is missing or damaged; remove {directory}"


def lose_a_shard(directory):
    (shard,) = directory.glob("*array_record*")
    shard.unlink()
    return f"{shard}: the file is missing or damaged; remove {directory}"


def damage_the_state(directory):
    (directory / "prepared.json").write_text('{"files": {"a": 1}}')
    return f"{directory / 'prepared.json'}: the file is missing or damaged; remove {directory}"


def lose_the_state(directory):
    (directory / "prepared.json").unlink()
    return (
        f"{directory}: this was not written by clir_jax.prepare; choose another --name or --out, "
        "or remove it"
    )


def test_a_data_set_without_its_description_is_refused(pairs, tmp_path):
    description = prepare(pairs, "words", tmp_path) / "dataset_info.json"
    description.unlink()
    with pytest.raises(DataError) as error:
        prepare(pairs, "words", tmp_path)
    assert str(error.value) == (
        f"{description}: the file is missing or damaged; remove {description.parent}"
    )


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("change", [damage, lose_a_shard, damage_the_state, lose_the_state])
def test_a_damaged_or_foreign_directory_is_refused(pairs, tmp_path, change, part):
    directory = prepare(pairs, "words", tmp_path)
    if part:
        directory = shutil.move(directory, directory.with_name("1.0.0.part"))
    sentence = change(directory)
    before = files(tmp_path)
    with pytest.raises(DataError) as error:
        prepare(pairs, "words", tmp_path)
    assert str(error.value) == sentence
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("lines", "language", "shards", "how"),
    [
        (LINES, "so", 1, "with language sw, not so"),
        (LINES, "sw", 2, "with shards 1, not 2"),
        (LINES[:9], "sw", 1, "with pairs 10, not 9"),
        ([*LINES[:9], "9\tsentence 1\tanother\n"], "sw", 1, "from other text"),
    ],
)
def test_other_pairs_are_not_mixed_in(pairs, tmp_path, lines, language, shards, how):
    directory = prepare(pairs, "words", tmp_path)
    (tmp_path / "others.tsv").write_text("".join(lines))
    others = BitextTSV("others.tsv", language).open(str(tmp_path))
    with pytest.raises(DataError) as error:
        prepare(others, "words", tmp_path, shards)
    assert str(error.value) == (
        f"{directory}: it was prepared {how}; choose another --name or --out, or remove it"
    )


@pytest.mark.parametrize(
    ("name", "shards", "sentence"),
    [
        (
            "OPUS sw",
            1,
            "name is 'OPUS sw'; write small letters, digits and underscores, a letter first",
        ),
        ("words", 0, "shards is 0 for 10 pairs; write 1 to 10"),
        ("words", 11, "shards is 11 for 10 pairs; write 1 to 10"),
    ],
)
def test_options_that_mean_nothing(pairs, tmp_path, name, shards, sentence):
    with pytest.raises(ValueError) as error:
        prepare(pairs, name, tmp_path / "out", shards)
    assert str(error.value) == sentence
    assert not (tmp_path / "out").exists()
