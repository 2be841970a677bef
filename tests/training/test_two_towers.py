"""A stage that trains queries only, and what can be done with the two towers it leaves."""

import dataclasses
import functools
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from clir_jax.config import Evaluate, FromStage, Optimizer, Run, Score, Stage, Task
from clir_jax.config_files import ConfigError
from clir_jax.data.collections import Retrieval
from clir_jax.data.sources import Atlas
from clir_jax.evaluate import main
from clir_jax.evaluation.retrieval import TextEncoder
from clir_jax.mesh import make_mesh
from clir_jax.models.formats import load_retriever, save_loaded
from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery
from clir_jax.models.retriever import Dense
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.base import Ask, Batch
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.distillation import RelevanceDistillation
from clir_jax.objectives.sentences import ThreeTermTransfer
from clir_jax.training import loop
from clir_jax.training.artifacts import records_source
from clir_jax.training.build import build_stage
from clir_jax.training.initial import initial_model, load_teacher
from clir_jax.training.loop import train
from clir_jax.training.supported import refuse_unsupported
from clir_jax.training.towers import Routed
from clir_jax.tree import paths
from tests.training.workshop import (
    LATE,
    RANKINGS,
    bytes_of,
    retriever,
    scores_by_hand,
    write_data,
)

QUERIES = "stages/01-queries"
RANKING = Task(InfoNCE(), {"ranking": RANKINGS}, batch_size=4)


def _distilled(teacher):
    objective = RelevanceDistillation(student_query="query.sw")
    return Task(
        objective, {"ranking": RANKINGS}, teachers={"teacher": teacher}, batch_size=4, passages=2
    )


def _stage(init, teacher, tasks=(), **options):
    return Stage(
        **{
            "name": "queries",
            "model": LATE,
            "init": init,
            "tasks": tasks or (_distilled(teacher), RANKING),
            "steps": 4,
            "optimizer": Optimizer(0.01, "constant"),
            "checkpoint_every": 1,
            "log_every": 1,
            "passage_encoder": "teacher",
        }
        | options
    )


def _run(folder):
    """Queries for the passages of a model that has two towers itself, and scores of both."""
    evaluate = Evaluate(
        {"sw": Retrieval("judged.jsonl", "queries.tsv", "qrels", "sw")},
        every=2,
        metrics=("nDCG@10",),
        baselines=("teacher", "student_before"),
        depth=20,
    )
    stage = _stage(str(folder / "both"), str(folder / "both"), evaluate=evaluate)
    return Run("r", (stage, Score("scored", FromStage("queries"), RANKINGS)), data_root=str(folder))


@dataclasses.dataclass
class Finished:
    """What the run has left, and the requests of which blocks were encoded outside its steps."""

    folder: object
    rows: list
    questions: list
    passages: list
    encoded: list


