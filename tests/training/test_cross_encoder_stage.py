"""A cross-encoder in a run: trained, resumed, measured, saved, and a teacher in three ways."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from clir_jax import config_files
from clir_jax.config import (
    Artifact,
    Evaluate,
    FromStage,
    Mine,
    Optimizer,
    Run,
    Score,
    Scratch,
    Stage,
    Task,
    TrainVocabulary,
)
from clir_jax.config_files import ConfigError
from clir_jax.data.collections import BitextPairs, Retrieval
from clir_jax.data.reading import DataError
from clir_jax.data.sources import TextLines
from clir_jax.evaluation.bm25 import bm25_run
from clir_jax.evaluation.reranking import read_candidates
from clir_jax.evaluation.runs import read_run
from clir_jax.models.cross_encoder import CrossEncoder
from clir_jax.models.cross_encoder_files import is_cross_encoder, load_cross_encoder
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE, ListwiseSoftmax
from clir_jax.objectives.distillation import RelevanceDistillation
from clir_jax.training.check import check
from clir_jax.training.logging import StageLog
from clir_jax.training.loop import train
from tests.training.workshop import RANKINGS, write_data

SPEC = CrossEncoder(length=40, query_length=30)
ENCODER = EncoderConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=40,
    initializer_range=0.5,
)
QUESTIONS = Retrieval("c.jsonl", "q.tsv", "qrels", "sw")
LISTWISE = Task(ListwiseSoftmax(), {"ranking": RANKINGS}, batch_size=8, passages=3)
COMMON = {
    "init": Scratch(ENCODER),
    "vocabulary": TrainVocabulary((TextLines("corpus.txt", "sw"),), size=60),
    "steps": 3,
    "log_every": 1,
    "checkpoint_every": 2,
    "optimizer": Optimizer(learning_rate=1e-2),
}
JUDGE = Stage(
    "judge",
    SPEC,
    tasks=(LISTWISE,),
    evaluate=Evaluate({"sw": QUESTIONS}, metrics=("RR@10",), baselines=("student_before",)),
    **COMMON,
)
LIVE = Task(
    RelevanceDistillation(teacher_query="query", teacher_kind="cross_encoder"),
    {"ranking": Artifact("scored")},
    {"teacher": FromStage("judge")},
    batch_size=8,
    passages=3,
)
STUDENT = Stage(
    "student",
    Dense(query_length=12, passage_length=30),
    tasks=(LIVE,),
    evaluate=Evaluate(
        {"sw": QUESTIONS},
        metrics=("RR@10",),
        baselines=("teacher",),
        candidates={"sw": "first.trec"},
    ),
    **COMMON,
)
WORK = Score("scored", FromStage("judge"), RANKINGS, query_language="en")


def _data(folder):
    rows, passages = write_data(folder)
    lines = [json.dumps({"_id": f"p{n}", "text": text}) for n, text in enumerate(passages)]
    (folder / "c.jsonl").write_text("\n".join(lines))
    asked = {f"q{n}": f"{row['query']} {passages[n]}" for n, row in enumerate(rows[:3])}
    (folder / "q.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in asked.items()))
    (folder / "qrels").write_text("".join(f"q{n} 0 p{n} 1\n" for n in range(3)))
    first = [f"q{n} Q0 p{p} 1 {-p} first\n" for n in range(3) for p in range(4)]
    (folder / "first.trec").write_text("".join(first))
    return rows, passages, asked


def _logits(folder, pairs):
    """What transformers computes from a saved cross-encoder, pair by pair."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [
            model(
                **tokenizer(*pair, max_length=40, truncation="only_second", return_tensors="pt")
            ).logits.item()
            for pair in pairs
        ]


