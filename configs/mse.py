"""Sentence vectors of an English teacher for other languages, at full size: XLM-R and talks.

Paper:    Reimers, Gurevych, Making Monolingual Sentence Embeddings Multilingual using Knowledge
          Distillation, EMNLP 2020, arXiv:2004.09813, with the settings of the authors' example.
Stages:   ``mse``: the student's vectors of both sides of the bitext take the place of the teacher's
          vector of the English side. ``:english_weight=0`` trains the other side only, and the
          student forgets its English.
Data:     under data_root: ``bitext/<language>/*.tsv`` (id, English, other), TED2020 in six
          languages; to measure, ``dev/{corpus.jsonl,queries.tsv,qrels.trec}``, where queries have
          the question in English in a third column.
Command:  python -m clir_jax.train --config configs/mse.py --set data_root=gs://BUCKET/data
          ``:teacher=`` any retriever of the student's width that gives one vector a text.
Hardware: meant for one host with 8 accelerators; not run.
Score:    not run yet.

Verified in the authors' example: teacher, student, mean pooling without normalisation, 128 tokens,
64 sentences a batch (32 pairs), at most 500,000 pairs a language, 5 epochs, AdamW with rate 2e-5
and epsilon 1e-6, 10,000 updates of warm-up, a thousand held-out pairs a language. Not verified: how
many pairs TED2020 has; the steps are those of 350,000 a language.

Differences from the paper: Adam corrects its bias, pairs of more than 250 characters stay in, and
the checkpoint is chosen by questions over passages, where the authors take the mean of similarity,
translation accuracy and squared error.
"""

from clir_jax.config import EncodeTeacher, Evaluate, Optimizer, Run, Stage, Task
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import BitextPairs, Retrieval
from clir_jax.data.sources import Mixture
from clir_jax.models.retriever import Dense
from clir_jax.objectives.sentences import SentenceDistillation

_LANGUAGES = ("ar", "de", "es", "fr", "it", "tr")
_HELD_OUT, _MOST = 1_000, 500_000


def get_config(
    model: str = "xlm-roberta-base",
    teacher: str = "sentence-transformers/bert-base-nli-stsb-mean-tokens",
    english_weight: float = 1.0,
    seed: int = 0,
) -> Run:
    """Encoder ``model`` with the vectors of ``teacher``."""
    bitext = Mixture(
        tuple(
            BitextTSV(f"bitext/{x}/*.tsv", x, hold_out=_HELD_OUT, limit=_MOST) for x in _LANGUAGES
        )
    )
    files = "dev/corpus.jsonl", "dev/queries.tsv", "dev/qrels.trec"
    dev = {"mul": Retrieval(*files, "mul"), "en": Retrieval(*files, "en", query_column=2)}
    pairs = {f"bitext.{x}": BitextPairs(f"bitext/{x}/*.tsv", x, _HELD_OUT) for x in _LANGUAGES}
    stage = Stage(
        name="mse",
        model=Dense(pooling="mean", normalize=False, query_length=128, passage_length=128),
        init=model,
        tasks=(
            Task(
                SentenceDistillation(english_weight, length=128),
                {"bitext": bitext},
                {"teacher": teacher},
                batch_size=32,
                buckets=8,
            ),
        ),
        optimizer=Optimizer(2e-5, warmup=10_000, epsilon=1e-6),
        steps=330_000,
        evaluate=Evaluate(
            {**dev, **pairs}, every=10_000, best="nDCG@10 mul", baselines=("teacher",)
        ),
        tokens_per_chunk=4_096,
        dtype="bfloat16",
    )
    answers = EncodeTeacher("answers", "mse", "SentenceDistillation")
    return Run(name="mse", stages=(answers, stage), seed=seed)
