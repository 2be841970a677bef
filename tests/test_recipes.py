"""What the sentence-level recipes hold: no test question, what was published, what was left out."""

import dataclasses
from pathlib import Path

import pytest

from clir_jax.config import Mine, Rounds, Stage, Task
from clir_jax.config_files import ConfigError, load
from clir_jax.config_types import walk
from clir_jax.data.rankings import Beir
from clir_jax.models.retriever import Dense
from clir_jax.objectives.language import LanguageContrastive
from clir_jax.training.check import check

CONFIGS = Path(__file__).parents[1] / "configs"
VARIANTS = [
    "mse",
    "mse:language=ha,questions=scores",
    "mse:language=so",
    "mse:language=zu,questions=labels,vector_steps=0",
    "langcl",
    "langcl:language=ha",
    "langcl:language=sw,others=de+hi",
    "cl_relkt",
    "cl_relkt:language=ig,encoder_steps=0,pooling=mean,projection=None",
    "quick",
    "quick:language=ha,teacher=cross_encoder,share=0.333",
    "quick:language=zu,teacher=none,alignment=False,generated=False",
]


def recipe(name):
    file, _, arguments = name.partition(":")
    return load(f"{CONFIGS / file}.py" + (f":{arguments}" if arguments else ""))


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_but_evaluation_reads_test_questions(name):
    run = recipe(f"bench/{name}")
    for step in run.flat():
        learned = step
        if isinstance(step, Stage):
            tested = {path for node in walk(step.evaluate) for path in files(node)}
            if step.evaluate is not None:
                assert any("/dev/" in path or "bitext" in path for path in tested)
            learned = dataclasses.replace(step, evaluate=None)
        for node in walk(learned):
            assert not [path for path in files(node) if "/dev/" in path]


def files(node):
    return node.files() if hasattr(node, "files") else ()


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ("", ["InfoNCE", "SemanticContrastive", "LanguageContrastive"]),
        (":semantic=0.0", ["InfoNCE", "LanguageContrastive"]),
        (":language_loss=0.0", ["InfoNCE", "SemanticContrastive"]),
        (":ir=False", ["SemanticContrastive", "LanguageContrastive"]),
        (":semantic=0.0,language_loss=0.0", ["InfoNCE"]),
    ],
)
@pytest.mark.parametrize("name", ["langcl", "bench/langcl"])
def test_a_loss_without_weight_is_left_out(name, arguments, left):
    (stage,) = recipe(name + arguments).training_stages()
    assert [task.title for task in stage.tasks] == left


@pytest.mark.parametrize(
    ("arguments", "margin", "counts", "epochs", "rate", "weights"),
    [
        ("data=xorqa", 0.27, (2, 3), 30, 1e-3, (0.1, 1.0, 0.1)),
        ("data=xorqa,supported=False", 0.27, (2, 3), 30, 1e-3, (1.0, 1.0, 0.1)),
        ("data=xquad", 0.24, (1, 1), 30, 1e-3, (0.001, 1.0, 0.01)),
        ("data=mlqa", 0.13, (1, 1), 20, 5e-4, (0.01, 1.0, 1e-4)),
    ],
)
def test_what_was_published_of_cl_relkt(arguments, margin, counts, epochs, rate, weights):
    run = recipe(f"cl_relkt:{arguments},questions=160")
    stages = {stage.name: stage for stage in run.training_stages()}
    (first,) = (step for step in run.stages if isinstance(step, Mine) and step.skip)
    assert (first.model, first.skip, first.negatives, first.query_language) == ("bm25", 1, 3, "en")
    (rounds,) = (step for step in run.stages if isinstance(step, Rounds))
    mine, teacher = rounds.stages
    assert (mine.hard, mine.semi_hard) == counts
    assert mine.semi_hard_margin == margin
    for name in ("1a-bm25", "1b-random", "2-teacher"):
        assert stages[name].tasks[0].objective.margin == margin
        assert stages[name].optimizer.learning_rate == 1e-5
        assert stages[name].on_plateau.factor == 0.5
    assert (teacher.steps, stages["3-transfer"].steps) == (10, 10 * epochs)
    last = stages["3-transfer"].tasks[0].objective
    assert (last.question_weight, last.passage_weight, last.answer_weight) == weights
    assert stages["3-transfer"].optimizer.learning_rate == rate
    assert teacher.evaluate.selection == "Success@1 dev"


def test_one_line_adds_the_language_loss_to_another_recipe(capsys):
    run = recipe("bench/optical")
    *before, distil = run.stages
    bitext = distil.tasks[0].sources["bitext"]
    line = Task(LanguageContrastive(), {"bitext": bitext}, weight=0.1)
    both = dataclasses.replace(distil, tasks=(*distil.tasks, line))
    check(dataclasses.replace(run, stages=(*before, both)), data_required=False)
    assert "TokenAlignmentDistillation (16), LanguageContrastive (32)" in capsys.readouterr().out


@pytest.mark.parametrize("teacher", ["generator", "cross_encoder", "none"])
def test_the_arms_of_quick_differ_in_their_teacher_alone(teacher):
    run = recipe(f"bench/quick:teacher={teacher},share=0.5,rounds=2")
    *_, distil = run.training_stages()
    told = {task.title: task for task in distil.tasks}
    assert ("RelevanceDistillation" in told) == (teacher != "none")
    assert told["InfoNCE"] == recipe("bench/quick:share=0.5").training_stages()[-1].tasks[0]
    # Every reading of the training questions is of the same share.
    shares = {node.share for node in walk(run) if isinstance(node, Beir) and "train" in node.qrels}
    assert shares == {0.5}
    assert run.stages[-1].count == 2


def test_the_teachers_of_quick_learn_from_the_same_lists():
    lists = {}
    for teacher in ("generator", "cross_encoder"):
        run = recipe(f"bench/quick:teacher={teacher},alignment=False,generated=False")
        told = [
            (task.sources["ranking"], stage.steps, task.batch_size, task.passages)
            for stage in run.training_stages()
            if not isinstance(stage.model, Dense)
            for task in stage.tasks
            if task.objective.least_passages == 2
        ]
        assert len(told) == 2  # in English, then of the training questions
        lists[teacher] = told
    assert lists["generator"] == lists["cross_encoder"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("bench/quick:teacher=mt5", "teacher is 'mt5'; write one of generator, cross_encoder"),
        ("bench/quick:generated=False", "what is aligned are generated questions; set alignment"),
        ("bench/quick:language=so", "language is 'so', in which there are no training"),
        ("bench/mse:questions=all", "questions is 'all'; write one of scores, labels, or nothing"),
        ("bench/mse:language=so,questions=scores", "language is 'so', in which there are no"),
        ("bench/cl_relkt:language=so", "language is 'so', in which there are no training"),
        ("cl_relkt:data=msmarco", "data is 'msmarco'; write one of xorqa, xquad, mlqa"),
    ],
)
def test_arguments_that_do_not_fit(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        recipe(name)
