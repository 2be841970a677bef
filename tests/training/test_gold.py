"""Gold alignments among the evaluations of a stage."""

import contextlib
import dataclasses
import io
import json

import jax
import pytest
from rich.console import Console

from clir_jax.config import Evaluate, Run
from clir_jax.config_files import from_json, to_json
from clir_jax.data.gold_alignment import GoldAlignment
from clir_jax.evaluation.alignment import measure_gold
from clir_jax.mesh import make_mesh
from clir_jax.models.retriever import Dense
from clir_jax.ops.alignment import Greedy
from clir_jax.training.build import StageParts
from clir_jax.training.evaluation import StageEvaluation
from clir_jax.training.logging import StageLog
from tests.training.workshop import WORDS, retriever, stage

GOLD = GoldAlignment("gold.jsonl", "sw", aligner=Greedy())


@pytest.fixture
def evaluation(tmp_path):
    """The evaluations of a stage with this model, and where they go."""
    rows = [{"src": WORDS[i : i + 3], "tgt": WORDS[:2], "sure": [[i, 0]]} for i in range(3)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(student):
        measured = dataclasses.replace(
            stage(), evaluate=Evaluate({"words": GOLD}, baselines=("bm25", "student_before"))
        )
        run, folder = Run("r", (measured,), data_root=str(tmp_path)), tmp_path / "s"
        parts = object.__new__(StageParts)
        for name, value in {"student": student, "teachers": {}}.items():
            object.__setattr__(parts, name, value)
        mesh = make_mesh(devices=jax.devices()[:1])
        console = Console(file=io.StringIO(), width=200)
        log = opened.enter_context(StageLog(folder, "stage", 4, 0, console))
        return StageEvaluation(run, measured, "s", folder, mesh, parts, log)

    with contextlib.ExitStack() as opened:
        yield made


def test_gold_alignments_are_rows_of_the_summary(evaluation, tmp_path):
    student = retriever()
    told = evaluation(student)
    told.baselines(student.params)
    mesh = make_mesh(devices=jax.devices()[:1])
    expected = measure_gold(student, GOLD.open(str(tmp_path)), mesh)
    assert told.measure(4, student.params) == expected["F1"]
    rows = told.rows(4)
    for system in ("student_before", "student"):
        own = {r["metric"]: r["value"] for r in rows if r["system"] == system}
        assert own == expected
    assert {(r["dataset"], r["language"]) for r in rows} == {("words", "sw")}
    assert {r["system"] for r in rows} == {"student_before", "student"}  # BM25 aligns nothing


def test_a_dense_student_is_refused_before_it_is_trained(evaluation):
    with pytest.raises(ValueError, match="the model is a dense retriever with one vector a text"):
        evaluation(retriever(Dense(query_length=12, passage_length=40)))


def test_selection_is_by_what_grows():
    assert Evaluate({"words": GOLD}).selection == "F1 words"
    assert Evaluate({"words": GOLD}, best="recall words").selection == "recall words"
    with pytest.raises(ValueError) as refused:
        Evaluate({"words": GOLD}, best="AER words")
    assert str(refused.value) == (
        "evaluate: best is 'AER words', whose lowest value is best, and the checkpoint of the "
        "highest is kept; write 'F1 words'"
    )
    with pytest.raises(ValueError, match="best is 'nDCG@10 words'; write one of 'F1 words'"):
        Evaluate({"words": GOLD}, best="nDCG@10 words")


def test_a_configuration_holds_them():
    run = Run("r", (dataclasses.replace(stage(), evaluate=Evaluate({"words": GOLD})),))
    assert from_json(to_json(run)) == run
