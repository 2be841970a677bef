"""What a work is told of its place."""

import json

import jax
import pytest
from rich.console import Console

from clir_jax.config import Run, Score
from clir_jax.mesh import make_mesh
from clir_jax.training import alone, workplaces
from clir_jax.training.artifacts import model_print
from clir_jax.training.positions import Itinerary
from tests.training.workshop import RANKINGS, Killed, stage


def test_a_model_is_printed_with_all_that_says_what_it_is(tmp_path, monkeypatch):
    """sentence-transformers once put the encoder into a directory of its own, beside the rest."""
    model = tmp_path / "model"
    (model / "0_Transformer").mkdir(parents=True)
    (model / "0_Transformer" / "config.json").write_text("{}")
    (model / "modules.json").write_text(json.dumps([{"path": "0_Transformer"}]))
    work = Score("scores", str(model), RANKINGS)
    itinerary = Itinerary(Run("r", (work, stage())), tmp_path / "run")
    works = workplaces.Works(itinerary, make_mesh(devices=jax.devices()[:1]), Console(quiet=True))
    prints = []

    def carry_out(work, place):
        prints.append(model_print(place.model_directory(work.model)))
        raise Killed

    for module in (workplaces, alone):
        monkeypatch.setattr(module, "carry_out", carry_out)
    for prompts in ("query: ", "frage: "):
        (model / "config_sentence_transformers.json").write_text(prompts)
        with pytest.raises(Killed):
            works.carry_out(itinerary.positions[0], "scores")
        with pytest.raises(Killed):
            alone.write_records("score", work, tmp_path / "scored.jsonl")
    assert prints[0] == prints[1] != prints[2] == prints[3]
