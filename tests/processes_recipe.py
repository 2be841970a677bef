"""Tiny stages: what processes are started, stopped and resumed with, and compared."""

import dataclasses

from clir_jax.config import (
    Artifact,
    EncodeTeacher,
    Evaluate,
    FromStage,
    Mine,
    Optimizer,
    Rounds,
    Run,
    Scratch,
    Stage,
    Task,
    TrainVocabulary,
)
from clir_jax.data.collections import AtlasRetrieval
from clir_jax.data.sources import Atlas
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.sentences import SentenceDistillation


def get_config(rounds: int = 0) -> Run:
    """One stage far between checkpoints, so that only SIGTERM makes one before the end.

    Args:
      rounds: of mining and training behind it, and a student of the last; 0 leaves all that out.
    """
    encoder = EncoderConfig(
        vocab_size=200,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    stage = Stage(
        name="train",
        model=Dense(query_length=16, passage_length=16),
        init=Scratch(encoder),
        vocabulary=TrainVocabulary((Atlas("bitext", "sw"),), size=200),
        tasks=(Task(InfoNCE(), {"ranking": Atlas("ranking", "en")}, batch_size=8),),
        steps=60,
        optimizer=Optimizer(1e-3),
        checkpoint_every=1000,
        log_every=1,
    )
    behind = _rounds(stage, rounds) if rounds else ()
    return Run(name="processes", stages=(stage, *behind))


def _rounds(stage: Stage, rounds: int) -> tuple:
    # An epsilon far above the gradients keeps Adam from making much of a rounding error.
    common = {"vocabulary": None, "steps": 4, "optimizer": Optimizer(0.1, epsilon=1.0)}
    mined = Mine(
        "mined",
        FromStage("ranker"),
        Atlas("ranking", "en"),
        Atlas("text", "en"),
        negatives=4,
        sampling="top",
    )
    ranker = dataclasses.replace(
        stage,
        name="ranker",
        init=FromStage("ranker"),
        tasks=(Task(InfoNCE(), {"ranking": Artifact("mined")}, batch_size=8, passages=3),),
        evaluate=Evaluate({"en": AtlasRetrieval("en", "dev")}, every=2, metrics=("nDCG@10",)),
        **common,
    )
    distil = dataclasses.replace(
        stage,
        name="distil",
        init=FromStage("train"),
        tasks=(
            Task(
                SentenceDistillation(length=16),
                {"bitext": Atlas("bitext", "sw")},
                {"teacher": FromStage("ranker")},
                batch_size=8,
            ),
        ),
        **common,
    )
    return (
        Rounds("again", rounds, (mined, ranker), start={"ranker": FromStage("train")}),
        EncodeTeacher("answers", "distil", "SentenceDistillation"),
        distil,
    )
