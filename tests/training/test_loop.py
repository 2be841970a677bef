"""A run: what it leaves, what it compiles, what it refuses, and where it stops."""

import dataclasses
import io
import json
import logging
import re
import shutil
import types
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from clir_jax import config_files
from clir_jax.config import (
    Evaluate,
    Group,
    Optimizer,
    Run,
    Scratch,
    Stage,
    Task,
    TrainVocabulary,
)
from clir_jax.config_files import ConfigError
from clir_jax.data.collections import Retrieval
from clir_jax.data.rankings import TriplesTSV
from clir_jax.data.sources import TextLines
from clir_jax.mesh import make_mesh
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import load_retriever
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.train import main
from clir_jax.training import loop
from clir_jax.training.build import build_stage
from clir_jax.training.checkpoint import Checkpoints
from clir_jax.training.claim import claim
from clir_jax.training.evaluation import StageEvaluation
from clir_jax.training.initial import initial_model
from clir_jax.training.logging import StageLog
from clir_jax.training.loop import TrainingError, train
from clir_jax.training.positions import Itinerary
from clir_jax.tree import paths

RECIPE = str(Path(__file__).with_name("tiny_recipe.py"))
TEACHER, DISTIL = "stages/01-teacher", "stages/02-distil"
WORDS = [a + b for a in ("la", "ri", "mo", "tu") for b in ("ke", "ver", "un", "na")]


