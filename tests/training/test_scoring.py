"""A model's scores of rankings, against two loops."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from clir_jax.config import Score
from clir_jax.data.reading import DataError
from clir_jax.mesh import make_mesh
from clir_jax.models.retriever import Dense
from clir_jax.training import scoring
from clir_jax.training.artifacts import records_source
from clir_jax.training.scoring import score
from tests.models import test_generator_files as generators
from tests.training.workshop import (
    LATE,
    RANKINGS,
    Killed,
    Workshop,
    bytes_of,
    kill_at,
    retriever,
    scores_by_hand,
    write_data,
)

WORK = Score("scored", "a model", RANKINGS)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(scoring, "_BLOCK", 4)
    monkeypatch.setattr(scoring, "_STEP", 4)


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [(LATE, (1, 1, 1)), (LATE, (2, 2, 2)), (Dense(query_length=12, passage_length=40), (1, 1, 1))],
)
def test_scores_are_those_of_two_loops(tmp_path, spec, sizes, small_blocks):
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    rows, passages = write_data(tmp_path)
    model = retriever(spec, mesh)
    shop = Workshop(tmp_path, (WORK,), model, mesh=mesh)
    score(WORK, shop.place("scored"))
    by_hand = scores_by_hand(model, [row["query"] for row in rows], passages)
    records = records_source(tmp_path / "artifacts" / "scored").open("")
    assert len(records) == len(rows)
    for n, row in enumerate(rows):
        record = records[n]
        assert record.queries == {"sw": row["query"], **row["queries"]}
        assert [p.text for p in record.positives] == row["positives"]
        assert [p.text for p in record.negatives] == row["negatives"]
        listed = row["positives"] + row["negatives"]
        expected = [by_hand[n, passages.index(text)] for text in listed]
        np.testing.assert_allclose(record.scores, expected, atol=1e-5)
        assert all(float(np.float32(value)) == value for value in record.scores)
    assert np.ptp(by_hand) > 0.02


def test_a_kill_changes_nothing(tmp_path, small_blocks):
    write_data(tmp_path)
    shop = Workshop(tmp_path, (WORK,), retriever())
    place = shop.place("scored")
    score(WORK, place)
    whole = bytes_of(place.directory)
    assert shop.progressed == [(0, 11), (4, 11), (8, 11), (11, 11)]
    for call in range(1, 5):
        (place.directory / "about.json").unlink()
        with pytest.raises(Killed):
            score(WORK, shop.place("scored", kill_at(call)))
        shop.progressed.clear()
        score(WORK, place)
        assert bytes_of(place.directory) == whole
        assert len(shop.progressed) == 5 - call
    (tmp_path / "model" / "weights").write_text("others")
    score(WORK, place)
    assert shop.said[-1] == ("artifact scored is built again: its model changed; lines removed: 11")


@pytest.mark.parametrize("language", ["sw", "en"])
def test_cut_passages_are_counted_whenever_it_is_killed(tmp_path, small_blocks, language):
    rows = [
        {"query": "a b", "queries": {"en": "b"}, "positives": ["a" + " a" * n], "negatives": ["b"]}
        for n in range(11)
    ]
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = dataclasses.replace(generators.SPEC, source_length=9, prompt="a {passage}")
    model = dataclasses.replace(generators._generator(), spec=spec)  # of Swahili
    work = dataclasses.replace(WORK, query_language=language)
    shop = Workshop(tmp_path, (work,), model)
    place = shop.place("scored")
    score(work, place)
    whole = bytes_of(place.directory)
    facts = json.loads(whole["about.json"])["facts"]
    # The prompt's word and the end token leave room for seven words.
    assert facts["passages"] == {"read": 22, "cut": 4}
    told = ["artifact scored: 4 of 22 passages read are cut to fit the prompt"]
    if language == "en":
        told.insert(
            0,
            "artifact scored: the generator was trained for sw, not for en (English); do not rely "
            "on what it writes or scores there",
        )
    assert shop.said == told
    for call in range(1, 5):
        (place.directory / "about.json").unlink()
        with pytest.raises(Killed):
            score(work, shop.place("scored", kill_at(call)))
        shop.said.clear()
        score(work, place)
        assert bytes_of(place.directory) == whole
        assert shop.said == told


def test_a_model_that_is_broken(tmp_path, small_blocks):
    write_data(tmp_path)
    model = retriever()
    nothing = jax.tree.map(lambda x: x * np.float32(np.nan), model.params)
    model = dataclasses.replace(model, params=nothing)
    with pytest.raises(DataError) as error:
        score(WORK, Workshop(tmp_path, (WORK,), model).place("scored"))
    assert str(error.value) == (
        "work scored: the model 'a model' answers with numbers that are not finite; look for where "
        "its training went wrong, or name another"
    )
