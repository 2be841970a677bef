"""Lines written block by block, and what is counted on the way, whenever a kill comes."""

import json

import pytest

from clir_jax.data.reading import DataError
from clir_jax.training.blocks import note_counts, summed_counts, write_rankings
from tests.training.workshop import RANKINGS, write_data


def lists(records, rows):
    return [([f"n{row} {i}" for i in range(row % 3)], None) for row in rows]


def test_rankings_after_a_kill_at_any_byte(tmp_path):
    rows, _ = write_data(tmp_path, records=7)
    records = RANKINGS.open(str(tmp_path))

    def write(folder, progress=lambda *told: None):
        folder.mkdir(exist_ok=True)
        write_rankings(folder, records, 3, lists, progress)
        return (folder / "records.jsonl").read_bytes()

    whole = write(tmp_path / "whole")
    assert [json.loads(line) for line in whole.splitlines()] == [
        {**row, "negatives": own} for row, (own, _) in zip(rows, lists(None, range(7)), strict=True)
    ]
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(0, len(whole) + 1, 7):
        (tmp_path / "cut").mkdir(exist_ok=True)
        (tmp_path / "cut" / "records.jsonl").write_bytes(whole[:size])
        told = []
        assert write(tmp_path / "cut", lambda *now, told=told: told.append(now)) == whole
        # Whole blocks of three are kept, and nothing is done twice.
        kept = sum(end <= size for end in ends)
        first = kept if kept == 7 else kept // 3 * 3
        assert told == [*((start, 7) for start in range(first, 7, 3)), (7, 7)]


def test_rankings_that_are_written_twice_at_once(tmp_path):
    write_data(tmp_path, records=7)
    records = RANKINGS.open(str(tmp_path))

    def with_another(read, rows):
        if rows.start == 3:
            write_rankings(tmp_path, records, 3, lists, lambda *told: None)
        return lists(read, rows)

    file = tmp_path / "records.jsonl"
    with pytest.raises(DataError) as error:
        write_rankings(tmp_path, records, 3, with_another, lambda *told: None)
    assert str(error.value) == (
        f"{file}: 11 lines are there, and 7 belong there, as if two processes had written them; "
        f"remove {tmp_path}, and start again with one"
    )


def test_counts_of_a_block_that_is_done_again_count_once(tmp_path):
    file = tmp_path / "counts.json"
    assert summed_counts(file) == {}
    for start, counts in ((0, {"b": 0, "a": 2}), (4, {"a": 9}), (4, {"a": 1, "c": 5})):
        note_counts(file, start, counts)
    assert list(summed_counts(file).items()) == [("b", 0), ("a", 3), ("c", 5)]