class Compilations(logging.Handler):
    """Counts how often JAX compiles a function of a name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        if match := re.match(r"Compiling (?:jit\()?([\w<>]+)", record.getMessage()):
            self.names.append(match[1])

    def __enter__(self):
        self._before = jax.config.jax_log_compiles
        jax.config.update("jax_log_compiles", True)
        self._logger = logging.getLogger("jax._src.interpreters.pxla")
        self._propagates, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *error):
        jax.config.update("jax_log_compiles", self._before)
        self._logger.propagate = self._propagates
        self._logger.removeHandler(self)


def _console():
    return Console(file=io.StringIO(), highlight=False, soft_wrap=True)


def _rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@dataclasses.dataclass
class Finished:
    """A run that has come to its end."""

    directory: Path
    rows: list
    told: str
    compiled: list
    passages: list


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The tiny recipe on eight devices that share its parameters."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    console, passages = _console(), []
    with pytest.MonkeyPatch.context() as patch, Compilations() as compiled:
        patch.setattr(StageLog, "passages", lambda _, *told: passages.append(told))
        rows = train(config_files.load(f"{RECIPE}:fsdp=8"), directory, console)
    return Finished(directory, rows, console.file.getvalue(), compiled.names, passages)


def test_the_summary_has_every_system_of_every_stage(finished):
    assert finished.rows == json.loads((finished.directory / "summary.json").read_text())
    keys = ["stage", "system", "dataset", "language", "metric", "value"]
    assert all(list(row) == keys for row in finished.rows)
    assert all(0 <= row["value"] <= 1 for row in finished.rows)
    told = [tuple(row.values())[:5] for row in finished.rows]
    systems = {"teacher": ("bm25", "student"), "distil": ("teacher", "student_before", "student")}
    assert told == [
        (stage, system, language, language, metric)
        for stage, of_stage in systems.items()
        for system in of_stage
        for language in ("sw", "en")
        for metric in ("nDCG@10", "R@100")
    ]
    bm25 = [row["value"] for row in finished.rows if row["system"] == "bm25"]
    assert bm25[2] > 0.3  # nDCG@10 of English questions: the collection is not empty of matches


def test_the_summary_is_of_the_first_best_step_and_models_pass_between_stages(finished):
    def at(stage, step):
        file = finished.directory / stage / "evaluation" / f"{step:07d}.json"
        return [row["value"] for row in json.loads(file.read_text())]

    def of(stage, system):
        return [r["value"] for r in finished.rows if (r["stage"], r["system"]) == (stage, system)]

    # Values are nDCG@10 sw, R@100 sw, nDCG@10 en, R@100 en; which selects is the stage's choice.
    first = 6 if at(TEACHER, 6)[0] >= at(TEACHER, 12)[0] else 12
    second = 6 if at(DISTIL, 6)[1] >= at(DISTIL, 12)[1] else 12
    assert of("teacher", "student") == at(TEACHER, first)
    assert of("distil", "student") == at(DISTIL, second)
    assert at(TEACHER, 6) != at(TEACHER, 12)
    # The student began as the teacher's best; its teacher is the last.
    assert of("distil", "student_before") == pytest.approx(of("teacher", "student"), abs=1e-9)
    assert of("distil", "teacher") == pytest.approx(at(TEACHER, 12), abs=1e-9)


def test_a_run_leaves_what_the_design_says(finished):
    run_dir = finished.directory
    top = {"config.json", "summary.json", "report.html", "model", "stages"}
    assert {p.name for p in run_dir.iterdir()} == top
    config = config_files.from_json((run_dir / "config.json").read_text())
    assert config == config_files.load(f"{RECIPE}:fsdp=8")
    assert "<html" in (run_dir / "report.html").read_text()
    model = load_retriever(run_dir / "model")
    for path, leaf in paths(load_retriever(run_dir / DISTIL / "model").params).items():
        np.testing.assert_array_equal(leaf, paths(model.params)[path], err_msg=path)
    for stage in (TEACHER, DISTIL):
        rows = _rows(run_dir / stage / "metrics.jsonl")
        assert [row["step"] for row in rows] == [2, 3, 4, 6, 6, 8, 9, 10, 12, 12]
        assert [list(row)[1:] for row in (rows[4], rows[9])] == [
            ["nDCG@10 sw", "R@100 sw", "nDCG@10 en", "R@100 en"]
        ] * 2
        assert {"loss", "grad_norm"} < rows[0].keys()
        evaluations = {p.name for p in (run_dir / stage / "evaluation").iterdir()}
        assert {"0000006.json", "0000012-sw.trec", "baselines.json"} < evaluations
    assert (run_dir / TEACHER / "last" / "model.safetensors").is_file()  # the student's teacher
    assert not (run_dir / DISTIL / "last").exists()


def test_each_stage_compiles_its_step_once_on_eight_devices(finished):
    assert finished.compiled.count("step") == 2


def test_people_see_the_stages_and_their_baselines(finished):
    for sentence in (
        "teacher: bm25  nDCG@10  sw 0.",
        "stage 1/2 teacher  12/12  loss ",
        "distil: student_before  nDCG@10  sw 0.",
        "stage 2/2 distil  2/12  loss ",
    ):
        assert sentence in finished.told


def test_every_evaluation_tells_how_far_it_is(finished):
    ends = [system for system, done, total in finished.passages if done == total > 1000]
    assert ends == ["student"] * 2 + ["teacher", "student_before"] + ["student"] * 2
    assert ("bm25 sw", 0, finished.passages[-1][2]) in finished.passages
    halves = [done for system, done, total in finished.passages if 0 < done < total]
    assert len(halves) > 20


def test_a_finished_run_is_not_done_again(finished):
    before = {p: p.stat().st_mtime_ns for p in (finished.directory / "stages").rglob("*")}
    with Compilations() as compiled:
        rows = train(config_files.load(f"{RECIPE}:fsdp=8"), finished.directory, _console())
    assert rows == finished.rows
    assert "step" not in compiled.names
    assert before == {p: p.stat().st_mtime_ns for p in (finished.directory / "stages").rglob("*")}


def test_a_finished_run_without_its_model_is_named(finished):
    model, away = finished.directory / DISTIL / "model", finished.directory / "away"
    model.rename(away)
    with pytest.raises(FileNotFoundError) as error:
        train(config_files.load(f"{RECIPE}:fsdp=8"), finished.directory, _console())
    away.rename(model)
    assert str(error.value) == (
        f"{model}: the model of this finished stage is missing; restore it, or remove "
        f"{model.parent}/summary.json, and the stage is finished again from its last checkpoint"
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("seed=1", "seed"),
        ("stages.distil.steps=13", r"stages\.distil\.steps"),
        (
            "stages.teacher.optimizer.learning_rate=0.5",
            r"stages\.teacher\.optimizer\.learning_rate",
        ),
    ],
)
def test_a_directory_with_another_configuration_is_refused(finished, change, key):
    run = config_files.set_values(config_files.load(f"{RECIPE}:fsdp=8"), [change])
    with pytest.raises(ConfigError, match=f"holds a run with another {key}; choose another"):
        train(run, finished.directory, _console())


def _small(tmp_path, bad="", objective=None, **options):
    """A run of one stage on 16 lines; a second or two."""
    (tmp_path / "text.txt").write_text("\n".join(WORDS))
    pairs = zip(WORDS, WORDS[3:] + WORDS[:3], strict=True)
    lines = [f"{a} {b}\t{b} {a}\t{a} {a}" for a, b in pairs]
    (tmp_path / "train.tsv").write_text("\n".join([*lines, bad] if bad else lines))
    encoder = EncoderConfig(
        vocab_size=100,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    options = {
        "steps": 6,
        "log_every": 2,
        "checkpoint_every": 3,
        "optimizer": Optimizer(schedule="constant"),
    } | options
    stage = Stage(
        name="small",
        model=Dense(query_length=8, passage_length=8),
        init=Scratch(encoder),
        tasks=(
            Task(
                objective or InfoNCE(),
                {"ranking": TriplesTSV("train.tsv", on_bad_record="skip" if bad else "error")},
                batch_size=8,
            ),
        ),
        vocabulary=TrainVocabulary((TextLines("text.txt", "en"),), size=100),
        **options,
    )
    return Run("small", (stage,), data_root=str(tmp_path))


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", lambda *_: make_mesh(devices=jax.devices()[:1]))


def test_one_device_compiles_once_measures_nothing_unasked_and_moves_nothing_frozen(
    tmp_path, one_device
):
    freeze = Optimizer(learning_rate=0.1, groups=(Group("embeddings", freeze=True),))
    run = _small(tmp_path, optimizer=freeze)
    begun = paths(initial_model(run, run.stages[0]).params)
    with Compilations() as compiled:
        assert train(run, tmp_path / "run", _console()) == []
    assert compiled.names.count("step") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == []
    with Checkpoints(tmp_path / "run/stages/01-small/checkpoints") as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (6, None)
    for path, leaf in paths(load_retriever(tmp_path / "run" / "model").params).items():
        assert np.isfinite(leaf).all(), path
        same = np.asarray(leaf).tobytes() == np.asarray(begun[path]).tobytes()
        assert same == ("embeddings" in path), path
    # As the sentence about a lost model says, the stage can be finished again from its checkpoint.
    stage = tmp_path / "run/stages/01-small"
    saved = (stage / "model/model.safetensors").read_bytes()
    (stage / "summary.json").unlink()
    shutil.rmtree(stage / "model")
    with Compilations() as compiled:
        train(run, tmp_path / "run", _console())
    assert "step" not in compiled.names
    assert (stage / "model/model.safetensors").read_bytes() == saved


def _evaluate(tmp_path, **options):
    """Evaluations on one passage and two questions, of which one is judged."""
    (tmp_path / "corpus").write_text('{"_id": "1", "text": "lake"}\n')
    (tmp_path / "queries").write_text("a\tlake\nb\triver\n")
    (tmp_path / "qrels").write_text("a 0 1 1\n")
    collections = {"test": Retrieval("corpus", "queries", "qrels", "en")}
    return Evaluate(collections, metrics=("RR@1",), depth=1, **options)


def test_the_average_is_measured_and_the_best_of_it_saved_whenever_the_clock_rings(
    tmp_path, one_device, monkeypatch
):
    """A step takes a second; the evaluation after the fourth is the best."""
    now, begun, states, measured = [0.0], [], [], {}
    build, put, finite = loop.build_stage, loop.put_rows, loop._finite
    measure = StageEvaluation.measure

    def building(*given):
        parts, begin = build(*given)
        begun.append(weakref.ref(begin))
        return parts, begin

    def putting(*given):
        now[0] += 1
        assert begun[0]() is None, "the initial parameters are still held"
        return put(*given)

    def checking(state):
        states.append(jax.device_get((state.params, state.average)))
        return finite(state)

    def measuring(evaluation, step, params):
        measure(evaluation, step, params)
        measured[step] = jax.device_get(params)
        return {2: 0.1, 4: 0.3, 5: 0.2}[step]

    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    for name, patched in {
        "build_stage": building,
        "put_rows": putting,
        "_finite": checking,
    }.items():
        monkeypatch.setattr(loop, name, patched)
    monkeypatch.setattr(StageEvaluation, "measure", measuring)
    run = _small(
        tmp_path,
        steps=5,
        checkpoint_every=1,
        optimizer=Optimizer(0.01, "constant", ema=0.75),
        evaluate=_evaluate(tmp_path, every_seconds=2.0),
    )
    train(run, tmp_path / "run", _console())
    assert list(measured) == [2, 4, 5]
    by_hand = paths(states[0][0])
    for step, (params, average) in enumerate(states, start=1):
        if step > 1:
            by_hand = {k: 0.75 * by_hand[k] + 0.25 * p for k, p in paths(params).items()}
        for path, leaf in paths(average).items():
            np.testing.assert_allclose(leaf, by_hand[path], atol=1e-6, err_msg=path)
        for path, leaf in paths(measured.get(step, average)).items():
            np.testing.assert_array_equal(leaf, paths(average)[path])
    saved = paths(load_retriever(tmp_path / "run" / "model").params)
    for path, leaf in paths(states[3][1]).items():
        np.testing.assert_array_equal(leaf, saved[path], err_msg=path)


def test_left_out_records_are_told(tmp_path, one_device):
    console = _console()
    run = _small(tmp_path, bad="no tabs", evaluate=_evaluate(tmp_path))
    train(run, tmp_path / "run", console)
    told = console.file.getvalue()
    assert "small: InfoNCE: ranking: 16 records to read; left out: 1 x " in told
    assert "train.tsv:17" in told
    assert "evaluation of test: 1 records to read; left out: 1 x query without a judged" in told


def _checkpoints(run_dir):
    folder = run_dir / "stages/01-small/checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


@dataclasses.dataclass(frozen=True)
class Poisoned(InfoNCE):
    """Not a number in every batch that asks a certain question."""

    question: int = -1

    def loss(self, student, teacher, batch):
        value, metrics = super().loss(student, teacher, batch)
        bad = (batch.labels["ranking.query_id"] == self.question).any()
        return value * jnp.where(bad, jnp.nan, 1.0), metrics


def _poisoned_from(step, tmp_path, **options):
    """A run whose first bad step is ``step``, from 2; found by reading the data."""
    run = _small(tmp_path, **options)
    parts, _ = build_stage(run, run.stages[0], make_mesh(), {})
    asked = [
        set(parts.datasets["InfoNCE"][n].labels["ranking.query_id"].tolist()) for n in range(step)
    ]
    question = sorted(asked[-1].difference(*asked[:-1]))[0]
    return _small(tmp_path, objective=Poisoned(question=question), **options)


def test_a_loss_that_is_not_a_number_stops_at_its_step(tmp_path, one_device):
    run = _poisoned_from(2, tmp_path, checkpoint_every=1)
    with pytest.raises(TrainingError) as told:
        train(run, tmp_path / "run", _console())
    folder = tmp_path / "run/stages/01-small/checkpoints"
    assert re.fullmatch(
        r"stage 1/1 small: the loss of step 2 or its gradient is not finite \("
        r"Poisoned/loss nan, grad_norm nan, loss nan\); "
        rf"the last good checkpoint is {folder}/1; start another --run-dir with a lower .*",
        str(told.value),
    )
    assert _checkpoints(tmp_path / "run") == [1]
    steps = [row["step"] for row in _rows(folder.parent / "metrics.jsonl")]
    assert steps == [1]


def test_a_bad_step_between_two_looks_is_named(tmp_path, one_device):
    run = _poisoned_from(2, tmp_path, log_every=5, checkpoint_every=100)
    told = "the loss of step 2 or its gradient.*no checkpoint was saved before it"
    with pytest.raises(TrainingError, match=told):
        train(run, tmp_path / "run", _console())
    assert _checkpoints(tmp_path / "run") == []


def test_an_update_that_overflows_is_never_saved(tmp_path, one_device):
    """The loss and the gradient of the step are finite; the parameters after it are not."""
    optimizer = Optimizer(1e38, "constant", groups=(Group("query/kernel", learning_rate=100.0),))
    run = _small(tmp_path, optimizer=optimizer, checkpoint_every=1)
    told = r"after step 1, params/.*query/kernel is not finite \(InfoNCE/loss \d.*no checkpoint"
    with pytest.raises(TrainingError, match=told):
        train(run, tmp_path / "run", _console())
    assert _checkpoints(tmp_path / "run") == []


def test_too_large_a_learning_rate_ends_the_command_with_one(tmp_path, capsys):
    run = _small(tmp_path, optimizer=Optimizer(1e30, "constant"), checkpoint_every=1)
    (tmp_path / "run.json").write_text(config_files.to_json(run))
    arguments = ["--config", str(tmp_path / "run.json"), "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: stage 1/1 small: ")
    assert error.count("\n") == 1
    good = int(re.search(r"last good checkpoint is \S+/(\d+);", error)[1])
    assert _checkpoints(tmp_path / "run") == [good]
    params = paths(_restored(run, tmp_path / "run", good).params)
    assert len(params) > 10
    assert all(np.isfinite(leaf).all() for leaf in params.values())
    assert not (tmp_path / "run" / "summary.json").exists()


def _restored(run, run_dir, step):
    target = build_stage(run, run.stages[0], make_mesh(), {})[0].target
    with Checkpoints(run_dir / "stages/01-small/checkpoints") as checkpoints:
        return checkpoints.restore(step, target)[0]


def test_directories_that_are_no_run_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds files but no config\.json"):
        train(config_files.load(RECIPE), tmp_path, _console())
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_kill_before_the_configuration_was_complete_is_no_obstacle(tmp_path):
    run, run_dir = _small(tmp_path), tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.json.part").write_text('{"type": "Ru')
    claim(Itinerary(run, run_dir))
    assert config_files.from_json((run_dir / "config.json").read_text()) == run
    assert [p.name for p in run_dir.iterdir()] == ["config.json"]
