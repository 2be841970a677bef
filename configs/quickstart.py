"""A cross-lingual retriever from nothing, in minutes, on a laptop.

Method:   OPTICAL-style: an English late-interaction teacher, then a student distilled on bitext by
          optimal transport. Both start from random weights.
Data:     the built-in Atlas (Unicode CLDR): some 1,350 English passages about the world's
          territories; how many depends on the version of Babel. The test asks combinations of
          territory and fact that no training text mentions.
Command:  python -m clir_jax.train --config configs/quickstart.py:language=sw
Hardware: 2 CPU cores.
"""

from clir_jax.config import (
    Evaluate,
    FromStage,
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
from clir_jax.ops.alignment import Sinkhorn

_VOCABULARY = 4000


def get_config(language: str = "sw", seed: int = 0) -> Run:
    """Teacher on English questions, student on English-``language`` bitext."""
    retriever = LateInteraction(dimension=64, query_length=24, passage_length=64, expansion=False)
    encoder = EncoderConfig(
        vocab_size=_VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
    )
    questions = {name: AtlasRetrieval(name, "test", "atlas") for name in (language, "en")}
    bitext = Atlas("bitext", language)
    english = Atlas("ranking", "en")
    vocabulary = TrainVocabulary((bitext, Atlas("text", "en")), size=_VOCABULARY)
    teacher = Stage(
        name="teacher",
        model=retriever,
        init=Scratch(encoder),
        vocabulary=vocabulary,
        tasks=(Task(InfoNCE(), {"ranking": english}, batch_size=32),),
        optimizer=Optimizer(learning_rate=1e-3, warmup=50),
        steps=300,
        evaluate=Evaluate(questions, best="nDCG@10 en", baselines=("bm25",)),
    )
    distil = Stage(
        name="distil",
        model=retriever,
        init=FromStage("teacher"),
        tasks=(
            Task(
                TokenAlignmentDistillation(Sinkhorn(epsilon=0.02), length=32),
                {"bitext": bitext},
                teachers={"teacher": FromStage("teacher")},
                batch_size=32,
            ),
        ),
        optimizer=Optimizer(learning_rate=1e-3, warmup=50),
        steps=500,
        evaluate=Evaluate(questions, best=f"nDCG@10 {language}", baselines=("student_before",)),
    )
    return Run(name=f"quickstart-{language}", stages=(teacher, distil), seed=seed)