def _towers():
    """A model with two towers; without dropout, so that losses can be computed by hand."""
    model, random = retriever(), np.random.default_rng(1)
    config = dataclasses.replace(
        model.encoder_config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = dataclasses.replace(model, encoder_config=config)
    others = jax.tree.map(lambda x: jnp.asarray(random.permutation(np.asarray(x))), model.params)
    return dataclasses.replace(model, passage=dataclasses.replace(model, params=others))


def _one_device(*_):
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run on one device."""
    folder = tmp_path_factory.mktemp("towers")
    save_loaded(folder / "both", _towers())
    records, passages = write_data(folder)
    lines = [json.dumps({"_id": f"p{n}", "title": "", "text": t}) for n, t in enumerate(passages)]
    (folder / "judged.jsonl").write_text("\n".join(lines))
    relevant = {row["query"]: passages.index(row["positives"][0]) for row in records}
    questions = list(relevant)
    (folder / "queries.tsv").write_text("".join(f"q{n}\t{t}\n" for n, t in enumerate(questions)))
    (folder / "qrels").write_text(
        "".join(f"q{n} 0 p{relevant[t]} 1\n" for n, t in enumerate(questions))
    )
    encoded, encode = [], TextEncoder._encode

    def counting(self, kind, tokens):
        encoded.append(kind)
        return encode(self, kind, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "_encode", counting)
        patch.setattr(loop, "make_mesh", _one_device)
        rows = train(_run(folder), folder / "run", Console(file=io.StringIO()))
    return Finished(folder, rows, questions, passages, encoded)


@pytest.fixture(scope="module")
def by_hand(finished):
    """MaxSim of every question by the tower that was trained and every passage by the frozen."""
    model = load_retriever(finished.folder / "run" / QUERIES / "model")
    frozen = load_retriever(finished.folder / "both/passage")
    return scores_by_hand(model, finished.questions, finished.passages, frozen)


def test_the_passage_tower_is_the_teacher_and_the_other_has_learned(finished):
    model, before = finished.folder / "run/model", finished.folder / "both"
    assert sorted(path.name for path in model.iterdir()) == ["passage", "query"]
    assert bytes_of(model) == bytes_of(finished.folder / "run" / QUERIES / "model")
    for file in ("model.safetensors", "1_Dense/model.safetensors"):
        assert (model / "passage" / file).read_bytes() == (before / "passage" / file).read_bytes()
    trained, initial = (paths(load_retriever(d / "query").params) for d in (model, before))
    assert all((leaf != initial[path]).any() for path, leaf in trained.items() if "query" in path)


def test_rankings_are_of_the_student_s_queries_over_the_teacher_s_passages(finished, by_hand):
    folder = finished.folder / "run" / QUERIES / "evaluation"
    best = [row for row in finished.rows if row["system"] == "student"]
    steps = [s for s in (2, 4) if json.loads((folder / f"{s:07d}.json").read_text()) == best]
    lines = (folder / f"{steps[0]:07d}-sw.trec").read_text().splitlines()
    assert len(lines) == 20 * len(finished.questions)
    for line in lines:
        query, _, passage, _, score, _ = line.split()
        expected = by_hand[int(query[1:]), int(passage[1:])]
        np.testing.assert_allclose(float(score), expected, atol=1e-4)


def test_the_english_index_is_encoded_once(finished):
    # All passages are one block. Two baselines and two evaluations search it; Score encodes the
    # questions and the passages of its own, a block each.
    assert finished.encoded.count(EncodePassage) == 1 + 1
    assert finished.encoded.count(EncodeQuery) == 4 + 1


def test_scores_are_of_both_towers(finished, by_hand):
    records = records_source(finished.folder / "run/artifacts/scored").open("")
    assert len(records) == 11
    for n in range(len(records)):
        record = records[n]
        row = by_hand[finished.questions.index(record.queries["sw"])]
        texts = [passage.text for passage in record.positives + record.negatives]
        expected = [row[finished.passages.index(text)] for text in texts]
        np.testing.assert_allclose(record.scores, expected, atol=1e-5)


def test_the_command_measures_a_run_with_two_towers(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.folder)
    files = ("--corpus", "judged.jsonl", "--queries", "queries.tsv", "--qrels", "qrels")
    assert main(["--model", "run", *files, "--metrics", "nDCG@10", "--depth", "20"]) == 0
    (value,) = (row["value"] for row in finished.rows if row["system"] == "student")
    assert f"{value:.3f}" in capsys.readouterr().out


def test_killed_before_its_last_step_it_ends_with_the_same_bytes(finished, tmp_path, monkeypatch):
    again = tmp_path / "run"
    shutil.copytree(finished.folder / "run", again)
    stage = again / QUERIES
    assert {"3", "4"} <= {path.name for path in (stage / "checkpoints").iterdir()}
    for directory in (stage / "checkpoints/4", stage / "model", again / "model"):
        shutil.rmtree(directory)
    for file in (stage / "summary.json", *(stage / "evaluation").glob("0000004*")):
        file.unlink()
    monkeypatch.setattr(loop, "make_mesh", _one_device)
    train(_run(finished.folder), again, Console(file=io.StringIO()))
    for part in ("model", "evaluation"):
        undisturbed = bytes_of(finished.folder / "run" / QUERIES / part)
        assert bytes_of(stage / part) == undisturbed


def test_losses_compare_the_student_s_queries_with_the_teacher_s_passages(finished):
    """Both losses of the first step, by loops over the towers' vectors."""
    run = _run(finished.folder)
    parts, _ = build_stage(run, run.stages[0], _one_device(), {})
    both = load_retriever(finished.folder / "both")
    file = finished.folder / "run" / QUERIES / "metrics.jsonl"
    told = json.loads(file.read_text().splitlines()[0])
    batch = parts.datasets["InfoNCE"][0]
    assert (list(batch.student), list(batch.teacher)) == (["query"], ["student_passages"])
    scores = _maxsims(both, batch.student["query"], batch.teacher["student_passages"])[:, :, 0]
    ids, known = batch.labels["ranking.passage_ids"][:, 0], batch.labels["ranking.known"]
    loss = 0.0
    for row, own in enumerate(scores):
        others = {n: own[m] for m, n in enumerate(ids) if n not in (*known[row], ids[row])}
        loss += np.log(np.exp(np.array([own[row], *others.values()]) - own[row]).sum()) / 4
    np.testing.assert_allclose(told["InfoNCE/loss"], loss, rtol=1e-4)
    batch = parts.datasets["RelevanceDistillation"][0]
    assert (list(batch.student), sorted(batch.teacher)) == (["query"], ["passages", "query"])
    real = batch.labels["ranking.passage_ids"] >= 0
    ours, theirs = (
        _maxsims(both, query, batch.teacher["passages"])[range(4), range(4)]
        for query in (batch.student["query"], batch.teacher["query"])
    )
    loss = 0.0
    for row in range(4):
        s, t = (x[row][real[row]] / 2 for x in (ours, theirs))
        log_s, log_t = (x - np.log(np.exp(x).sum()) for x in (s, t))
        loss += 4 * (np.exp(log_t) * (log_t - log_s)).sum() / 4
    np.testing.assert_allclose(told["RelevanceDistillation/loss"], loss, rtol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def _answered(graphdef, params, request):
    return nnx.merge(graphdef, params)(request)


def _maxsims(both, queries, passages):
    """Scores ``[B, B, N]`` of every query and every passage of every list."""
    shape = passages.tokens.ids.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, shape[-1]), passages)
    asked, searched = (
        [v[m] for v, m in zip(*jax.device_get((out.vectors, out.mask)), strict=True)]
        for tower, request in ((both, queries), (both.passage, flat))
        for out in [_answered(tower.graphdef, tower.params, request)]
    )
    table = [[(q @ p.T).max(axis=1).sum() if len(p) else 0 for p in searched] for q in asked]
    return np.array(table).reshape(len(asked), *shape[:-1])


