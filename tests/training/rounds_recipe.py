"""Two rounds whose data depend on the model, then a student that reads its teacher's answers."""

from clir_jax.config import (
    Artifact,
    EncodeTeacher,
    Evaluate,
    FromStage,
    Mine,
    OnPlateau,
    Optimizer,
    Rounds,
    Run,
    Scratch,
    Stage,
    Stop,
    Task,
    TrainVocabulary,
)
from clir_jax.data.collections import AtlasRetrieval
from clir_jax.data.sources import Atlas
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.retriever import LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import InfoNCE


def get_config() -> Run:
    """A ranker mines its own negatives twice; the second round's rate falls, and it may stop."""
    encoder = EncoderConfig(
        vocab_size=1000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    model = LateInteraction(dimension=16, query_length=16, passage_length=32, expansion=False)
    english, corpus = Atlas("ranking", "en"), Atlas("text", "en")
    vocabulary = TrainVocabulary((Atlas("bitext", "sw"),), size=1000)
    questions = {"en": AtlasRetrieval("en", "dev")}
    warm = Stage(
        name="warm",
        model=model,
        init=Scratch(encoder),
        vocabulary=vocabulary,
        tasks=(Task(InfoNCE(), {"ranking": english}, batch_size=8),),
        steps=4,
        optimizer=Optimizer(1e-3),
    )
    ranker = Stage(
        name="ranker",
        model=model,
        init=FromStage("ranker"),
        tasks=(
            Task(InfoNCE(), {"ranking": Artifact("mined")}, batch_size=8, passages=3, buckets=2),
        ),
        steps=24,
        # So fast that evaluations soon get worse; then the rate is next to nothing, and they stay
        # as they are until the stage stops.
        optimizer=Optimizer(0.03, "constant", ema=0.5, accumulate=2),
        evaluate=Evaluate(questions, every=2, metrics=("nDCG@10",), baselines=("student_before",)),
        on_plateau=OnPlateau(1e-6, patience=1),
        stop=Stop(patience=3),
        checkpoint_every=3,
        log_every=2,
    )
    mined = Mine("mined", FromStage("ranker"), english, corpus, negatives=4, depth=30)
    distil = Stage(
        name="distil",
        model=model,
        init=FromStage("ranker"),
        tasks=(
            Task(
                TokenAlignmentDistillation(length=12),
                {"bitext": Atlas("bitext", "sw")},
                teachers={"teacher": FromStage("ranker", "last")},
                batch_size=8,
            ),
        ),
        steps=6,
        optimizer=Optimizer(1e-3),
        checkpoint_every=2,
        log_every=2,
    )
    rounds = Rounds("again", 2, (mined, ranker), start={"ranker": FromStage("warm")})
    answers = EncodeTeacher("answers", "distil", "TokenAlignmentDistillation")
    return Run(name="rounds", stages=(warm, rounds, answers, distil))
