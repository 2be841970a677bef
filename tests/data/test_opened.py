"""Ids of equal text, against a search by hand."""

import numpy as np
import pytest

from clir_jax.data.opened import RankingRecords, shared_sides
from clir_jax.data.reading import Report
from clir_jax.data.tables import first_rows


def test_first_rows():
    keys = np.asarray([9, -3, 9, 9, 5, -3])
    assert first_rows(keys).tolist() == [0, 1, 0, 0, 4, 1]
    assert first_rows(keys).dtype == np.int32
    assert first_rows(np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize("seed", range(8))
def test_shared_sides_are_the_groups_of_a_flood(seed):
    rng = np.random.default_rng(seed)
    english, other = rng.integers(0, 60, 50), rng.integers(0, 60, 50)
    expected = [-1] * 50
    for start in range(50):
        if expected[start] == -1:
            waiting = [start]
            while waiting:
                row = waiting.pop()
                if expected[row] == -1:
                    expected[row] = start
                    near = (english == english[row]) | (other == other[row])
                    waiting += np.flatnonzero(near).tolist()
    assert shared_sides(english, other).tolist() == expected
    assert 1 < len(set(expected)) < 50


@pytest.mark.parametrize("seed", range(5))
def test_known_is_the_union_over_the_records_of_a_question(seed):
    rng = np.random.default_rng(seed)
    n = 30
    counts = rng.integers(1, 6, n)
    positives = np.asarray([rng.integers(1, count + 1) for count in counts])
    queries = rng.integers(0, 12, n)
    passages = [rng.integers(0, 40, count).tolist() for count in counts]

    def row(i):
        return {"en": f"q{queries[i]}"}, [f"p{p}" for p in passages[i]], None

    flat = np.concatenate([np.asarray(own) for own in passages])
    records = RankingRecords(row, queries, flat, counts, positives, ("en",), Report())
    first = {int(p): i for i, p in reversed(list(enumerate(flat)))}
    for i in range(n):
        record = records[i]
        listed = [passage.id for passage in record.positives + record.negatives]
        assert listed == [first[p] for p in passages[i]]
        assert len(record.positives) == positives[i]
        assert record.query_id == int(np.flatnonzero(queries == queries[i])[0])
        same = [j for j in range(n) if queries[j] == queries[i]]
        known = {first[p] for j in same for p in passages[j][: positives[j]]}
        assert record.known == tuple(sorted(known))
    assert records.most_known == max(len(records[i].known) for i in range(n))
