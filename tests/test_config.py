"""What a configuration refuses, and in which words."""

import dataclasses
import re

import jaxtyping
import pytest

from clir_jax.config import (
    Artifact,
    EncodeTeacher,
    Evaluate,
    FromStage,
    Generate,
    Group,
    MeshShape,
    Mine,
    OnPlateau,
    Optimizer,
    Rounds,
    Run,
    Score,
    Scratch,
    Stage,
    Stop,
    Task,
    TrainVocabulary,
)
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import AtlasRetrieval
from clir_jax.data.sources import Atlas, Mixture, TextLines
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import InfoNCE, PairwiseSoftmax

ENGLISH = Atlas("ranking", "en")
SW = {"sw": AtlasRetrieval("sw")}
CONTRAST = Task(InfoNCE(), {"ranking": ENGLISH})


@pytest.fixture(autouse=True)
def _as_people_run_it():
    """Without the suite's own type checker, which would speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def stage(name="teacher", **changes):
    whole = {"model": Dense(), "init": "bert-base-cased", "tasks": (CONTRAST,), "steps": 5}
    return Stage(name=name, **(whole | changes))


def distilled(name, teacher, source=None, init="xlm-roberta-base"):
    source = BitextTSV("b.tsv", "sw") if source is None else source
    task = Task(TokenAlignmentDistillation(), {"bitext": source}, teachers={"teacher": teacher})
    return stage(name, model=LateInteraction(), tasks=(task,), init=init)


def run(*stages, **changes):
    return Run("r", stages, **changes)


def encoder():
    return EncoderConfig(
        vocab_size=99,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=32,
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        # Types, at any depth, before anything is computed with them.
        (lambda: stage(steps="ten"), "Stage.steps is 'ten'; it must be a whole number"),
        (lambda: stage(steps=True), "Stage.steps is True; it must be a whole number"),
        (lambda: stage(dtype="fp16"), "Stage.dtype is 'fp16'; it must be 'float32' or 'bfloat16'"),
        (
            lambda: stage(tasks=[CONTRAST]),
            re.compile(
                r"^Stage\.tasks is \[.*\.\.\.; it must be a tuple \(in JSON a list\) of Task$"
            ),
        ),
        (
            lambda: stage(init=None),
            "Stage.init is None; it must be text or FromStage or Scratch",
        ),
        (
            lambda: stage(model=Dense(normalize="yes")),
            "Stage.model.normalize is 'yes'; it must be True or False",
        ),
        (
            lambda: Task(InfoNCE(in_batch=1), {"ranking": ENGLISH}),
            "Task.objective.in_batch is 1; it must be True or False",
        ),
        (
            lambda: Task(InfoNCE(), {"ranking": Mixture((ENGLISH, BitextTSV("x.tsv", 5)))}),
            "Task.sources.ranking.sources.1.language is 5; it must be text",
        ),
        (
            lambda: Task("InfoNCE", {"ranking": ENGLISH}),
            "Task.objective is 'InfoNCE'; it must be Objective",
        ),
        (
            lambda: Optimizer(clip_norm="1"),
            "Optimizer.clip_norm is '1'; it must be a number or None",
        ),
        # Values.
        (lambda: stage(steps=0), "stage teacher: steps is 0; it must be at least 1"),
        (
            lambda: stage(tokens_per_chunk=0),
            "stage teacher: tokens_per_chunk is 0; it must be at least 1",
        ),
        (lambda: stage(log_every=0), "stage teacher: log_every is 0; it must be at least 1"),
        (
            lambda: stage("a/b"),
            "stage: its name is 'a/b', and it becomes the name of a file; write letters, digits, "
            "'-', '_' and '.' only",
        ),
        (
            lambda: Optimizer(learning_rate=float("nan")),
            "optimizer: learning_rate is nan; it must be a finite number of at least 0",
        ),
        (
            lambda: Optimizer(clip_norm=0),
            "optimizer: clip_norm is 0; it must be a finite number above 0",
        ),
        (
            lambda: Optimizer(beta2=1.0),
            "optimizer: beta2 is 1.0; it must be at least 0 and below 1",
        ),
        (lambda: Optimizer(warmup=-1), "optimizer: warmup is -1; it must be at least 0"),
        (
            lambda: Group("(encoder"),
            "group: pattern '(encoder' is no regular expression (missing ), unterminated "
            "subpattern at position 0); correct it",
        ),
        (
            lambda: Group("x", learning_rate=-1),
            "group: learning_rate is -1; it must be a finite number of at least 0, or None",
        ),
        (lambda: MeshShape(fsdp=0), "mesh: fsdp is 0; it must be at least 1"),
        (lambda: MeshShape(data=0), "mesh: data is 0; it must be -1 or at least 1"),
        (lambda: Stop(0), "stop: patience is 0; it must be at least 1"),
        (lambda: OnPlateau(1.0), "on_plateau: factor is 1.0; it must be above 0 and below 1"),
        (lambda: run(stage(), seed=-1), "run: seed is -1; it must be from 0 to 2147483647"),
        # Tasks.
        (
            lambda: dataclasses.replace(CONTRAST, batch_size=0),
            "task InfoNCE: batch_size is 0; it must be at least 1",
        ),
        (
            lambda: Task(InfoNCE(), {"rankings": ENGLISH}),
            "task InfoNCE: its objective reads the sources ranking but sources has rankings; give "
            "exactly those it reads",
        ),
        (
            lambda: Task(TokenAlignmentDistillation(), {"bitext": BitextTSV("b.tsv", "sw")}),
            "task TokenAlignmentDistillation: its objective asks the teachers teacher but teachers "
            "has (none); give exactly those it asks",
        ),
        (
            lambda: stage(tasks=(CONTRAST, CONTRAST)),
            "stage teacher: its tasks are called InfoNCE, InfoNCE; it needs at least one, and a "
            "different name= for each",
        ),
        # Starting points.
        (
            lambda: stage(init=Scratch(encoder())),
            "stage teacher: init=Scratch(...) and vocabulary=TrainVocabulary(...) go together, and "
            "it has one of them; a pretrained model takes ReplaceVocabulary(...)",
        ),
        (
            lambda: TrainVocabulary(()),
            "vocabulary: sources is (); it must be at least one source",
        ),
        # What stages take from one another.
        (
            lambda: run(stage(), stage()),
            "run r: two stages are called 'teacher'; rename one",
        ),
        (
            lambda: run(distilled("distil", FromStage("techer")), stage("teacher")),
            "stage distil: it takes the model of stage 'techer', and those trained before it are "
            "(none); name one of these",
        ),
        (
            lambda: run(Mine("mined", "bm25", ENGLISH, SW["sw"]), stage(init=FromStage("mined"))),
            "stage teacher: it takes the model of stage 'mined', and those trained before it are "
            "(none); name one of these",
        ),
        (
            lambda: run(Mine("mined", "bm25", ENGLISH, SW["sw"])),
            "run r: no stage of it trains; add at least one Stage",
        ),
        (
            lambda: run(stage(tasks=(Task(InfoNCE(), {"ranking": Artifact("mined")}),))),
            "stage teacher: it reads the artifact 'mined', and those written before it are (none); "
            "name one of these",
        ),
        (
            lambda: run(
                stage(),
                EncodeTeacher("ahead", "distil", "TokenAlignmentDistillation", "techer"),
                distilled("distil", FromStage("teacher")),
            ),
            "stage ahead: it encodes for distil.TokenAlignmentDistillation.techer, and the "
            "teachers after it (stage.task.teacher) are "
            "distil.TokenAlignmentDistillation.teacher; name one of these",
        ),
        (
            lambda: run(
                EncodeTeacher("ahead", "distil", "TokenAlignmentDistillation"),
                stage(),
                distilled("distil", FromStage("teacher")),
            ),
            "stage ahead: it takes the model of stage 'teacher', and those trained before it are "
            "(none); name one of these",
        ),
        # Work and rounds.
        (
            lambda: Mine("mined", "bm25", ENGLISH, SW["sw"], negatives=9, depth=8),
            "work mined: negatives is 9; it must be from 1 to depth",
        ),
        (
            lambda: Generate("asked", "g", TextLines("t", "en"), ()),
            "work asked: languages is (); it must be at least one language",
        ),
        (lambda: Rounds("again", 0, (stage(),)), "rounds again: count is 0; it must be at least 1"),
        (
            lambda: Rounds("again", 2, (stage(),), start={"student": "x"}),
            "rounds again: start names 'student', and the group trains teacher; name one of these",
        ),
        (
            lambda: run(Rounds("again", 2, (stage(init=FromStage("teacher")),))),
            "stage teacher: it takes the model of stage 'teacher', and those trained before it are "
            "(none); name one of these, or give rounds again a start for it",
        ),
        (
            lambda: run(
                Rounds("again", 2, (stage(),), start={"teacher": FromStage("teacher")}),
            ),
            "rounds again: it takes the model of stage 'teacher', and those trained before it are "
            "(none); name one of these",
        ),
        # Evaluation.
        (
            lambda: Evaluate({}),
            "evaluate: collections and metrics need at least one entry each",
        ),
        (
            lambda: Evaluate(SW, metrics=("NDGC@10",)),
            "metric 'NDGC@10' is unknown to ir-measures; did you mean 'nDCG@10'?",
        ),
        (
            lambda: Evaluate(SW, best="nDCG@10 so"),
            "evaluate: best is 'nDCG@10 so'; write one of 'nDCG@10 sw', 'RR@10 sw', 'R@100 sw'",
        ),
        (
            lambda: Evaluate(SW, best="nDGC@10 sw"),
            "metric 'nDGC@10' is unknown to ir-measures; did you mean 'nDCG@10'?",
        ),
        (
            lambda: Evaluate(SW, depth=50),
            "evaluate: depth is 50, and R@100 looks at 100 passages; set depth to at least 100",
        ),
        (
            lambda: Evaluate({"mlqa/sw": SW["sw"]}),
            "evaluate: a collection: its name is 'mlqa/sw', and it becomes the name of a file; "
            "write letters, digits, '-', '_' and '.' only",
        ),
        (
            lambda: stage(stop=Stop(), evaluate=Evaluate(SW)),
            "stage teacher: stop counts evaluations, and there are none while it trains; set "
            "evaluate with every= above 0",
        ),
        (
            lambda: stage(evaluate=Evaluate(SW, baselines=("teacher",))),
            "stage teacher: evaluate.baselines has 'teacher' and no task has a teacher; "
            "leave it out",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make, sentence):
    exact = sentence if isinstance(sentence, re.Pattern) else f"^{re.escape(sentence)}$"
    with pytest.raises(ValueError, match=exact):
        make()


def test_aliases_of_metrics_are_replaced_everywhere():
    evaluate = Evaluate(SW, metrics=("MRR@10", "RR@10", "nDCG@10"), best="MRR@10 sw")
    assert evaluate.metrics == ("RR@10", "nDCG@10")
    assert evaluate.best == evaluate.selection == "RR@10 sw"
    assert Evaluate(SW, metrics=("Recall@100",)).selection == "R@100 sw"


def test_whole_numbers_serve_as_numbers():
    assert Optimizer(learning_rate=1) == Optimizer(learning_rate=1.0)


def test_an_artifact_is_read_by_what_comes_after_its_work():
    mined = Mine("mined", FromStage("teacher"), ENGLISH, SW["sw"])
    scored = Score("scored", "some/cross-encoder", Artifact("mined"))
    lists = Task(PairwiseSoftmax(), {"ranking": Artifact("scored")}, passages=2)
    student = stage("student", tasks=(lists,))
    in_mixture = Task(InfoNCE(), {"ranking": Mixture((ENGLISH, Artifact("mined")))})
    whole = run(stage(), mined, scored, student, stage("mixed", tasks=(in_mixture,)))
    assert [step.name for step in whole.flat()] == [
        "teacher",
        "mined",
        "scored",
        "student",
        "mixed",
    ]
    assert [step.name for step in whole.training_stages()] == ["teacher", "student", "mixed"]
    with pytest.raises(ValueError, match="artifact 'mined', and those written before it are"):
        run(stage(), scored, mined, student)


def test_an_artifact_is_opened_by_its_run_alone():
    with pytest.raises(ValueError, match="'mined' is written by a run and can be read there only"):
        Artifact("mined").open(".")


def test_rounds_mine_with_the_student_of_the_round_before():
    group = Rounds(
        "again",
        3,
        (
            Mine("mined", FromStage("student"), ENGLISH, SW["sw"]),
            stage(
                "student",
                init=FromStage("student"),
                tasks=(Task(InfoNCE(), {"ranking": Artifact("mined")}),),
            ),
        ),
        start={"student": FromStage("warm")},
    )
    whole = run(stage("warm"), group, stage("last", init=FromStage("student")))
    assert [step.name for step in whole.flat()] == ["warm", "mined", "student", "last"]


def test_answers_of_a_teacher_are_encoded_for_a_later_stage():
    ahead = EncodeTeacher("ahead", "distil", "TokenAlignmentDistillation")
    assert run(stage(), ahead, distilled("distil", FromStage("teacher"))).flat()[1] is ahead
