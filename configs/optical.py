"""OPTICAL-style distillation at full size: XLM-R, MS MARCO, any language with bitext.

Paper:    Huang, Yu, Allan, Improving Cross-lingual Information Retrieval on Low-Resource
          Languages via Optimal Transport Distillation, WSDM 2023, arXiv:2301.12566; what is
          reconstructed is named in ``clir_jax.objectives.alignment.TokenAlignmentDistillation``.
Teacher:  ColBERT on XLM-R (pairwise softmax, 32/180 tokens, 128 dimensions), English MS MARCO
          triples.
Student:  an encoder of questions that starts as the teacher and reads the bitext of ``language``;
          passages stay those of the teacher, so one English index serves every language. The model
          of the run is ``query/`` and ``passage/``.
Data:     under data_root: ``msmarco/triples.train.small.tsv`` (query, positive, negative passage,
          tab-separated), ``bitext/<language>/*.tsv`` (id, English, other; OPUS, NLLB or your own,
          10k to 1M pairs), and to choose checkpoints
          ``dev/<language>/{corpus.jsonl,queries.tsv,qrels.trec}``.
Command:  python -m clir_jax.train --config configs/optical.py:language=so \
            --set data_root=gs://BUCKET/data
Hardware: meant for one host with 8 accelerators; not run.
Score:    the paper's tables are not available to us; no figure is expected.
"""

from clir_jax.config import Evaluate, FromStage, Optimizer, Run, Stage, Task
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import Retrieval
from clir_jax.data.rankings import TriplesTSV
from clir_jax.models.retriever import LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import PairwiseSoftmax
from clir_jax.ops.alignment import Sinkhorn


def get_config(language: str = "so", model: str = "xlm-roberta-base", seed: int = 0) -> Run:
    """English teacher, then its student in ``language``."""
    retriever = LateInteraction()
    dev = {
        name: Retrieval(
            f"dev/{name}/corpus.jsonl", f"dev/{name}/queries.tsv", f"dev/{name}/qrels.trec", name
        )
        for name in (language, "en")
    }
    teacher = Stage(
        name="teacher",
        model=retriever,
        init=model,
        tasks=(
            Task(
                PairwiseSoftmax(),
                {"ranking": TriplesTSV("msmarco/triples.train.small.tsv")},
                batch_size=256,
                passages=2,
            ),
        ),
        optimizer=Optimizer(learning_rate=1e-5, warmup=1000, clip_norm=2.0),
        steps=100_000,
        evaluate=Evaluate(dev, every=10_000, best="nDCG@10 en", baselines=("bm25",)),
        tokens_per_chunk=4_096,
        dtype="bfloat16",
    )
    asked = {language: dev[language]}
    distil = Stage(
        name="distil",
        model=retriever,
        init=FromStage("teacher"),
        passage_encoder="teacher",
        tasks=(
            Task(
                # English questions are the teacher's business, and its passages are kept.
                TokenAlignmentDistillation(Sinkhorn(), query_weight=1.0, length=64),
                {"bitext": BitextTSV(f"bitext/{language}/*.tsv", language)},
                teachers={"teacher": FromStage("teacher")},
                batch_size=256,
                buckets=10,
            ),
        ),
        optimizer=Optimizer(learning_rate=3e-5, warmup=1000, clip_norm=2.0),
        steps=50_000,
        evaluate=Evaluate(
            asked, every=5_000, best=f"nDCG@10 {language}", baselines=("student_before",)
        ),
        tokens_per_chunk=4_096,
        dtype="bfloat16",
    )
    return Run(name=f"optical-{language}", stages=(teacher, distil), seed=seed)
