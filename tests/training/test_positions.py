"""The order of a run, and what its names mean in every round."""

import dataclasses
from pathlib import Path

import pytest

from clir_jax.config import Artifact, EncodeTeacher, FromStage, Mine, Rounds, Run, Stage, Task
from clir_jax.config_files import ConfigError
from clir_jax.data.rankings import RankingJSONL
from clir_jax.data.sources import Atlas, Mixture
from clir_jax.files import write_json
from clir_jax.models.retriever import LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.training.positions import Itinerary

ENGLISH, CORPUS = Atlas("ranking", "en"), Atlas("text", "en")
MODEL = LateInteraction(query_length=8, passage_length=8)


def stage(name, init="start", source=ENGLISH, tasks=None):
    tasks = tasks or (Task(InfoNCE(), {"ranking": source}),)
    return Stage(name, MODEL, init, tasks, steps=1)


def distil(teacher, init="start"):
    task = Task(
        TokenAlignmentDistillation(), {"bitext": Atlas("bitext", "sw")}, {"teacher": teacher}
    )
    return stage("distil", init, tasks=(task,))


def mine(model, name="mined"):
    return Mine(name, model, ENGLISH, CORPUS)


def itinerary(*stages):
    return Itinerary(Run("r", stages), Path("run"))


def test_rounds_repeat_their_group_and_everything_has_its_own_directory():
    group = Rounds("again", 2, (mine(FromStage("b")), stage("b")), start={"b": FromStage("a")})
    it = itinerary(stage("a"), group, stage("c", FromStage("b")))
    assert [(p.label, str(it.directory(p))) for p in it.positions] == [
        ("a", "run/stages/01-a"),
        ("mined.1", "run/artifacts/mined.1"),
        ("b.1", "run/stages/03-b.1"),
        ("mined.2", "run/artifacts/mined.2"),
        ("b.2", "run/stages/03-b.2"),
        ("c", "run/stages/04-c"),
    ]


def test_a_stage_means_its_newest_training_and_before_it_what_its_rounds_start_with():
    group = Rounds(
        "again",
        2,
        (mine(FromStage("b", "last")), stage("b", FromStage("b"))),
        start={"b": FromStage("a", "last")},
    )
    it = itinerary(stage("a"), group, stage("c", FromStage("b")))
    _, mined1, b1, mined2, b2, c = it.positions
    assert it.model(mined1, mined1.item.model) == "run/stages/01-a/last"
    assert it.bound(b1, b1.item).init == "run/stages/01-a/last"
    assert it.model(mined2, mined2.item.model) == "run/stages/03-b.1/last"
    assert it.bound(b2, b2.item).init == "run/stages/03-b.1/model"
    assert it.bound(c, c.item).init == "run/stages/03-b.2/model"
    assert it.model(c, "a-hub-name") == "a-hub-name"


def test_a_group_may_start_with_a_model_from_elsewhere():
    group = Rounds("again", 2, (stage("b", FromStage("b")),), start={"b": "hub/model"})
    it = itinerary(group)
    assert [it.bound(p, p.item).init for p in it.positions] == [
        "hub/model",
        "run/stages/01-b.1/model",
    ]


def test_artifacts_become_files_wherever_they_are_named(tmp_path):
    mixed = Mixture((Artifact("mined"), ENGLISH))
    it = Itinerary(Run("r", (mine("bm25"), stage("a", source=mixed))), tmp_path)
    mined, a = it.positions
    about = {"facts": {"language": "sw"}, "content": "its hash"}
    write_json(it.directory(mined) / "about.json", about)
    (task,) = it.bound(a, a.item).tasks
    records = tmp_path / "artifacts" / "mined" / "records.jsonl"
    assert task.sources == {"ranking": Mixture((RankingJSONL(str(records), "sw"), ENGLISH))}
    assert it.reads(a) == [mined]
    assert it.reads(mined) == []
    # What names nothing stays the same object.
    assert it.bound(mined, mined.item) is mined.item


def test_rounds_have_seeds_of_their_own_and_the_first_has_the_runs():
    it = itinerary(stage("a"), Rounds("again", 3, (stage("b"),)))
    seeds = [it.seed(position) for position in it.positions]
    assert seeds[:2] == [0, 0]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_stored_answers_are_those_of_the_round():
    encode = EncodeTeacher("answers", "distil", "TokenAlignmentDistillation")
    group = Rounds("again", 2, (stage("b"), encode, distil(FromStage("b"))))
    it = itinerary(group)
    first, second = (p for p in it.positions if p.item.name == "distil")
    where = [{key: at.label for key, (at, _) in it.stored(p).items()} for p in (first, second)]
    key = ("TokenAlignmentDistillation", "teacher")
    assert where == [{key: "answers.1"}, {key: "answers.2"}]
    assert [p.label for p in it.reads(second)] == ["answers.2"]


def test_a_teacher_that_is_trained_after_it_was_encoded_is_refused():
    encode = EncodeTeacher("answers", "distil", "TokenAlignmentDistillation")
    group = Rounds(
        "again", 2, (encode, stage("b"), distil(FromStage("b"))), start={"b": FromStage("a")}
    )
    with pytest.raises(ConfigError, match=r"stages\.answers: .*; move it behind that stage"):
        itinerary(stage("a"), group)


def aligns_mined():
    """An encoding work, and the stage that it is for: its teacher is asked about an artifact."""
    task = Task(
        TokenAlignmentDistillation(), {"bitext": Artifact("mined")}, {"teacher": "a-hub-name"}
    )
    work = EncodeTeacher("answers", "distil", "TokenAlignmentDistillation")
    return work, stage("distil", tasks=(task,))


def test_a_work_that_encodes_an_artifact_reads_it():
    work, reader = aligns_mined()
    it = itinerary(mine("bm25"), work, reader)
    mined, answers, distilled = it.positions
    assert it.reads(answers) == [mined]
    assert it.reads(distilled) == [mined, answers]


def test_an_artifact_that_is_written_after_it_was_encoded_is_refused():
    work, reader = aligns_mined()
    with pytest.raises(ValueError, match=r"^stage answers: it reads the artifact 'mined', and "):
        itinerary(work, mine("bm25"), reader)
    with pytest.raises(ConfigError, match=r"stages\.b\.2: a round of b has this name too; rename"):
        itinerary(stage("b.2"), Rounds("again", 2, (stage("b"),)))


def test_positions_are_told_apart():
    it = itinerary(Rounds("again", 2, (stage("b"),)))
    first, second = it.positions
    assert first != second
    assert dataclasses.replace(first, round=2) == second