def test_a_teacher_with_one_tower_keeps_its_own_passages(finished):
    one = str(finished.folder / "both/passage")
    stage = _stage(one, one)
    run = Run("r", (stage,), data_root=str(finished.folder))
    parts, _ = build_stage(run, stage, _one_device(), {})
    assert parts.student.passage is parts.teachers["teacher"]
    assert sorted(parts.datasets["InfoNCE"][0].teacher) == ["student_passages"]


@dataclasses.dataclass(frozen=True)
class _Likened(InfoNCE):
    """Asks its teacher for the passages that it asks its student for, and wants their labels."""

    @property
    def teacher(self):
        return {"same": Ask(EncodePassage, ("ranking.passages",))}

    @property
    def token_labels(self):
        return ("student.passages.content", "teacher.same.content", "student.query.idf")

    def loss(self, student, teacher, batch):
        return 0.0, {"student": student, "teacher": teacher, "labels": batch.labels}


def test_what_the_teacher_is_asked_already_it_answers_once():
    routed = Routed(_Likened(), "teacher")
    assert list(routed.student) == ["query"]
    assert list(routed.teacher) == ["same"]
    assert routed.token_labels == ("teacher.same.content", "student.query.idf")
    labels = {"teacher.same.content": np.ones(1), "student.query.idf": np.ones(2)}
    query, passages = (Embeddings(np.full((1, 1, 2), x), np.ones((1, 1), bool)) for x in (1.0, 2.0))
    batch = Batch({}, {}, np.ones(1, np.float32), labels)
    _, told = routed.loss({"query": query}, {"same": passages}, batch)
    assert told == {
        "student": {"query": query, "passages": passages},
        "teacher": {"same": passages},
        "labels": labels | {"student.passages.content": labels["teacher.same.content"]},
    }


