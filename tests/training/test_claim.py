"""Whose a run directory is, and what of its configuration may change between attempts."""

import pytest

from clir_jax import config_files
from clir_jax.config import Artifact, Mine, Rounds, Run, Stage, Task
from clir_jax.config_files import ConfigError
from clir_jax.data.sources import Atlas
from clir_jax.models.retriever import LateInteraction
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.training.claim import claim
from clir_jax.training.positions import Itinerary

MODEL = LateInteraction(query_length=8, passage_length=8)


def _run():
    def stage(name):
        return Stage(
            name, MODEL, "start", (Task(InfoNCE(), {"ranking": Artifact("mined")}),), steps=1
        )

    mined = Mine("mined", "bm25", Atlas("ranking", "en"), Atlas("text", "en"))
    return Run("r", (Rounds("again", 2, (mined, stage("a"))), stage("b")))


def _claimed(run, tmp_path):
    itinerary = Itinerary(run, tmp_path / "run")
    return itinerary, claim(itinerary)


def _changed(run, *assignments):
    return config_files.set_values(run, assignments)


def test_the_same_configuration_goes_on(tmp_path):
    assert _claimed(_run(), tmp_path)[1] is None
    assert _claimed(_run(), tmp_path)[1] is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("stages.again.stages.mined.depth=50", r"stages\.0\.stages\.0\.depth"),
        ("stages.b.steps=2", r"stages\.1\.steps"),
    ],
)
def test_a_work_and_a_stage_that_has_not_begun_may_change(tmp_path, change, key):
    itinerary, _ = _claimed(_run(), tmp_path)
    for position in itinerary.positions[:2]:
        itinerary.directory(position).mkdir(parents=True)
    changed = _changed(_run(), change)
    found = _claimed(changed, tmp_path)[1]
    assert found == key.replace("\\", "")
    assert config_files.from_json((tmp_path / "run" / "config.json").read_text()) == changed
    assert _claimed(changed, tmp_path)[1] is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("stages.again.stages.a.steps=2", r"stages\.a\.steps"),
        ("stages.again.count=3", r"stages\.0\.count"),
        ("stages.b.name=c", r"stages\.1"),
        ("data_root=elsewhere", "data_root"),
    ],
)
def test_what_has_begun_and_the_frame_may_not(tmp_path, change, key):
    itinerary, _ = _claimed(_run(), tmp_path)
    itinerary.directory(itinerary.positions[1]).mkdir(parents=True)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=f"holds a run with another {key}; choose another"):
        _claimed(_changed(_run(), change), tmp_path)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_configuration_that_was_damaged_is_named(tmp_path):
    _claimed(_run(), tmp_path)
    (tmp_path / "run" / "config.json").write_text('{\n"name": ')
    with pytest.raises(ConfigError, match=r"config\.json:2: this is not JSON .*restore the file"):
        _claimed(_run(), tmp_path)
