"""A query generator from nothing, in a minute, on a laptop: for commands that need one.

Method:   a small T5 with random weights learns to ask the question of a passage, in English and in
          the language. Nothing is pretrained: see ``configs/quick.py`` for mT5.
Data:     the built-in Atlas (Unicode CLDR): its training questions, with their passages.
Command:  python -m clir_jax.train --config configs/quickstart_generator.py:language=sw \\
            --run-dir runs/generator
Hardware: 2 CPU cores, about a minute.
Score:    its questions are sentences of the language and of the right kind, but mostly about
          another place: written for 200 passages, 9 % of the Swahili and 15 % of the English ones
          find their passage among BM25's first ten (clir_jax.generate --round-trip bm25).
"""

from clir_jax.config import Optimizer, Run, Scratch, Stage, Task, TrainVocabulary
from clir_jax.data.sources import Atlas
from clir_jax.models.generator import Generator
from clir_jax.models.t5_config import T5Config
from clir_jax.objectives.generation import SequenceLikelihood

_VOCABULARY = 4000


def get_config(language: str = "sw", seed: int = 0) -> Run:
    """A generator of questions in ``language`` and in English."""
    asked = Atlas("ranking", language)
    generator = Generator(
        source_length=64,
        target_length=24,
        prompt="{language}: {passage}",
        languages=(language, "en"),
    )
    t5 = T5Config(
        vocab_size=_VOCABULARY,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    stage = Stage(
        name="generator",
        model=generator,
        init=Scratch(t5),
        vocabulary=TrainVocabulary((asked, Atlas("text", "en")), size=_VOCABULARY, lowercase=False),
        tasks=(Task(SequenceLikelihood(), {"ranking": asked}, batch_size=32),),
        optimizer=Optimizer(learning_rate=2e-3, warmup=30),
        steps=300,
    )
    return Run(name=f"generator-{language}", stages=(stage,), seed=seed)
