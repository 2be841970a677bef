"""What a stage measures: translation pairs beside retrieval, in one table."""

import dataclasses
import io
import json
import types

import jax
import pytest
from rich.console import Console

from clir_jax.config import Evaluate, Run
from clir_jax.data.collections import BitextPairs, Retrieval
from clir_jax.evaluation.bitext import measure_pairs
from clir_jax.evaluation.metrics import BITEXT_METRICS
from clir_jax.evaluation.retrieval import TextEncoder, measure
from clir_jax.mesh import make_mesh
from clir_jax.training.build import StageParts
from clir_jax.training.evaluation import StageEvaluation
from clir_jax.training.logging import StageLog
from tests.training.workshop import retriever, stage, write_data


def parts_of(student):
    """Of a stage's parts, those that an evaluation looks at."""
    parts = object.__new__(StageParts)
    for name, value in {"student": student, "teachers": types.MappingProxyType({})}.items():
        object.__setattr__(parts, name, value)
    return parts


@pytest.fixture
def collections(tmp_path):
    """Retrieval and pairs, of the same few sentences."""
    rows, passages = write_data(tmp_path)
    lines = [json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(passages)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    (tmp_path / "q.tsv").write_text("".join(f"{n}\t{r['query']}\n" for n, r in enumerate(rows[:4])))
    (tmp_path / "qrels").write_text("".join(f"{n} 0 {n} 1\n" for n in range(4)))
    pairs = [(row["queries"]["en"], row["query"]) for row in rows]
    (tmp_path / "p.tsv").write_text("".join(f"1\t{a}\t{b}\n" for a, b in pairs))
    return {
        "sw": Retrieval("c.jsonl", "q.tsv", "qrels", "sw"),
        "sw-pairs": BitextPairs("p.tsv", "sw"),
    }


def test_pairs_are_measured_beside_retrieval(tmp_path, collections):
    mesh, student, out = make_mesh(devices=jax.devices()[:1]), retriever(), io.StringIO()
    systems = ("bm25", "student_before")
    evaluate = Evaluate(
        collections, metrics=("RR@10",), baselines=systems, best="margin F1 sw-pairs"
    )
    measured = dataclasses.replace(stage(), evaluate=evaluate)
    run = Run("r", (measured,), data_root=str(tmp_path))
    console = Console(file=out, width=200)
    with StageLog(tmp_path / "s", "stage", 4, 0, console) as log:
        told = StageEvaluation(run, measured, "s", tmp_path / "s", mesh, parts_of(student), log)
        told.baselines(student.params)
        selection = told.measure(4, student.params)
    encoder = TextEncoder.of(student, mesh)
    opened = {name: one.open(str(tmp_path)) for name, one in collections.items()}
    expected = measure_pairs(encoder, opened["sw-pairs"])
    rank = measure(encoder, {"sw": opened["sw"]}, ["RR@10"], 100)["sw"].values["RR@10"]
    assert selection == expected["margin F1"]
    rows = [r for r in told.rows(4) if r["system"] != "bm25"]
    for system in ("student_before", "student"):
        own = [(r["dataset"], r["metric"], r["value"]) for r in rows if r["system"] == system]
        assert own == [
            ("sw", "RR@10", rank),
            *(("sw-pairs", metric, expected[metric]) for metric in BITEXT_METRICS),
        ]
    assert {r["language"] for r in rows} == {"sw"}
    # BM25 ranks, and does not encode.
    assert [r["dataset"] for r in told.rows(4) if r["system"] == "bm25"] == ["sw"]
    first = expected["accuracy xx->en"]
    line = f"s: student_before  RR@10  sw {rank:.3f}  accuracy xx->en  sw-pairs {first:.3f}"
    assert line in out.getvalue().splitlines()
    assert not (tmp_path / "s/evaluation/0000004-sw-pairs.trec").exists()


def test_pairs_alone_are_nothing_for_bm25(tmp_path, collections):
    pairs = {"sw-pairs": collections["sw-pairs"]}
    measured = dataclasses.replace(stage(), evaluate=Evaluate(pairs, baselines=("bm25",)))
    run, student = Run("r", (measured,), data_root=str(tmp_path)), retriever()
    mesh = make_mesh(devices=jax.devices()[:1])
    with StageLog(tmp_path / "s", "stage", 4, 0, Console(file=io.StringIO())) as log:
        told = StageEvaluation(run, measured, "s", tmp_path / "s", mesh, parts_of(student), log)
        told.baselines(student.params)
    assert json.loads((tmp_path / "s/evaluation/baselines.json").read_text()) == []