def test_a_teacher_with_two_towers_is_asked_for_passages_at_the_second():
    routed = Routed(_Likened(), "teacher.passage", ("teacher",))
    assert routed.teacher == {"same": Ask(EncodePassage, ("ranking.passages",), "teacher.passage")}


def _refused():
    first = _stage("bert-base-uncased", "x", (RANKING,), name="first", passage_encoder="student")
    teacher = FromStage("first")
    queries, again = _stage(teacher, teacher), _stage(FromStage("queries"), teacher, name="again")
    english = Task(
        TokenAlignmentDistillation(english="passage"),
        {"bitext": Atlas("bitext", "sw")},
        teachers={"teacher": teacher},
    )
    return {
        r"queries\.passage_encoder is 'teacher', and the teachers of its tasks are \(none\); it "
        r"keeps the passages of one, so name one": (first, _stage(teacher, "x", (RANKING,))),
        r"again\.init is stage 'queries', which has two towers, and this stage trains one; set "
        r"passage_encoder='teacher'": (
            first,
            queries,
            dataclasses.replace(again, passage_encoder="student"),
        ),
        r"tasks\.TokenAlignmentDistillation: its objective trains the student to encode "
        r"bitext\.english as passages \('english'\), and passage_encoder='teacher' keeps the": (
            first,
            _stage(teacher, teacher, (english,)),
        ),
        r"tasks\.ThreeTermTransfer: its passage_weight is 1\.0, of the student's passages against "
        r"the teacher's, which are the same .*; set passage_weight to 0": (
            first,
            _stage(
                teacher,
                teacher,
                (dataclasses.replace(_distilled(teacher), objective=ThreeTermTransfer()),),
            ),
        ),
        r"tasks\._Named\.teachers: 'x\.passage' is taken": (
            first,
            _stage(
                teacher,
                teacher,
                (
                    dataclasses.replace(
                        _distilled(teacher), objective=_Named(), teachers={"x.passage": teacher}
                    ),
                ),
            ),
        ),
    }


@dataclasses.dataclass(frozen=True)
class _Named(RelevanceDistillation):
    """Asks a teacher of another name."""

    @property
    def teacher(self):
        asks = super().teacher.items()
        return {name: dataclasses.replace(ask, model="x.passage") for name, ask in asks}


@pytest.mark.parametrize("told", _refused())
def test_what_two_towers_cannot_do_is_refused_before_any_work(told):
    with pytest.raises(ConfigError, match=told):
        refuse_unsupported(Run("r", _refused()[told]), 1)


def test_a_directory_with_two_towers_where_one_is_trained(finished):
    both = str(finished.folder / "both")
    stage = _stage(both, both, (RANKING,), passage_encoder="student")
    run = Run("r", (stage,))
    with pytest.raises(ValueError, match=r"both: the model saved there has two towers, .*query/"):
        initial_model(run, stage)
    keeping = dataclasses.replace(stage, passage_encoder="teacher")
    assert initial_model(run, keeping).passage is None
    assert load_teacher(stage, both).passage is not None


def test_passages_of_another_kind_are_refused(finished, tmp_path):
    save_loaded(tmp_path / "dense", retriever(Dense(query_length=12, passage_length=40)))
    stage = _stage(str(finished.folder / "both"), str(tmp_path / "dense"))
    run = Run("r", (stage,), data_root=str(finished.folder))
    told = "queries are late interaction of 8 numbers where the teacher's passages are dense of 16"
    with pytest.raises(ConfigError, match=told):
        build_stage(run, stage, _one_device(), {})
