"""One tiny stage that measures nothing: what processes are started, stopped and resumed with."""

from clir_jax.config import Optimizer, Run, Scratch, Stage, Task, TrainVocabulary
from clir_jax.data.sources import Atlas
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE


def get_config() -> Run:
    """Far between checkpoints, so that only SIGTERM makes one before the end."""
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
    return Run(name="processes", stages=(stage,))
