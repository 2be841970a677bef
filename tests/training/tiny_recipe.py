"""Two tiny stages on the built-in data: an English teacher, and a student that learns from it."""

from clir_jax.config import (
    Evaluate,
    FromStage,
    MeshShape,
    Optimizer,
    Run,
    Scratch,
    Stage,
    Task,
    TrainVocabulary,
)
from clir_jax.data.collections import AtlasRetrieval
from clir_jax.data.sources import Atlas
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.retriever import LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import InfoNCE


def get_config(steps: int = 12, fsdp: int = 1) -> Run:
    """InfoNCE on English questions, then optimal transport on bitext; dropout is on."""
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
    bitext = Atlas("bitext", "sw")
    common = {
        "model": LateInteraction(dimension=16, query_length=16, passage_length=32, expansion=False),
        "steps": steps,
        "checkpoint_every": 3,
        "log_every": 2,
        "optimizer": Optimizer(learning_rate=1e-3, warmup=2),
    }
    questions = {"sw": AtlasRetrieval("sw", "dev"), "en": AtlasRetrieval("en", "dev")}
    teacher = Stage(
        name="teacher",
        init=Scratch(encoder),
        vocabulary=TrainVocabulary((bitext,), size=1000),
        tasks=(Task(InfoNCE(), {"ranking": Atlas("ranking", "en")}, batch_size=8),),
        evaluate=Evaluate(questions, every=6, metrics=("nDCG@10", "R@100"), baselines=("bm25",)),
        **common,
    )
    distil = Stage(
        name="distil",
        init=FromStage("teacher"),
        tasks=(
            Task(
                TokenAlignmentDistillation(length=12),
                {"bitext": bitext},
                teachers={"teacher": FromStage("teacher", "last")},
                batch_size=8,
            ),
        ),
        evaluate=Evaluate(
            questions,
            every=6,
            metrics=("nDCG@10", "R@100"),
            best="R@100 sw",
            baselines=("teacher", "student_before"),
        ),
        **common,
    )
    return Run(name="tiny", stages=(teacher, distil), mesh=MeshShape(fsdp=fsdp))