def test_a_cross_encoder_is_trained_and_teaches(tmp_path, monkeypatch):
    rows, passages, asked = _data(tmp_path)
    run = Run("r", (JUDGE, WORK, STUDENT), data_root=str(tmp_path))
    console, home = Console(file=io.StringIO(), width=200), tmp_path / "run"

    def stop(log, step, values):
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StageLog, "scalars", stop)
        with pytest.raises(KeyboardInterrupt):
            train(run, home, console)
    assert [p.name for p in (home / "stages/01-judge/checkpoints").iterdir()] == ["2"]
    told = train(run, home, console)
    # Reranked: BM25's candidates in the order of transformers' scores of the best model.
    judge = home / "stages/01-judge"
    best = read_run(judge / "evaluation/0000003-sw.trec")
    before = bm25_run(
        [f"p{n}" for n in range(len(passages))], passages, list(asked), list(asked.values())
    )
    texts = {f"p{n}": text for n, text in enumerate(passages)}
    for query, own in best.items():
        assert {passage for passage, _ in own} == {passage for passage, _ in before[query]}
        pairs = [(asked[query], texts[passage]) for passage, _ in own]
        np.testing.assert_allclose([s for _, s in own], _logits(judge / "model", pairs), atol=1e-4)
    # Scored: every passage of a list, for the question in the language that is asked for.
    lines = (home / "artifacts/scored/records.jsonl").read_text().splitlines()
    for row, line in zip(rows[:4], map(json.loads, lines), strict=False):
        pairs = [(row["queries"]["en"], p) for p in row["positives"] + row["negatives"]]
        np.testing.assert_allclose(line["scores"], _logits(judge / "model", pairs), atol=1e-4)
    # As a teacher it reranks the run that is named.
    teacher = read_run(home / "stages/03-student/evaluation/teacher-sw.trec")
    assert {p for p, _ in teacher["q0"]} == {"p0", "p1", "p2", "p3"}
    systems = [(row["stage"], row["system"]) for row in told]
    assert systems == [
        ("judge", "student_before"),
        ("judge", "student"),
        ("student", "teacher"),
        ("student", "student"),
    ]
    lines = (home / "stages/03-student/metrics.jsonl").read_text().splitlines()
    losses = [row.get("RelevanceDistillation/loss") for row in map(json.loads, lines)]
    assert np.isfinite([loss for loss in losses if loss is not None]).sum() == 3
    assert is_cross_encoder(judge / "model")
    assert load_cross_encoder(judge / "model").spec == SPEC


def _with(stage, **options):
    return dataclasses.replace(stage, **options)


def _run(*stages):
    return Run("r", stages)


def _refused():
    asks_vectors = Task(InfoNCE(), {"ranking": RANKINGS})
    retriever = dataclasses.replace(LIVE, objective=RelevanceDistillation())
    plain = _with(STUDENT, tasks=(LISTWISE,), evaluate=None)
    own = _with(STUDENT, evaluate=None)
    mine = Mine("mined", FromStage("judge"), RANKINGS, TextLines("corpus.txt", "sw"))
    return {
        "asks the model in training for EncodeQuery, which a retriever answers, and it is a "
        "cross-encoder": _run(_with(JUDGE, tasks=(asks_vectors,))),
        "asks the model in training for Relevance, which a cross-encoder answers": _run(plain),
        "asks teacher 'teacher' for EncodeQuery, which a retriever answers": _run(
            JUDGE, WORK, _with(own, tasks=(retriever,))
        ),
        r"stages\.student\.init is a cross-encoder, and its model is a retriever": _run(
            JUDGE, WORK, _with(own, init=FromStage("judge"), vocabulary=None)
        ),
        r"passage_encoder is 'teacher', and its model is a CrossEncoder": _run(
            _with(JUDGE, passage_encoder="teacher")
        ),
        r"stages\.mined\.model is the cross-encoder of stage 'judge', which gives texts no": _run(
            JUDGE, mine
        ),
    }


@pytest.mark.parametrize("told", _refused())
def test_what_it_cannot_do_is_refused_before_any_work(told):
    with pytest.raises(ConfigError, match=told):
        check(_refused()[told], data_required=False)


def test_it_is_checked_and_written_as_json(capsys):
    other = dataclasses.replace(LIVE, teachers={"teacher": "a/reranker"})
    named = _with(STUDENT, tasks=(other,), name="named")
    again = _with(JUDGE, name="again", init=FromStage("named"), vocabulary=None)
    run = _run(JUDGE, WORK, STUDENT, named, again)
    assert config_files.from_json(config_files.to_json(run)) == run
    assert check(run, data_required=False) == 0
    told = capsys.readouterr().out
    assert "judge: CrossEncoder" in told
    assert "missing: first.trec" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"collections": {"sw": QUESTIONS}, "candidates": {"so": "a.trec"}}, "candidates has 'so'"),
        ({"collections": {"sw": BitextPairs("p.tsv", "sw")}}, "compares vectors, and a cross"),
    ],
)
def test_an_evaluation_that_cannot_be(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        _with(JUDGE, evaluate=Evaluate(metrics=("RR@10",), **options))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("q0 Q0 p99 1 1 x\n", "first.trec: passage 'p99' of query 'q0' is not in the collection"),
        ("z Q0 p1 1 1 x\n", "first.trec: it ranks nothing for any query of the collection"),
    ],
)
def test_a_run_of_another_collection(tmp_path, lines, sentence):
    _data(tmp_path)
    (tmp_path / "first.trec").write_text(lines)
    with pytest.raises(DataError, match=sentence):
        read_candidates("first.trec", str(tmp_path), QUESTIONS.open(str(tmp_path)), 10)
